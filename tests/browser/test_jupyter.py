"""The live figures in a real JupyterLab and Notebook 7, with a real kernel, in headless Chromium.

`make test` drives the JupyterLab of its own environment. The weekly run also makes environments of
its own, in which the part of anywidget that runs in the browser is older or newer than the kernel's
(tests marked `weekly`).
"""

import json
import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
NO_INDEX = r"NewConnectionError|Temporary failure|Network is unreachable|timed out"

# the ends of the range of anywidget that katlib supports: Colab's, and the newest
OLDEST, NEWEST = "anywidget==0.9.21", "anywidget"

LAB = ("jupyterlab", "LabApp", "doc/tree")
NOTEBOOK = ("notebook", "JupyterNotebookApp", "notebooks")

SHOW = """
import katlib
module = katlib.GroupRational(8, groups=2)
explorer = katlib.RationalExplorer(module, group=1)
explorer
""".strip()
PRINT = "print(explorer.numerator)"
ASSIGN = "explorer.numerator = [0, 0.5, 0.25, 0, 0, 0]"
WRITE_BACK = "explorer.write_back(); print(module.weight_numerator[0].tolist())"
CELLS = [SHOW, PRINT, ASSIGN, WRITE_BACK]

# runs a cell as the toolbar's button does, and returns what it printed
RUN = """async (place) => {
  const { content, sessionContext } = jupyterapp.shell.currentWidget;
  await sessionContext.ready;
  content.activeCellIndex = place;
  await jupyterapp.commands.execute("notebook:run-cell");
  const outputs = content.widgets[place].model.outputs.toJSON();
  return outputs.map((output) => output.text ?? output.evalue ?? "").join("");
}"""
IS_OPEN = f"""
window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length === {len(CELLS)}
  && Boolean(jupyterapp.shell.currentWidget.sessionContext?.session?.kernel)
"""


# ---- a server and a page


class Server(NamedTuple):
    """A running Jupyter server; `app` is LAB or NOTEBOOK."""

    home: Path
    url: str
    token: str
    app: tuple[str, str, str]

    @property
    def notebook(self) -> Path:
        return self.home / "notebooks" / "figure.ipynb"


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def prepare(home: Path, kernel_path: str, disabled: list[str]) -> dict[str, str]:
    """Writes a notebook, a kernel and settings; returns the environment of a server with them."""
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"display_name": "katlib", "language": "python"}
    paths = os.pathsep.join(filter(None, [kernel_path, str(ROOT)]))
    write(
        home / "data/kernels/katlib/kernel.json",
        kernel | {"argv": argv, "env": {"PYTHONPATH": paths}},
    )
    cells = [
        dict(
            cell_type="code", id=f"c{i}", metadata={}, source=cell, outputs=[], execution_count=None
        )
        for i, cell in enumerate(CELLS)
    ]
    metadata = {"kernelspec": kernel | {"name": "katlib"}}
    notebook = dict(cells=cells, metadata=metadata, nbformat=4, nbformat_minor=5)
    write(home / "notebooks/figure.ipynb", notebook)
    # as "Save Widget State Automatically" in the menu Settings
    settings = home / "settings"
    write(
        settings / "@jupyter-widgets/jupyterlab-manager/plugin.jupyterlab-settings",
        {"saveState": True},
    )
    news = {"fetchNews": "false", "checkForUpdates": False}
    write(settings / "@jupyterlab/apputils-extension/notification.jupyterlab-settings", news)
    write(
        home / "config/labconfig/page_config.json",
        {"disabledExtensions": dict.fromkeys(disabled, True)},
    )
    places = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    return {
        **os.environ,
        **{f"JUPYTER_{name}": str(home / folder) for name, folder in places.items()},
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }


def address(home: Path, process: subprocess.Popen) -> tuple[str, str]:
    """The address and the token of a server, once it listens."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for path in (home / "runtime").glob("jpserver-*.json"):
            text = path.read_text()
            if text.endswith("}"):
                found = json.loads(text)
                return found["url"], found["token"]
        time.sleep(0.1)
    pytest.fail((home / "log.txt").read_text()[-3000:])


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """A function that starts a Jupyter server and returns it; all are stopped in the end."""
    processes = []

    def serve_(app, python=sys.executable, kernel_path="", disabled=()) -> Server:
        home = tmp_path_factory.mktemp("jupyter")
        environment = prepare(home, kernel_path, list(disabled))
        module, name, _ = app
        options = [
            "--no-browser",
            "--allow-root",
            "--ServerApp.port=0",
            f"--ServerApp.root_dir={home / 'notebooks'}",
            f"--{name}.expose_app_in_browser=True",
            "--LabApp.extension_manager=readonly",
        ]
        with open(home / "log.txt", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [python, "-m", module, *options], env=environment, stdout=log, stderr=log
            )
        processes.append(process)
        return Server(home, *address(home, process), app)

    yield serve_
    for process in processes:
        # a server that ends this way stops its kernels
        process.terminate()
    for process in processes:
        process.wait(60)


@pytest.fixture(scope="module")
def open_notebook(chromium):
    """A function that opens a server's notebook in a page of its own, without running it."""
    contexts = []

    def open_(server: Server):
        context = chromium.new_context(viewport={"width": 1200, "height": 1000})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        folder = server.app[2]
        page.goto(f"{server.url}{folder}/{server.notebook.name}?token={server.token}")
        page.wait_for_function(IS_OPEN)
        return page

    yield open_
    for context in contexts:
        context.close()


