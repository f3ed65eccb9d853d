"""In marimo, which has no widget manager: a drag runs the cells that read the figure."""

import re
import site
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
from test_jupyter import drag_up, field, pip

pytestmark = [pytest.mark.slow, pytest.mark.weekly]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """The Python of an environment with marimo; all else is seen from the one around it."""
    if sys.prefix == sys.base_prefix and not site.getsitepackages():
        pytest.skip("no environment to take torch from")
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    folder = next(home.glob("lib/python*/site-packages"))
    pip("install", "--target", str(folder), "marimo")
    around = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    (folder / "around.pth").write_text("\n".join(around) + "\n")
    return str(home / "bin" / "python")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(python, tmp_path_factory):
    """Where marimo serves the example as an app."""
    port = free_port()
    log = tmp_path_factory.mktemp("marimo") / "log.txt"
    command = [python, "-m", "marimo", "run", "examples/marimo_explorer.py", "--headless"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--no-token"]
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=output, stderr=output)
    for _ in range(300):
        time.sleep(0.2)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, log.read_text()[-3000:]
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(60)


@pytest.fixture
def page(address, chromium):
    context = chromium.new_context(viewport={"width": 1200, "height": 1200})
    page = context.new_page()
    page.set_default_timeout(90_000)
    page.goto(address)
    page.locator(".katlib-live").first.wait_for()
    yield page
    context.close()


def coefficient_of_the_module(page) -> float:
    text = page.get_by_text("a2 of the module is").inner_text()
    return float(re.search(r"is (-?[\d.]+\d)", text)[1])


def test_a_drag_reaches_the_module_through_a_cell_that_runs_again(page):
    before = coefficient_of_the_module(page)
    assert before == pytest.approx(field(page, "a2"), abs=1e-5)
    drag_up(page, "a2")
    page.wait_for_timeout(1500)
    assert coefficient_of_the_module(page) > before + 0.1
    assert coefficient_of_the_module(page) == pytest.approx(field(page, "a2"), abs=1e-5)
