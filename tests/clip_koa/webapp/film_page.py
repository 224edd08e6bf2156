"""The page with a stand-in for a fitted locator, whose answers are made: a film's size says where its knees lie.

    python tests/clip_koa/webapp/film_page.py OPTIONS

serves it as `clip-koa page OPTIONS` does.
"""

import sys
from pathlib import Path

from PIL import Image

if __name__ == "__main__":  # run as a script, beside the tests
    sys.path.insert(0, str(Path(__file__).parents[3]))

from dataset_script.synthetic import draw_knee
from modeling_clip_koa import grading_clip_koa
from modeling_clip_koa.grading_clip_koa import Beside
from modeling_clip_koa.localisation_clip_koa import Knee

# Kind of film: its size, and the boxes of the knees that are found in it, from its left to its right.
FILMS = {
    "both": ((420, 300), [(40, 90, 160, 210), (250, 96, 370, 216)]),
    "leg": ((200, 320), [(40, 90, 160, 210)]),
    "cut": ((300, 200), [(-30, 40, 90, 160)]),
    "none": ((320, 220), []),
}
_FOUND = dict(FILMS.values())


def compose(kind: str) -> Image.Image:
    """A film of drawn knees, KL0 and so on from its left; one that shows no knee has one of KL4 in its middle."""
    size, boxes = FILMS[kind]
    film = Image.new("L", size, 12)
    for number, (left, top, right, _) in enumerate(boxes or [(100, 50, 220, 170)]):
        film.paste(draw_knee(number if boxes else 4, "RL"[number], number, right - left), (left, top))
    return film


def find_made(model, locator, pictures) -> list[list[Knee]]:
    """Stands for `find_knees`; a picture of another size is framed already."""
    found = []
    for picture in pictures:
        if picture.size not in _FOUND:
            found.append([Knee((0, 0, *picture.size), framed=True)])
            continue
        outside = {box: max(0, -box[0]) / (box[2] - box[0]) for box in _FOUND[picture.size]}
        found.append([Knee(box, outside=share) for box, share in outside.items()])
    return found


if __name__ == "__main__":
    grading_clip_koa.find_knees = find_made
    Beside.has_locator, Beside.locator = True, None
    from clip_koa.commands import main

    sys.exit(main(["page", *sys.argv[1:]]))
