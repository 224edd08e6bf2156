"""Many X-rays in one picture, to be looked over at once."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

_EDGE = 2  # pixels between two tiles
GROUND = 40  # gray level between and around them


def draw_tiles(images: Sequence[Image.Image], captions: Sequence[str], columns: int, side: int) -> Image.Image:
    """A picture of images of any size, row by row, each with a short line of text in its upper left corner.

    Args:
        columns: how many stand in a row.
        side: of a tile, in pixels.

    Returns:
        In colour (mode RGB) if one of the images is, otherwise in mode L.
    """
    mode = "RGB" if any(image.mode == "RGB" for image in images) else "L"
    height = -(-len(images) // columns) * side
    sheet = Image.new(mode, (columns * side, height), (GROUND,) * 3 if mode == "RGB" else GROUND)
    draw = ImageDraw.Draw(sheet)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = place % columns * side, place // columns * side
        sheet.paste(ImageOps.pad(image.convert(mode), (side - _EDGE,) * 2), (left, top))
        draw.text((left + 3, top + 2), caption, fill="white", stroke_width=1, stroke_fill="black")
    return sheet
