"""The endpoint's handler on films: which knees it answers for, and how."""

import importlib.util
import io
from types import SimpleNamespace

import pytest
from conftest import ROOT
from PIL import Image

from modeling_clip_koa import GRADE_LABELS, Grade

FILM, KNEE = (120, 80), (64, 64)


def grade_of(number: int, **known) -> Grade:
    probabilities = tuple(0.6 if grade == number else 0.1 for grade in range(5))
    return Grade(number, GRADE_LABELS[number], "", probabilities, probabilities, probabilities, **known)


class Model:
    """Stands for a model that finds the knees it is told of; every crop is KL0."""

    config = SimpleNamespace(id2label=dict(enumerate(GRADE_LABELS)))

    def __init__(self, knees, can_find_knees=True):
        self.knees, self.can_find_knees, self.asked = knees, can_find_knees, []

    def grade(self, picture, keep_polarity):
        return grade_of(0)

    def grade_film(self, picture, keep_polarity, sides):
        self.asked.append((keep_polarity, sides))
        return self.knees


@pytest.fixture
def handle():
    """Calls the handler of a model on a picture of some size; `parameters` are sent along."""
    path = ROOT / "clip_koa" / "publishing" / "templates" / "handler.py"
    spec = importlib.util.spec_from_file_location("handler_of_films", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(model, size=FILM, **request):
        handler = module.EndpointHandler.__new__(module.EndpointHandler)
        handler.model = model
        content = io.BytesIO()
        Image.linear_gradient("L").resize(size).save(content, "PNG")
        return handler({"inputs": content.getvalue(), **request})

    return call


def test_a_knee_that_fills_its_xray_is_answered_as_ever(handle):
    framed = grade_of(2, box=(0, 0, *KNEE))
    answer = handle(Model([framed]), KNEE)
    assert [set(entry) for entry in answer] == [{"label", "score"}] * 5
    assert answer[0] == {"label": "KL2 mild", "score": 0.6}


def test_two_knees_right_knee_first(handle):
    model = Model(
        [
            grade_of(3, box=(5, 10, 55, 60), side="R", side_assumed=True, ways=("contrast",)),
            grade_of(1, box=(65, 10, 115, 60), side="L", side_assumed=True),
        ]
    )
    answer = handle(model)
    assert model.asked == [(False, "")]
    assert [entry["side"] for entry in answer] == ["R"] * 5 + ["L"] * 5
    right, left = answer[0], answer[5]
    assert (right["label"], right["box"], left["label"], left["box"]) == (
        "KL3 moderate", [5, 10, 55, 60], "KL1 doubtful", [65, 10, 115, 60],
    )  # fmt: skip
    assert right["side_assumed"] and "contrast" in right["warning"] and "warning" not in left


@pytest.mark.parametrize("model", [Model([], can_find_knees=False), Model([grade_of(4, box=(0, 0, 9, 9))])])
def test_as_it_is(handle, model):
    """Where it is asked for, and where the checkpoint cannot find knees."""
    request = {} if not model.can_find_knees else {"parameters": {"framing": "as_is", "top_k": 5}}
    answer = handle(model, **request)
    assert answer[0] == {"label": "KL0 none", "score": 0.6} and len(answer) == 5 and not model.asked


def test_where_no_knee_has_a_grade_it_says_why(handle):
    with pytest.raises(ValueError, match=r"No knee seen from the front.*as_is"):
        handle(Model([]))
    metal = grade_of(2, box=(5, 10, 55, 60), side="R", ways=("metal",))
    with pytest.raises(ValueError, match="metal"):
        handle(Model([metal]))
    answer = handle(Model([metal, grade_of(1, box=(65, 10, 115, 60), side="L")]))
    assert answer[0]["label"].startswith("not graded: ") and "metal" in answer[0]["label"] and answer[0]["side"] == "R"
    assert [entry["side"] for entry in answer[1:]] == ["L"] * 5


@pytest.mark.parametrize("parameters", ["as_is", {"framing": "films"}, {"framing": None}])
def test_other_parameters_are_refused(handle, parameters):
    with pytest.raises(ValueError, match="as_is"):
        handle(Model([]), parameters=parameters)
