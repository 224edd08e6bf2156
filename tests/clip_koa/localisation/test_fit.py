"""The command that fits a locator: on drawn knees and a tiny model, and the same file for the same seed."""

import numpy as np
import pytest
import torch
from deepdish_files import deepdish_file
from PIL import Image, ImageDraw
from safetensors import safe_open

from clip_koa.commands import main
from clip_koa.localisation import fit
from clip_koa.localisation.film_windows import draw_film_windows
from clip_koa.locks import WriterLock
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.detection import DetectionFilm
from dataset_script.films import compose_film, read_pairs
from dataset_script.synthetic import main as draw
from modeling_clip_koa.localisation_clip_koa import LOCALISATION_FILE, KneeLocator, LocalisationError, read_locator


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "corpus"
    assert draw(["--output", str(folder), "--people", "6", "--split", "train"]) == 0
    return folder


@pytest.fixture
def model_folder(make_model, tokenizer, image_processor, tmp_path):
    model = make_model().eval()
    save_model_folder(tmp_path / "model", model, image_processor, tokenizer)
    return tmp_path / "model"


def run(model_folder, corpus, *more):
    numbers = ["--people", "6", "--per_person", "20", "--epochs", "2"]
    return main(["fit-framing", "--model", str(model_folder), "--data_dir", str(corpus), *numbers, *more])


def test_one_command_fits_it_and_the_seed_decides(model_folder, corpus, make_model, tmp_path, capsys):
    assert run(model_folder, corpus) == 0
    assert "On people it was not fitted to" in capsys.readouterr().out
    file = model_folder / LOCALISATION_FILE
    read_locator(str(model_folder), make_model().config)
    assert run(model_folder, corpus, "--output", str(tmp_path / "again")) == 0
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    assert run(model_folder, corpus, "--output", str(tmp_path / "other"), "--seed", "1") == 0
    assert (tmp_path / "other").read_bytes() != file.read_bytes()
    with safe_open(file, "pt") as content:
        assert content.metadata() == {"reads": "1 blocks, 16 pixels"}


def test_nothing_else_replaces_the_model_meanwhile(model_folder, corpus, capsys):
    with WriterLock(model_folder):  # as clip-koa calibrate holds it
        assert run(model_folder, corpus) == 2
    assert str(model_folder) in capsys.readouterr().err and not (model_folder / LOCALISATION_FILE).exists()


def test_training_learns_what_tokens_say():
    """Tokens that hold the answer: errors fall far below those of the mean, and none is missed."""
    random = torch.Generator().manual_seed(0)
    targets = torch.rand(800, 4, generator=random) - 0.5
    tokens = torch.randn(800, 4, 12, generator=random) * 0.1
    tokens[:, :, :4] += targets[:, None]
    targets[::4] = torch.nan
    tokens[::4, :, 4] += 1.0
    locator = KneeLocator(12, 4, 1, 16)
    fit.train(locator, tokens[200:].half(), targets[200:], epochs=25, seed=0)
    found = fit.measure(locator, tokens[:200].half(), targets[:200])
    assert max(found[name] for name in ("across", "down", "scale", "angle")) < 0.08
    assert found["missed"] < 0.03 and found["taken"] < 0.03


def test_strange_is_what_framed_knees_are_not():
    random = torch.Generator().manual_seed(0)
    locator = KneeLocator(12, 4, 1, 16)
    spread = torch.tensor([3.0] * 4 + [0.1] * 8)

    def draw(count, shift=0.0):
        return (torch.randn(count, 1, 12, generator=random) * spread + shift).expand(-1, 4, -1).half()

    targets = torch.zeros(400, 4)
    targets[300:] = torch.nan  # of other windows nothing is learnt
    tokens = torch.cat([draw(300), draw(100, shift=50.0)])
    fit.fit_typicality(locator, tokens, targets)
    assert (locator.strangeness(draw(500)) > 1).float().mean() < 0.02
    assert (locator.strangeness(draw(500, shift=1.0)) > 1).float().mean() > 0.95  # along no axis a large step
    with pytest.raises(LocalisationError, match="Too few windows are framed"):
        fit.fit_typicality(locator, tokens, targets + 1)


