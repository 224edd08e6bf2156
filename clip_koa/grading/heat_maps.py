"""X-rays under their heat maps, each in a file of its own that stays as the archive grows."""

import hashlib
import io
import os
from pathlib import Path

from clip_koa.files import as_text, path_of, write_file
from clip_koa.grading.grader import GradedXray, Grader

_STEM_BYTES = 180  # of a heat map's name, which may hold 255


class HeatMaps:
    """Writes X-rays under their heat maps, each under a name of its own that stays as the archive grows."""

    def __init__(self, grader: Grader, folder: Path):
        self.grader, self.folder = grader, folder
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
        side = row["laterality"] if row["laterality_assumed"] else ""
        return self.path(path_of(row["file"]), row["name"], side).exists()

    def write(self, xray: GradedXray) -> None:
        """Writes the picture of an X-ray in place of that of an earlier grade, unless it could not be graded."""
        if xray.reason:
            return
        picture = io.BytesIO()
        self.grader.explain(xray).overlay().save(picture, "PNG")
        side = xray.laterality if xray.grade.side_assumed else ""
        path = write_file(self.path(xray.file, xray.grade.name, side), picture.getvalue())
        for label in self.grader.labels:
            if self.path(xray.file, label, side) != path:
                self.path(xray.file, label, side).unlink(missing_ok=True)
