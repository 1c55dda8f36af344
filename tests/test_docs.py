"""The pages: what they say of the house is so."""

import re
import tomllib

import pytest
from helpers.paths import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "launch/README.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    inside = [link for link in links if "://" not in link]
    assert not [link for link in inside if not (page.parent / link).exists()]


def test_the_floors_of_the_architecture_are_those_that_the_linter_checks():
    with (ROOT / "pyproject.toml").open("rb") as file:
        (contract,) = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", page, flags=re.MULTILINE)
    assert [int(floor) for floor, _ in rows] == list(range(len(rows)))[::-1]
    told = [{*re.findall(r"`(\w+)(?:/|\.py)`", names)} for _, names in rows]
    assert told == [{*layer.split(" | ")} for layer in contract["layers"]]
