"""How the benchmarks take time: in turns, after warming up, with the cache flushed on a GPU; medians, quantiles and ratios."""

import ctypes
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import torch

from katlib.files import write_json
from katlib.provenance import device_name, git_commit

RESULTS = Path(__file__).resolve().parents[1] / "results"
FLUSH_BYTES = 256 * 2**20  # several times the second-level cache of any GPU of today


def keep_memory() -> None:
    """Tells the C library to keep what is freed, as a GPU's allocator does (chapter 9): pages that are fetched anew at each step are not the model's
    cost, and whether a freed tensor's pages go back at all depends on what else lies on the heap."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping for a large tensor alone
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: give nothing back


def turns(
    ways: dict, device: torch.device, rounds: int, warmup: int = 3, patience: float = float("inf")
) -> dict[str, list[float]]:
    """Milliseconds of each way in each round. The ways take turns, so that whatever else happens to the machine happens to all. A way that has taken
    `patience` seconds takes part in the first five rounds only: atomic additions can be a thousand times slower than what they are compared with."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    spent = dict.fromkeys(ways, 0.0)
    on_gpu = device.type == "cuda"
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if on_gpu else None
    for i in range(rounds + warmup):
        for name, run in ways.items():
            if spent[name] > patience and len(times[name]) >= 5:
                continue
            if on_gpu:
                flush.zero_()  # what the last one left in the cache would be a present to the next
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                end.record()
                torch.cuda.synchronize(device)
                elapsed = start.elapsed_time(end)
            else:
                started = time.perf_counter()
                run()
                elapsed = 1e3 * (time.perf_counter() - started)
            spent[name] += elapsed / 1e3
            if i >= warmup:
                times[name].append(elapsed)
    return times


def quantiles(times: list[float]) -> dict[str, float]:
    deciles = statistics.quantiles(times, n=10)
    return {"p20": deciles[1], "p50": deciles[4], "p80": deciles[7]}


def ratio(times: dict[str, list[float]], way: str, to: str) -> float:
    """The median, over the rounds in which both took part, of one way's time in units of another's."""
    return statistics.median(a / b for a, b in zip(times[way], times[to]))


def store(name: str, what: str, device: torch.device, rounds: int, rows: list[dict]) -> None:
    """Writes results/`name`.json with where it was made, and says so."""
    write_json(
        RESULTS / f"{name}.json",
        {
            "what": what,
            "device_name": device_name(device),
            "torch": torch.__version__,
            "commit": git_commit(),
            "date": date.today().isoformat(),
            "rounds": rounds,
            "rows": rows,
        },
    )
    print(f"written to results/{name}.json")


def slug(device: torch.device) -> str:
    """A short name of the device for a file: cpu, h100, t4."""
    if device.type == "cpu":
        return "cpu"
    words = torch.cuda.get_device_name(device).lower().replace("-", " ").split()
    return next((word for word in words if any(c.isdigit() for c in word)), words[-1])
