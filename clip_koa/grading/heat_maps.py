"""X-rays under their heat maps, each in a file of its own that stays as the archive grows, and many in one picture."""

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import ImageOps

from clip_koa.files import as_text, path_of, write_file
from clip_koa.grading.grader import GradedXray, Grader
from dataset_script.tiles import draw_tiles

OVERVIEW = "overview.png"
_STEM_BYTES = 180  # of a heat map's name, which may hold 255
_SHOWN, _COLUMNS, _SIDE = 60, 5, 240  # of the overview


class HeatMaps:
    """Writes X-rays under their heat maps, each under a name of its own that stays as the archive grows.

    Args:
        grader: that graded.
        folder: made where it is not there.
        overview: also write one picture of the first of them.
    """

    def __init__(self, grader: Grader, folder: Path, overview: bool = True):
        self.grader, self.folder, self.overview = grader, folder, overview
        self._shown = []  # small pictures and captions, for the overview
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, file: str, label: str, side: str = "") -> Path:
        """Where the map of a file with that grade's label lies; equal names in different folders do not collide.

        Args:
            side: of a knee of a film that shows both.
        """
        stem = as_text(Path(file).stem).encode()[:_STEM_BYTES].decode(errors="ignore")
        digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:8]
        return self.folder / f"{stem}-{digest}{side and f'-{side}'}-{label.split()[0]}.png"

    def is_there(self, row: dict) -> bool:
        """Whether the X-ray of a table's row has its map."""
        return self.path(
            path_of(row["file"]), row["name"], _side(row["laterality"], row["laterality_assumed"])
        ).exists()

    def write(self, xrays: Sequence[GradedXray]) -> None:
        """Writes the picture of each knee of a file in place of that of an earlier grade, but if it was not graded."""
        for xray in xrays:
            if not xray.reason:
                self._write(xray)

    def _write(self, xray: GradedXray) -> None:
        overlay, content = self.grader.explain(xray).overlay(), io.BytesIO()
        overlay.save(content, "PNG")
        side = _side(xray.laterality, xray.grade.side_assumed)
        path = write_file(self.path(xray.file, xray.grade.name, side), content.getvalue())
        for label in self.grader.labels:
            if self.path(xray.file, label, side) != path:
                self.path(xray.file, label, side).unlink(missing_ok=True)
        if len(self._shown) < _SHOWN:
            caption = (
                f"{as_text(Path(xray.file).stem)[:24]} {side}\n{xray.grade.name}{_set(xray.grade.confidence_set)}"
            )
            self._shown.append((ImageOps.contain(overlay, (_SIDE,) * 2), caption))

    def finish(self) -> None:
        """Writes one picture of the first X-rays whose maps were written, if there are any and it is asked for."""
        if not self.overview or not self._shown:
            return
        content = io.BytesIO()
        draw_tiles(*zip(*self._shown, strict=True), min(_COLUMNS, len(self._shown)), _SIDE).save(content, "PNG")
        path = write_file(self.folder / OVERVIEW, content.getvalue())
        print(f"The first X-rays and their grades in one picture: {as_text(path)}")


def _side(laterality: str, assumed: bool) -> str:
    """Which knee of a film a map is of; empty where the film's name says it, or it shows one."""
    return laterality if assumed else ""


def _set(grades: tuple[int, ...]) -> str:
    return f", set {grades[0]} to {grades[-1]}" if len(grades) > 1 else ""
