"""In Colab: installing katlib moves none of what is there, the notebooks' imports work, and live figures reach the page under its old ipywidgets."""

import ast
import json
import re
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", (Path(__file__).parent / "colab.txt").read_text(), re.M))
NEEDS = re.findall(
    r'^    "([\w-]+[><=][^"]*)"',
    (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[0],
    re.M,
)
HEAVY = (
    "torch",
    "torchvision",
    "timm",
)  # gigabytes to resolve, and they ask for nothing that katlib asks for in another version
HERE = (
    "ipywidgets",
    "anywidget",
    "ipykernel",
    "ipython",
    "numpy",
    "matplotlib",
)  # in the small environment; torch comes from the one around it


def pip(*arguments, python=sys.executable, timeout=300):
    done = subprocess.run(
        [python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode and re.search(
        r"NewConnectionError|Temporary failure|Network is unreachable|timed out|No matching distribution found for pip\b",
        done.stderr,
    ):
        pytest.skip("no package index can be reached")
    return done


def test_what_colab_has_is_within_katlibs_ranges():
    from packaging.requirements import Requirement

    for requirement in map(Requirement, NEEDS):
        if requirement.name in PINS:
            assert requirement.specifier.contains(PINS[requirement.name]), requirement
    assert {"torch", "torchvision", "numpy", "matplotlib", "ipywidgets", "anywidget"} <= {
        Requirement(need).name for need in NEEDS
    } & set(PINS)


def resolved(tmp_path, needs) -> tuple[dict[str, str], str]:
    """What pip would install on Colab's Python for `needs` beside what Colab has, but for the heavy ones, and what it said."""
    light = [need for need in needs if not re.match("|".join(f"{name}\\b" for name in HEAVY), need)]
    pins = [f"{name}=={version}" for name, version in PINS.items() if name not in HEAVY]
    report = tmp_path / "report.json"
    done = pip(
        "install",
        "--dry-run",
        "--ignore-installed",
        "--target",
        str(tmp_path / "nothing"),
        "--only-binary=:all:",
        "--python-version",
        "3.13",
        "--report",
        str(report),
        *light,
        *pins,
    )
    if done.returncode:
        return {}, done.stderr
    found = json.loads(report.read_text())["install"]
    return {entry["metadata"]["name"].lower(): entry["metadata"]["version"] for entry in found}, ""


def test_installing_katlib_moves_nothing_of_colab(tmp_path):
    versions, told = resolved(tmp_path, NEEDS)
    assert versions, told
    assert {name: versions[name] for name in PINS if name not in HEAVY} == {
        name: version for name, version in PINS.items() if name not in HEAVY
    }
    assert "safetensors" in versions and not set(versions) & set(HEAVY)


def test_a_need_that_would_move_something_is_noticed(tmp_path):
    versions, told = resolved(tmp_path, ["numpy>=2.2"])
    assert not versions and "numpy" in told


@pytest.fixture(scope="module")
def colab():
    """The Python of a small environment with Colab's notebook packages, in build/colab; all else is seen from the environment around it."""
    if sys.prefix == sys.base_prefix and not site.getsitepackages():
        pytest.skip("no environment to take torch from")
    home = ROOT / "build" / "colab"
    python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    made, wanted = home / "made.txt", f"{sys.version}\n{sys.prefix}\n{PINS}"
    if not made.exists() or made.read_text() != wanted:
        venv.create(home, with_pip=False, clear=True)
        folder = next(home.glob("lib*/python*/site-packages"), home / "Lib" / "site-packages")
        done = pip("install", "--target", str(folder), *(f"{name}=={PINS[name]}" for name in HERE))
        assert not done.returncode, done.stderr
        # A line of a .pth file that begins with `import` is run: after the small environment's own packages comes what this Python sees.
        (folder / "around.pth").write_text(
            "\n".join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
            + "\n"
        )
        made.write_text(wanted)
    return str(python)


def test_every_notebooks_imports_work(colab):
    lines = set()
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                try:
                    tree = ast.parse("".join(cell["source"]))
                except SyntaxError:  # a cell magic
                    continue
                lines |= {
                    ast.unparse(node)
                    for node in tree.body
                    if isinstance(node, (ast.Import, ast.ImportFrom))
                }
    assert "import katlib" in lines and len(lines) > 10
    check = (
        "\nimport importlib.metadata as m\n"
        f"assert {{name: m.version(name) for name in {HERE}}} == {{name: {PINS}[name] for name in {HERE}}}\nimport katlib\n"
        "for name in katlib.__all__: getattr(katlib, name)\n"
    )
    done = subprocess.run(
        [colab, "-c", "\n".join(sorted(lines)) + check], capture_output=True, text=True, timeout=300
    )
    assert not done.returncode, done.stderr


def test_live_figures_are_stored_by_colabs_kernel(colab):
    """A kernel of Colab's versions runs the widgets; what it sends to the front end is whole."""
    import nbformat
    from jupyter_client import KernelManager
    from nbclient import NotebookClient

    import katlib

    cells = [nbformat.v4.new_code_cell(f"import katlib\nkatlib.{name}()") for name in katlib.LIVE]
    cells.append(
        nbformat.v4.new_code_cell(
            "e = katlib.RationalExplorer('gelu')\ne.numerator = [0, 2, 0, 0, 0, 0]\nprint(e.get_state()['numerator'])"
        )
    )
    notebook = nbformat.v4.new_notebook(cells=cells)
    manager = KernelManager()
    manager.kernel_spec.argv = [colab, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    NotebookClient(notebook, km=manager, timeout=300).execute()
    states = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    shown = [
        output["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
        for cell in notebook.cells
        for output in cell.outputs
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
    assert len(shown) == len(katlib.LIVE)
    for model in shown:
        state = states[model]["state"]
        assert (
            states[model]["model_module"] == "anywidget"
            and "export default" in state["_esm"]
            and ".katlib-live" in state["_css"]
        )
        assert json.loads(json.dumps(state)) == state
    assert notebook.cells[-1].outputs[0]["text"].strip() == "[0.0, 2.0, 0.0, 0.0, 0.0, 0.0]"