def run(page, cell: str) -> str:
    return page.evaluate(RUN, CELLS.index(cell))


def numbers(text: str) -> list[float]:
    return json.loads(text)


def save(page) -> None:
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")


def field(page, name: str) -> float:
    """A coefficient as the figure has it."""
    page.wait_for_timeout(300)
    label = page.locator("label.field").filter(has_text=re.compile(rf"^{name}$")).first
    return float(label.locator("input").get_attribute("data-value"))


def drag_up(page, name: str) -> None:
    dot = page.locator(f'.knob[data-name="{name}"] .dot').first
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 20)
    page.mouse.move(x, y - 40)
    page.mouse.up()
    page.wait_for_timeout(300)


def shown(page):
    """The page with the figure, whose cell has been run."""
    run(page, SHOW)
    page.locator(".katlib-live").first.wait_for()
    return page


# ---- environments


@pytest.fixture(scope="module")
def lab() -> None:
    pytest.importorskip("jupyterlab")


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=1800)
    if done.returncode and re.search(NO_INDEX, done.stderr):
        pytest.skip("no package index can be reached")
    assert not done.returncode, done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A function that returns the Python of an environment with the newest Jupyter.

    It has a version of anywidget of its own, and nothing of katlib's: the kernel has that.
    """
    made = {}

    def environment_(anywidget: str) -> str:
        if anywidget not in made:
            home = tmp_path_factory.mktemp("environment")
            venv.create(home, with_pip=True)
            python = str(home / "bin" / "python")
            pip("--python", python, "install", "jupyterlab", "notebook", anywidget)
            made[anywidget] = python
        return made[anywidget]

    return environment_


@pytest.fixture(scope="module")
def kernel_with(tmp_path_factory):
    """A function that returns a path which gives the kernel another version of anywidget."""

    def kernel_with_(anywidget: str) -> str:
        folder = str(tmp_path_factory.mktemp("kernel"))
        pip("install", "--no-deps", "--target", folder, anywidget)
        return folder

    return kernel_with_


# ---- JupyterLab


@pytest.fixture(scope="module")
def server(lab, serve):
    return serve(LAB)


@pytest.fixture(scope="module")
def page(server, open_notebook):
    return shown(open_notebook(server))


def test_a_drag_changes_the_python_value(page):
    before = numbers(run(page, PRINT))
    drag_up(page, "a2")
    after = numbers(run(page, PRINT))
    assert after[2] > before[2] + 0.1
    assert after[2] == field(page, "a2")


def test_assigning_in_python_changes_the_figure(page):
    run(page, ASSIGN)
    assert [field(page, f"a{i}") for i in range(6)] == [0, 0.5, 0.25, 0, 0, 0]


def test_write_back_changes_the_module(page):
    drag_up(page, "a1")
    written = numbers(run(page, WRITE_BACK))
    assert written == pytest.approx(numbers(run(page, PRINT)), abs=1e-6)


def test_a_saved_notebook_shows_the_figure_as_it_was_before_it_is_run(page, server, open_notebook):
    drag_up(page, "a3")
    dragged = field(page, "a3")
    save(page)
    saved = json.loads(server.notebook.read_text())
    assert WIDGET_STATE in saved["metadata"]["widgets"]
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    reopened = open_notebook(server)
    reopened.locator(".katlib-live").first.wait_for()
    assert field(reopened, "a3") == dragged
    shown(page)


def test_without_a_widget_manager_a_cell_shows_a_still_picture_and_what_to_do(
    lab, serve, open_notebook
):
    page = open_notebook(serve(LAB, disabled=["@jupyter-widgets/jupyterlab-manager"]))
    run(page, SHOW)
    picture = page.locator(".jp-OutputArea-output img")
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    assert "When a live figure does not appear" in page.locator("figcaption").inner_text()


# ---- other versions of anywidget, and Notebook 7


@pytest.mark.weekly
@pytest.mark.parametrize("app", [LAB, NOTEBOOK], ids=["JupyterLab", "Notebook"])
@pytest.mark.parametrize(
    "in_browser, in_kernel", [(NEWEST, OLDEST), (OLDEST, NEWEST)], ids=["newer", "older"]
)
def test_the_browsers_anywidget_may_be_newer_or_older_than_the_kernels(
    serve, open_notebook, environment, kernel_with, app, in_browser, in_kernel
):
    server = serve(app, environment(in_browser), kernel_with(in_kernel))
    page = shown(open_notebook(server))
    drag_up(page, "a2")
    assert numbers(run(page, PRINT))[2] == field(page, "a2")
    run(page, ASSIGN)
    assert field(page, "a2") == 0.25
