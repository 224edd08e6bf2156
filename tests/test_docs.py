"""What people read: every link leads somewhere, and no page of the manual is left out."""

import re
from pathlib import Path

import pytest
import yaml

from clip_koa.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "dataset_script/README.md")
    if (ROOT / name).is_file()
] + sorted((ROOT / "docs").rglob("*.md"))
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_to_a_file_leads_to_one(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    targets = [target for target in _LINK.findall(text) if not re.match(r"[a-z]+:", target)]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {missing}, which are not there"


@pytest.mark.parametrize("folder", ["docs", "docs/notebook"])
def test_the_index_lists_every_page_once(folder):
    index = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / folder).glob("*.md")} - {"README.md"}
    assert sorted(pages) == sorted(re.findall(r"\]\(([\w-]+\.md)\)", index))


def test_what_the_docs_run_is_there():
    """Modules, configurations and subcommands in a code block or between backticks."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for module in re.findall(
            r"python -m ((?:clip_koa|dataset_script|studies)(?:\.[a-z]\w*)*)(?!\w|\.[A-Z])", text
        ):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{page.name}: {module}"
        if page.name != "CHANGELOG.md":
            commands = set(re.findall(r"(?:^|[`/ ])clip-koa ([a-z][a-z-]+)\b", text, flags=re.M))
            assert commands <= set(COMMANDS), f"{page.name}: {commands}"
        if "notebook" not in page.parts:
            missing = [path for path in re.findall(r"configs/[\w/]+\.yaml", text) if not (ROOT / path).is_file()]
            assert not missing, f"{page.name}: {missing}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["ci"]["steps"]
    assert "bash .ci/run" in [step.get("run") for step in steps]
