"""Serves the page until it is stopped."""

import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from clip_koa.released import released_model
from dataset_script.pixels import CLIPKOAError

MODEL_VARIABLE = "CLIP_KOA_MODEL"
_PROJECT = Path(__file__).parents[2]  # a checkout, or a Space


@dataclass(frozen=True)
class PageSettings:
    """How the page is served.

    Attributes:
        model: model folder or Hub id; None: see `default_model`.
        level: of the confidence sets.
        host, port: to listen on; None: this computer only, the first free port from 7860 on.
        max_visitors: at a time.
        keep_minutes: X-rays of a visit that nobody uses are forgotten after so many.
        examples: folder of the X-rays that a visitor may try; None: those of the project, where they are.
        mcp: also serve agents, over the Model Context Protocol.

    Raises:
        CLIPKOAError: minutes out of range.
    """

    model: str | None = None
    level: float = 0.9
    host: str | None = None
    port: int | None = None
    max_visitors: int = 100
    keep_minutes: float = 60
    examples: Path | None = None
    mcp: bool = False

    def __post_init__(self):
        if not 0 < self.keep_minutes < float("inf"):
            raise CLIPKOAError(f"--keep_minutes {self.keep_minutes}: it must be above 0.")


def default_model() -> str:
    """The model of the environment's CLIP_KOA_MODEL, else the one that a Space's card names, else the released one.

    Raises:
        CLIPKOAError: there is none of these.
    """
    return os.environ.get(MODEL_VARIABLE) or _named_by_the_card() or released_model()


def _named_by_the_card() -> str | None:
    """The model in the metadata of the card beside app.py, as a Space has it."""
    card = _PROJECT / "README.md"
    is_card = (_PROJECT / "app.py").is_file() and card.is_file()
    if not is_card or not card.read_text(encoding="utf-8").startswith("---"):
        return None
    from huggingface_hub import RepoCard

    models = RepoCard.load(card).data.to_dict().get("models")
    return models[0] if models else None


def serve(settings: PageSettings) -> None:
    """Serves the page until Ctrl+C, SIGTERM or SIGHUP; what visitors gave it is then gone.

    Raises:
        ImportError: Gradio or another package of the page is missing.
        CheckpointError, CalibrationError: a model that cannot grade, or not at this level.
        OSError: no port that it could listen on.
    """
    model = settings.model or default_model()
    with tempfile.TemporaryDirectory(prefix="clip-koa-", ignore_cleanup_errors=True) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # read when gradio is imported
        from clip_koa.grading.grader import Grader
        from clip_koa.webapp.page import build_page
        from clip_koa.webapp.report import model_facts
        from clip_koa.webapp.visits import Limits

        if settings.mcp:
            import mcp  # noqa: F401
        grader = Grader(model, settings.level, framing="auto")
        facts = model_facts(model, grader, settings.level)
        limits = Limits(visitors=settings.max_visitors, idle_seconds=60 * settings.keep_minutes)
        examples = settings.examples or _PROJECT / "examples"
        server, launching = build_page(grader, facts, Path(uploads), limits, examples)
        _, address, _ = server.launch(
            server_name=settings.host, server_port=settings.port, mcp_server=settings.mcp, prevent_thread_lock=True,
            **launching,
        )  # fmt: skip
        print(f"The page is at {address}. It ends with Ctrl+C.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("The page has ended.", flush=True)
