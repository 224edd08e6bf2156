"""The page's texts in its languages, from one file."""

from functools import cache
from pathlib import Path

import yaml

LANGUAGES = {"en": "English", "de": "Deutsch", "fr": "Français", "es": "Español"}
DEFAULT = "en"
FILE = Path(__file__).with_name("texts.yaml")


@cache
def _all_texts() -> dict[str, dict[str, str]]:
    texts = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {language: {key: text[language] for key, text in texts.items()} for language in LANGUAGES}


def texts_of(language: str) -> dict[str, str]:
    """Every text of a language by its key; English where there is no such language."""
    return _all_texts().get(language, _all_texts()[DEFAULT])


def best_language(accepted: str) -> str:
    """The page's language that a browser likes best, from its Accept-Language header."""
    liked = []
    for place, part in enumerate(accepted.split(",")):
        name, _, quality = part.strip().partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            continue
        liked.append((-weight, place, name.split("-")[0].lower()))
    return next((name for weight, _, name in sorted(liked) if name in LANGUAGES and weight < 0), DEFAULT)
