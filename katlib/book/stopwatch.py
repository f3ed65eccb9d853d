"""Times ways of computing a thing so that neither Python nor another program is timed with them.

    turns({"one": run_one, "other": run_other}, device)
        the milliseconds of each in each round
    spread(milliseconds)
        their median with the 20th and 80th percentile, to print
    compile_cpp(source)
        a few lines of C++ as a library, to time what PyTorch does not have

The ways take turns, so whatever else the machine does meets all of them. Chapter 9 measures its
roofline with this.
"""

import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from katlib import cpu

# rounds that warm up and are not counted
WARMUP = 2
# several times the second-level cache of a GPU
FLUSH_BYTES = 256 * 2**20
# for how many of its clock's cycles a GPU sleeps, first and at most
SHORTEST_SLEEP, LONGEST_SLEEP = 10**6, 10**9


def turns(
    ways: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int = 9
) -> dict[str, list[float]]:
    """The milliseconds of each way in each round.

    On a GPU its own clock takes the time, with nothing of the data in its cache. On a CPU it is the
    time of the calling thread, without what other programs take, if PyTorch uses a single thread.

    Args:
        ways: maps names to functions without arguments.
        device: where they compute.
        rounds: how often each is timed.

    Example:
        >>> times = turns({"sum": torch.ones(1000).sum}, torch.device("cpu"), rounds=3)
        >>> len(times["sum"])
        3
    """
    timer = _gpu_timer(device) if device.type == "cuda" else _cpu_milliseconds
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(WARMUP + rounds):
        for name, run in ways.items():
            times[name].append(timer(run))
    return {name: measured[WARMUP:] for name, measured in times.items()}


def _cpu_milliseconds(run: Callable[[], Any]) -> float:
    # the clock of a thread is too coarse on some systems
    is_fine = time.get_clock_info("thread_time").resolution < 1e-6
    alone = torch.get_num_threads() == 1 and is_fine
    now = time.thread_time if alone else time.perf_counter
    started = now()
    run()
    return 1e3 * (now() - started)


def _gpu_timer(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def milliseconds(run: Callable[[], Any]) -> float:
        # The GPU sleeps until Python has queued the whole run, or it would wait for Python. If it
        # woke up before, it sleeps longer the next time.
        cycles, too_early = SHORTEST_SLEEP, True
        while too_early and cycles < LONGEST_SLEEP:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            # PyTorch has no public name for it
            torch.cuda._sleep(cycles)
            start.record()
            run()
            end.record()
            too_early = start.query()
            torch.cuda.synchronize()
            cycles *= 4
        return start.elapsed_time(end)

    return milliseconds


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median of values with their 20th and 80th percentile, to print.

    Args:
        values: two or more.
        digits: after the point.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
        '3.0 (1.2 to 4.8)'
    """
    low, *_, high = statistics.quantiles(values, n=5)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def compile_cpp(source: str) -> ctypes.CDLL | None:
    """Compiles C++ as katlib's CPU kernel is compiled, and loads it; None without a compiler.

    Args:
        source: functions declared `extern "C"`.

    Raises:
        OSError: the compiler does not take the source.

    Example:
        >>> library = compile_cpp('extern "C" int two() { return 2; }')
        >>> library is None or library.two() == 2
        True
    """
    try:
        compiler = cpu._compiler()
    except OSError:
        return None
    with tempfile.TemporaryDirectory(prefix="katlib-", ignore_cleanup_errors=True) as folder:
        path, library = Path(folder) / "page.cpp", Path(folder) / "page.so"
        path.write_text(source, encoding="utf-8")
        command = [*compiler, "-march=native", *cpu.OPTIONS, str(path), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise OSError(f"the compiler said: {done.stderr.strip()[:500]}")
        return ctypes.CDLL(str(library))
