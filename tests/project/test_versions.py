"""Dependencies: pyproject.toml, constraints.txt and environment.yml agree with one another."""

import re

import pytest
import yaml
from dependencies import (
    EXTRAS,
    PROJECT,
    PYPROJECT,
    ROOT,
    all_direct_dependencies,
    constraints,
    core_dependencies,
    dependencies_of,
    names,
    pins,
    resolve_extras,
)

import katlib


def environment_pins() -> dict[str, str]:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip_lines,) = (
        entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)
    )
    return pins(pip_lines)


# ---- dependencies


def test_importing_the_package_needs_four_packages():
    assert names(core_dependencies()) == {"torch", "numpy", "safetensors", "filelock"}


def test_an_extra_that_refers_to_others_brings_what_they_bring():
    assert names(dependencies_of("train")) | names(dependencies_of("widgets")) < names(
        dependencies_of("notebooks")
    )


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_extra_test_brings_every_other(extra):
    """`make` installs this one only."""
    assert names(dependencies_of(extra)) <= names(dependencies_of("test"))


def test_an_extra_that_does_not_exist_is_noticed():
    with pytest.raises(KeyError, match="trian"):
        resolve_extras(["katlib[trian]"])


# ---- pins


def test_environment_yml_pins_the_same_versions_as_constraints_txt():
    listed = environment_pins()
    pinned = constraints()
    assert listed == {name: pinned[name] for name in listed}


def test_environment_yml_pins_every_direct_dependency():
    needed = names(all_direct_dependencies())
    assert set(environment_pins()) == needed
    assert len(needed) >= 14


@pytest.mark.parametrize("python_version", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("requirement", all_direct_dependencies(), ids=str)
def test_the_pinned_version_is_within_the_range(requirement, python_version):
    (name,) = names([requirement])
    assert requirement.specifier.contains(constraints(python_version)[name])


def test_a_version_may_depend_on_pythons():
    lines = ['a-b==1 ; python_version < "3.11"', 'a_b==2 ; python_version >= "3.11"', "# c==3"]
    assert pins(lines, "3.10") == {"a-b": "1"}
    assert pins(lines, "3.13") == {"a-b": "2"}


# ---- the lowest Python, and katlib's own version


def test_the_tools_check_for_the_lowest_python():
    """Ruff then refuses newer syntax, and mypy newer parts of the standard library."""
    lowest = PROJECT["requires-python"].removeprefix(">=")
    tools = PYPROJECT["tool"]
    assert tools["ruff"]["target-version"] == f"py{lowest.replace('.', '')}"
    assert tools["mypy"]["python_version"] == lowest


@pytest.fixture
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def newest_entry_of_the_changelog() -> tuple[str, str]:
    """Its version, and its date or "not released yet"."""
    heading = r"^## (\S+) \((not released yet|\d{4}-\d\d-\d\d)\)$"
    match = re.search(heading, (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert match
    return match[1], match[2]


def test_the_version_is_the_same_wherever_it_is_written(citation):
    version, _ = newest_entry_of_the_changelog()
    assert {str(citation["version"]), version, PROJECT["version"]} == {katlib.__version__}


def test_the_citation_has_the_date_of_the_release(citation):
    _, date = newest_entry_of_the_changelog()
    assert str(citation.get("date-released", "not released yet")) == date


def test_the_citation_names_authors_and_the_licence(citation):
    assert citation["authors"]
    assert citation["license"] == "MIT"
