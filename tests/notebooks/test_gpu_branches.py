"""What the chapters do where there is a GPU, tried on one that is not there: a T4, as Colab has it.

The cells up to the last one that asks for the device run one after the other, on smaller tensors.
"""

import contextlib
import json
import re
import struct
from pathlib import Path
from unittest import mock

import fake_gpu
import matplotlib
import pytest

import katlib.cuda
from katlib import cpu
from katlib.book.device import check_measurements
from katlib.cuda import jit

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# what a chapter's sizes on a GPU are replaced by
SMALLER = {
    "08": {"1024 if device": "64 if device", "else 100_000": "else 128"},
    "09": {"256 * 197, 768": "2 * 197, 768", "else 8192": "else 64"},
    "10": {"128 * 197": "4"},
    "12": {
        '{"epochs": 10}': '{"epochs": 2, "limit": 512, "test_limit": 64}',
        "limit=1000, **options": "limit=128, **options",
        "[:1000]": "[:128]",
    },
    "14": {"10_000 if device": "100 if device"},
    "15": {"else 10_000": "else 64", "else 500": "else 2", "in range(60)": "in range(2)"},
}
ASKS = re.compile(r"\bdevice\b|\bcuda\b")


def code_of(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def asks_for_a_gpu(path: Path) -> bool:
    return any("torch.cuda.is_available()" in source for source in code_of(path))


WITH_GPU = [path for path in NOTEBOOKS if asks_for_a_gpu(path)]


def test_only_chapters_that_ask_for_a_gpu_have_smaller_sizes():
    assert set(SMALLER) <= {path.name[:2] for path in WITH_GPU}


def smaller(sources: list[str], number: str) -> list[str]:
    """The cells with smaller sizes; each size has to be there."""
    for size, replacement in SMALLER.get(number, {}).items():
        assert any(size in source for source in sources), size
        sources = [source.replace(size, replacement) for source in sources]
    return sources


class IdleModule:
    """Stands in for `jit.Module` of a T4; its kernels are launched and do nothing."""

    multiprocessors = 40

    def threads(self, name: str) -> int:
        return 1024

    def launch(self, name: str, grid: tuple, block: int, layout: str, *arguments: object) -> None:
        struct.calcsize(layout)


def after_the_gpus(name: str, function):
    """The CPU's function, after all that the GPU's does but for the kernels.

    The emulator would have the right values, too, and take minutes for a chapter.
    """
    on_the_gpu = getattr(katlib.cuda, name)

    def run(*arguments):
        on_the_gpu(*arguments)
        return function(*arguments)

    return run


@contextlib.contextmanager
def pretended_t4():
    """Inside, there is a T4; what it computes is computed on the CPU."""
    matplotlib.use("agg")
    compute = {name: getattr(cpu, name) for name in ("forward", "backward")}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(fake_gpu, "NAME", "Tesla T4"))
        stack.enter_context(mock.patch.object(fake_gpu, "CAPABILITY", (7, 5)))
        gpu = stack.enter_context(fake_gpu.pretend())
        # after `pretend`, whose replacements these replace, and taken back before them
        stack.enter_context(mock.patch.object(jit, "load", lambda *key: IdleModule()))
        for name, function in compute.items():
            replacement = after_the_gpus(name, function)
            stack.enter_context(mock.patch.object(cpu, name, replacement))
        yield gpu


def test_nothing_of_the_t4_is_left():
    before = cpu.forward, cpu.backward, jit.load
    with pretended_t4():
        assert cpu.forward is not before[0]
    assert (cpu.forward, cpu.backward, jit.load) == before


@pytest.fixture
def t4(monkeypatch, tmp_path):
    """A T4 that is not there, and a folder to work in."""
    monkeypatch.chdir(tmp_path)
    with pretended_t4() as gpu:
        yield gpu


def run_cells(sources: list[str], title: str) -> dict:
    """Runs cells as one program; returns its names."""
    names = {"__name__": "__main__"}
    for number, source in enumerate(sources):
        exec(compile(source, f"{title}[{number}]", "exec"), names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_GPU, ids=lambda path: path.stem)
def test_a_chapter_runs_on_a_gpu(path, t4, capsys, tmp_path):
    sources = smaller(code_of(path), path.name[:2])
    last = max(number for number, source in enumerate(sources) if ASKS.search(source))
    run_cells(sources[: last + 1], path.stem)
    assert "Tesla T4: " in capsys.readouterr().out
    written = list(tmp_path.glob("katlib-chapter*.json"))
    assert len(written) == any("save_measurements(" in source for source in sources)
    for file in written:
        check_measurements(json.loads(file.read_text()))


@pytest.mark.parametrize("number", ["09", "10", "12"])
def test_the_last_cell_writes_what_a_gpu_measured(number):
    (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
    assert "save_measurements(" in code_of(path)[-1]
