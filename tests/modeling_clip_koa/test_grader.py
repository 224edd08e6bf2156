"""The Python door: load a model, have it grade and explain."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image, ImageOps
from transformers import CLIPImageProcessor

from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import CALIBRATION_FILE, CLIPKOAForImageClassification
from modeling_clip_koa.explanation_clip_koa import patch_relevance
from modeling_clip_koa.grading_clip_koa import Beside, GradesXrays
from modeling_clip_koa.preprocessing_clip_koa import READINGS, turn


@pytest.fixture(scope="module")
def folder(tiny_start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return CLIPKOAForImageClassification.from_pretrained(folder)


def _knees(count=3, size=96):
    return [draw_knee(number % 5, "L", number, size) for number in range(count)]


def test_it_gives_what_the_model_gives(model):
    images = _knees(18)  # more than a batch
    grades = model.grade(images)
    pixel_values = model.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model(pixel_values)
        image = model(pixel_values, flip_average=False)
    for number, grade in enumerate(grades):
        torch.testing.assert_close(torch.tensor(grade.probabilities), output.logits[number].softmax(-1))
        torch.testing.assert_close(torch.tensor(grade.image_probabilities), image.logits[number].softmax(-1))
        assert grade.grade == output.logits[number].argmax() and grade.name == model.config.id2label[grade.grade]
        assert grade.confidence_set == ()
    assert model.grade(images[4]).grade == grades[4].grade


@pytest.mark.parametrize("given", ["knee.png", Path("knee.png"), b"bytes", np.zeros((64, 64)), None, iter([])])
def test_what_is_no_image_is_named_by_its_type(model, given):
    with pytest.raises(ValueError, match=rf"The image is of type {type(given).__name__}: give a PIL image"):
        model.grade(given)
    with pytest.raises(ValueError, match=rf"Image 2 of 2 is of type {type(given).__name__}"):
        model.grade([*_knees(1), given])


def test_the_mirror_image_gets_the_same_grade_with_the_views_swapped(model):
    for image in _knees():
        one, other = model.grade(image), model.grade(ImageOps.mirror(image))
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
        assert one.image_probabilities == pytest.approx(other.mirror_probabilities, abs=1e-6)


def test_three_readings_are_the_mean_of_slight_turns(model):
    images = _knees(18)  # more than a batch
    pixel_values = model.image_processor(images, return_tensors="pt")["pixel_values"]
    read = [model.grade_pixels(turn(pixel_values, degrees)) for degrees in READINGS[3]]
    image, mirror = (torch.stack([parts[view] for parts in read]).mean(0) for view in (0, 1))
    graded = model.grade(images, readings=3)
    for number, grade in enumerate(graded):
        torch.testing.assert_close(
            torch.tensor(grade.probabilities), ((image + mirror) / 2)[number].softmax(-1), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(torch.tensor(grade.mirror_probabilities), mirror[number].softmax(-1))
    assert model.grade(images[0], readings=1) == model.grade(images[0]) != graded[0]
    mirrored = model.grade(ImageOps.mirror(images[0]), readings=3)
    assert mirrored.image_probabilities == pytest.approx(graded[0].mirror_probabilities, abs=1e-4)
    with pytest.raises(ValueError, match="readings=5: use one of 1, 3"):
        model.grade(images[0], readings=5)


def test_turns_and_scales_move_what_is_shown():
    pixel_values = torch.full((1, 3, 64, 64), -1.0)
    pixel_values[..., 16:24, 28:36] = 1.0  # a square above the middle
    assert turn(pixel_values, 0, 1) is pixel_values

    def centre(values):
        weights = (values[0, 0] + 1) / (values[0, 0] + 1).sum()
        places = torch.arange(64) + 0.5 - 32
        return torch.stack([(weights.sum(0) * places).sum(), (weights.sum(1) * places).sum()])  # x, y

    x, y = centre(pixel_values).tolist()
    assert (x, y) == (0, -12)
    torch.testing.assert_close(centre(turn(pixel_values, 0, 1.05)), torch.tensor([0, -12 * 1.05]), atol=0.1, rtol=0)
    moved = centre(turn(pixel_values, 8, 1))
    assert moved.norm().item() == pytest.approx(12, abs=0.1)
    assert abs(moved[0].item()) == pytest.approx(12 * math.sin(math.radians(8)), abs=0.1)
    turned = turn(pixel_values, 4, 1)
    assert turned.max() <= 1 and turned.min() >= -1
    torch.testing.assert_close(turned.flip(-1), turn(pixel_values.flip(-1), -4, 1), atol=1e-4, rtol=0)


def test_grey_images_of_the_right_size_take_a_shorter_way_to_the_same_pixels(model):
    size = model.image_processor.crop_size["height"]
    ramp = Image.frombytes("L", (size, size), bytes(number % 256 for number in range(size * size)))
    knees = [image.convert("L") for image in _knees(2, size)]
    images = [ramp, *knees]
    expected = model.image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(model.beside.preprocess(images), expected)
    with pytest.raises(ValueError, match="the mode RGB: read_picture"):
        model.beside.preprocess([ramp.convert("RGB")])


def test_a_calibrated_checkpoint_gives_sets(folder, tmp_path):
    calibrated = tmp_path / "calibrated"
    calibrated.mkdir()
    for file in folder.iterdir():
        (calibrated / file.name).symlink_to(file)
    (calibrated / CALIBRATION_FILE).write_text('{"thresholds": {"0.90": 1.1, "0.50": 0.0}}')
    image = _knees(1)[0]
    model = CLIPKOAForImageClassification.from_pretrained(calibrated)
    assert model.grade(image).confidence_set == (0, 1, 2, 3, 4)
    sure = model.grade(image, level=0.5)
    assert sure.confidence_set == (sure.grade,)


def test_maps_of_mirror_images_are_mirrored(model):
    for image in _knees():
        one = model.explain(image, grade=2)
        other = model.explain(ImageOps.mirror(image), grade=2)
        assert one.heat_map.shape == (96, 96) and one.heat_map.max() == 1 and one.heat_map.min() >= 0
        torch.testing.assert_close(one.heat_map, other.heat_map.flip(-1), rtol=1e-4, atol=1e-5)


def test_the_map_is_of_the_question(model):
    image = _knees(1)[0]
    given = model.explain(image)
    assert (given.grade, given.against) == (model.grade(image).grade, None)
    maps = [
        model.explain(image, 2).heat_map,
        model.explain(image, 2, 1).heat_map,
        model.explain(image, 1, 2).heat_map,
    ]
    for number, one in enumerate(maps):
        for other in maps[number + 1 :]:
            assert (one - other).abs().max() > 0.01
    before = model.vision_model.config._attn_implementation
    with pytest.raises(ValueError, match="no grade 5"):
        model.explain(image, 5)
    with pytest.raises(ValueError, match="told from itself"):
        model.explain(image, 2, 2)
    assert model.vision_model.config._attn_implementation == before != "eager"


def test_relevance_is_the_full_rollout(make_model):
    """Against the paper's product of matrices, written out."""
    model = make_model().eval()
    pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.set_attn_implementation("eager")
    vision = model.vision_model(pixel_values=pixel_values, output_attentions=True)
    embeds = torch.nn.functional.normalize(model.visual_projection(vision.pooler_output), dim=-1)
    cosines = embeds @ model.get_grade_embeds().t()
    gradients = torch.autograd.grad((cosines[:, 3] - cosines[:, 1]).sum(), vision.attentions)
    relevance = torch.eye(17).expand(2, 17, 17)
    for attention, gradient in zip(vision.attentions, gradients, strict=True):
        relevance = relevance + (attention * gradient).clamp(min=0).mean(1) @ relevance
    expected = relevance[:, 0, 1:].view(2, 4, 4)
    both = patch_relevance(model, torch.cat([pixel_values, pixel_values.flip(-1)]), 3, 1)
    torch.testing.assert_close((both[:2] + both[2:].flip(-1)) / 2, both[:2], rtol=1e-4, atol=1e-7)
    mirrored = patch_relevance(model, pixel_values.flip(-1), 3, 1).flip(-1)
    torch.testing.assert_close(mirrored, both[:2], rtol=1e-4, atol=1e-7)
    # Averaged with the mirror image's, so the X-ray's own map is what the average leaves.
    assert ((2 * both[:2] - expected) >= -1e-6).all()


