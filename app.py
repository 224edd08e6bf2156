"""A page in the browser that grades knee X-rays: drop them, read grade, certainty and heat map, keep a report.

    python app.py

Where --model does not name one, the model is that of the environment variable CLIP_KOA_MODEL, on a Space the one that
the card beside this file names (`models`), else the released one. The page works offline, sends nothing anywhere and
keeps nothing of a visit. Research only, no medical device.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
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


def positive(kind: type):
    """An argparse type: a number above zero."""

    def parse(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: it must be above 0.")
        return value

    parse.__name__ = kind.__name__  # what argparse calls it
    return parse


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
    parser.add_argument("--max-visitors", type=positive(int), default=100, help="at a time (default: 100)")
    parser.add_argument(
        "--keep-minutes", type=positive(float), default=60,
        help="X-rays of a visit that nobody uses are forgotten after so many minutes (default: 60)",
    )  # fmt: skip
    parser.add_argument(
        "--examples", type=Path, default=Path(__file__).with_name("examples"),
        help="folder of the X-rays that a visitor may try (default: examples/)",
    )  # fmt: skip
    parser.add_argument("--mcp", action="store_true", help="also serve agents, over the Model Context Protocol")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Serves the page until it is stopped; returns the exit status."""
    options = parse_options(arguments)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    stopped = threading.Event()
    # Without it the process would end where it stands, and leave its temporary folder.
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="clip-koa-", ignore_cleanup_errors=True) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # read when gradio is imported
        try:
            from clip_koa.webapp.page import build_page
            from clip_koa.webapp.report import model_facts
            from clip_koa.webapp.visits import Limits

            if options.mcp:
                import mcp  # noqa: F401
        except ModuleNotFoundError as error:
            extra = "mcp" if error.name == "mcp" else "app"
            print(f"app.py needs {error.name}: pip install 'clip-koa[{extra}]'.", file=sys.stderr)
            return 2
        from clip_koa.grading.grader import Grader

        try:
            grader = Grader(options.model, options.level)
        except (OSError, ValueError) as error:
            print(f"app.py: {error}", file=sys.stderr)
            return 2
        facts = model_facts(options.model, grader, options.level)
        limits = Limits(visitors=options.max_visitors, idle_seconds=60 * options.keep_minutes)
        server, settings = build_page(grader, facts, Path(uploads), limits, options.examples)
        try:
            _, address, _ = server.launch(
                server_name=options.host, server_port=options.port, mcp_server=options.mcp, prevent_thread_lock=True,
                **settings,
            )  # fmt: skip
        except OSError as error:
            print(f"app.py: {error}", file=sys.stderr)
            return 2
        print(f"The page is at {address}. It ends with Ctrl+C.", flush=True)
        try:
            stopped.wait()
        except KeyboardInterrupt:
            print("The page has ended.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
