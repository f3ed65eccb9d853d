"""The repository as a whole: its commands are there, and the package needs no private PyTorch."""

import ast
import re
import subprocess
import sys

import pytest
import yaml
from dependencies import PROJECT, ROOT, core_dependencies

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MODULES = sorted((ROOT / "katlib").rglob("*.py"))


# ---- the Makefile


def recipes() -> dict[str, tuple[list[str], list[str]]]:
    """{target: (what it needs, its commands)} of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    found = {}
    for target, needs, commands in re.findall(r"^([a-z]+):(.*)\n((?:\t.*\n)*)", text, re.M):
        found[target] = (needs.partition("##")[0].split(), commands.splitlines())
    return found


def test_make_help_lists_every_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^make (\w+)", done.stdout, re.M)
    assert sorted(listed) == sorted(recipes())


def test_make_test_begins_with_lint_and_builds_the_book():
    needs, _ = recipes()["test"]
    assert needs == ["lint", "book"]


def test_lint_checks_errors_layout_and_types():
    _, commands = recipes()["lint"]
    assert [command.strip().removeprefix("$(BIN)/") for command in commands] == [
        "ruff check",
        # a file that is read or written names its encoding
        "ruff check --preview --select PLW1514",
        "ruff format --check",
        "mypy",
    ]


def test_the_hooks_run_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = [hook["entry"].replace(" --force-exclude", "") for hook in hooks]
    assert entries == ["ruff check", "ruff format", "mypy"]


def test_the_hooks_are_understood_by_pre_commit():
    command = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stdout


# ---- the workflows


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request):
    return yaml.safe_load(request.param.read_text())


def commands_of(workflow: dict) -> str:
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return "\n".join(step.get("run", "") for step in steps)


def test_a_workflow_may_only_read_the_repository(workflow):
    assert workflow["permissions"]["contents"] == "read"


def test_a_workflow_is_started_by_something(workflow):
    assert workflow[True]  # YAML 1.1 reads the key `on` as true


def test_a_workflow_makes_targets_that_exist(workflow):
    assert set(re.findall(r"\bmake (\w+)", commands_of(workflow))) <= set(recipes())


def test_a_workflow_runs_scripts_that_can_be_run(workflow):
    for script in re.findall(r"(\.ci/\w+)", commands_of(workflow)):
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} cannot be run"


def test_the_workflow_of_every_change_runs_make_test():
    book = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())
    assert "make test" in commands_of(book)


@pytest.fixture
def ends():
    """{newest or lowest: the Python that the weekly workflow takes}."""
    weekly = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())
    matrix = weekly["jobs"]["ends"]["strategy"]["matrix"]["include"]
    return {entry["end"]: entry["python"] for entry in matrix}


def test_the_lowest_end_is_the_lowest_python_and_torch_of_the_project(ends):
    assert PROJECT["requires-python"] == f">={ends['lowest']}"
    (torch,) = (r for r in core_dependencies() if r.name == "torch")
    assert str(torch.specifier) == ">=2.6"


def test_the_newest_end_is_a_newer_python(ends):
    assert ends["newest"] > ends["lowest"]


# ---- private names of PyTorch

ALLOWED = {
    # asks whether a transform of torch.func is running, and can do without, see test_ops.py
    "ops.py": {"torch._C"},
    # PyTorch's own documentation calls these three by their private names
    "book/cost.py": {"torch._subclasses", "torch.utils._python_dispatch", "torch.utils._pytree"},
    "book/meter.py": {"torch.utils._python_dispatch", "torch.utils._pytree"},
    # PyTorch's own benchmarks keep a GPU waiting with it
    "book/stopwatch.py": {"torch.cuda._sleep"},
}


def private_names_of_torch(source: str) -> set[str]:
    nodes = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Attribute, ast.Import, ast.ImportFrom))
    ]
    return set(re.findall(r"\btorch[\w.]*\._(?!_)\w+", "\n".join(map(ast.unparse, nodes))))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_uses_no_private_name_of_torch_but_the_allowed_ones(path):
    allowed = ALLOWED.get(path.relative_to(ROOT / "katlib").as_posix(), set())
    assert private_names_of_torch(path.read_text()) == allowed


@pytest.mark.parametrize(
    "source", ["torch._C._nn", "import torch._C", "from torch._C import x", "f(torch.a._b.c)"]
)
def test_a_private_name_of_torch_is_noticed(source):
    assert private_names_of_torch(source)