def test_the_map_lies_where_the_processor_looked(model):
    """A wide image is cropped to its middle; a processor that zooms cuts out less."""
    wide = Image.new("L", (150, 100))
    wide.paste(draw_knee(3, "L", 0, 100), (25, 0))
    heat_map = model.explain(wide).heat_map
    assert heat_map.shape == (100, 150)
    assert not heat_map[:, :25].any() and not heat_map[:, 125:].any() and heat_map[:, 25:125].any()
    zooming = copy.deepcopy(model)
    zooming.image_processor = CLIPImageProcessor(size={"shortest_edge": 120}, crop_size={"height": 96, "width": 96})
    heat_map = zooming.explain(draw_knee(3, "L", 0, 100)).heat_map
    assert not heat_map[:10].any() and not heat_map[:, 90:].any() and heat_map[10:90, 10:90].any()


def test_overlays(model):
    image = _knees(1)[0]
    explanation = model.explain(image)
    assert explanation.overlay(0).tobytes() == image.convert("RGB").tobytes()
    assert explanation.overlay(1).tobytes() != image.convert("RGB").tobytes()
    layer = explanation.layer((40, 40))
    assert layer.mode == "RGBA" and layer.size == (40, 40)
    cold = explanation.heat_map == 0
    assert not torch.tensor(list(explanation.layer().getchannel("A").tobytes())).view(96, 96)[cold].any()


