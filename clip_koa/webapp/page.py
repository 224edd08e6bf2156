"""The Gradio page: drop X-rays, read grades. Nothing of a visit is kept, and nothing is sent anywhere."""

from contextlib import suppress
from pathlib import Path

import gradio as gr

from clip_koa.grading.grader import GradedXray, Grader
from clip_koa.webapp.results import STYLE, Reading, show_result
from dataset_script.radiograph import SUFFIXES, Radiograph, RadiographError, read_radiograph
from dataset_script.synthetic import GRADES, draw_knee
from modeling_clip_koa import GRADE_LABELS

MAX_UPLOAD = "50mb"
MOST_XRAYS = 50  # of one visit at a time; the oldest go first
TITLE = "CLIP-KOA: knee osteoarthritis on X-rays"
_INTRODUCTION = """
# Knee osteoarthritis, graded
Drop frontal knee X-rays, each cropped to one knee and as it was taken (neither smoothed nor equalised), and read their
Kellgren-Lawrence grade, how sure it is, and what it leans on.

**Research only.** Not a medical device: its grades must not guide the care of patients. X-rays stay on the computer
that runs this page, and are gone when you leave.
"""
_NOTHING_YET = "<p class='koa-empty'>No X-ray yet. Drop one on the left, or take a drawn example.</p>"
_PAGE_STYLE = """
.gradio-container { max-width: 82rem !important; margin: 0 auto !important; }
.koa-empty { color: var(--body-text-color-subdued); border: 1px dashed var(--border-color-primary);
  border-radius: 14px; padding: 4rem 1.5rem; text-align: center; }
.koa-examples button { min-width: 5.2rem !important; }
footer { display: none !important; }
"""
_FOR_THE_GRADE = "for this grade"


def build_page(grader: Grader, model: str, level: float) -> gr.Blocks:
    """The page, to be launched with `launch_settings`.

    Args:
        grader: grades and explains.
        model: what reports call the model: its Hub id or the name of its folder.
        level: of the confidence sets, as the grader was made with.
    """
    visit = _Visit(grader, model, level)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(300, 600)) as page:
        readings = gr.State([], time_to_live=3600)
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload = gr.File(
                    label="X-rays, DICOM too", file_count="multiple", height=170,
                    file_types=list(SUFFIXES), elem_id="upload",
                )  # fmt: skip
                gr.Markdown("Or one that is drawn, not a patient's:")
                with gr.Row(elem_classes="koa-examples"):
                    examples = [gr.Button(f"Draw KL{grade}", size="sm") for grade in GRADES]
                chosen = gr.Radio([], label="X-rays of this visit", visible=False, elem_id="chosen")
                question = gr.Radio([], label="Show what speaks", visible=False, elem_id="question")
                clear = gr.Button("Forget all X-rays", size="sm", visible=False, elem_id="clear")
            with gr.Column(scale=3, min_width=300):
                result = gr.HTML(_NOTHING_YET, elem_id="result")
        shown = [readings, chosen, question, clear, result]
        one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
        upload.upload(visit.take, [upload, readings], [upload, *shown], **one_at_a_time)
        for grade, button in zip(GRADES, examples, strict=True):
            button.click(visit.drawer(grade), [readings], shown, **one_at_a_time)
        chosen.input(visit.choose, [readings, chosen], [question, result], **one_at_a_time)
        question.input(visit.explain, [readings, chosen, question], [result], **one_at_a_time)
        clear.click(visit.forget, None, shown, **one_at_a_time)
    return page


def launch_settings() -> dict:
    """How the page is launched: no font, script or statistics from elsewhere, uploads of a limited size."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "sans-serif")
    theme = gr.themes.Base(primary_hue="cyan", font=fonts, font_mono=("ui-monospace", "Consolas", "monospace"))
    return {
        "theme": theme, "css": STYLE + _PAGE_STYLE, "max_file_size": MAX_UPLOAD, "share": False, "run_history": False,
        "footer_links": [], "ssr_mode": False,
    }  # fmt: skip


class _Visit:
    """What happens on the page; what belongs to one visitor is in the list of readings that is passed in and out."""

    def __init__(self, grader: Grader, model: str, level: float):
        self.grader, self.model, self.level = grader, model, level

    def take(self, files: list[str], readings: list[Reading], progress=gr.Progress()):  # noqa: B008
        """Grades uploaded files, and removes them from the disk."""
        new = []
        for file in progress.tqdm(files, desc="grading", unit="X-ray"):
            new.append(self._read(file, Path(file).name))
            with suppress(OSError):
                Path(file).unlink()
                Path(file).parent.rmdir()
        return None, *self._show([*new, *readings])

    def drawer(self, grade: int):
        """What the button of an example does: it draws another knee each time."""

        def draw(readings: list[Reading]):
            number = sum(reading.xray.file.startswith(f"drawn KL{grade}") for reading in readings) + 1
            side = "L" if number % 2 else "R"
            image = draw_knee(grade, side, seed=(2026, grade, number))
            drawn = self._grade(Radiograph(image, f"drawn KL{grade} no. {number}", side))
            return self._show([drawn, *readings])

        return draw

    def choose(self, readings: list[Reading], chosen: int):
        """Shows another X-ray of the visit."""
        return self._questions(readings[chosen]), self._result(readings[chosen], None)

    def explain(self, readings: list[Reading], chosen: int, question: int):
        """Shows another heat map of the X-ray."""
        return self._result(readings[chosen], None if question < 0 else question)

    def forget(self):
        """Empties the visit."""
        return self._show([])

    def _read(self, file: str, name: str) -> Reading:
        try:
            radiograph = read_radiograph(file, name=name)
        except RadiographError as error:
            return Reading(GradedXray(name, error=str(error)))
        return self._grade(radiograph)

    def _grade(self, radiograph: Radiograph) -> Reading:
        return Reading(self.grader.grade_radiograph(radiograph), radiograph.image)

    def _show(self, readings: list[Reading]) -> list:
        """Values of readings, chosen, question, clear and result, the newest X-ray shown."""
        readings = readings[:MOST_XRAYS]
        if not readings:
            hidden = gr.update(choices=[], value=None, visible=False)
            return [[], hidden, hidden, gr.update(visible=False), _NOTHING_YET]
        titles = [(reading.title, number) for number, reading in enumerate(readings)]
        return [
            readings,
            gr.update(choices=titles, value=0, visible=True),
            self._questions(readings[0]),
            gr.update(visible=True),
            self._result(readings[0], None),
        ]

    def _questions(self, reading: Reading) -> dict:
        if reading.xray.grade is None:
            return gr.update(visible=False)
        grade = reading.xray.grade.grade
        against = [other for other in (grade - 1, grade + 1) if other in GRADES]
        choices = [(_FOR_THE_GRADE, -1), *((f"for it rather than {GRADE_LABELS[other]}", other) for other in against)]
        return gr.update(choices=choices, value=-1, visible=True)

    def _result(self, reading: Reading, against: int | None) -> str:
        explanation = None
        if reading.xray.grade is not None:
            grade = reading.xray.grade.grade
            explanation = self.grader.images.explain(reading.image, grade, against, keep_polarity=True)
        return show_result(reading, explanation, self.model, self.level)
