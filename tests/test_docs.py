"""What people read: every link leads somewhere, and no page of the manual is left out."""

import re
from pathlib import Path

import pytest
import yaml

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


def test_the_notebook_lists_its_pages():
    index = (ROOT / "docs/notebook/README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs/notebook").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", index))


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["ci"]["steps"]
    assert "bash .ci/run" in [step.get("run") for step in steps]