def test_tokens_are_those_of_the_windows(make_model, image_processor, corpus):
    model = make_model().eval()
    locator = fit.new_locator(model, image_processor)
    windows = list(fit.draw_windows(read_pairs(corpus, "train", 3), locator.window, 5, 0))
    tokens, targets = fit.collect(model, locator, iter(windows), 15)
    assert tokens.shape == (15, 4, 32) and targets.shape == (15, 4)
    expected = locator.tokens(model, [windows[7].picture])[0]
    np.testing.assert_allclose(tokens[7].float(), expected, atol=2e-3)
    assert [bool(row.isnan().all()) for row in targets] == [window.target is None for window in windows]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data_dir", "nowhere"], "nowhere"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_told_in_a_line_and_nothing_is_written(model_folder, corpus, tmp_path, capsys, more, message):
    output = tmp_path / "out" / "file"
    assert run(model_folder, corpus, "--output", str(output), *more) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told and not output.exists()


def test_a_corpus_of_one_person_is_refused(model_folder, tmp_path, capsys):
    assert draw(["--output", str(tmp_path / "one"), "--people", "1", "--split", "train"]) == 0
    assert run(model_folder, tmp_path / "one") == 2
    assert "two people" in capsys.readouterr().err
    assert not (model_folder / LOCALISATION_FILE).exists()


def test_numbers_under_one_are_refused(model_folder, corpus):
    assert run(model_folder, corpus, "--people", "0") == 2


def test_real_films_may_be_added(model_folder, corpus, tmp_path, capsys, monkeypatch):
    pytest.importorskip("h5py")
    folder = tmp_path / "DetKneeData" / "H5" / "trainH5"
    folder.mkdir(parents=True)
    for pair in read_pairs(corpus, "train", 4):
        film = compose_film(pair.right, pair.left, pair.number, "dark", 320)
        data = {"images": np.asarray(film.image), "gt_boxes": np.array(film.boxes), "origin_im": pair.person_id}
        (folder / f"{pair.number}.h5").write_bytes(deepdish_file(data))
    counts, collect = [], fit.collect
    monkeypatch.setattr(fit, "collect", lambda *given: counts.append(given[3]) or collect(*given))
    assert run(model_folder, corpus, "--output", str(tmp_path / "without")) == 0
    assert run(model_folder, corpus, "--output", str(tmp_path / "with"), "--films", str(tmp_path)) == 0
    assert counts == [20, 100, 40, 160]  # of one person and then five; of one film more and then three
    assert (tmp_path / "with").read_bytes() != (tmp_path / "without").read_bytes()
    assert run(model_folder, corpus, "--output", str(tmp_path / "no"), "--films", str(corpus)) == 2
    assert "holds no trainH5/*.h5" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_windows_of_real_films_say_where_the_knee_is():
    """Discs in place of knees: the answer leads to the box, whatever the window."""
    image = Image.new("L", (320, 256), 20)
    boxes = ((40.0, 80.0, 130.0, 170.0), (190.0, 82.0, 280.0, 172.0))
    draw_on = ImageDraw.Draw(image)
    for left, top, right, bottom in boxes:
        draw_on.ellipse([left, top, right - 1, bottom - 1], fill=220)
    film, shown, none = DetectionFilm(image, boxes, "", ""), 0, 0
    for window in draw_film_windows([film] * 10, 112, 8, seed=0):
        if window.target is None:
            none += 1
            continue
        across, down, scale, _ = window.target
        values = np.asarray(window.picture, float)
        x, y = (round(112 * (0.5 + place)) for place in (across, down))
        if 0 <= x < 112 and 0 <= y < 112 and abs(values - values.mean()).max() > 30:
            half = max(1, round(112 * np.exp(scale) / 8))
            middle = values[max(0, y - half) : y + half, max(0, x - half) : x + half]
            shown += middle.mean() > values.mean()
    assert none > 15 and shown > 30
    again = list(draw_film_windows([film], 112, 8, seed=0))
    assert [one.target for one in again] == [one.target for one in draw_film_windows([film], 112, 8, seed=0)]
