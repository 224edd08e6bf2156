"""The page: its server, which is Gradio's with a page of our own before it.

Gradio gives the API, the agents' server and what a Space needs. The page is three static files that talk to the routes
below; it uploads into memory, and what a visitor gave is under a token that his page alone knows.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import gradio as gr
from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image, ImageOps
from starlette.requests import ClientDisconnect

from clip_koa.grading.grader import GradedXray, Grader
from clip_koa.webapp import examples
from clip_koa.webapp.api import Api
from clip_koa.webapp.headers import SafeHeaders
from clip_koa.webapp.readings import THUMBNAIL_SIDE, Reading, as_csv, describe, heat_layer, picture, png
from clip_koa.webapp.report import ModelFacts, Report, render_html, render_pdf
from clip_koa.webapp.texts import LANGUAGES, best_language, texts_of
from clip_koa.webapp.turns import Turns
from clip_koa.webapp.uploads import Uploads, plain_name
from clip_koa.webapp.visits import MEGABYTE, Limits, Refusal, Visit, Visits
from dataset_script.radiograph import Radiograph, RadiographError, read_radiograph
from modeling_clip_koa import Explanation

_HERE = Path(__file__).parent
_UPLOAD_SECONDS = 300  # an upload that takes longer is given up
_SWEEP_SECONDS = 1.0
_BEAT_SECONDS = 15.0  # between two signs of life on an open connection
_REPORTS = {"html": (render_html, "text/html; charset=utf-8"), "pdf": (render_pdf, "application/pdf")}
_LOG = logging.getLogger(__name__)


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
    server.add_middleware(SafeHeaders)
    settings = {
        "max_file_size": limits.file_bytes, "share": False, "run_history": False, "ssr_mode": False, "quiet": True,
        "app_kwargs": {"lifespan": page.lifespan},
    }  # fmt: skip
    return server, settings


class _Page:
    """What the routes do. A visit's state is touched in the event loop only, the model in the worker only."""

    def __init__(self, grader: Grader, model: ModelFacts, uploads: Uploads, limits: Limits, found: list):
        self.grader, self.model, self.uploads = grader, model, uploads
        self.turns = Turns()
        self.visits = Visits(limits, on_end=self.turns.drop)
        self.examples = {example.name: example for example in found}
        self.api = Api(grader, self.turns, uploads)
        processor = grader.model.image_processor
        self.crop_share = processor.crop_size["height"] / processor.size["shortest_edge"]
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
            ("POST", "/visit/{token}/xrays", self.take_upload),
            ("POST", "/visit/{token}/examples/{name}", self.take_example),
            ("DELETE", "/visit/{token}/xrays/{xray}", self.forget),
            ("GET", "/visit/{token}/xrays/{xray}/{view}.png", self.picture),
            ("GET", "/visit/{token}/xrays/{xray}/heat", self.heat),
            ("GET", "/visit/{token}/xrays/{xray}/report.{kind}", self.report),
            ("GET", "/visit/{token}/table.csv", self.table),
            ("POST", "/gradio_api/upload", self.take_api_upload),
        ):
            server.add_api_route(path, answer, methods=[method], response_model=None)
        server.add_exception_handler(Refusal, _refuse)
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
                level=f"{100 * self.model.level:.0f}",
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
        return _as_png(
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

    async def take_upload(self, request: Request, token: str, name: str = "X-ray") -> Response:
        """Grades a file, which is the request's body; answers when that is done."""
        visit = self.visits.find(token)
        with self.visits.upload(visit) as intake:
            content = bytearray()

            async def receive():
                async for chunk in request.stream():
                    intake.take(len(chunk))
                    content.extend(chunk)

            try:
                await asyncio.wait_for(receive(), _UPLOAD_SECONDS)
            except (ClientDisconnect, asyncio.TimeoutError):
                return Response(status_code=400)
            name = plain_name(name) or "X-ray"
            content = bytes(content)
            return await self._grade(visit, lambda: self._read(content, name), intake.number)

    async def take_example(self, token: str, name: str) -> Response:
        """Grades an example."""
        visit = self.visits.find(token)
        example = self.examples.get(name)
        if example is None:
            return Response(status_code=404)

        def read() -> Reading:
            image = read_radiograph(example.path).image
            return self._reading(Radiograph(image, example.name, example.laterality), true_grade=example.grade)

        with self.visits.upload(visit) as intake:
            return await self._grade(visit, read, intake.number)

    async def forget(self, token: str, xray: str) -> Response:
        """Removes an X-ray from a visit."""
        self.visits.find(token).readings.pop(xray, None)
        return Response(status_code=204)

    async def picture(self, token: str, xray: str, view: str) -> Response:
        """The X-ray, its mirror image or its thumbnail."""
        image = self._find(self.visits.find(token), xray).image
        if view == "xray":
            return _as_png(await asyncio.to_thread(picture, image))
        small = await asyncio.to_thread(picture, image, 2 * THUMBNAIL_SIDE)
        return _as_png(ImageOps.mirror(small) if view == "mirror" else small)

    async def heat(self, token: str, xray: str, against: int | None = None) -> Response:
        """The heat map to lay over the X-ray."""
        visit = self.visits.find(token)
        reading = self._find(visit, xray)
        layer = await self._run(visit, lambda: heat_layer(self._explain(reading, against)), urgent=True)
        return _as_png(layer)

    async def report(
        self, token: str, xray: str, kind: str, lang: str = "en", against: int | None = None, side: str | None = None
    ) -> Response:
        """The report of an X-ray, as a file to keep."""
        visit = self.visits.find(token)
        reading = self._find(visit, xray)
        if kind not in _REPORTS:
            return Response(status_code=404)
        render, media_type = _REPORTS[kind]
        laterality = side if side in ("", "L", "R") and reading.xray.laterality != "B" else reading.xray.laterality
        explanation = await self._run(visit, lambda: self._explain(reading, against), urgent=True)
        language = lang if lang in LANGUAGES else "en"
        report = Report(reading, explanation, self.model, language, laterality)
        content = await asyncio.to_thread(render, report)
        return _as_file(content, f"{report.file_name}.{kind}", media_type)

    async def table(self, token: str) -> Response:
        """The visit's X-rays as the table of `clip-koa grade`."""
        readings = self.visits.find(token).readings.values()
        return _as_file(as_csv(readings), "clip-koa.csv", "text/csv; charset=utf-8")

    async def take_api_upload(self, request: Request) -> JSONResponse:
        """Gradio's upload, into a folder that nobody can guess."""
        return JSONResponse(await self.uploads.take(request))

    async def _grade(self, visit: Visit, read: Callable[[], Reading], number: int) -> Response:
        reading = replace(await self._run(visit, read), number=number)
        if reading.xray.grade is not None:
            self.visits.keep(visit, reading)
        return JSONResponse(describe(reading, self.crop_share))

    async def _run(self, visit: Visit, job, *, urgent: bool = False):
        """What a job gives when its turn has come.

        Raises:
            Refusal: the visit ended before, or the job failed.
        """
        turn = self.turns.submit(visit.token, job, urgent=urgent)
        try:
            return await asyncio.wrap_future(turn)
        except asyncio.CancelledError as error:
            if not turn.cancelled():
                raise
            raise Refusal("ended", 410) from error
        except ValueError as error:  # a grade that cannot be compared, of a request by hand
            raise Refusal("heat_failed", 400) from error
        except Exception as error:
            _LOG.exception("An X-ray could not be graded.")
            raise Refusal("failed", 500) from error

    def _read(self, content: bytes, name: str) -> Reading:
        try:
            return self._reading(read_radiograph(content, name=name))
        except RadiographError as error:
            return Reading(GradedXray(name, error=str(error)))

    def _reading(self, radiograph: Radiograph, true_grade: int | None = None) -> Reading:
        graded = self.grader.grade_radiograph(radiograph)
        return Reading(graded, radiograph.image, radiograph.inverted, true_grade)

    def _explain(self, reading: Reading, against: int | None) -> Explanation:
        return self.grader.explain_picture(reading.image, reading.xray.grade.grade, against)

    def _find(self, visit: Visit, xray: str) -> Reading:
        if xray not in visit.readings:
            raise Refusal("ended", 410)
        return visit.readings[xray]


async def _refuse(request: Request, refusal: Refusal) -> JSONResponse:
    return JSONResponse({"refused": refusal.code, "values": refusal.values}, status_code=refusal.status)


def _as_png(image: Image.Image) -> Response:
    return Response(png(image), media_type="image/png")


def _as_file(content: bytes | str, name: str, media_type: str) -> Response:
    plain = name.encode("ascii", "replace").decode().replace('"', "_").replace("?", "_")
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name)}"
    return Response(content, media_type=media_type, headers={"content-disposition": disposition})
