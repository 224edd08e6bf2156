"""What programs and agents call: `grade` and `explain`, through gradio_client or Gradio's MCP server."""

from pathlib import Path
from typing import Literal, TypedDict

import gradio as gr

from clip_koa.grading.grader import Grader
from clip_koa.webapp.knees import read_film
from clip_koa.webapp.readings import Film, Reading
from clip_koa.webapp.turns import Turns
from clip_koa.webapp.uploads import Uploads
from dataset_script.radiograph import RadiographError, read_radiograph


class KneeAnswer(TypedDict):
    """What `grade` answers of a knee. Probabilities are of the grades 0 to 4, of X-ray and mirror image averaged."""

    side: str  # R, L, or empty where it is not known; B for both knees in an X-ray that is graded as it is
    side_assumed: bool  # whether the side is only that of films as they are usually shown
    box: list[int] | None  # left, top, right, bottom in pixels; None where the X-ray is graded as it is
    grade: int
    name: str
    meaning: str
    probabilities: list[float]
    mirror_probabilities: list[float]
    confidence_set: list[int]
    osteoarthritis_probability: float
    expected_grade: float
    flip_agreement: bool
    ways: list[str]
    warnings: list[str]


class Ungraded(TypedDict):
    """A knee, or a whole X-ray, that has no grade, and why."""

    side: str
    box: list[int] | None
    reason: str


class FilmAnswer(TypedDict):
    """What `grade` answers: a knee each, right knee first, and what has no grade."""

    file: str
    knees: list[KneeAnswer]
    not_graded: list[Ungraded]


class Api:
    """The functions of the API. Each caller waits in line as a visitor of the page does.

    Args:
        grader: grades and explains.
        turns: the model's worker.
        uploads: where its files lie.
    """

    def __init__(self, grader: Grader, turns: Turns, uploads: Uploads):
        self.grader, self.turns, self.uploads = grader, turns, uploads

    def add_to(self, server: gr.Server) -> None:
        """Registers the functions."""
        for function in (self.grade, self.explain):
            server.api(function, name=function.__name__, concurrency_limit=20)

    def grade(
        self, file: gr.FileData, framing: Literal["auto", "as_is"] = "auto", request: gr.Request = None
    ) -> FilmAnswer:
        """Grade knee osteoarthritis on a frontal X-ray of one or both knees (Kellgren-Lawrence). Research only.

        Args:
            file: a frontal knee X-ray as PNG, JPEG, WebP, TIFF, BMP or DICOM, neither smoothed nor equalised.
            framing: auto finds the knees; as_is takes an X-ray that is cropped to one knee as it is.

        Returns:
            For each knee, right knee first: its side and box, grade, name and meaning, probabilities of the grades,
            the confidence set, and warnings, which say where the grade may mean nothing. What has no grade stands in
            not_graded, with the reason.
        """
        readings = self._run(request, file, lambda: self._read(file, framing))
        return FilmAnswer(
            file=readings[0].film.radiograph.source,
            knees=[_answer(reading) for reading in readings if not reading.trouble],
            not_graded=[_refused(reading) for reading in readings if reading.trouble],
        )

    def explain(
        self,
        file: gr.FileData,
        against: int | None = None,
        framing: Literal["auto", "as_is"] = "auto",
        side: Literal["", "R", "L"] = "",
        request: gr.Request = None,
    ) -> gr.FileData:
        """Show which parts of a knee X-ray speak for its grade: the knee (PNG) under a heat map. Research only.

        Args:
            file: as for grade.
            against: another grade, 0 to 4: the map then shows what speaks for the grade rather than for this one.
            framing: as for grade.
            side: R or L, where the X-ray shows both knees; otherwise the first knee that grade gives.
        """

        def draw() -> Path:
            reading = _choose(self._read(file, framing), side)
            overlay = self.grader.explain_picture(reading.image, reading.xray.grade.grade, against).overlay()
            path = self.uploads.place("heat_map.png")
            overlay.save(path)
            return path

        try:
            path = self._run(request, file, draw)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return gr.FileData(path=str(path), orig_name=path.name, mime_type="image/png")

    def _read(self, file: dict, framing: str) -> list[Reading]:
        """The readings of an upload, which is decoded only here, in its turn: those that wait take no memory."""
        try:
            content, name = self.uploads.read(file["path"])
            film = Film(read_radiograph(content, name=name))
        except (RadiographError, FileNotFoundError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        return read_film(self.grader, film, framing)

    def _run(self, request: gr.Request | None, file: dict, job):
        with self.uploads.held(file["path"]):
            return self.turns.submit(("api", getattr(request, "session_hash", None)), job).result()


def _choose(readings: list[Reading], side: str) -> Reading:
    """The knee of a side, or the first one; `ValueError` where it has no grade."""
    asked = [reading for reading in readings if side in ("", reading.laterality)]
    if not asked:
        raise ValueError(f"side={side!r}: {readings[0].xray.file} shows no knee of that side.")
    graded = [reading for reading in asked if not reading.trouble]
    if not graded:
        raise ValueError(_refused(asked[0])["reason"])
    return graded[0]


def _refused(reading: Reading) -> Ungraded:
    grade = reading.xray.grade
    box = list(grade.box) if grade and grade.box else None
    return Ungraded(side=reading.laterality, box=box, reason=reading.xray.reason)


def _answer(reading: Reading) -> KneeAnswer:
    grade = reading.xray.grade
    return KneeAnswer(
        side=reading.laterality,
        side_assumed=grade.side_assumed,
        box=list(grade.box) if grade.box else None,
        grade=grade.grade,
        name=grade.name,
        meaning=grade.meaning,
        probabilities=list(grade.probabilities),
        mirror_probabilities=list(grade.mirror_probabilities),
        confidence_set=list(grade.confidence_set),
        osteoarthritis_probability=grade.osteoarthritis_probability,
        expected_grade=grade.expected_grade,
        flip_agreement=grade.flip_agreement,
        ways=list(grade.ways),
        warnings=list(reading.xray.warnings),
    )
