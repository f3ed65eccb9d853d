"""What pyproject.toml asks pip for, and the versions that constraints.txt pins."""

import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # there, pytest brings it

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = tuple(PROJECT["optional-dependencies"])


def core_dependencies() -> list[Requirement]:
    """What `pip install .` needs."""
    return resolve_extras(PROJECT["dependencies"])


def dependencies_of(extra: str) -> list[Requirement]:
    """What `pip install .[extra]` needs beside the core dependencies."""
    return resolve_extras(PROJECT["optional-dependencies"][extra])


def resolve_extras(lines: Iterable[str]) -> list[Requirement]:
    """The requirements of other packages; `katlib[train,widgets]` is replaced by those extras'."""
    found = []
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            for extra in sorted(requirement.extras):
                found += dependencies_of(extra)
        else:
            found.append(requirement)
    return found


def all_direct_dependencies() -> list[Requirement]:
    """The core dependencies and those of all extras."""
    found = core_dependencies()
    for extra in EXTRAS:
        found += dependencies_of(extra)
    return found


def names(requirements: Iterable[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def constraints(python_version: str = "3.12") -> dict[str, str]:
    """{name: version} of constraints.txt on that version of Python."""
    return pins((ROOT / "constraints.txt").read_text().splitlines(), python_version)


def pins(lines: Iterable[str], python_version: str = "3.12") -> dict[str, str]:
    """{name: version} of the lines `name==version` that hold on that version of Python."""
    found: dict[str, str] = {}
    for line in lines:
        if "==" not in line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate(
            {"python_version": python_version}
        ):
            continue
        (specifier,) = requirement.specifier
        name = canonicalize_name(requirement.name)
        assert specifier.operator == "==", line
        assert name not in found, f"{name} is pinned twice"
        found[name] = specifier.version
    return found
