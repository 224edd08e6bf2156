"""The npm packages that the page in the browser needs: pinned, fetched by npm, taken only where their digest is right.

    python -m clip_koa.browser.packages FOLDER

fetches them into a folder.
"""

import argparse
import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from dataset_script.exit_status import main_of
from dataset_script.files import write_file
from modeling_clip_koa import CLIPKOAError

PROJECT = Path(__file__).parents[2]
FETCHED = PROJECT / ".cache" / "npm"
_SECONDS = 600


class PackageError(CLIPKOAError, RuntimeError):
    """An npm package that cannot be had, or is not the one that is pinned; the message says what to do."""


@dataclass(frozen=True)
class Package:
    """A pinned package of npm, and what is taken of it."""

    name: str
    version: str
    integrity: str  # SHA-512 of its archive in base64, as package-lock.json has it
    licence: str
    files: tuple[str, ...]  # names in the archive, below `package/`

    @property
    def archive(self) -> str:
        """The name of its archive, as npm writes it."""
        return f"{self.name}-{self.version}.tgz"


PACKAGES = (
    Package(
        "onnxruntime-web", "1.30.0",
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        "MIT, Copyright (c) Microsoft Corporation",
        ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
    ),
    Package(
        "dicom-parser", "1.8.21",
        "lYCweHQDsC8UFpXErPlg86Px2A8bay0HiUY+wzoG3xv5GzgqVHU3lziwSc/Gzn7VV7y2KeP072SzCviuOoU02w==",
        "MIT, Copyright (c) 2017 Chris Hafey",
        ("dist/dicomParser.min.js",),
    ),
)  # fmt: skip


def fetch(folder: Path = FETCHED) -> list[Path]:
    """The archives of `PACKAGES` in a folder; those that do not lie there are fetched by npm.

    Raises:
        PackageError: npm is missing or cannot fetch one, or an archive is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_fetch_one(package, folder) for package in PACKAGES]


def take_files() -> dict[str, bytes]:
    """The files of all packages by their names without folders; raises as `fetch`."""
    found = {}
    for package, archive in zip(PACKAGES, fetch(), strict=True):
        with tarfile.open(archive) as opened:
            for name in package.files:
                member = opened.extractfile(f"package/{name}")
                if member is None:
                    raise PackageError(f"{archive} holds no {name}: pin a version that does.")
                found[Path(name).name] = member.read()
    return found


def describe() -> str:
    """What was taken from where, for whoever gets the files."""
    lines = ["Taken as they are from npm, each archive checked against its SHA-512:", ""]
    for package in PACKAGES:
        lines += [
            f"- {package.name} {package.version} ({package.licence}; https://www.npmjs.com/package/{package.name}): "
            + ", ".join(Path(name).name for name in package.files),
            f"  sha512-{package.integrity}",
        ]
    return "\n".join(lines) + "\n\n" + _LICENCE


def _fetch_one(package: Package, folder: Path) -> Path:
    archive = folder / package.archive
    if not archive.is_file():
        write_file(archive, _pack(package, folder))
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != package.integrity:
        raise PackageError(f"{archive} is not {package.name} {package.version} as pinned: remove it and try again.")
    return archive


def _pack(package: Package, folder: Path) -> bytes:
    """The archive of a package, as npm fetches it."""
    npm, asked = shutil.which("npm"), f"{package.name}@{package.version}"
    if npm is None:
        raise PackageError(
            f"{asked} is needed, and npm is missing: install Node.js, or put its archive into {folder}."
        )
    place = folder / f".{package.name}.fetching"
    place.mkdir(exist_ok=True)
    try:
        result = subprocess.run(
            [npm, "pack", asked, "--silent", "--ignore-scripts", "--pack-destination", str(place)],
            capture_output=True, text=True, timeout=_SECONDS,
        )  # fmt: skip
        if result.returncode or not (place / package.archive).is_file():
            reason = (result.stderr.strip() or "it gave no archive").splitlines()[0][:200]
            raise PackageError(f"npm cannot fetch {asked}: {reason}")
        return (place / package.archive).read_bytes()
    except subprocess.TimeoutExpired:
        raise PackageError(f"npm did not fetch {asked} in {_SECONDS} seconds: try again.") from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


_LICENCE = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction, including without
limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
Software, and to permit persons to whom the Software is furnished to do so, subject to the following
conditions:

The above copyright notices and this permission notice shall be included in all copies or substantial portions
of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED
TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL
THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER
DEALINGS IN THE SOFTWARE.
"""


def run(arguments: list[str] | None, prog: str) -> None:
    """Fetches the packages; see the module's text."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description="Fetches the page's packages of npm.")
    parser.add_argument("folder", nargs="?", type=Path, default=FETCHED)
    for path in fetch(parser.parse_args(arguments).folder):
        print(path)


main = main_of("clip_koa.browser.packages", run)


if __name__ == "__main__":
    sys.exit(main())
