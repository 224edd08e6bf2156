"""A page in the browser that grades knee X-rays: drop them, read grade, certainty and heat map, keep a report.

    python app.py

Where --model does not name one, the model is that of the environment variable CLIP_KOA_MODEL, on a Space the one that
the card beside this file names (`models`), else the released one. The page works offline, sends nothing anywhere and
keeps nothing of a visit. Research only, no medical device.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from clip_koa import RELEASED_MODEL

MODEL_VARIABLE = "CLIP_KOA_MODEL"


def named_by_the_card() -> str | None:
    """The model in the metadata of the card beside this file, as a Space has it."""
    card = Path(__file__).with_name("README.md")
    if not card.is_file() or not card.read_text(encoding="utf-8").startswith("---"):
        return None
    from huggingface_hub import RepoCard

    models = RepoCard.load(card).data.to_dict().get("models")
    return models[0] if models else None


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(description="A page that grades knee X-rays. Research only, no medical device.")
    parser.add_argument(
        "--model", default=os.environ.get(MODEL_VARIABLE) or named_by_the_card() or str(RELEASED_MODEL),
        help=f"model folder or Hub id (default: ${MODEL_VARIABLE}, what a Space's card names, or the released one)",
    )  # fmt: skip
    parser.add_argument("--level", type=float, default=0.9, help="of the confidence sets (default: 0.9)")
    parser.add_argument("--host", help="address to listen on (default: this computer only; 0.0.0.0: all networks)")
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860 on)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Serves the page until it is stopped; returns the exit status."""
    options = parse_options(arguments)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="clip-koa-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # gone with the page
        try:
            from clip_koa.webapp.page import build_page, launch_settings
        except ModuleNotFoundError as error:
            print(f"app.py needs {error.name}: pip install 'clip-koa[app]'.", file=sys.stderr)
            return 2
        from clip_koa.grading.grader import Grader

        try:
            grader = Grader(options.model, options.level)
        except (OSError, ValueError) as error:
            print(f"app.py: {error}", file=sys.stderr)
            return 2
        name = Path(options.model).resolve().name if Path(options.model).exists() else options.model
        page = build_page(grader, name, options.level)
        page.queue(max_size=200).launch(server_name=options.host, server_port=options.port, **launch_settings())
    return 0


if __name__ == "__main__":
    sys.exit(main())
