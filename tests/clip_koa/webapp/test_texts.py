"""The page's texts: the same in every language, all used, all there."""

import re

import pytest
import yaml
from conftest import ROOT

from clip_koa.webapp.texts import FILE, LANGUAGES, best_language, texts_of
from modeling_clip_koa import GRADE_LABELS, GRADE_MEANINGS, WAYS

TEXTS = yaml.safe_load(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("key", TEXTS)
def test_every_text_is_in_every_language_with_the_same_blanks(key):
    assert list(TEXTS[key]) == list(LANGUAGES)
    blanks = {tuple(sorted(re.findall(r"\{\w+\}", text))) for text in TEXTS[key].values()}
    assert len(blanks) == 1 and all(text.strip() for text in TEXTS[key].values())


def test_texts_that_are_used_are_there_and_none_is_idle():
    folders = [ROOT / "clip_koa" / name for name in ("webapp", "browser")]  # both pages have their texts of one file
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".py", ".js", ".html")
    )
    used = set(re.findall(r'\bt\(\s*"(\w+)"', code)) | set(re.findall(r'data-text="(\w+)"', code))
    assert used <= set(TEXTS), used - set(TEXTS)
    made = ("column_", "grade_", "meaning_", "side_", "way_", "title_", "body_", "short_")  # put together from parts
    idle = [key for key in TEXTS if not re.search(rf"\b{key}\b", code) and not key.startswith(made)]
    assert idle == []


def test_all_that_is_put_together_is_there():
    assert {f"way_{way}" for way in WAYS} <= set(TEXTS)
    for trouble in ("no_knee", "unlike", "metal"):
        assert {f"{part}_{trouble}" for part in ("title", "body", "short")} <= set(TEXTS)


def test_english_grades_are_the_model_s():
    english = texts_of("en")
    assert tuple(english[f"grade_{grade}"] for grade in range(5)) == GRADE_LABELS
    assert tuple(english[f"meaning_{grade}"] for grade in range(5)) == GRADE_MEANINGS


@pytest.mark.parametrize(
    "accepted, language",
    [
        ("de-CH,de;q=0.9,en;q=0.8", "de"), ("zh-CN,fr;q=0.5,es;q=0.6", "es"), ("", "en"), ("xx", "en"),
        ("fr;q=0,es;q=0.1", "es"), ("de;q=much", "en"), ("EN-us", "en"),
    ],
)  # fmt: skip
def test_the_language_that_a_browser_asks_for(accepted, language):
    assert best_language(accepted) == language
