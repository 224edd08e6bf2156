"""Where knees are found: the search, by a locator whose answers are known; what it reads of a model; its file."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps
from safetensors.torch import load, save_file

from clip_koa.localisation.fit import new_locator
from clip_koa.training.optimisation import freeze_lower_blocks
from dataset_script.films import compose_film, draw_pairs
from modeling_clip_koa import localisation_clip_koa
from modeling_clip_koa.frames_clip_koa import inside_of_frames
from modeling_clip_koa.grading_clip_koa import Beside
from modeling_clip_koa.localisation_clip_koa import (
    Knee,
    KneeLocator,
    LocalisationError,
    Pyramid,
    cut_knee,
    find_knees,
    load_locator,
    locator_file,
    name_sides,
)

_WINDOW = 56


class Oracle:
    """Stands for a fitted locator: a knee is a white disc whose box is twice as wide as the disc."""

    window = _WINDOW

    def __init__(self, strange=0.0):
        self.asked, self.glanced, self.strange = [], 0, strange

    def glance(self, model, windows):
        self.glanced += len(windows)
        return self.answers(windows)

    def locate(self, model, windows):
        self.asked.append(len(windows))
        return self.answers(windows)

    def answers(self, windows):
        return np.array([self.answer(np.asarray(window)) for window in windows]).reshape(-1, 6)

    def answer(self, values: np.ndarray):
        bright = values >= 180
        rows, columns = np.nonzero(bright)
        cut_off = bright[0].any() or bright[-1].any() or bright[:, 0].any() or bright[:, -1].any()
        if cut_off or len(rows) < 12:
            return [0, 0, 0, 0, 0.0, 0.0]
        width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
        round_enough = 0.8 < width / height < 1.25 and 0.7 < len(rows) / (width * height) < 0.87
        middle = (columns.max() + columns.min() + 1) / 2, (rows.max() + rows.min() + 1) / 2
        scale = math.sqrt(len(rows) / math.pi) * 4 / _WINDOW
        across, down = ((place - _WINDOW / 2) / _WINDOW for place in middle)
        near = round_enough and abs(across) < 0.36 and abs(down) < 0.36 and scale < 2.3
        # The surer the nearer, and by the noise around: no two guesses are alike, but those of mirror images are.
        sure = 0.98 - 0.2 * (across**2 + down**2) - 0.02 * math.log(scale) ** 2 + values.mean() / 1e5 if near else 0.0
        return [across, down, math.log(scale), 0, sure, self.strange]


def draw_discs(size, discs, shade=40):
    """A picture (mode L) with discs, each (x, y, radius), on dark noise."""
    noise = np.random.default_rng(0).integers(shade - 30, shade + 31, size[::-1])
    noise = (noise + noise[:, ::-1]) // 2
    picture = Image.fromarray(noise.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for x, y, radius in discs:
        draw.ellipse([x - radius, y - radius, x + radius - 1, y + radius - 1], fill=230)
    return picture


def find(picture):
    return find_knees(None, Oracle(), [picture])[0]


def overlap(one, other):
    across = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return across * down / (areas - across * down)


def square(x, y, radius):
    return x - 2 * radius, y - 2 * radius, x + 2 * radius, y + 2 * radius


@pytest.mark.parametrize(
    ("size", "discs"),
    [
        ((800, 640), [(220, 320, 56), (580, 330, 60)]),  # as films of both knees are
        ((3000, 2500), [(900, 1200, 220), (2100, 1230, 215)]),
        ((301, 260), [(85, 130, 20), (215, 128, 21)]),
        ((500, 900), [(250, 480, 60)]),  # one leg, long
        ((300, 300), [(170, 140, 60)]),  # one knee, off the middle
    ],
)
def test_boxes_are_in_the_pixels_of_the_picture(size, discs):
    knees = find(draw_discs(size, discs))
    assert len(knees) == len(discs)
    for knee, disc in zip(knees, discs, strict=True):
        assert overlap(knee.box, square(*disc)) > 0.85
        assert knee.box[2] - knee.box[0] == knee.box[3] - knee.box[1]
        assert knee.confidence > 0.9 and knee.outside == 0 and not knee.framed
    assert [knee.side for knee in knees] == [""] * len(discs)  # the search knows boxes alone


@settings(max_examples=15)
@given(
    width=st.integers(300, 500),
    height=st.integers(250, 400),
    radius=st.integers(20, 28),
    shift=st.tuples(st.integers(-15, 15), st.integers(-15, 15)),
)
def test_the_mirrored_film_gives_the_mirrored_boxes(width, height, radius, shift):
    discs = [(round(width * share) + shift[0], height // 2 + shift[1], radius) for share in (0.27, 0.72)]
    picture = draw_discs((width, height), discs)
    boxes = [knee.box for knee in find(picture)]
    mirrored = [knee.box for knee in find(ImageOps.mirror(picture))]
    assert boxes and mirrored[::-1] == [
        (width - right, top, width - left, bottom) for left, top, right, bottom in boxes
    ]


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("L", (300, 240)),
        Image.new("L", (300, 240), 255),
        Image.fromarray(np.random.default_rng(0).integers(0, 150, (200, 300)).astype(np.uint8)),
        draw_discs((400, 300), [(10, 150, 40)]),  # cut by the border
        draw_discs((40, 400), []),
    ],
    ids=["black", "white", "noise", "cut", "narrow"],
)
def test_where_there_is_no_knee_none_is_found(picture):
    assert find(picture) == []


def test_what_is_sure_but_strange_is_no_knee():
    pictures = [draw_discs((224, 224), [(112, 112, 56)]), draw_discs((800, 640), [(220, 320, 56), (580, 330, 60)])]
    assert find_knees(None, Oracle(strange=1.1), pictures) == [[], []]
    assert [len(knees) for knees in find_knees(None, Oracle(strange=0.9), pictures)] == [1, 2]


def test_a_crop_is_told_in_one_look_and_stays_as_it_is():
    picture, oracle = draw_discs((224, 224), [(114, 110, 56)]), Oracle()
    ((knee,),) = find_knees(None, oracle, [picture])
    assert knee.framed and knee.box == (0, 0, 224, 224) and (oracle.glanced, sum(oracle.asked)) == (1, 0)
    assert cut_knee(picture, knee) is picture


def test_what_one_view_leaves_in_doubt_both_decide():
    picture = draw_discs((224, 224), [(112, 112, 56)])

    class Doubtful(Oracle):
        """One view sees it 15 pixels off, both see it in its place."""

        def glance(self, model, windows):
            return super().glance(model, windows) + [0.065, 0, 0, 0, 0, 0]

    oracle = Doubtful()
    ((knee,),) = find_knees(None, oracle, [picture])
    assert knee.framed and knee.confidence == find(picture)[0].confidence and sum(oracle.asked) == 1


def test_pictures_are_looked_at_together():
    pictures = [draw_discs((224, 224), [(112 + shift, 112, 54)]) for shift in (0, 40, 30)]
    oracle = Oracle()
    together = find_knees(None, oracle, pictures)
    assert (oracle.glanced, oracle.asked) == (3, [2, 2])  # the first is framed, the others are followed one step
    assert together == [find(picture) for picture in pictures]
    assert find_knees(None, oracle, []) == []


def test_films_are_looked_at_in_groups_of_few_pixels(monkeypatch, seeing):
    films = [draw_discs((800, 640), [(220, 320 + shift, 56), (580, 330, 60)]) for shift in (0, 9, -12)]
    pictures = [films[0], draw_discs((224, 224), [(114, 110, 56)]), Image.new("L", (300, 200)), *films[1:]]
    one_by_one = [find(picture) for picture in pictures]
    assert [len(knees) for knees in one_by_one] == [2, 1, 0, 2, 2]
    for most, groups in ((16_000_000, [5]), (600_000, [2, 2, 1]), (1, [1] * 5)):
        monkeypatch.setattr(localisation_clip_koa, "_MOST_PIXELS", most)
        assert [len(group) for group in localisation_clip_koa.group_pictures(pictures)] == groups
        assert find_knees(None, Oracle(), pictures) == one_by_one
    # And so do the films of `grade_films`, whichever of them are inverted.
    mixed = [ImageOps.invert(films[0]), films[1], pictures[2], ImageOps.invert(films[2])]
    together = seeing.grade_films(mixed)
    assert [[grade.box for grade in grades] for grades in together] == [
        [knee.box for knee in one_by_one[place]] for place in (0, 3, 2, 4)
    ]
    assert [[grade.inverted for grade in grades] for grades in together] == [[True] * 2, [False] * 2, [], [True] * 2]


def test_of_more_than_two_two_alike_are_taken():
    picture = draw_discs((900, 600), [(200, 300, 40), (640, 310, 40), (420, 80, 12)])
    assert [round(knee.box[0], -1) for knee in find(picture)] == [120, 560]
    above = draw_discs((600, 900), [(300, 220, 45), (300, 680, 45)])
    assert len(find(above)) == 1  # one above the other are no two knees


@settings(max_examples=40)
@given(
    bars=st.tuples(*[st.sampled_from([0, 8, 9, 20, 33, 60])] * 4),
    shade=st.integers(0, 255),
    size=st.tuples(*[st.integers(60, 300)] * 2),
)
def test_flat_frames_are_cut_off_to_the_pixel(bars, shade, size):
    inner = Image.fromarray(np.random.default_rng(1).integers(0, 256, size[::-1]).astype(np.uint8))
    framed = ImageOps.expand(inner, bars, shade)
    assert inside_of_frames(framed) == (bars[0], bars[1], bars[0] + size[0], bars[1] + size[1])


def test_what_is_flat_throughout_is_left_whole():
    assert inside_of_frames(Image.new("L", (500, 300), 9)) == (0, 0, 500, 300)


def test_a_knee_in_a_letterbox_is_the_crop_itself():
    crop = draw_discs((224, 224), [(112, 112, 56)])
    (knee,) = find(ImageOps.expand(crop, (70, 0), 0))
    assert knee.box == (70, 0, 294, 224) and not knee.framed
    assert cut_knee(ImageOps.expand(crop, (70, 0), 0), knee).tobytes() == crop.tobytes()


def test_what_lies_outside_is_black_and_told():
    picture = draw_discs((300, 300), [(150, 70, 60)])
    (knee,) = find(picture)
    assert knee.box[1] < 0 and knee.outside == pytest.approx(-knee.box[1] / (knee.box[3] - knee.box[1]), abs=0.01)
    cut = np.asarray(cut_knee(picture, knee))
    assert (cut[: -knee.box[1]] == 0).all() and cut[-knee.box[1] :].min() > 0


def test_a_turned_knee_is_set_upright():
    upright = draw_discs((224, 224), [(112, 60, 20), (90, 160, 10)])
    clockwise = upright.rotate(-12, Image.Resampling.BICUBIC)
    cut = np.asarray(cut_knee(clockwise, Knee((0, 0, 224, 224), angle=12.0)), float)
    middle = slice(40, 184)
    difference = np.abs(cut - np.asarray(upright, float))[middle, middle].mean()
    assert difference < np.abs(np.asarray(clockwise, float) - np.asarray(upright, float))[middle, middle].mean() / 2


@settings(max_examples=25)
@given(
    size=st.tuples(st.integers(40, 300), st.integers(40, 300)),
    place=st.tuples(st.floats(-170, 170), st.floats(-20, 320)),
    side=st.floats(20, 500),
    angle=st.floats(-20, 20),
)
def test_windows_of_the_mirror_image_are_mirrored(size, place, side, angle):
    values = np.random.default_rng(2).integers(0, 256, size[::-1]).astype(np.uint8)
    picture = Image.fromarray(values)
    window = Pyramid(picture).window(place, side, 32, angle)
    other = Pyramid(ImageOps.mirror(picture)).window((-place[0], place[1]), side, 32, -angle)
    assert ImageOps.mirror(other).tobytes() == window.tobytes()


@pytest.fixture
def locator(make_model):
    class Processor:
        image_mean, image_std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]

    torch.manual_seed(0)
    return new_locator(make_model(), Processor())


def test_a_locator_says_the_mirrored_of_a_mirrored_window(make_model, locator):
    assert locator.window == 16 and locator.blocks == 1
    windows = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (16, 16)).astype(np.uint8)) for n in range(3)]
    model = make_model().eval()
    one = locator.locate(model, windows)
    other = locator.locate(model, [ImageOps.mirror(window) for window in windows])
    np.testing.assert_allclose(other * [-1, 1, 1, -1, 1, 1], one, atol=1e-6)
    assert (np.abs(one[:, 0]) > 1e-4).all() and ((one[:, 4] > 0) & (one[:, 4] < 1)).all()
    assert locator.locate(model, []).shape == (0, 6)


def test_a_glance_is_one_of_two_views_and_the_same_of_the_mirrored_window(make_model, locator):
    windows = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (16, 16)).astype(np.uint8)) for n in range(4)]
    model = make_model().eval()
    mirrored = [ImageOps.mirror(window) for window in windows]
    one, other = (locator.glance(model, views) for views in (windows, mirrored))
    np.testing.assert_allclose(other * [-1, 1, 1, -1, 1, 1], one, atol=1e-6)
    for glance, window, mirror in zip(one, windows, mirrored, strict=True):
        own, turned = locator(locator.tokens(model, [window, mirror]))[:, :4].double() * torch.tensor(
            [[1, 1, 1, 1], [-1, 1, 1, -1]]
        )
        assert sum(view.detach().numpy() == pytest.approx(glance[:4], abs=1e-6) for view in (own, turned)) == 1
    assert locator.glance(model, []).shape == (0, 6)


def test_a_locator_reads_a_window_as_the_image_processor_would(make_model, locator):
    model = make_model().eval()
    window = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8))
    seen = {}
    model.vision_model.embeddings.register_forward_pre_hook(
        lambda module, given, options: seen.update(options, given=given), with_kwargs=True
    )
    locator.tokens(model, [window])
    pixels = seen["given"][0] if seen["given"] else seen["pixel_values"]
    expected = (np.asarray(window) / 255 - 0.4) / 0.3
    np.testing.assert_allclose(pixels[0, 1], expected, atol=1e-6)


def test_a_kept_locator_answers_as_before(make_model, locator, tmp_path):
    file = tmp_path / "localisation.safetensors"
    file.write_bytes(locator_file(locator))
    model, again = make_model().eval(), load_locator(file, make_model().config)
    window = [Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))]
    np.testing.assert_array_equal(again.locate(model, window), locator.eval().locate(model, window))


def test_a_missing_damaged_or_foreign_locator_is_told_in_a_line(make_model, locator, tmp_path):
    model, file = make_model(), tmp_path / "localisation.safetensors"
    with pytest.raises(LocalisationError, match="cannot find knees yet: clip-koa fit-framing --model"):
        model.find_knees(Image.new("L", (100, 100)))
    content = locator_file(locator)
    values = load(content)
    metadata = {"reads": "1 blocks, 16 pixels"}
    wrong = {
        "damaged": [b"", content[:200], b"\x80" * 500],
        "belongs to another model": [
            (values, {"reads": "1 blocks, 24 pixels"}),
            (locator_file_of(KneeLocator(24, 4, 1, 16)), metadata),
        ],
        "is damaged": [
            (values, {"blocks": "1"}),
            (values, {"reads": "1"}),
            (values, {"reads": "9 blocks, 16 pixels"}),
            ({name: value for name, value in values.items() if name != "give.bias"}, metadata),
            (values | {"give.bias": torch.full((5,), torch.nan)}, metadata),
        ],
    }
    for reason, cases in wrong.items():
        for case in cases:
            if isinstance(case, bytes):
                file.write_bytes(case)
            else:
                save_file({name: value.contiguous() for name, value in case[0].items()}, file, metadata=case[1])
            with pytest.raises(LocalisationError, match=reason) as refused:
                load_locator(file, model.config)
            assert "\n" not in str(refused.value) and str(file) in str(refused.value)


def locator_file_of(locator):
    return load(locator_file(locator))


def test_drawn_films_have_their_discs_in_their_boxes():
    """The oracle agrees with the geometry of composed films: discs in place of knees."""
    disc = draw_discs((224, 224), [(112, 112, 56)])
    pair = next(draw_pairs(1, seed=0))
    assert pair.right.size == (224, 224)
    film = compose_film(disc, disc, 4, "dark")
    knees = find(film.image)
    assert len(knees) == 2
    assert min(overlap(knee.box, box) for knee, box in zip(knees, film.boxes, strict=True)) > 0.85


def test_sides_are_named_as_films_are_shown_or_as_is_known():
    left, right = Knee((0, 0, 9, 9)), Knee((20, 0, 29, 9))
    told = {
        known: [(k.box[0], k.side, k.side_assumed) for k in name_sides([left, right], known)]
        for known in ("", "R", "RL", "LR")
    }
    assert told[""] == told["R"] == [(0, "R", True), (20, "L", True)]
    assert told["RL"] == [(0, "R", False), (20, "L", False)]
    assert told["LR"] == [(20, "R", False), (0, "L", False)]  # the right knee first
    assert [knee.side for known in ("", "L", "RL") for knee in name_sides([left], known)] == ["", "L", ""]
    assert name_sides([], "R") == []


@pytest.fixture
def seeing(make_model, image_processor):
    model = make_model().eval()
    model.beside = Beside(image_processor, locator=Oracle())
    return model


def test_a_film_gives_a_grade_for_each_knee(seeing):
    film = draw_discs((800, 640), [(220, 320, 56), (580, 330, 60)])
    knees, grades = seeing.find_knees(film), seeing.grade_film(film)
    assert [(g.side, g.side_assumed, g.box) for g in grades] == [(k.side, True, k.box) for k in knees]
    assert [knee.side for knee in knees] == ["R", "L"] and knees[0].box[0] < knees[1].box[0]
    for grade in grades:
        assert grade.probabilities == pytest.approx(seeing.grade(film.crop(grade.box)).probabilities, abs=1e-6)
    known = seeing.grade_film(film, sides="LR")
    assert [(g.side, g.side_assumed) for g in known] == [("R", False), ("L", False)]
    assert [g.box for g in known] == [g.box for g in grades[::-1]]


def test_a_crop_keeps_its_grade_to_the_bit(seeing):
    crop = draw_discs((224, 224), [(112, 112, 56)])
    (grade,) = seeing.grade_film(crop, sides="L")
    alone = seeing.grade(crop)
    assert grade == replace(alone, side="L", box=(0, 0, 224, 224))


def test_a_film_with_bone_dark_is_inverted_where_knees_are_found_so(seeing):
    film = draw_discs((1000, 640), [(220, 320, 56), (580, 330, 60)])
    upright, inverted = seeing.grade_film(film), seeing.grade_film(ImageOps.invert(film))
    assert [grade.inverted for grade in inverted] == [True, True] and not upright[0].inverted
    assert [replace(grade, inverted=False) for grade in inverted] == upright
    assert seeing.grade_film(ImageOps.invert(film), keep_polarity=True) == []


def test_bad_input_of_find_knees(seeing):
    with pytest.raises(ValueError, match="sides='X': use one of '', 'R', 'L', 'RL', 'LR'"):
        seeing.find_knees(Image.new("L", (100, 100)), sides="X")
    with pytest.raises(ValueError, match="of type str"):
        seeing.grade_film("film.png")
    assert seeing.grade_film(Image.new("L", (300, 200))) == []


def test_a_knee_that_is_cut_off_is_warned_of(seeing):
    (grade,) = seeing.grade_film(draw_discs((300, 300), [(150, 70, 60)]))
    assert grade.outside > 0.1 and "border of the image cuts this knee off" in grade.warning
    (whole,) = seeing.grade_film(draw_discs((300, 300), [(170, 140, 60)]))
    assert not whole.warning


def test_a_training_that_freezes_all_that_it_reads_keeps_it(make_model, locator, image_processor, tmp_path):
    model = make_model().eval()
    model.beside = Beside(image_processor, locator=locator.eval())
    window = [Image.linear_gradient("L").resize((16, 16))]
    before = locator.locate(model, window)
    freeze_lower_blocks(model, locator.blocks)
    model.train()
    (model.vision_model.encoder.layers[-1].mlp.fc1.weight.sum() ** 2).backward()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], 0.1).step()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.beside.locator.locate(again, window), before)
    again.vision_model.encoder.layers[0].requires_grad_(True)
    again.train()
    assert not again.can_find_knees


def test_it_is_saved_and_loaded_with_the_model_and_forgotten_when_that_is_trained(
    make_model, locator, image_processor, tmp_path
):
    model = make_model().eval()
    model.beside = Beside(image_processor, locator=locator.eval())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert locator_file(again.beside.locator) == locator_file(locator)
    again.forget_calibration()  # what a new temperature makes stale
    assert locator_file(again.beside.locator) == locator_file(locator)
    again.train()
    with pytest.raises(LocalisationError, match="cannot find knees yet"):
        again.eval().find_knees(Image.new("L", (100, 100)))
    (tmp_path / "localisation.safetensors").write_bytes(b"damaged")
    damaged = type(model).from_pretrained(tmp_path)  # it still loads and grades
    damaged.grade(Image.new("L", (100, 100)))
    with pytest.raises(LocalisationError, match="localisation.safetensors is damaged"):
        damaged.find_knees(Image.new("L", (100, 100)))
