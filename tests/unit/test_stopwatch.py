"""How the chapters take time, by the clocks of devices that are not there."""

import doctest
from types import SimpleNamespace

import fake_gpu
import pytest
import torch

from katlib.book import stopwatch
from katlib.book.stopwatch import compile_cpp, spread, turns

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MICROSECOND = 1e-6


@pytest.fixture
def chip(monkeypatch):
    """A GPU on which time passes only where a test says so; each flush takes 90 us."""
    chip = fake_gpu.FakeGpu()
    monkeypatch.setattr(torch.cuda, "Event", chip.event)
    monkeypatch.setattr(torch.cuda, "_sleep", chip.sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", chip.synchronize)
    clock = SimpleNamespace(
        perf_counter=chip.now,
        thread_time=lambda: 2 * chip.now(),
        get_clock_info=lambda name: SimpleNamespace(resolution=1e-9),
    )
    monkeypatch.setattr(stopwatch, "time", clock)
    flush = SimpleNamespace(zero_=lambda: chip.queue(90 * MICROSECOND))
    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: flush)
    return chip


def call(chip, host_us, device_us):
    """A call that keeps the host and the device so long."""

    def run():
        chip.keep_host(host_us * MICROSECOND)
        chip.queue(device_us * MICROSECOND)

    return run


@pytest.mark.parametrize("host_us", [46, 5_000])
def test_on_a_gpu_the_time_is_the_devices_without_python_and_the_flush(chip, host_us):
    times = turns({"call": call(chip, host_us, device_us=20)}, CUDA)
    assert times["call"] == pytest.approx([0.02] * 9, rel=1e-3)


@pytest.mark.parametrize("threads, milliseconds", [(1, 0.092), (2, 0.046)])
def test_on_a_cpu_a_single_thread_is_timed_by_its_own_clock(
    chip, monkeypatch, threads, milliseconds
):
    """In these tests the clock of the thread runs twice as fast."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    times = turns({"call": call(chip, host_us=46, device_us=20)}, CPU)
    assert times["call"] == pytest.approx([milliseconds] * 9)


def test_ways_take_turns_and_the_first_two_rounds_do_not_count():
    taken = []
    ways = {name: lambda name=name: taken.append(name) for name in "ab"}
    times = turns(ways, CPU, rounds=3)
    assert taken == ["a", "b"] * 5
    assert [len(t) for t in times.values()] == [3, 3]


def test_the_examples_give_what_they_say():
    names = {"torch": torch, "turns": turns, "compile_cpp": compile_cpp, "spread": spread}
    assert doctest.testmod(stopwatch, extraglobs=names).failed == 0


def test_without_a_compiler_there_is_no_library(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert compile_cpp("") is None


def test_what_does_not_compile_is_named():
    if compile_cpp('extern "C" int two() { return 2; }') is None:
        pytest.skip("there is no compiler")
    with pytest.raises(OSError, match="nonsense"):
        compile_cpp("nonsense")
