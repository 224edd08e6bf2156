"""The Space that is the page in the browser: static files, so that the Hub computes nothing and sees no X-ray."""

from pathlib import Path

from clip_koa.publishing.beside import PROJECT
from clip_koa.publishing.plain_files import copy_license

_EXAMPLES = PROJECT / "examples"
# Names, relative to the folder, that the Space may hold.
BROWSER_SPACE_FILES = (
    "README.md", "LICENSE", "index.html", "sw.js", "release.js", "page/*.js", "page/*.css", "page/icon.svg",
    "texts/??", "vendor/*.mjs", "vendor/*.js", "vendor/*.wasm", "vendor/README.md", "model/*.onnx",
    "model/model.json", "model/typicality.safetensors", "examples/kl[0-4]_left.png", "examples/kl[0-4]_right.png",
    "examples/ATTRIBUTION.md",
)  # fmt: skip
# The headers let the model use several cores; the Hub sends no others.
_CARD = """---
title: {title}
emoji: 🦵
colorFrom: blue
colorTo: gray
sdk: static
app_file: index.html
pinned: false
license: apache-2.0
{models}custom_headers:
  cross-origin-embedder-policy: require-corp
  cross-origin-opener-policy: same-origin
  cross-origin-resource-policy: cross-origin
short_description: Grades knee X-rays in your browser. Research only.
---

# {title}

Grades knee X-rays on the Kellgren-Lawrence scale in the visitor's own browser. No X-ray leaves the computer: the page
is a folder of static files, its content-security-policy forbids every request to another address, and it works without
a network after the first visit. `python -m http.server` in this folder serves the same page.

> **Research only.** This is not a medical device. Its grades must not guide the care of patients.

`vendor/` holds packages of npm as they were published, `vendor/README.md` their licences and digests. `examples/`
holds real X-rays of a public data set; `examples/ATTRIBUTION.md` names it.
"""


def build_browser_space(folder: Path, repo_id: str, model: str) -> dict[str, str]:
    """Writes the Space into a folder that does not exist yet.

    Args:
        model: model folder, or the Hub id of a published model, which the card then names.

    Returns:
        SHA-256 of the files that are no text and that were made or checked here, by name.

    Raises:
        ImportError: the extra `onnx` is not installed.
        CheckpointError, SiteError, PackageError: as `build_site`.
    """
    try:
        from clip_koa.browser.site import build_site
    except ModuleNotFoundError as error:
        message = f"--browser-space needs {error.name}, which is missing: pip install 'clip-koa[onnx]'."
        raise ImportError(message, name=error.name) from error
    title = repo_id.split("/")[-1]
    is_folder = Path(model).is_dir()
    folder.mkdir()
    site = build_site(folder, model, _EXAMPLES, Path(model).resolve().name if is_folder else model)
    copy_license(folder / "LICENSE")
    models = "" if is_folder else f"models:\n- {model}\n"
    (folder / "README.md").write_text(_CARD.format(title=title, models=models), encoding="utf-8")
    return site.known
