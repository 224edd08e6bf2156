"""The report of one X-ray: one A4 page, as HTML that holds its pictures itself, or as PDF."""

import base64
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from fpdf import FPDF
from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image
from transformers.utils import cached_file

from clip_koa.files import file_digest
from clip_koa.grading.grader import Grader
from clip_koa.webapp.readings import Reading, picture, png, warnings_of
from clip_koa.webapp.texts import texts_of
from modeling_clip_koa import Explanation

_TEMPLATES = Path(__file__).parent / "templates"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_TEMPLATES), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
)
_PRINTED_SIDE = 900  # pixels of a picture in a report at most
GRADE_COLOURS = ("#1d7a53", "#4d7112", "#8a6100", "#ad4409", "#a31b2c")
_INK, _SOFT, _ACCENT, _LINE, _ALARM = (20, 32, 43), (84, 94, 104), (0, 99, 111), (213, 220, 227), (138, 59, 0)


@dataclass(frozen=True)
class ModelFacts:
    """Which model grades, so that a report can be held against it later."""

    name: str  # Hub id, or name of its folder
    revision: str  # the Hub's commit; empty for a folder
    digest: str  # SHA-256 of model.safetensors; empty where its weights are in several files
    level: float  # of the confidence sets
    precision: str  # of the vision tower


@dataclass(frozen=True)
class Report:
    """What a report shows besides the reading."""

    reading: Reading
    explanation: Explanation
    model: ModelFacts
    language: str
    laterality: str  # as the reader of the page set it, or as the file tells

    @property
    def file_name(self) -> str:
        """Of the report, without suffix; with the side of a knee that was cut out of a film."""
        side = self.reading.laterality if self.reading.is_cut else ""
        return f"clip-koa-{Path(self.reading.xray.file).stem}{side and f'-{side}'}"

    def _side(self) -> str:
        text, knee = texts_of(self.language), self.reading.knee
        if not self.laterality:
            return text["side_unknown"]
        side = text[f"side_{self.laterality}"]
        is_assumed = knee is not None and knee.side_assumed and knee.side == self.laterality
        return text["report_side_assumed"].format(side=side) if is_assumed else side

    def _box(self) -> str:
        text, knee = texts_of(self.language), self.reading.knee
        if not self.reading.is_cut:
            return text["report_box_none"]
        box = dict(zip(("left", "top", "right", "bottom"), knee.box, strict=True))
        words = text["report_box_value"].format(**box)
        return f"{words} {text['report_box_by_hand']}" if self.reading.by_hand else words

    def facts(self) -> dict:
        """Everything that it says, in its language."""
        text, reading, grade = texts_of(self.language), self.reading, self.reading.xray.grade
        level = f"{100 * self.model.level:.0f}"
        film = reading.film.image
        facts = {
            text["report_file"]: reading.xray.file,
            text["column_side"]: self._side(),
            text["report_size"]: text["report_size_value"].format(width=film.width, height=film.height),
            text["report_box"]: self._box(),
            text["report_date"]: datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            text["report_model"]: self.model.name,
            text["report_revision"]: self.model.revision or text["report_local"],
            text["report_digest"]: self.model.digest or "-",
            text["report_settings"]: text["report_settings_value"].format(precision=self.model.precision, level=level),
            text["report_software"]: _software(),
        }
        views = (grade.image_probabilities, grade.mirror_probabilities)
        labels = [text[f"grade_{view.index(max(view))}"] for view in views]
        mirror = text["mirror_agrees" if grade.flip_agreement else "mirror_differs"]
        return {
            "text": text,
            "grade": grade,
            "warnings": describe_warnings(reading, text),
            "sure": describe_set(grade.confidence_set, level, text),
            "mirror": mirror.format(grade=labels[0], mirror=labels[1]),
            "caption": describe_map(self.explanation, text),
            "facts": facts,
        }


