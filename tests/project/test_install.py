"""`pip install .` alone gives the activation and the layers, and the wheel is whole."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from dependencies import ROOT, all_direct_dependencies, core_dependencies, names
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

SOURCES = ("katlib", "pyproject.toml", "README.md", "LICENSE")
NO_INDEX = r"NewConnectionError|Temporary failure|Network is unreachable|No matching distribution"


def pip(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources, because setuptools leaves files beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = folder / "source" / name
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, copy)
    done = pip("wheel", "--quiet", "--no-deps", "-w", str(folder), str(folder / "source"))
    if done.returncode and re.search(NO_INDEX, done.stderr):
        pytest.skip("setuptools, which builds the wheel, cannot be downloaded")
    assert not done.returncode, done.stderr
    (path,) = folder.glob("*.whl")
    return path


# ---- what is in it


@pytest.mark.parametrize(
    "pattern",
    [
        "**/*.py",
        "py.typed",
        "coefficients.json",
        "weights/*.safetensors",
        "cpu/*.cpp",
        "cuda/*.cu",
        "cuda/emulator/*.cpp",
        "cuda/emulator/*.h",
        "cuda/ladder/*.cu",
        "cuda/ladder/*.cuh",
        "widgets/*.js",
        "widgets/*.css",
    ],
)
def test_the_wheel_contains(wheel, pattern):
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "katlib").glob(pattern)}
    assert expected
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_contains_nothing_but_the_package(wheel):
    folders = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    metadata = next(folder for folder in folders if folder.endswith(".dist-info"))
    assert folders == {"katlib", metadata}


# ---- an environment with the core dependencies and nothing else


def core_distributions() -> dict[str, importlib.metadata.Distribution]:
    """{name: distribution} of the core dependencies, and of all that these need in their turn."""
    found = {}
    followed = set()
    to_follow = core_dependencies()
    while to_follow:
        requirement = to_follow.pop()
        name = canonicalize_name(requirement.name)
        extras = frozenset(requirement.extras)
        if (name, extras) in followed:
            continue
        followed.add((name, extras))
        found[name] = importlib.metadata.distribution(name)
        for needed in map(Requirement, found[name].requires or []):
            if applies(needed, extras):
                to_follow.append(needed)
    return found


def applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    """Whether a distribution that is wanted with these extras has this requirement here."""
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def link_distributions(folder: Path) -> None:
    """Fills the folder with links to everything that the core dependencies have installed."""
    folder.mkdir()
    for distribution in core_distributions().values():
        tops = {Path(file).parts[0] for file in distribution.files or []}
        for top in tops - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(distribution.locate_file(top)).resolve())


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> str:
    """The Python of an environment into which katlib was installed from its wheel.

    No package index may be asked. The core dependencies are those of the environment around it,
    and nothing else of that can be seen.
    """
    if sys.platform == "win32":
        pytest.skip("needs symbolic links")
    folder = tmp_path_factory.mktemp("plain")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    python = str(environment / "bin" / "python")
    link_distributions(folder / "core")
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "core.pth").write_text(f"{folder / 'core'}\n")
    done = pip("install", "--quiet", "--no-index", str(wheel), python=python)
    assert not done.returncode, done.stderr
    return python


def run(python: str, program: str, folder: Path) -> str:
    """What the program prints, started elsewhere than in the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not done.returncode, done.stderr
    return done.stdout


def test_a_plain_install_brings_nothing_of_the_extras(python, tmp_path):
    program = """
from importlib.metadata import distributions
print(*sorted({distribution.name for distribution in distributions()}))
"""
    installed = {canonicalize_name(name) for name in run(python, program, tmp_path).split()}
    assert installed == {"katlib", *core_distributions()}
    only_in_extras = names(all_direct_dependencies()) - set(core_distributions())
    assert {"torchvision", "matplotlib", "anywidget"} <= only_in_extras
    assert not installed & only_in_extras


def test_after_a_plain_install_a_layer_is_trained(python, tmp_path):
    program = """
import torch
import katlib

torch.manual_seed(0)
mlp = katlib.GRKANMlp(16, 32)
optimizer = torch.optim.Adam(mlp.parameters(), lr=1e-2)
x = torch.randn(64, 16)
losses = []
for _ in range(20):
    loss = (mlp(x) - x.sin()).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(katlib.__file__, losses[0], losses[-1])
"""
    module, first, last = run(python, program, tmp_path).split()
    assert Path(module).is_relative_to(Path(python).parents[1])
    assert float(last) < 0.5 * float(first)


def test_after_a_plain_install_what_needs_an_extra_names_it(python, tmp_path):
    program = """
import katlib

for name in ("load_cifar10", "RationalExplorer"):
    try:
        getattr(katlib, name)
    except ImportError as error:
        print(error)
"""
    data, widget = run(python, program, tmp_path).splitlines()
    assert "pip install -e '.[train]'" in data
    assert "pip install -e '.[widgets]'" in widget