def test_a_large_film_lies_under_the_same_map(model):
    """Its map is enlarged from a smaller one: all but the border of what the network saw agrees."""
    film = Image.linear_gradient("L").resize((3000, 1100))
    film.paste(draw_knee(3, "L", 0, 1100), (950, 0))
    explanation = model.explain(film, grade=3)
    heat, layer, overlay = explanation.heat_map, explanation.layer(), explanation.overlay(1)
    assert heat.shape == (1100, 3000) and heat.max() == 1 and layer.size == overlay.size == film.size
    opacity = torch.from_numpy(np.array(layer.getchannel("A"))).float()
    assert (opacity - 255 * heat)[4:-4, 954:2046].abs().max() < 2
    assert not opacity[:, :946].any() and not opacity[:, 2054:].any()
    below = Image.alpha_composite(film.convert("RGBA"), layer).convert("RGB")
    assert np.abs(np.asarray(overlay, int) - np.asarray(below, int)).max() <= 2
    small = torch.from_numpy(np.array(explanation.layer((300, 110)).getchannel("A"))).float()
    shrunk = torch.nn.functional.interpolate(255 * heat[None, None], (110, 300), mode="area")[0, 0]
    assert (small - shrunk)[1:-1, 97:-97].abs().max() < 4


# Explains a film of 36 million pixels; prints by how many bytes a pixel memory grows, for a map and for an overlay.
_EXPLAIN_LARGE = """
import sys
from pathlib import Path
from PIL import Image
from modeling_clip_koa import CLIPKOAForImageClassification

def growth(draw):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    draw(model.explain(film, 3))
    return (peak() - before) / (film.width * film.height)

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

model = CLIPKOAForImageClassification.from_pretrained(sys.argv[1])
model.explain(Image.linear_gradient("L"), 3).overlay()
film = Image.linear_gradient("L").resize((7200, 5000))
print(growth(lambda explanation: explanation.layer((448, 311))), growth(lambda explanation: explanation.overlay()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory in Linux's /proc")
def test_a_map_takes_few_bytes_a_pixel(folder):
    """The mirror image takes one, and a picture as large as the film takes four."""
    command = [sys.executable, "-c", _EXPLAIN_LARGE, str(folder)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr
    layer, overlay = map(float, told.stdout.split())
    assert layer < 5 and overlay < 8, told.stdout


def test_whatever_gives_logits_grades(model):
    class Fixed(GradesXrays):
        config, beside = model.config, Beside(model.image_processor)

        def grade_pixels(self, pixel_values):
            assert pixel_values.shape == (1, 3, 96, 96)
            return torch.tensor([[0.0, 0, 0, 3, 0]]), torch.tensor([[0.0, 0, 0, 5, 0]]), None

    grade = Fixed().grade(_knees(1)[0])
    assert grade.grade == 3 and grade.flip_agreement and grade.atypicality is None
