"""Workflows and forms of GitHub: the commands are those of a checkout."""

import re

import pytest
import yaml
from helpers.paths import ROOT

HERE = ROOT / ".github"


def jobs():
    return yaml.safe_load((HERE / "workflows/checks.yml").read_text())["jobs"]


def test_every_command_of_a_job_is_one_of_a_checkout():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    found = {}
    for name, job in jobs().items():
        (command,) = (step["run"] for step in job["steps"] if "run" in step)
        found[name] = command.split()
    assert found.pop("everything") == ["bash", ".ci/run"]
    assert {"test", "wheel", "notebooks", "docs"} == found.keys()
    for make, target, *tests in found.values():
        assert make == "make" and target in targets
        for test in tests:
            assert (ROOT / test.removeprefix("TESTS=")).is_file()


def test_the_jobs_have_the_versions_of_python_that_are_promised():
    versions = jobs()["test"]["strategy"]["matrix"]["python"]
    for version in versions:
        said = f"Programming Language :: Python :: {version}"
        assert said in (ROOT / "pyproject.toml").read_text()


FORMS = sorted(x for x in (HERE / "ISSUE_TEMPLATE").iterdir() if x.stem != "config")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_github_asks_for(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    for part in form["body"]:
        assert part["type"] == "textarea" and part["attributes"]["label"]
