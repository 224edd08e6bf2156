"""What programs and agents call: `grade` and `explain`, through gradio_client or Gradio's MCP server."""

from typing import TypedDict

import gradio as gr

from clip_koa.grading.grader import GradedXray, Grader
from clip_koa.webapp.turns import Turns
from clip_koa.webapp.uploads import Uploads
from dataset_script.radiograph import Radiograph, RadiographError, read_radiograph


class GradeAnswer(TypedDict):
    """What `grade` answers. Probabilities are of the grades 0 to 4, of X-ray and mirror image averaged."""

    file: str
    grade: int
    name: str
    meaning: str
    probabilities: list[float]
    mirror_probabilities: list[float]
    confidence_set: list[int]
    osteoarthritis_probability: float
    expected_grade: float
    flip_agreement: bool
    laterality: str
    warnings: list[str]


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

    def grade(self, file: gr.FileData, request: gr.Request) -> GradeAnswer:
        """Grade knee osteoarthritis on an X-ray cropped to one knee (Kellgren-Lawrence, 0 to 4). Research only.

        Args:
            file: a frontal knee X-ray as PNG, JPEG, WebP, TIFF, BMP or DICOM, neither smoothed nor equalised.

        Returns:
            Grade, its name and meaning, probabilities of the grades, the confidence set, and warnings, which say
            where the grade may mean nothing.
        """
        radiograph = self._read(file)
        return _answer(self._run(request, lambda: self.grader.grade_radiograph(radiograph)))

    def explain(self, file: gr.FileData, against: int | None = None, request: gr.Request = None) -> gr.FileData:
        """Show which parts of a knee X-ray speak for its grade: the X-ray (PNG) under a heat map. Research only.

        Args:
            file: as for grade.
            against: another grade, 0 to 4: the map then shows what speaks for the grade rather than for this one.
        """
        radiograph = self._read(file)

        def draw():
            grade = self.grader.grade_radiograph(radiograph).grade.grade
            return self.grader.explain_picture(radiograph.image, grade, against).overlay()

        try:
            picture = self._run(request, draw)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        path = self.uploads.place("heat_map.png")
        picture.save(path)
        return gr.FileData(path=str(path), orig_name=path.name, mime_type="image/png")

    def _read(self, file: dict) -> Radiograph:
        try:
            content, name = self.uploads.read(file["path"])
            return read_radiograph(content, name=name)
        except (RadiographError, FileNotFoundError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    def _run(self, request: gr.Request | None, job):
        return self.turns.submit(("api", getattr(request, "session_hash", None)), job).result()


def _answer(xray: GradedXray) -> GradeAnswer:
    grade = xray.grade
    return GradeAnswer(
        file=xray.file,
        grade=grade.grade,
        name=grade.name,
        meaning=grade.meaning,
        probabilities=list(grade.probabilities),
        mirror_probabilities=list(grade.mirror_probabilities),
        confidence_set=list(grade.confidence_set),
        osteoarthritis_probability=grade.osteoarthritis_probability,
        expected_grade=grade.expected_grade,
        flip_agreement=grade.flip_agreement,
        laterality=xray.laterality,
        warnings=list(xray.warnings),
    )
