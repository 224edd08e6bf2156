"""What became of a study's films: counts, the knees that were found least surely as pictures, and what is missing."""

import base64
import io
from collections import Counter
from pathlib import Path

from PIL import Image

from clip_koa.framing.corpus import Framed
from clip_koa.reporting.page import write_page
from dataset_script.tiles import draw_tiles

_SHOWN, _COLUMNS, _THUMBNAIL = 30, 6, 160


def write_framing_report(folder: Path, framed: Framed) -> Path:
    """Writes report.html beside the corpus's table; it needs nothing else to be read. It shows X-rays of people."""
    least_sure = sorted(framed.rows, key=lambda row: row["confidence"])[:_SHOWN]
    return write_page(
        folder / "report.html",
        "framing.html",
        counts={
            "films": framed.films,
            "knees found": framed.found,
            "graded X-rays": len(framed.rows),
            "people": len({row["person_id"] for row in framed.rows}),
        },
        grades=sorted(Counter((row["split"], row["label"]) for row in framed.rows).items()),
        assumed=sum(row["side_assumed"] for row in framed.rows),
        sheet=_sheet(folder, least_sure) if least_sure else None,
        least_sure=least_sure,
        left_out=framed.left_out,
    )


def describe_framing(framed: Framed) -> str:
    """The same as lines to print."""
    without = Counter(bool(entry["film"]) for entry in framed.left_out)
    return (
        f"{framed.films} films, {framed.found} knees found, {len(framed.rows)} graded X-rays of "
        f"{len({row['person_id'] for row in framed.rows})} people.\n"
        f"Left out, each with its reason in left_out.csv: {without[True]} films or knees, {without[False]} readings."
    )


def _sheet(folder: Path, rows: list[dict]) -> str:
    """Thumbnails of the rows' X-rays as a data URL, `_COLUMNS` beside each other, with number and confidence."""
    images = []
    for row in rows:
        with Image.open(folder / row["file_name"]) as image:
            images.append(image.resize((_THUMBNAIL,) * 2, Image.Resampling.BOX))
    captions = [f"{number}: {row['confidence']:.2f}" for number, row in enumerate(rows, start=1)]
    sheet = draw_tiles(images, captions, _COLUMNS, _THUMBNAIL)
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
