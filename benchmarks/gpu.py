"""Runs all that waits for a GPU, one step after the other.

    python benchmarks/gpu.py [STEP ...] [--seconds 540] [--out FOLDER]

The steps are the tests marked `gpu`, the benchmarks, and then NVIDIA's checkers of memory and races
over the hostile tests. A step that fails or runs out of time does not keep the next one from being
taken, and a benchmark that is stopped has stored what it had measured until then. Nothing has to be
installed but torch and pytest. With --out, everything that was printed and all results that were
written are copied there. The last lines are a table of the steps; the exit status is 1 if one of
them failed.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

ROOT = Path(__file__).resolve().parents[1]
CHECKER = "compute-sanitizer"
GPU_TESTS = ("-m", "pytest", "--quiet", "-m", "gpu", "tests/unit/test_gpu.py")


@dataclass(frozen=True)
class Step:
    """A program to run.

    Args:
        seconds: it is stopped after this time.
        arguments: of Python.
        checked_by: a command that runs Python in its turn.
    """

    seconds: float
    arguments: tuple[str, ...]
    checked_by: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        return [*self.checked_by, sys.executable, *self.arguments]


def benchmark(seconds: float, name: str, *options: str) -> Step:
    return Step(seconds, (f"benchmarks/{name}.py", "--device", "cuda", *options))


def check(tool: str) -> Step:
    """The tests of awkward shapes and of the ladder under one of NVIDIA's checkers."""
    checker = (CHECKER, "--tool", tool, "--error-exitcode", "1")
    return Step(500, (*GPU_TESTS, "-k", "hostile or ladder"), checker)


STEPS = {
    "tests": Step(300, GPU_TESTS),
    "kernel": benchmark(500, "kernel"),
    "model": benchmark(300, "model", "--compile"),
    "scale": benchmark(300, "scale"),
    "inference": benchmark(300, "inference"),
    "memcheck": check("memcheck"),
    "racecheck": check("racecheck"),
}


@dataclass(frozen=True)
class Outcome:
    """How a step ended, in words, and how long it took."""

    how: str
    seconds: float

    @property
    def is_failure(self) -> bool:
        return not self.how.startswith(("passed", "left out"))


def environment_of(step: Step) -> dict[str, str]:
    """The environment in which a step runs: Python finds the project, and prints at once."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
    }
    if CHECKER in step.checked_by:
        # an allocation for each tensor, so that the checker sees where a tensor ends
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    return environment


def run(step: Step, seconds: float, log: BinaryIO) -> str:
    """Runs a step in the project's folder, prints and logs its output, and says how it ended."""
    if CHECKER in step.checked_by and not shutil.which(CHECKER):
        return f"left out: there is no {CHECKER}"
    end = time.monotonic() + seconds
    with subprocess.Popen(
        step.command,
        cwd=ROOT,
        env=environment_of(step),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # a process group, so that the step can be stopped with the processes that it started
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        # a step that hangs without a word must not keep the loop from looking at the time
        os.set_blocking(process.stdout.fileno(), False)
        while True:
            has_ended = process.poll() is not None
            output = process.stdout.read() or b""
            show(output, log)
            if has_ended and not output:
                return "passed" if process.returncode == 0 else f"failed with {process.returncode}"
            if time.monotonic() > end:
                os.killpg(process.pid, signal.SIGKILL)
                return f"stopped after {seconds:.0f} s"
            time.sleep(0.05)


def show(output: bytes, log: BinaryIO) -> None:
    """Prints a program's output and adds it to the log."""
    sys.stdout.write(output.decode(errors="replace"))
    sys.stdout.flush()
    log.write(output)


def run_in_time(step: Step, end: float, log: BinaryIO) -> Outcome:
    """Runs a step, if there is time before `end`, and at most until then."""
    began = time.monotonic()
    seconds_left = end - began
    if seconds_left > 0:
        how = run(step, min(step.seconds, seconds_left), log)
    else:
        how = "not begun: no time was left"
    return Outcome(how, time.monotonic() - began)


def copy_results(out: Path, since: float) -> None:
    """Copies the results that were written since then."""
    for path in (ROOT / "results").glob("*.json"):
        if path.stat().st_mtime >= since:
            shutil.copy2(path, out)


def run_all(names: list[str], seconds: float, out: Path | None) -> dict[str, Outcome]:
    """Runs the steps of these names one after the other; ends with their table."""
    log_folder = out or ROOT / "build"
    log_folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    end = time.monotonic() + seconds
    outcomes = {}
    with open(log_folder / "gpu.log", "ab") as log:
        for name in names:
            show(f"==== {name}\n".encode(), log)
            outcomes[name] = run_in_time(STEPS[name], end, log)
            log.flush()
            if out:
                copy_results(out, started)
        show(table(outcomes).encode(), log)
    return outcomes


def table(outcomes: dict[str, Outcome]) -> str:
    return "".join(
        f"{name:10} {outcome.seconds:6.0f} s  {outcome.how}\n" for name, outcome in outcomes.items()
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", help=f"default: all of {', '.join(STEPS)}")
    parser.add_argument(
        "--seconds",
        type=float,
        default=3600,
        help="for all steps together; none begins later, and the last is stopped",
    )
    parser.add_argument(
        "--out", type=Path, help="where to copy the log and the results, after each step"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.steps) - set(STEPS))
    if unknown:
        parser.error(f"there is no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    outcomes = run_all(options.steps or list(STEPS), options.seconds, options.out)
    return int(any(outcome.is_failure for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
