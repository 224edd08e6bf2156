"""The page: its server, which is Gradio's with a page of our own before it.

Gradio gives the API, the agents' server and what a Space needs. The page is static files that talk to the routes
below; it uploads into memory, and what a visitor gave is under a token that his page alone knows.
"""

import asyncio
import contextlib
from pathlib import Path

import gradio as gr
from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image
from starlette.requests import ClientDisconnect

from clip_koa.grading.grader import Grader
from clip_koa.webapp import examples
from clip_koa.webapp.answers import as_png, refuse
from clip_koa.webapp.api import Api
from clip_koa.webapp.bodies import BodyLimit
from clip_koa.webapp.headers import SafeHeaders
from clip_koa.webapp.readings import THUMBNAIL_SIDE, picture
from clip_koa.webapp.report import ModelFacts
from clip_koa.webapp.texts import LANGUAGES, best_language, texts_of
from clip_koa.webapp.turns import Turns
from clip_koa.webapp.uploads import UPLOAD_PATH, UPLOAD_SECONDS, Uploads
from clip_koa.webapp.visits import MEGABYTE, Limits, Refusal, Visits
from clip_koa.webapp.xrays import Xrays
from dataset_script.radiograph import read_radiograph

_HERE = Path(__file__).parent
_SWEEP_SECONDS = 1.0
_BEAT_SECONDS = 15.0  # between two signs of life on an open connection


def build_page(
    grader: Grader, model: ModelFacts, uploads: Path, limits: Limits, example_folder: Path
) -> tuple[gr.Server, dict]:
    """The server and the settings to launch it with.

    Args:
        grader: grades and explains.
        model: what reports say of it.
        uploads: an empty folder for the files of the API.
        limits: what visitors may use.
        example_folder: where the examples lie, if they do.
    """
    server = gr.Server(title="CLIP-KOA", docs_url=None, redoc_url=None, openapi_url=None)
    page = _Page(grader, model, Uploads(uploads, limits), limits, examples.find_examples(example_folder))
    page.add_to(server)
    server.add_middleware(BodyLimit, limits=limits)
    server.add_middleware(SafeHeaders)
    settings = {
        "max_file_size": limits.file_bytes, "share": False, "run_history": False, "ssr_mode": False, "quiet": True,
        "app_kwargs": {"lifespan": page.lifespan},
    }  # fmt: skip
    return server, settings


class _Page:
    """What the routes of the page, its visits and its uploads do."""

    def __init__(self, grader: Grader, model: ModelFacts, uploads: Uploads, limits: Limits, found: list):
        self.grader, self.model, self.uploads = grader, model, uploads
        self.turns = Turns()
        self.visits = Visits(limits, on_end=self.turns.drop)
        self.examples = {example.name: example for example in found}
        self.api = Api(grader, self.turns, uploads)
        self.xrays = Xrays(grader, model, self.turns, self.visits, self.examples)
        self.can_find = grader.framing == "auto"
        if self.can_find:
            _ = grader.model.beside.locator  # a damaged one is told now
        blank = Image.new("L", (256, 256))  # the first pass through a model takes longer: no visitor waits for it
        self.turns.submit("start", lambda: grader.model.explain(blank)).result()
        environment = Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=select_autoescape())
        self.template = environment.get_template("page.html")

    def add_to(self, server: gr.Server) -> None:
        """Registers the routes, before Gradio's."""
        server.mount("/page", StaticFiles(directory=_HERE / "static"))
        for method, path, answer in (
            ("GET", "/", self.home),
            ("GET", "/texts/{language}", self.texts),
            ("GET", "/examples/{name}", self.example_thumbnail),
            ("POST", "/visit", self.open_visit),
            ("GET", "/visit/{token}/alive", self.alive),
            ("POST", "/visit/{token}/leave", self.leave),
            ("POST", UPLOAD_PATH, self.take_api_upload),
            *self.xrays.routes(),
        ):
            server.add_api_route(path, answer, methods=[method], response_model=None)
        server.add_exception_handler(Refusal, refuse)
        self.api.add_to(server)

    @contextlib.asynccontextmanager
    async def lifespan(self, app):
        """While the server runs, visits that are over are emptied."""

        async def sweep():
            while True:
                self.visits.sweep()
                await asyncio.to_thread(self.uploads.sweep)
                await asyncio.sleep(_SWEEP_SECONDS)

        sweeper = asyncio.create_task(sweep())
        yield
        sweeper.cancel()
        self.turns.close()

    async def home(self, request: Request, lang: str = "") -> HTMLResponse:
        """The page itself, in the language of `lang` or of the browser."""
        language = lang if lang in LANGUAGES else best_language(request.headers.get("accept-language", ""))
        limits = self.visits.limits
        values = {"megabytes": limits.file_bytes // MEGABYTE, "minutes": f"{limits.idle_seconds / 60:g}"}
        text = texts_of(language)
        shown = [
            (example.name, f"KL{example.grade}", text[f"grade_{example.grade}"], example.laterality)
            for example in self.examples.values()
        ]
        return HTMLResponse(
            self.template.render(
                text=text, language=language, languages=LANGUAGES, values=values, examples=shown, limits=limits,
                level=f"{100 * self.model.level:.0f}", can_find=self.can_find,
            )
        )  # fmt: skip

    async def texts(self, language: str) -> JSONResponse:
        """All texts of a language."""
        return JSONResponse(texts_of(language))

    async def example_thumbnail(self, name: str) -> Response:
        """An example in small."""
        example = self.examples.get(name)
        if example is None:
            return Response(status_code=404)
        return as_png(
            await asyncio.to_thread(lambda: picture(read_radiograph(example.path).image, 2 * THUMBNAIL_SIDE))
        )

    async def open_visit(self) -> dict:
        """A new visit; the page keeps its token in a variable and nowhere else."""
        return {"token": self.visits.open().token}

    async def alive(self, token: str) -> StreamingResponse:
        """A connection that stays open as long as the page: when it breaks, the visitor has left."""
        visit = self.visits.find(token, in_use=False)  # a page that is merely open

        async def beats():
            with self.visits.connection(visit):
                yield "retry: 1000\n\n"
                while not visit.ended.is_set():
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(visit.ended.wait(), _BEAT_SECONDS)
                    yield "event: ended\ndata:\n\n" if visit.ended.is_set() else ": still here\n\n"

        return StreamingResponse(beats(), media_type="text/event-stream")

    async def leave(self, token: str) -> Response:
        """The page was closed."""
        self.visits.end(token)
        return Response(status_code=204)

    async def take_api_upload(self, request: Request) -> Response:
        """Gradio's upload, into a folder that nobody can guess."""
        try:
            return JSONResponse(await asyncio.wait_for(self.uploads.take(request), UPLOAD_SECONDS))
        except (ClientDisconnect, asyncio.TimeoutError):
            return Response(status_code=400)
