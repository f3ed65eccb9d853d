"""Without an extra, what needs it says so, and everything else works.

Each check runs in a process of its own, in which some packages cannot be found.
"""

import json
import subprocess
import sys

import pytest

# The packages are hidden as if they were not installed: no finder is asked for them.
HIDE = """
import importlib.abc, json, sys

class Hider(importlib.abc.MetaPathFinder):
    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

hidden = json.loads(sys.argv[1])
sys.meta_path.insert(0, Hider(hidden))

# `find_spec`, by which katlib looks for a package, finds nothing instead of raising an error
import importlib.util
found = importlib.util.find_spec
def find_spec(name, package=None):
    return None if name.split(".")[0] in hidden else found(name, package)
importlib.util.find_spec = find_spec
"""

EVERYTHING_EXTRA = (
    "matplotlib",
    "ipywidgets",
    "anywidget",
    "torchvision",
    "tqdm",
    "PIL",
    "scipy",
    "timm",
)


def run_without(packages: tuple[str, ...], code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", HIDE + code, json.dumps(packages)], capture_output=True, text=True
    )


def assert_names_the_extra(result: subprocess.CompletedProcess, missing: str, extra: str) -> None:
    error = result.stderr.splitlines()[-1]
    assert result.returncode != 0
    assert error.startswith(f"ImportError: {missing} cannot be found")
    assert f"its extra '{extra}'" in error
    assert f"pip install -e '.[{extra}]'" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, package, extra",
    [
        ("katlib.train", "torchvision", "train"),
        ("katlib.train", "PIL", "train"),
        ("katlib.train", "tqdm", "train"),
        ("katlib.widgets", "anywidget", "widgets"),
        ("katlib.widgets", "ipywidgets", "widgets"),
        ("katlib.book", "matplotlib", "notebooks"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(module, package, extra):
    assert_names_the_extra(run_without((package,), f"import {module}"), package, extra)


@pytest.mark.slow
def test_all_missing_packages_are_named_together():
    result = run_without(("anywidget", "ipywidgets"), "import katlib.widgets")
    assert_names_the_extra(result, "anywidget and ipywidgets", "widgets")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, package, extra",
    [
        ("RationalExplorer", "anywidget", "widgets"),
        ("load_cifar10", "torchvision", "train"),
    ],
)
def test_a_public_name_that_needs_an_extra_names_it(name, package, extra):
    result = run_without((package,), f"import katlib; katlib.{name}")
    assert_names_the_extra(result, package, extra)


@pytest.mark.slow
def test_a_paired_test_without_scipy_names_the_extra():
    code = """
from katlib.book.statistics import compare
runs = [
    dict(condition=condition, title=condition, seed=seed, parameters=1, test_accuracy=seed / 9)
    for condition in ("kat", "mlp")
    for seed in (0, 1)
]
compare(runs)
"""
    assert_names_the_extra(run_without(("scipy",), code), "scipy", "notebooks")


@pytest.mark.slow
def test_the_trained_explorer_needs_no_extra_but_widgets():
    packages = ("matplotlib", "torchvision", "tqdm", "PIL", "scipy", "timm")
    result = run_without(packages, "import katlib; katlib.TrainedExplorer()")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_without_any_extra_a_layer_is_trained():
    code = """
import torch, katlib
mlp = katlib.GRKANMlp(8)
optimizer = torch.optim.SGD(mlp.parameters(), lr=0.1)
before = [parameter.clone() for parameter in mlp.parameters()]
mlp(torch.randn(4, 8)).square().mean().backward()
optimizer.step()
assert all(not torch.equal(new, old) for new, old in zip(mlp.parameters(), before))
assert not set(hidden) & set(sys.modules)
"""
    result = run_without(EVERYTHING_EXTRA, code)
    assert result.returncode == 0, result.stderr
