"""All that waits for a GPU, one step after the other: python benchmarks/gpu.py [STEP ...] [--seconds 540] [--out FOLDER].

The tests marked `gpu`, the benchmarks, then NVIDIA's checkers of memory and races over the hostile tests; a step that fails or runs out of time does not keep
the next from being taken, and what a benchmark had measured until then is stored. Nothing has to be installed but torch and pytest. With --out, everything
that was printed and all results that were written are copied there. Ends with a table of the steps, and with 1 if one failed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
CHECKED = ["-m", "pytest", "--quiet", "-m", "gpu", "tests/test_gpu.py", "-k", "hostile or ladder"]
STEPS = {  # name: most seconds, arguments of Python, and what runs Python
    "tests": (300, ["-m", "pytest", "--quiet", "-m", "gpu", "tests/test_gpu.py"], []),
    "kernel": (500, ["benchmarks/kernel.py", "--device", "cuda"], []),
    "model": (300, ["benchmarks/model.py", "--device", "cuda", "--compile"], []),
    "scale": (300, ["benchmarks/scale.py", "--device", "cuda"], []),
    "inference": (300, ["benchmarks/inference.py", "--device", "cuda"], []),
    "memcheck": (
        500,
        CHECKED,
        ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1"],
    ),
    "racecheck": (
        500,
        CHECKED,
        ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "1"],
    ),
}


def run(arguments: list[str], seconds: float, log) -> str:
    """Runs a command in the project's folder, prints and logs what it prints, and says how it ended."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
    }
    if "compute-sanitizer" in arguments:
        if not shutil.which("compute-sanitizer"):
            return "left out: there is no compute-sanitizer"
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = (
            "1"  # an allocation for each tensor, so that the checker sees where one ends
        )
    end = time.monotonic() + seconds
    with subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        os.set_blocking(process.stdout.fileno(), False)
        while True:
            text = process.stdout.read() or b""
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
            log.write(text)
            if process.poll() is not None and not text:
                return "passed" if process.returncode == 0 else f"failed with {process.returncode}"
            if time.monotonic() > end:
                os.killpg(process.pid, 9)  # with the processes that it started
                return f"stopped after {seconds:.0f} s"
            time.sleep(0.05)


def main(arguments: list[str] | None = None) -> int:
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
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"there is no step {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    out = options.out or ROOT / "build"
    out.mkdir(parents=True, exist_ok=True)
    started, end, ended = time.time(), time.monotonic() + options.seconds, {}
    with open(out / "gpu.log", "ab") as log:
        for name in options.steps or STEPS:
            limit, command, before = STEPS[name]
            left = end - time.monotonic()
            print(f"==== {name}", flush=True)
            log.write(f"==== {name}\n".encode())
            began = time.monotonic()
            how = (
                run([*before, sys.executable, *command], min(limit, left), log)
                if left > 0
                else "not begun: no time was left"
            )
            ended[name] = how, time.monotonic() - began
            log.flush()
            if options.out:
                for path in (ROOT / "results").glob("*.json"):
                    if path.stat().st_mtime >= started:
                        shutil.copy2(path, out)
        table = "\n".join(
            f"{name:10} {seconds:6.0f} s  {how}" for name, (how, seconds) in ended.items()
        )
        print(table)
        log.write(f"{table}\n".encode())
    return int(any(not how.startswith(("passed", "left out")) for how, _ in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
