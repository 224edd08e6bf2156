"""Publish a checkpoint: build its release folder, check it, show it, upload it in one commit and tag it.

    python push_to_hub.py runs/small/best USER/NAME --dry_run --output release
    python push_to_hub.py runs/small/best USER/NAME --tag v1

The token comes from `hf auth login` or HF_TOKEN. docs/publishing.md tells more. Research only, no medical device.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from clip_koa.publishing.hub import HubError, upload
from clip_koa.publishing.release import DTYPES, build_release
from clip_koa.publishing.release_check import ReleaseError, check_folder, check_loading


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(description="Publish a CLIP-KOA checkpoint on the Hugging Face Hub.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="model folder, such as runs/demo/best")
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository on the Hub, made where it is new")
    parser.add_argument("--dry_run", action="store_true", help="build and check only; upload nothing")
    parser.add_argument("--output", type=Path, help="new folder for the release (default: a temporary one)")
    parser.add_argument(
        "--evaluation", type=Path, action="append", default=[], help="folder of evaluate_checkpoint.py"
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="of the stored weights (default: the checkpoint's)")
    parser.add_argument("--base_model", help="Hub id that training started from, for the card")
    parser.add_argument("--python", action="append", default=[], help="another environment's python to load it with")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--tag", help="name of the release, as v1")
    parser.add_argument("--message", default="Release of CLIP-KOA", help="of the commit")
    options = parser.parse_args(arguments)
    try:
        validate_repo_id(options.repo_id)
    except HFValidationError as error:
        parser.error(str(error))
    if "/" not in options.repo_id:
        parser.error(f"{options.repo_id}: name the repository as USER/NAME.")
    if options.dry_run and not options.output:
        parser.error("--dry_run needs --output, a new folder to look at.")
    return options


def publish(options: argparse.Namespace, folder: Path) -> None:
    """Builds, checks, shows and uploads."""
    release = build_release(
        options.checkpoint, folder, options.repo_id, dtype=options.dtype, evaluations=tuple(options.evaluation),
        base_model=options.base_model,
    )  # fmt: skip
    machine = [f"{path}/" for path in (Path.home(), Path.cwd()) if path != Path(path.anchor)]
    secrets = (get_token() or "", str(options.checkpoint.resolve()), *machine)
    files = check_folder(folder, secrets=secrets)
    for python in (sys.executable, *options.python):
        for way, difference in check_loading(folder, release.expected, python).items():
            print(f"loads with {way}: largest difference {difference:.1g}")
    for path in files:
        print(f"{path.stat().st_size:>12,}  {path.relative_to(folder).as_posix()}")
    print(f"{sum(path.stat().st_size for path in files):>12,}  bytes in {len(files)} files for {options.repo_id}")
    if options.dry_run:
        print(f"Nothing was uploaded; the release is in {folder}.")
        return
    oid = upload(folder, files, options.repo_id, private=options.private, tag=options.tag, message=options.message)
    print(f"Published as {options.repo_id} at revision {oid}" + (f", tag {options.tag}." if options.tag else "."))


def main(arguments: list[str] | None = None) -> int:
    """Publishes; returns the exit status, 2 where it can't."""
    options = parse_options(arguments)
    try:
        if options.output:
            publish(options, options.output)
            return 0
        with tempfile.TemporaryDirectory() as folder:
            publish(options, Path(folder) / "release")
    except (HubError, OSError, ReleaseError) as error:
        print(f"push_to_hub.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
