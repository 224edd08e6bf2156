"""The X-rays of a visit: graded, framed otherwise, shown, reported, forgotten."""

import asyncio
import logging
from collections.abc import Callable

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from PIL import ImageOps
from starlette.requests import ClientDisconnect

from clip_koa.grading.grader import FRAMINGS, GradedXray, Grader
from clip_koa.webapp.answers import as_file, as_png
from clip_koa.webapp.examples import Example
from clip_koa.webapp.knees import check_box, grade_box, read_film, with_box
from clip_koa.webapp.readings import THUMBNAIL_SIDE, Film, Reading, as_csv, describe, heat_layer, picture
from clip_koa.webapp.report import ModelFacts, Report, render_html, render_pdf
from clip_koa.webapp.texts import LANGUAGES
from clip_koa.webapp.turns import Turns
from clip_koa.webapp.uploads import UPLOAD_SECONDS, plain_name
from clip_koa.webapp.visits import Refusal, Visit, Visits
from dataset_script.radiograph import Radiograph, RadiographError, read_radiograph

_REPORTS = {"html": (render_html, "text/html; charset=utf-8"), "pdf": (render_pdf, "application/pdf")}
_LOG = logging.getLogger(__name__)


class Xrays:
    """What the routes of X-rays do. A visit's state is touched in the event loop only, the model in the worker only.

    Args:
        grader: grades and explains.
        model: what reports say of it.
        turns: the model's worker.
        visits: those that are open.
        examples: the X-rays that a visitor may try, by name.
    """

    def __init__(self, grader: Grader, model: ModelFacts, turns: Turns, visits: Visits, examples: dict[str, Example]):
        self.grader, self.model, self.turns, self.visits, self.examples = grader, model, turns, visits, examples
        self.cut = grader.model.beside.preprocess.cut

    def routes(self) -> list[tuple[str, str, Callable]]:
        """Method, path and what answers."""
        return [
            ("POST", "/visit/{token}/xrays", self.take_upload),
            ("POST", "/visit/{token}/examples/{name}", self.take_example),
            ("POST", "/visit/{token}/xrays/{xray}/box", self.take_box),
            ("POST", "/visit/{token}/xrays/{xray}/framing", self.take_framing),
            ("DELETE", "/visit/{token}/xrays/{xray}", self.forget),
            ("GET", "/visit/{token}/xrays/{xray}/{view}.png", self.picture),
            ("GET", "/visit/{token}/xrays/{xray}/heat", self.heat),
            ("GET", "/visit/{token}/xrays/{xray}/report.{kind}", self.report),
            ("GET", "/visit/{token}/table.csv", self.table),
        ]

    async def take_upload(self, request: Request, token: str, name: str = "X-ray", framing: str = "auto") -> Response:
        """Grades a file, which is the request's body; answers with its knees when that is done."""
        visit = self.visits.find(token)
        with self.visits.upload(visit) as intake:
            content = bytearray()

            async def receive():
                async for chunk in request.stream():
                    intake.take(len(chunk))
                    content.extend(chunk)

            try:
                await asyncio.wait_for(receive(), UPLOAD_SECONDS)
            except (ClientDisconnect, asyncio.TimeoutError):
                return Response(status_code=400)
            name = plain_name(name) or "X-ray"
            content = bytes(content)
            readings = await self._run(visit, lambda: self._read(content, name, intake.number, framing))
            return await self._keep(visit, readings)

    async def take_example(self, token: str, name: str, framing: str = "auto") -> Response:
        """Grades an example."""
        visit = self.visits.find(token)
        example = self.examples.get(name)
        if example is None:
            return Response(status_code=404)

        def read() -> list[Reading]:
            radiograph = Radiograph(read_radiograph(example.path).image, example.name, example.laterality)
            return read_film(self.grader, Film(radiograph, intake.number, example.grade), framing)

        with self.visits.upload(visit) as intake:
            return await self._keep(visit, await self._run(visit, read))

    async def take_box(
        self, token: str, xray: str, left: int, top: int, right: int, bottom: int, new: bool = False
    ) -> Response:
        """Grades the knee in a box that the reader moved, or placed beside; answers with all of the film."""
        visit = self.visits.find(token)
        reading = self._find(visit, xray)
        box = left, top, right, bottom
        check_box(box, reading.film.image.size)
        moved = None if new or not reading.knee else reading
        placed = await self._run(visit, lambda: grade_box(self.grader, reading.film, box, moved), urgent=True)
        self._find(visit, xray)  # it may have been forgotten meanwhile
        return await self._keep(visit, with_box(visit.of_film(reading.film), placed, moved))

    async def take_framing(self, token: str, xray: str, to: str) -> Response:
        """Looks for the knees of a film anew, or takes it as it is; answers with all of the film."""
        visit = self.visits.find(token)
        reading = self._find(visit, xray)
        if to not in FRAMINGS:
            return Response(status_code=404)
        readings = await self._run(visit, lambda: read_film(self.grader, reading.film, to), urgent=True)
        self._find(visit, xray)
        return await self._keep(visit, readings)

    async def forget(self, token: str, xray: str) -> Response:
        """Removes an X-ray from a visit."""
        self.visits.find(token).readings.pop(xray, None)
        return Response(status_code=204)

    async def picture(self, token: str, xray: str, view: str) -> Response:
        """The X-ray of the knee, its mirror image or its thumbnail; or the film that it lies in."""
        reading = self._find(self.visits.find(token), xray)
        image = reading.film.image if view == "film" else await asyncio.to_thread(lambda: reading.image)
        if view in ("xray", "film"):
            return as_png(await asyncio.to_thread(picture, image))
        small = await asyncio.to_thread(picture, image, 2 * THUMBNAIL_SIDE)
        return as_png(ImageOps.mirror(small) if view == "mirror" else small)

    async def heat(self, token: str, xray: str, against: int | None = None) -> Response:
        """The heat map to lay over the X-ray."""
        visit = self.visits.find(token)
        reading = self._find(visit, xray, graded=True)
        return as_png(await self._map(visit, reading, against, heat_layer))

    async def report(
        self, token: str, xray: str, kind: str, lang: str = "en", against: int | None = None, side: str | None = None
    ) -> Response:
        """The report of an X-ray, as a file to keep."""
        visit = self.visits.find(token)
        reading = self._find(visit, xray, graded=True)
        if kind not in _REPORTS:
            return Response(status_code=404)
        render, media_type = _REPORTS[kind]
        laterality = side if side in ("", "L", "R") and reading.laterality != "B" else reading.laterality
        explanation = await self._map(visit, reading, against)
        language = lang if lang in LANGUAGES else "en"
        report = Report(reading, explanation, self.model, language, laterality)
        content = await asyncio.to_thread(render, report)
        return as_file(content, f"{report.file_name}.{kind}", media_type)

    async def table(self, token: str) -> Response:
        """The visit's X-rays as the table of `clip-koa grade`."""
        readings = self.visits.find(token).readings.values()
        return as_file(as_csv(readings), "clip-koa.csv", "text/csv; charset=utf-8")

    async def _keep(self, visit: Visit, readings: list[Reading]) -> Response:
        """Answers with all readings of an X-ray, which are kept if it could be read."""
        if readings[0].film is not None:
            self.visits.keep(visit, readings)
        can_find = self.grader.framing == "auto"
        knees = await asyncio.to_thread(lambda: [describe(one, self.cut, can_find) for one in readings])
        return JSONResponse({"knees": knees})

    async def _map(self, visit: Visit, reading: Reading, against: int | None, finish=lambda explanation: explanation):
        """A heat map, and what `finish` makes of it.

        Raises:
            Refusal: as `_run`, or a grade that cannot be compared, of a request by hand.
        """

        def explain():
            try:
                return finish(self.grader.explain_picture(reading.image, reading.xray.grade.grade, against))
            except ValueError as error:
                raise Refusal("heat_failed", 400) from error

        return await self._run(visit, explain, urgent=True)

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
        except Refusal:
            raise
        except Exception as error:
            _LOG.exception("An X-ray could not be graded.")
            raise Refusal("failed", 500) from error

    def _read(self, content: bytes, name: str, number: int, framing: str) -> list[Reading]:
        try:
            return read_film(self.grader, Film(read_radiograph(content, name=name), number), framing)
        except RadiographError as error:
            return [Reading(GradedXray(name, error=str(error)))]

    def _find(self, visit: Visit, xray: str, *, graded: bool = False) -> Reading:
        reading = visit.readings.get(xray)
        if reading is None:
            raise Refusal("ended", 410)
        if graded and reading.trouble:
            raise Refusal("heat_failed", 400)
        return reading