def model_facts(name: str, grader: Grader, level: float) -> ModelFacts:
    """What is known of a checkpoint.

    Args:
        name: its folder or Hub id.
    """
    is_folder = Path(name).is_dir()
    weights = Path(name) / "model.safetensors"
    if not is_folder:
        weights = cached_file(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    digest = ""
    if weights and Path(weights).is_file():
        digest = file_digest(Path(weights))
    revision = "" if is_folder else getattr(grader.model.config, "_commit_hash", None) or ""
    return ModelFacts(Path(name).resolve().name if is_folder else name, revision, digest, level, grader.precision)


def render_html(report: Report) -> str:
    """The report as a page of its own."""
    shown, mapped = _pictures(report)
    return _ENVIRONMENT.get_template("report.html").render(
        report.facts(),
        language=report.language,
        shown=_data_url(shown),
        mapped=_data_url(mapped),
        colours=GRADE_COLOURS,
    )


def render_pdf(report: Report) -> bytes:
    """The report as PDF, one A4 page."""
    facts = report.facts()
    paper = _Paper(facts["text"], report.language)
    paper.head()
    paper.pictures(
        _pictures(report),
        (facts["text"]["report_bare"], facts["caption"]),
        87.5 - 9 * max(0, len(facts["warnings"]) - 1),
    )
    paper.answer(facts)
    paper.table(facts["facts"])
    paper.foot()
    return bytes(paper.output())


def describe_set(grades: tuple[int, ...], level: str, text: dict) -> str:
    """A confidence set in a sentence; nothing where the model is not calibrated."""
    if not grades:
        return ""
    return text["set_one" if len(grades) == 1 else "set_many"].format(low=grades[0], high=grades[-1], level=level)


def describe_warnings(reading: Reading, text: dict) -> list[str]:
    """What a reader must know before he trusts a grade, each in a sentence."""
    ways = ", ".join(text[f"way_{way}"] for way in reading.xray.grade.ways)
    return [text[key].format(ways=ways) for key in warnings_of(reading)]


def describe_map(explanation: Explanation, text: dict) -> str:
    """What a heat map marks, in a sentence."""
    grade = text[f"grade_{explanation.grade}"]
    if explanation.against is None:
        return text["heat_for"].format(grade=grade)
    return text["heat_rather"].format(grade=grade, against=text[f"grade_{explanation.against}"])


class _Paper(FPDF):
    """An A4 page in millimetres, filled from above; what comes last stands at its foot."""

    MARGIN, WIDTH, FOOT = 15, 180, 276

    def __init__(self, text: dict, language: str):
        super().__init__(format="A4")
        from matplotlib import get_data_path  # its DejaVu Sans has the letters of all languages here

        for style, name in (("", "DejaVuSans.ttf"), ("B", "DejaVuSans-Bold.ttf")):
            self.add_font("DejaVu", style, Path(get_data_path()) / "fonts" / "ttf" / name)
        self.text_of = text
        self.set_margins(self.MARGIN, self.MARGIN)
        self.set_auto_page_break(False)
        self.set_title(text["report_title"])
        self.set_lang(language)
        self.add_page()

    def write_line(self, words: str, size: float, *, bold=False, colour=_INK, x=None, width=None, height=None) -> None:
        """Words from `x` on, wrapped within `width`; the next line begins below."""
        self.set_font("DejaVu", "B" if bold else "", size)
        self.set_text_color(*colour)
        self.set_x(self.MARGIN if x is None else x)
        self.multi_cell(width or self.WIDTH, height or size * 0.46, words, align="L", new_x="LMARGIN", new_y="NEXT")

    def head(self) -> None:
        """Title and notice."""
        self.write_line(self.text_of["report_title"], 15, bold=True)
        self.ln(2)
        self.write_line(f"{self.text_of['research_only']} {self.text_of['research_detail']}", 9, colour=_ALARM)
        self.ln(3)

    def pictures(self, images: tuple[Image.Image, Image.Image], captions: tuple[str, str], height: float) -> None:
        """The bare X-ray and the one under its map, side by side, lower where many warnings come below."""
        top, width = self.get_y(), 87.5
        scale = min(width / images[0].width, height / images[0].height)
        size = images[0].width * scale, images[0].height * scale
        ends = []
        for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
            left = self.MARGIN + place * (width + 5)
            self.image(image, left, top, *size, alt_text=caption)
            self.set_y(top + size[1] + 1.5)
            self.write_line(caption, 8, colour=_SOFT, x=left, width=width)
            ends.append(self.get_y())
        self.set_y(max(ends) + 4)

    def answer(self, facts: dict) -> None:
        """Grade, certainty, bars, mirror image and warnings."""
        grade, text, top = facts["grade"], self.text_of, self.get_y()
        self.set_fill_color(GRADE_COLOURS[grade.grade])
        self.rect(self.MARGIN, top, 16, 16, style="F", round_corners=True, corner_radius=3)
        self.set_font("DejaVu", "B", 24)
        self.set_text_color(255, 255, 255)
        self.set_xy(self.MARGIN, top)
        self.cell(16, 16, str(grade.grade), align="C")
        self.set_y(top)
        self.write_line(text[f"grade_{grade.grade}"], 14, bold=True, x=35, width=160)
        self.write_line(text[f"meaning_{grade.grade}"], 9.5, x=35, width=160)
        self.set_y(max(self.get_y(), top + 16) + 3)
        for warning in facts["warnings"]:
            self.write_line(warning, 9.5, bold=True, colour=_ALARM)
        if facts["sure"]:
            self.write_line(facts["sure"], 10)
        self.ln(2)
        self._bars(grade)
        for name, value in (
            (text["osteoarthritis"], f"{100 * grade.osteoarthritis_probability:.0f} %"),
            (text["expected"], f"{grade.expected_grade:.1f}"),
        ):
            self.write_line(f"{name}: {value}", 9.5)
        self.write_line(facts["mirror"], 9.5)
        self.ln(3)

    def table(self, facts: dict) -> None:
        """Names and values, a line between two."""
        self.set_draw_color(*_LINE)
        for name, value in facts.items():
            top = self.get_y()
            self.line(self.MARGIN, top, self.MARGIN + self.WIDTH, top)
            self.set_y(top + 0.9)
            self.write_line(name, 8, colour=_SOFT, width=45)
            self.set_y(top + 0.9)
            self.write_line(value, 8, x=self.MARGIN + 46, width=self.WIDTH - 46)
            self.ln(0.9)

    def foot(self) -> None:
        """What holds for every report, at the foot of the page."""
        words = f"{self.text_of['report_scale']} {self.text_of['heat_note']}"
        self.set_y(self.FOOT)
        self.write_line(words, 7, colour=_SOFT)

    def _bars(self, grade) -> None:
        for number, share in enumerate(grade.probabilities):
            top, chosen = self.get_y(), number == grade.grade
            self.write_line(self.text_of[f"grade_{number}"], 9, bold=chosen, width=38)
            bottom = self.get_y()
            colour = _ACCENT if chosen else (140, 190, 196) if number in grade.confidence_set else _LINE
            self.set_fill_color(*colour)
            self.rect(self.MARGIN + 40, top + 0.4, 120 * share, 3.2, style="F")
            self.set_y(top)
            self.write_line(f"{100 * share:.0f} %", 9, bold=chosen, x=self.MARGIN + 162, width=18)
            self.set_y(bottom + 0.5)
        self.ln(1.5)


def _pictures(report: Report) -> tuple[Image.Image, Image.Image]:
    bare = picture(report.reading.image, _PRINTED_SIDE).convert("RGB")
    layer = report.explanation.layer(bare.size)
    layer.putalpha(layer.getchannel("A").point(lambda value: round(value * 0.6)))
    return bare, Image.alpha_composite(bare.convert("RGBA"), layer).convert("RGB")


def _data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def _software() -> str:
    parts = []
    for name in ("clip-koa", "transformers", "torch"):
        try:
            parts.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:  # a Space runs from its folder
            parts.append(name)
    return ", ".join(parts)
