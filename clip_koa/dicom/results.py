"""`clip-koa grade --dicom-results`: for each DICOM image that was graded a report and a picture, in a folder."""

import io
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from pydicom.dataset import Dataset

from clip_koa.dicom.picture import build_picture, draw_picture
from clip_koa.dicom.report import build_report
from clip_koa.dicom.source import MadeBy, ResultError, identity, quietly, read_source
from clip_koa.files import as_text, file_digest, path_of, write_file
from clip_koa.grading.grader import GradedXray, Grader
from clip_koa.grading.run import GradeRun, made_by
from dataset_script.dicom import is_dicom
from dataset_script.radiograph import read_radiograph
from modeling_clip_koa import Grade

KINDS = ("report", "picture")


class DicomResults:
    """Writes what was found in DICOM images into a folder, whose files carry the images' patients.

    Args:
        grader: that graded.
        folder: made where it is not there.
        made_by: on which the objects' identifiers depend.
    """

    def __init__(self, grader: Grader, folder: Path, made_by: MadeBy):
        self.grader, self.folder, self.made_by = grader, folder, made_by
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of_model(cls, model: str, level: float, folder: Path) -> "DicomResults":
        """With a grader of its own, which finds the knees of films, as `clip-koa grade` does by default.

        Args:
            model, level: see `Grader`.
        """
        run = GradeRun([], model, level=level)
        grader = Grader(model, level, framing=run.framing)
        return cls(grader, folder, MadeBy.of(model, made_by(run, grader)))

    def path(self, source: Dataset, kind: str, made_by: MadeBy) -> Path:
        """Where a result lies: its file is called after its own identifier."""
        return self.folder / f"{identity(source, made_by, kind)['sop_instance_uid']}.dcm"

    def is_there(self, row: dict) -> bool:
        """Whether the image of a table's row has its results, or names no study to have them in."""
        file, partner = path_of(row["file"]), path_of(row["paired_with"] or "")
        source = self._source(file)
        if source is None:
            return True
        made_by = self._made_by(file, partner, row["combined"])
        return all(self.path(source, kind, made_by).exists() for kind in KINDS)

    def write(self, xrays: Sequence[GradedXray]) -> list[Path]:
        """Writes the results of one file, given as each of its knees; what is there stays.

        Returns:
            The paths of report and picture, also of what was there; none for a file that has no grade, is no DICOM
            image, or, which is told, whose attributes no result can be made of.
        """
        graded = [xray for xray in xrays if not xray.reason]
        source = self._source(xrays[0].file) if graded else None
        if source is None:
            return []
        made_by = self._made_by(graded[0].file, graded[0].paired_with, graded[0].grade.combined)
        paths = {kind: self.path(source, kind, made_by) for kind in KINDS}
        try:
            with quietly():
                contents = {
                    kind: _as_file(self._build(kind, source, graded, made_by))
                    for kind in KINDS
                    if not paths[kind].exists()
                }
        except (AttributeError, LookupError, NotImplementedError, OverflowError, TypeError, ValueError, struct.error):
            # What highdicom and pydicom raise on values that DICOM does not allow; they quote these.
            print(f"{as_text(xrays[0].file)}: no DICOM results, since one of its attributes is not as DICOM has it.")
            return []
        for kind, content in contents.items():
            write_file(paths[kind], content)
        return list(paths.values())

    def _build(self, kind: str, source: Dataset, graded: Sequence[GradedXray], made_by: MadeBy) -> Dataset:
        knees = _knees(graded)
        if kind == "report":
            return build_report(source, knees, made_by, self.grader.level)
        return build_picture(source, self.draw(graded), [side for _, side in knees], made_by)

    def _made_by(self, file: str, paired_with: str, combined: bool) -> MadeBy:
        """On what an image's results depend: where its grade was combined with another image's, on that one too."""
        if not combined or paired_with == file:
            return self.made_by
        return replace(self.made_by, partner=_name_of(paired_with))

    def draw(self, graded: Sequence[GradedXray]) -> Image.Image:
        """The picture of one file, given as each of its knees; see `draw_picture`."""
        film = read_radiograph(graded[0].file, keep_polarity=self.grader.keep_polarity).image
        maps = [self.grader.explain(xray).overlay() for xray in graded]
        return draw_picture(film, _knees(graded), maps, self.made_by, self.grader.level)

    def finish(self) -> None:
        """Says so where the folder stayed empty."""
        if not any(self.folder.iterdir()):
            print(f"{as_text(self.folder)} is empty: no X-ray with a grade has a study that results could go to.")

    @staticmethod
    def _source(file: str) -> Dataset | None:
        """The DICOM image, or None for a file of another format; one without a study is told and passed over."""
        with open(file, "rb") as opened:
            if not is_dicom(opened.read(132)):
                return None
        try:
            return read_source(file)
        except ResultError as error:
            print(error)
            return None


def _name_of(file: str) -> str:
    """What tells an X-ray from others: the identifier of a DICOM image, or the digest of another file."""
    try:
        return read_source(file).SOPInstanceUID
    except ResultError:
        return file_digest(Path(file))


def _knees(graded: Sequence[GradedXray]) -> list[tuple[Grade, str]]:
    """The grade of each knee, and which it is: "R", "L" or ""."""
    return [(xray.grade, xray.laterality if xray.laterality in ("R", "L") else "") for xray in graded]


def _as_file(made: Dataset) -> bytes:
    content = io.BytesIO()
    made.save_as(content, enforce_file_format=True)
    return content.getvalue()
