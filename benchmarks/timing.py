"""How the benchmarks take time.

All ways of computing a thing take turns, round after round, so that whatever else the machine does
slows them alike. The first rounds warm up and are not counted, and on a GPU the cache is flushed
before each call. What is reported are quantiles, and ratios of times within the same round.
"""

import ctypes
import math
import re
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from katlib.files import write_json
from katlib.provenance import device_name, git_commit

RESULTS = Path(__file__).resolve().parents[1] / "results"

# several times the second-level cache of any current GPU
FLUSH_BYTES = 256 * 2**20

# a way that has used up its patience still takes part in this many rounds
FEWEST_ROUNDS = 5

# parameters of glibc's mallopt, from malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4


def keep_memory() -> None:
    """Tells the C library to keep freed memory, as a GPU's allocator does (chapter 9).

    Otherwise a large tensor may be given back to the operating system and fetched anew at each
    step, which is not the model's cost. Whether that happens depends on what else is on the heap.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)


def turns(
    ways: dict[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    warmup: int = 3,
    patience: float = math.inf,
) -> dict[str, list[float]]:
    """Times several ways of computing a thing, which take turns in each round.

    Args:
        ways: names and functions without arguments.
        device: where they compute.
        rounds: how many are counted.
        warmup: how many come before them.
        patience: a way that has taken this many seconds leaves after `FEWEST_ROUNDS` rounds: atomic
            additions can be a thousand times slower than what they are compared with.

    Returns:
        The milliseconds of each way in each of its rounds.
    """
    milliseconds_of = _gpu_timer(device) if device.type == "cuda" else _cpu_milliseconds
    times: dict[str, list[float]] = {name: [] for name in ways}
    seconds_spent = dict.fromkeys(ways, 0.0)
    for round_number in range(warmup + rounds):
        for name, run in ways.items():
            if seconds_spent[name] > patience and len(times[name]) >= FEWEST_ROUNDS:
                continue
            milliseconds = milliseconds_of(run)
            seconds_spent[name] += milliseconds / 1e3
            if round_number >= warmup:
                times[name].append(milliseconds)
    return times


def _cpu_milliseconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)


def _gpu_timer(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """A function that times a call on a GPU, with nothing of its data in the cache."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def milliseconds(run: Callable[[], object]) -> float:
        flush.zero_()
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end)

    return milliseconds


def quantiles(times: list[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile."""
    deciles = statistics.quantiles(times, n=10)
    return {"p20": deciles[1], "p50": deciles[4], "p80": deciles[7]}


def ratio(times: dict[str, list[float]], way: str, to: str) -> float:
    """The median ratio of one way's time to another's, over the rounds in which both took part."""
    return statistics.median(a / b for a, b in zip(times[way], times[to]))


def store(name: str, what: str, device: torch.device, rounds: int, rows: list[dict]) -> None:
    """Writes results/`name`.json, with where and when it was measured, and says so."""
    record = {
        "what": what,
        "device_name": device_name(device),
        "torch": torch.__version__,
        "commit": git_commit(),
        "date": date.today().isoformat(),
        "rounds": rounds,
        "rows": rows,
    }
    write_json(RESULTS / f"{name}.json", record)
    print(f"written to results/{name}.json")


def slug(device: torch.device) -> str:
    """A short name of the device for a file: cpu, h100, t4."""
    if device.type == "cpu":
        return "cpu"
    words = torch.cuda.get_device_name(device).lower().replace("-", " ").split()
    words_with_digits = [word for word in words if re.search(r"\d", word)]
    return words_with_digits[0] if words_with_digits else words[-1]
