"""What the page and its report show of one X-ray, as HTML that holds its pictures itself."""

import base64
import io
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image, ImageOps

from clip_koa.grading.grader import GradedXray
from modeling_clip_koa import GRADE_LABELS, Explanation

TEMPLATES = Path(__file__).parent / "templates"
STYLE = (TEMPLATES / "style.css").read_text(encoding="utf-8")
SIDES = {"L": "left knee", "R": "right knee", "B": "both knees"}
SHOWN_SIDE = 560  # pixels of the longer side at which pictures are shown
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
)
_HEAT_NOTE = (
    "The heat map marks what the grade leans on; it is computed, not drawn by a reader, and can miss what matters."
)


@dataclass(frozen=True)
class Reading:
    """An X-ray that a visitor gave, and what the model says of it."""

    xray: GradedXray
    image: Image.Image | None = None  # mode L; None where it could not be read

    @property
    def title(self) -> str:
        """The X-ray in a list: its name and its grade."""
        return f"{self.xray.file}: {self.xray.grade.name if self.xray.grade else 'not graded'}"


def show_result(reading: Reading, explanation: Explanation | None, model: str, level: float) -> str:
    """The reading as HTML for the page, with its report as a link that is downloaded without the server."""
    card = _card(reading, explanation, level)
    if reading.xray.grade:
        page = render_report(reading, explanation, model, level)
        card["report"] = "data:text/html;base64," + base64.b64encode(page.encode()).decode()
        card["report_name"] = f"clip-koa-{Path(reading.xray.file).stem}.html"
    return _ENVIRONMENT.get_template("result.html").module.result(card, GRADE_LABELS)


def render_report(reading: Reading, explanation: Explanation | None, model: str, level: float) -> str:
    """The reading as a page of its own, one A4 page when printed."""
    card = _card(reading, explanation, level) | {"printed": True}
    return _ENVIRONMENT.get_template("report.html").render(
        card=card,
        labels=GRADE_LABELS,
        style=STYLE,
        model=model,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        heat_note=_HEAT_NOTE if explanation else "",
    )


def _card(reading: Reading, explanation: Explanation | None, level: float) -> dict:
    xray, grade = reading.xray, reading.xray.grade
    card = {"name": xray.file, "error": xray.error, "laterality": SIDES.get(xray.laterality, "")}
    if grade is None:
        return card
    shown = ImageOps.contain(reading.image, (SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BICUBIC)
    views = (grade.image_probabilities, grade.mirror_probabilities)
    image_grade, mirror_grade = (view.index(max(view)) for view in views)
    card |= {
        "picture": _data_url(shown),
        "mirror_picture": _data_url(ImageOps.mirror(ImageOps.contain(shown, (160, 160)))),
        "grade": grade.grade,
        "label": grade.name,
        "meaning": grade.meaning,
        "probabilities": grade.probabilities,
        "mirror_probabilities": grade.mirror_probabilities,
        "mirror_grade": mirror_grade,
        "image_label": GRADE_LABELS[image_grade],
        "mirror_label": GRADE_LABELS[mirror_grade],
        "views_agree": grade.flip_agreement,
        "osteoarthritis": grade.osteoarthritis_probability,
        "expected": grade.expected_grade,
        "set": grade.confidence_set,
        "warnings": xray.warnings,
        "sure": describe_set(grade.confidence_set, level),
    }
    if explanation is not None:
        card |= {"heat": _data_url(explanation.layer(shown.size)), "heat_caption": describe_map(explanation)}
    return card


def describe_set(grades: tuple[int, ...], level: float) -> str:
    """A confidence set in a sentence."""
    if not grades:
        return ""
    span = f"Grade {grades[0]}" if len(grades) == 1 else f"Grade {grades[0]} to {grades[-1]}"
    return f"{span}: such answers hold the true grade {level:.0%} of the time."


def describe_map(explanation: Explanation) -> str:
    """What a heat map marks, in a sentence."""
    label = GRADE_LABELS[explanation.grade]
    if explanation.against is None:
        return f"Bright: what speaks for {label}."
    return f"Bright: what speaks for {label} rather than {GRADE_LABELS[explanation.against]}."


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
