"""Many X-rays in one picture."""

from PIL import Image

from dataset_script.tiles import GROUND, draw_tiles


def test_tiles_stand_row_by_row_each_whole_in_its_place():
    images = [Image.new("L", (30, 60), 100 + number) for number in range(5)]
    sheet = draw_tiles(images, [""] * 5, columns=3, side=42)
    assert sheet.mode == "L" and sheet.size == (126, 84)
    for number in range(5):
        left, top = number % 3 * 42, number // 3 * 42
        tile = sheet.crop((left, top, left + 40, top + 40))
        assert tile.getpixel((20, 20)) == 100 + number  # neither cropped nor squeezed
        assert tile.getpixel((5, 20)) == 0 and sheet.getpixel((left + 41, top + 20)) == GROUND
    assert sheet.getpixel((100, 60)) == GROUND


def test_one_picture_in_colour_makes_all_so_and_captions_are_seen():
    images = [Image.new("L", (20, 20), 90), Image.new("RGB", (20, 20), (200, 0, 0))]
    sheet = draw_tiles(images, ["", "KL2"], columns=2, side=60)
    assert sheet.mode == "RGB" and sheet.getpixel((30, 30)) == (90, 90, 90) and sheet.getpixel((90, 40)) == (200, 0, 0)
    assert sheet.crop((60, 0, 118, 20)).getextrema()[1][1] > 200  # the green of white letters, on red
