"""How the benchmarks take time.

All ways of computing a thing take turns, round after round, so that whatever else the machine does
slows them alike. The first rounds warm up and are not counted. What is reported are quantiles, and
ratios of times within the same round.

On a GPU the cache is flushed before each call, and two events of the device take the time. Python
needs longer to queue most calls than the device to compute them. A device that is done with the
flush would wait for Python between the events, so it is sent to sleep until the whole call is in
the queue. How long Python needs is a figure of its own, see `host_microseconds`.
"""

import argparse
import ctypes
import json
import math
import re
import statistics
import sys
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from time import perf_counter

import torch

from katlib.files import write_json
from katlib.provenance import device_name, git_commit

RESULTS = Path(__file__).resolve().parents[1] / "results"

# several times the second-level cache of any current GPU
FLUSH_BYTES = 256 * 2**20

# a way that has used up its patience still takes part in this many rounds
FEWEST_ROUNDS = 5

# The device sleeps so many times as long as the host needed for the last call of the same way, and
# between these bounds. The upper one is for calls that are compiled first.
SLEEP_PER_HOST_TIME = 2.0
SHORTEST_SLEEP_MS, LONGEST_SLEEP_MS = 0.1, 300.0
# for how many cycles the device sleeps when the length of a cycle is measured
CALIBRATION_CYCLES = 5_000_000
# A call is repeated so often if the device woke up before all of it was queued.
ATTEMPTS = 4

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
    times: dict[str, list[float]] = {name: [] for name in ways}
    seconds_spent = dict.fromkeys(ways, 0.0)
    timers = _timers(ways, device)
    for round_number in range(warmup + rounds):
        for name, run in ways.items():
            if seconds_spent[name] > patience and len(times[name]) >= FEWEST_ROUNDS:
                continue
            milliseconds = timers[name](run)
            seconds_spent[name] += milliseconds / 1e3
            if round_number >= warmup:
                times[name].append(milliseconds)
    return times


Timer = Callable[[Callable[[], object]], float]


def _timers(ways: dict[str, Callable[[], object]], device: torch.device) -> dict[str, Timer]:
    """For each way the function that times one call of it, in milliseconds."""
    if device.type != "cuda":
        return dict.fromkeys(ways, _cpu_milliseconds)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    cycles_per_ms = _cycles_per_ms(device)
    return {name: _GpuTimer(name, device, flush, cycles_per_ms).milliseconds for name in ways}


def _cpu_milliseconds(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    return 1e3 * (perf_counter() - started)


def sleep(cycles: float) -> None:
    """Queues a kernel that keeps the device busy for so many cycles and touches no memory."""
    # PyTorch has no public name for it
    torch.cuda._sleep(int(cycles))


def _cycles_per_ms(device: torch.device) -> float:
    """How many cycles of `sleep` take a millisecond, at about the clock rate of the moment."""
    # the first sleep of a process loads the kernel
    sleep(CALIBRATION_CYCLES)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    sleep(CALIBRATION_CYCLES)
    end.record()
    torch.cuda.synchronize(device)
    return CALIBRATION_CYCLES / start.elapsed_time(end)


class _GpuTimer:
    """Times the calls of one way on a GPU, with nothing of its data in the cache.

    Args:
        name: of the way, for the warning.
        device: the GPU.
        flush: a tensor that fills the cache.
        cycles_per_ms: of the device's sleep.
    """

    def __init__(
        self, name: str, device: torch.device, flush: torch.Tensor, cycles_per_ms: float
    ) -> None:
        self.name = name
        self.device = device
        self.flush = flush
        self.cycles_per_ms = cycles_per_ms
        self.sleep_ms = 10 * SHORTEST_SLEEP_MS
        self.per_host_time = SLEEP_PER_HOST_TIME
        self.attempts = ATTEMPTS

    def milliseconds(self, run: Callable[[], object]) -> float:
        """The device's time for one call; repeats it until the host was ahead of the device."""
        for _ in range(self.attempts):
            milliseconds, host_ms, was_ahead = self._one_call(run)
            if not was_ahead:
                self.per_host_time *= 2
            wanted = self.per_host_time * host_ms
            self.sleep_ms = min(max(wanted, SHORTEST_SLEEP_MS), LONGEST_SLEEP_MS)
            if was_ahead:
                return milliseconds
        self._give_up()
        return milliseconds

    def _give_up(self) -> None:
        """From now on takes the call's time as it is, and says so once."""
        self.sleep_ms = SHORTEST_SLEEP_MS
        if self.attempts == 1:
            return
        self.attempts = 1
        warnings.warn(
            f"{self.name}: its time holds the host's, since the device could not be kept asleep "
            "until all of the call was queued. Either the call waits for the device, or it takes "
            f"over {LONGEST_SLEEP_MS:.0f} ms to queue, or has more launches than the queue.",
            stacklevel=3,
        )

    def _one_call(self, run: Callable[[], object]) -> tuple[float, float, bool]:
        """The device's and the host's time of one call, and whether the host was ahead."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        sleep(self.sleep_ms * self.cycles_per_ms)
        start.record()
        started = perf_counter()
        run()
        end.record()
        host_ms = 1e3 * (perf_counter() - started)
        # once all is queued, the device must not have passed the start yet
        was_ahead = not start.query()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end), host_ms, was_ahead


def host_microseconds(
    run: Callable[[], object], device: torch.device, rounds: int, warmup: int = 3
) -> float:
    """The median time for which a call keeps the host, in microseconds.

    Before each call the device has done all that it was asked for, so its queue is empty, and no
    call waits for the one before it.
    """
    microseconds = []
    for round_number in range(warmup + rounds):
        torch.cuda.synchronize(device)
        started = perf_counter()
        run()
        taken = perf_counter() - started
        if round_number >= warmup:
            microseconds.append(1e6 * taken)
    torch.cuda.synchronize(device)
    return statistics.median(microseconds)


def quantiles(times: list[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile."""
    deciles = statistics.quantiles(times, n=10)
    return {"p20": deciles[1], "p50": deciles[4], "p80": deciles[7]}


def ratio(times: dict[str, list[float]], way: str, to: str) -> float:
    """The median ratio of one way's time to another's, over the rounds in which both took part."""
    return statistics.median(a / b for a, b in zip(times[way], times[to]))


def parse_with_dry_run(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of a benchmark, with `--dry-run`: two rounds on a GPU that is not there."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run all of it at toy size on a GPU that is not there; keep it apart",
    )
    options = parser.parse_args()
    if options.dry_run:
        options.device, options.rounds = "cuda", 2
    return options


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


def stored_rows(name: str, device: torch.device) -> list[dict]:
    """The rows of results/`name`.json, if they are of this device, this torch and this commit."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text(encoding="utf-8"))
    here = {
        "device_name": device_name(device),
        "torch": torch.__version__,
        "commit": git_commit(),
    }
    if any(record.get(key) != value for key, value in here.items()):
        print(f"results/{name}.json is of another device, torch or commit, so it is written anew")
        return []
    return record["rows"]


def slug(device: torch.device) -> str:
    """A short name of the device for a file: cpu, h100, t4."""
    if device.type == "cpu":
        return "cpu"
    words = torch.cuda.get_device_name(device).lower().replace("-", " ").split()
    words_with_digits = [word for word in words if re.search(r"\d", word)]
    return words_with_digits[0] if words_with_digits else words[-1]
