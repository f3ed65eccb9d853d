"""In Colab: installing katlib moves none of what is there, and the chapters work.

Their imports do, and live figures reach the page under Colab's old ipywidgets.
"""

import ast
import json
import re
import site
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest
from dependencies import ROOT, core_dependencies, dependencies_of
from jupyter_client import KernelManager
from nbclient import NotebookClient
from packaging.requirements import Requirement

import katlib

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = (Path(__file__).parent / "colab.txt").read_text()
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", COLAB, re.M))

# what the notebooks' first cell installs: kat-book[notebooks]
NEEDS = [*core_dependencies(), *dependencies_of("notebooks")]

# gigabytes to resolve, and they ask for nothing that katlib asks for in another version
HEAVY = ("torch", "torchvision", "timm")

# in the small environment; torch comes from the one around it
HERE = ("ipywidgets", "anywidget", "ipykernel", "ipython", "numpy", "matplotlib")

NO_INDEX = (
    r"NewConnectionError|Temporary failure|Network is unreachable|timed out"
    r"|No matching distribution found for pip\b"
)
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def pip(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if done.returncode and re.search(NO_INDEX, done.stderr):
        pytest.skip("no package index can be reached")
    return done


# ---- what pip would install


@pytest.mark.parametrize("need", [need for need in NEEDS if need.name in PINS], ids=str)
def test_what_colab_has_is_within_katlibs_ranges(need):
    assert need.specifier.contains(PINS[need.name])


def test_colab_brings_most_of_what_the_chapters_need():
    brought = {need.name for need in NEEDS} & set(PINS)
    assert {"torch", "torchvision", "numpy", "matplotlib", "ipywidgets", "anywidget"} <= brought


def resolve(tmp_path: Path, needs: list[Requirement]) -> tuple[dict[str, str], str]:
    """What pip would install on Colab's Python for `needs` beside what Colab has.

    The heavy packages are left out.

    Returns:
        {name: version}, which is empty if pip found no solution, and what pip said then.
    """
    light = [str(need) for need in needs if need.name not in HEAVY]
    pins = [f"{name}=={version}" for name, version in PINS.items() if name not in HEAVY]
    report = tmp_path / "report.json"
    options = ["--dry-run", "--ignore-installed", "--only-binary=:all:"]
    options += ["--target", str(tmp_path / "nothing"), "--python-version", "3.13"]
    done = pip("install", *options, "--report", str(report), *light, *pins)
    if done.returncode:
        return {}, done.stderr
    found = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    return {package["name"].lower(): package["version"] for package in found}, ""


@pytest.mark.slow
def test_installing_katlib_moves_nothing_of_colab(tmp_path):
    versions, message = resolve(tmp_path, NEEDS)
    assert versions, message
    light_pins = {name: version for name, version in PINS.items() if name not in HEAVY}
    assert {name: versions[name] for name in light_pins} == light_pins
    assert {"safetensors", "filelock", "pillow", "tqdm"} <= set(versions)
    assert not set(versions) & set(HEAVY)


@pytest.mark.slow
def test_a_need_that_would_move_something_is_noticed(tmp_path):
    versions, message = resolve(tmp_path, [Requirement("numpy>=2.2")])
    assert not versions
    assert "numpy" in message


# ---- Colab's versions at work


@pytest.fixture(scope="module")
def colab() -> str:
    """The Python of an environment with Colab's notebook packages, in build/colab.

    All else is seen from the environment around it.
    """
    if sys.prefix == sys.base_prefix and not site.getsitepackages():
        pytest.skip("no environment to take torch from")
    home = ROOT / "build" / "colab"
    python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    made_for = home / "made.txt"
    wanted = f"{sys.version}\n{sys.prefix}\n{PINS}"
    if not made_for.exists() or made_for.read_text() != wanted:
        venv.create(home, with_pip=False, clear=True)
        folder = next(home.glob("lib*/python*/site-packages"), home / "Lib" / "site-packages")
        done = pip("install", "--target", str(folder), *(f"{name}=={PINS[name]}" for name in HERE))
        assert not done.returncode, done.stderr
        # after the environment's own packages comes what this Python sees
        around = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
        (folder / "around.pth").write_text("\n".join(around) + "\n")
        made_for.write_text(wanted)
    return str(python)


def run(python: str, program: str) -> str:
    command = [python, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert not done.returncode, done.stderr
    return done.stdout


def import_lines() -> list[str]:
    """Every import at the top level of a notebook's cell, once."""
    lines = set()
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                lines |= imports_of("".join(cell["source"]))
    return sorted(lines)


def imports_of(source: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a cell magic
        return set()
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return set(map(ast.unparse, imports))


def test_the_notebooks_import_katlib():
    lines = import_lines()
    assert "import katlib" in lines
    assert len(lines) > 10


@pytest.mark.slow
def test_the_environment_has_colabs_versions(colab):
    program = "import sys, importlib.metadata as m\nprint(*map(m.version, {}))"
    versions = run(colab, program.format(HERE)).split()
    assert versions == [PINS[name] for name in HERE]


@pytest.mark.slow
def test_every_notebooks_imports_work(colab):
    run(colab, "\n".join(import_lines()))


@pytest.mark.slow
def test_every_public_name_can_be_had(colab):
    run(colab, "import katlib\nfor name in katlib.__all__: getattr(katlib, name)")


@pytest.fixture(scope="module")
def shown(colab):
    """A notebook with all live figures that a kernel of Colab's versions has run."""
    sources = [f"import katlib\nkatlib.{name}()" for name in katlib.LIVE]
    sources.append(
        "e = katlib.RationalExplorer('gelu')\n"
        "e.numerator = [0, 2, 0, 0, 0, 0]\n"
        "print(e.get_state()['numerator'])"
    )
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    manager = KernelManager()
    manager.kernel_spec.argv = [colab, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    NotebookClient(notebook, km=manager, timeout=1800).execute()
    return notebook


@pytest.fixture(scope="module")
def figures(shown):
    """What the kernel sent to the front end for each live figure."""
    states = shown.metadata.widgets[WIDGET_STATE]["state"]
    outputs = [output for cell in shown.cells for output in cell.outputs]
    views = [o["data"][WIDGET_VIEW] for o in outputs if WIDGET_VIEW in o.get("data", {})]
    return [states[view["model_id"]] for view in views]


@pytest.mark.slow
def test_every_live_figure_is_shown_by_colabs_kernel(figures):
    assert len(figures) == len(katlib.LIVE)


@pytest.mark.slow
def test_a_live_figure_comes_with_its_module_and_its_style(figures):
    for figure in figures:
        assert figure["model_module"] == "anywidget"
        assert "export default" in figure["state"]["_esm"]
        assert ".katlib-live" in figure["state"]["_css"]


@pytest.mark.slow
def test_a_live_figures_state_is_plain_json(figures):
    for figure in figures:
        assert json.loads(json.dumps(figure["state"])) == figure["state"]


@pytest.mark.slow
def test_python_sets_a_live_figure(shown):
    assert shown.cells[-1].outputs[0]["text"].strip() == "[0.0, 2.0, 0.0, 0.0, 0.0, 0.0]"
