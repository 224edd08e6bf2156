"""Gives a release whose weights stay the words and the examples of today.

    python -m clip_koa.publishing.renew FOLDER USER/NAME

The card is written anew from the template and from what lies in the folder. How the model was trained is kept as the
card tells it, since the runs may be gone.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard

from clip_koa.evaluation.error_groups import FILE as GROUPS_FILE
from clip_koa.publishing.card import render_card
from clip_koa.publishing.card_facts import OFFICIAL, CardFacts
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.examples import PICTURE, add_examples, draw_examples, score_examples
from clip_koa.publishing.release import stored_dtype
from dataset_script.exit_status import main_of
from dataset_script.files import replaced
from modeling_clip_koa import CLIPKOAForImageClassification

_KEPT = "## Training\n"


def renewed_card(folder: Path, repo_id: str, examples: list[Path]) -> str:
    """The card of a release as it would be written today.

    Args:
        examples: its X-rays, for the widget.

    Raises:
        ReleaseError: no card that says how the model was trained, or no weights.
    """
    old = ModelCard.load(folder / "README.md")
    kept = _training(old.text)
    groups = folder / GROUPS_FILE
    facts = CardFacts(
        groups=json.loads(groups.read_text(encoding="utf-8")) if groups.is_file() else {},
        results=json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
        base_model=old.data.base_model, dataset_id=old.data.datasets, dataset=OFFICIAL,
        pictures={path.stem: b"" for path in (folder / "figures").glob("*.png")},
    )  # fmt: skip
    model = CLIPKOAForImageClassification.from_pretrained(folder)
    scores = score_examples(model, model.image_processor, examples)
    card = render_card(folder, repo_id, model, facts, stored_dtype(folder, folder), scores)
    return card.replace(_training(card), kept)


def _training(card: str) -> str:
    """The section that says how the model was trained."""
    if _KEPT not in card:
        raise ReleaseError("The release's README.md has no section on its training: publish it anew from its runs.")
    return _KEPT + card.split(_KEPT, 1)[1].split("\n## ", 1)[0]


def run(arguments: list[str] | None, prog: str) -> int:
    """Renews a release; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a release of a model trained on the data set")
    parser.add_argument("repo_id", metavar="USER/NAME", help="where it is published")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        examples = add_examples(Path(place) / "examples")
        if not examples:
            raise ReleaseError("The X-rays of examples/ are missing: renew a release in a checkout of the project.")
        if not (options.folder / PICTURE).is_file():  # another machine's would differ by roundings
            draw_examples(CLIPKOAForImageClassification.from_pretrained(options.folder), examples, options.folder)
        card = renewed_card(options.folder, options.repo_id, examples)
        shutil.rmtree(options.folder / "examples", ignore_errors=True)
        (Path(place) / "examples").rename(options.folder / "examples")
    with replaced(options.folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    return 0


main = main_of("clip_koa.publishing.renew", run)


if __name__ == "__main__":
    sys.exit(main())
