"""Generated X-rays: repeatable, and showing what their grade says."""

import numpy as np
import pytest

from dataset_script.knee_xray import load_knee_xray
from dataset_script.synthetic import GRADES, draw_corpus, draw_knee


def _pixels(image) -> np.ndarray:
    return np.asarray(image, float)


def test_the_same_arguments_give_the_same_pixels_in_any_process(run_python):
    code = "from dataset_script.synthetic import draw_knee; print(hash(draw_knee(2, 'R', 7, 96).tobytes()))"
    first = run_python("-c", code, PYTHONHASHSEED="0").stdout
    assert first == run_python("-c", code, PYTHONHASHSEED="0").stdout
    assert draw_knee(2, "R", 7, 96).tobytes() != draw_knee(2, "R", 8, 96).tobytes()


def test_a_right_knee_is_a_mirrored_left_knee():
    left, right = _pixels(draw_knee(1, "L", 5, 96)), _pixels(draw_knee(1, "R", 5, 96))
    assert np.array_equal(left, right[:, ::-1])


def test_the_fibula_is_on_the_lateral_side():
    """In the lower corner beside the tibia: on the right of the image for left knees, as in real frontal views."""
    for laterality, sign in (("L", 1), ("R", -1)):
        mean = np.mean([_pixels(draw_knee(0, laterality, seed, 96)) for seed in range(20)], axis=0)
        lower = mean[75:92]
        assert sign * (lower[:, 82:90].mean() - lower[:, 6:14].mean()) > 5


def test_joint_space_narrows_and_osteophytes_grow_with_the_grade():
    dark_gap, margin = [], []
    for grade in GRADES:
        knees = np.mean([_pixels(draw_knee(grade, "L", seed, 96, overlap=0)) for seed in range(30)], axis=0)
        medial = knees[38:58, 24:36].mean(axis=1)
        dark_gap.append(medial.mean())
        margin.append(knees[36:60, 4:10].mean())
    assert dark_gap == sorted(dark_gap) and dark_gap[4] - dark_gap[0] > 10
    assert margin[4] > margin[2] > margin[0]


def test_overlap_blurs_neighbouring_grades():
    """The same seed differs only in severity, so the pictures part further the larger the overlap."""

    def distance(overlap):
        pairs = ((draw_knee(2, "L", seed, 64, 0), draw_knee(2, "L", seed, 64, overlap)) for seed in range(20))
        return np.mean([np.abs(_pixels(exact) - _pixels(blurred)).mean() for exact, blurred in pairs])

    assert 0 < distance(0.2) < distance(0.5) < distance(1.0)


def test_people_have_two_knees_within_one_grade():
    drawings = list(draw_corpus("train", 25, seed=0, image_size=48))
    assert [drawing.laterality for drawing in drawings] == ["L", "R"] * 25
    for left, right in zip(drawings[::2], drawings[1::2], strict=True):
        assert left.person_id == right.person_id and len(left.person_id) == 7
        assert abs(left.grade - right.grade) <= 1


@pytest.mark.parametrize(
    "arguments, reason",
    [((5, "L", 0), "0 to 4"), ((0, "left", 0), "L or R"), ((0, "L", 0, 8), "32"), ((0, "L", 0, 64, -1), "overlap")],
)
def test_wrong_arguments_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        draw_knee(*arguments)


def test_command_writes_a_folder_the_builder_reads(run_python, tmp_path):
    command = ("-m", "dataset_script.synthetic", "--output", tmp_path / "knees", "--people", 4, "--image_size", 48)
    run_python(*command)
    corpus = load_knee_xray(tmp_path / "knees", cache_dir=str(tmp_path / "cache"))
    assert len(corpus["test"]) == 8
    again = run_python(*command, expect=2)  # never writes over something
    assert "not an empty folder" in again.stderr and "Traceback" not in again.stderr
    run_python("-m", "dataset_script.synthetic", "--sheet", tmp_path / "sheet.png", "--image_size", 48)
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.real
def test_real_knees_have_the_fibula_on_the_same_side(knee_xray_dir):
    """The drawing follows the real corpus: right of the image for left knees."""
    rows = load_knee_xray(knee_xray_dir)["validation"]
    means = {side: [] for side in "LR"}
    for row in rows.select(range(300)):
        means[row["laterality"]].append(_pixels(row["image"].convert("L").resize((96, 96))))
    left, right = (np.mean(means[side], axis=0) for side in "LR")
    corner = slice(72, 94)
    lateral_of_left = left[corner, 84:94].mean() - left[corner, 2:12].mean()
    lateral_of_right = right[corner, 84:94].mean() - right[corner, 2:12].mean()
    assert lateral_of_left > 5 and lateral_of_right < -5
