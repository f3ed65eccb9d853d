"""All that waits for a GPU, in three runs of at most nine minutes.

    KATLIB_COMMIT=$(git rev-parse --short=12 HEAD) python benchmarks/gpu.py A --out FOLDER
    python benchmarks/gpu.py --collect FOLDER

Each run is of use without the others, and begins with what is most worth knowing:

    A   a smoke test of every type, the tests marked `gpu`, the kernel's times, a profile of both
        kernels, their variants, and the ladder and other people's kernels
    B   training steps of KAT-T, S and B beside ViTs, eager and then compiled; scale; inference
    C   NVIDIA's checkers of memory and of races, training on CIFAR-10, chapters 9, 10 and 12

Every step has a time limit. One that fails, hangs or lacks something does not keep the next one
from being taken; only after a smoke test that failed the rest of a run is left out. Single steps
can be named instead of runs, and without a name all three runs are made. The last lines are a table
of the steps; the exit status is 1 if one of them failed.

Nothing has to be installed but torch and pytest, and nothing is downloaded; benchmarks/README.md
says how CIFAR-10 gets to a machine without a network. In a copy of the repository without its
history, the environment variable KATLIB_COMMIT has to say which commit it is.

With --out a run leaves three files in FOLDER, which are up to date even if it is killed: A.log with
what was printed, A-clocks.csv with the GPU's clock rates and power over time, and A.zip with the
results. --collect puts the results into results/, after checking what they hold and that they are
of a commit of this repository. With --dry-run everything runs at toy size on a GPU that is not
there, and nothing is written into results/.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cifar_parts
import torch

from katlib.book.device import MeasurementError, check_measurements
from katlib.files import write_json, write_whole
from katlib.provenance import git_commit

ROOT = Path(__file__).resolve().parents[1]
CHECKER = "compute-sanitizer"
PROFILER = "ncu"
# where NVIDIA's programs are if they are not on the path
PROGRAM_FOLDERS = ("/usr/local/cuda*/bin", "/opt/nvidia/nsight-compute/*")
CLOCKS = ("timestamp", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
CHAPTERS = ("09", "10", "12")

GPU_TESTS = ("-m", "pytest", "--quiet", "-m", "gpu", "tests/unit/test_gpu.py")


@dataclass(frozen=True)
class Step:
    """A program to run.

    Args:
        seconds: it is stopped after this time.
        arguments: of Python.
        dry: what is added to them in a dry run.
        checked_by: a command that runs Python in its turn.
        programs: that have to be there.
        needs_data: whether CIFAR-10 has to be there.
        is_condition: whether the steps after it make no sense if it fails.
    """

    seconds: float
    arguments: tuple[str, ...]
    dry: tuple[str, ...] = ("--dry-run",)
    checked_by: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    needs_data: bool = False
    is_condition: bool = False

    def command(self, is_dry: bool) -> list[str]:
        checker = [find_program(name) or name for name in self.checked_by[:1]]
        python = [sys.executable, *self.arguments, *(self.dry if is_dry else ())]
        return [*checker, *self.checked_by[1:], *python]


def benchmark(seconds: float, name: str, *options: str) -> Step:
    return Step(seconds, (f"benchmarks/{name}.py", "--device", "cuda", *options))


def part(seconds: float, name: str, *options: str, **conditions) -> Step:
    """A step that is written down in gpu_steps.py."""
    return Step(seconds, ("benchmarks/gpu_steps.py", name, *options), **conditions)


def check(tool: str) -> Step:
    """The kernels on tiny tensors under one of NVIDIA's checkers, which watches only them."""
    checker = (CHECKER, "--tool", tool, "--kernel-name", "kns=rational", "--error-exitcode", "1")
    return part(100, "launch", "--tiny", checked_by=checker, programs=(CHECKER,))


STEPS = {
    "smoke": part(60, "smoke", is_condition=True),
    "tests": Step(150, GPU_TESTS, dry=("-k", "empty or hostile_zeros")),
    "kernel": benchmark(200, "kernel", "--part", "rows"),
    "profile": part(90, "profile", programs=(PROFILER,)),
    "variants": benchmark(90, "kernel", "--variant"),
    "compared": benchmark(120, "kernel", "--part", "compared", "--add"),
    "model": benchmark(330, "model", "--compile"),
    "scale": benchmark(120, "scale"),
    "inference": benchmark(120, "inference"),
    "memcheck": check("memcheck"),
    "racecheck": check("racecheck"),
    "kat": part(150, "train", "grkan", needs_data=True),
    "twin": part(150, "train", "mlp", needs_data=True),
    "chapters": part(200, "chapters", *CHAPTERS),
}
RUNS = {
    "A": ("smoke", "tests", "kernel", "profile", "variants", "compared"),
    "B": ("model", "scale", "inference"),
    "C": ("memcheck", "racecheck", "kat", "twin", "chapters"),
}
RUN_SECONDS = 540.0
# how many times as long a step may take in a dry run
DRY_PATIENCE = 10


def find_program(name: str) -> str | None:
    """Where one of NVIDIA's programs is."""
    folders = [path for pattern in PROGRAM_FOLDERS for path in sorted(Path("/").glob(pattern[1:]))]
    found = [shutil.which(name), *(shutil.which(name, path=str(folder)) for folder in folders)]
    return next(filter(None, found), None)


def missing(step: Step, is_dry: bool) -> str:
    """What a step lacks here, in words; empty if it can be taken."""
    for program in step.programs:
        if is_dry:
            return f"{program} needs a GPU"
        if not find_program(program):
            return f"there is no {program}"
    if step.needs_data and not is_dry and not cifar_parts.is_there():
        return f"CIFAR-10 is neither in the cache nor, in three parts, in {cifar_parts.FOLDER}"
    return ""


# ---- what a run leaves behind


class Keeper:
    """Keeps the log of a run, and copies of the results that it writes.

    Args:
        title: of the run, for the names of the files.
        folder: for the log and, if `copies_results`, for the results.
        results: where results are written.
        copies_results: whether to copy them.
    """

    def __init__(self, title: str, folder: Path, results: Path, copies_results: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log: BinaryIO = open(folder / f"{title}.log", "ab")  # noqa: SIM115
        self.archive = folder / f"{title}.zip"
        self.clocks = folder / f"{title}-clocks.csv"
        self.results = results
        self.copies_results = copies_results
        self.since = time.time()
        self.kept: dict[Path, float] = {}

    def show(self, text: bytes) -> None:
        """Prints what a program said and adds it to the log."""
        sys.stdout.write(text.decode(errors="replace"))
        sys.stdout.flush()
        self.log.write(text)
        self.log.flush()

    def keep(self) -> None:
        """Packs the results anew if there are new ones."""
        if not self.copies_results:
            return
        changed = {path: path.stat().st_mtime for path in self.written_files()}
        if changed and changed != self.kept:
            with write_whole(self.archive) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                for path in changed:
                    archive.write(path, self.name_of(path), zipfile.ZIP_DEFLATED)
            self.kept = changed

    def written_files(self) -> list[Path]:
        """The results and notebooks that were written since the run began."""
        files = [*self.results.rglob("*.json"), *(ROOT / "notebooks").glob("*.ipynb")]
        return [path for path in sorted(files) if path.stat().st_mtime >= self.since]

    def name_of(self, path: Path) -> str:
        """The name of a file in the archive."""
        if path.is_relative_to(self.results):
            return f"results/{path.relative_to(self.results).as_posix()}"
        return f"notebooks/{path.name}"


@contextlib.contextmanager
def clocks_logged(keeper: Keeper) -> Iterator[None]:
    """Inside, nvidia-smi notes the clock rates and the power twice a second."""
    program = find_program("nvidia-smi")
    if program is None:
        keeper.show(b"there is no nvidia-smi: clock rates and power are not logged\n")
        yield
        return
    command = [program, f"--query-gpu={','.join(CLOCKS)}", "--format=csv", "--loop-ms=500"]
    with open(keeper.clocks, "ab") as file, subprocess.Popen(command, stdout=file) as process:
        try:
            yield
        finally:
            process.terminate()


# ---- running


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


def run(step: Step, seconds: float, is_dry: bool, keeper: Keeper) -> str:
    """Runs a step in the project's folder, prints and logs its output, and says how it ended."""
    end = time.monotonic() + seconds
    with subprocess.Popen(
        step.command(is_dry),
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
            if output:
                keeper.show(output)
                # a program says so when it has written a result
                keeper.keep()
            if has_ended and not output:
                return "passed" if process.returncode == 0 else f"failed with {process.returncode}"
            if time.monotonic() > end:
                os.killpg(process.pid, signal.SIGKILL)
                return f"stopped after {seconds:.0f} s"
            time.sleep(0.05)


def take(step: Step, end: float, is_dry: bool, keeper: Keeper) -> Outcome:
    """Runs a step, if it can be taken and there is time before `end`, and at most until then."""
    began = time.monotonic()
    seconds_left = end - began
    if lack := missing(step, is_dry):
        how = f"left out: {lack}"
    elif seconds_left <= 0:
        how = "not begun: no time was left"
    else:
        # a CPU that stands in for a GPU may take its time
        limit = step.seconds * (DRY_PATIENCE if is_dry else 1)
        how = run(step, min(limit, seconds_left), is_dry, keeper)
    keeper.keep()
    return Outcome(how, time.monotonic() - began)


def make_run(names: tuple[str, ...], seconds: float, is_dry: bool, keeper: Keeper) -> bool:
    """Takes these steps one after the other; prints their table; returns whether all went well."""
    end = time.monotonic() + seconds
    outcomes: dict[str, Outcome] = {}
    failed_condition = ""
    with clocks_logged(keeper):
        for name in names:
            if failed_condition:
                outcomes[name] = Outcome(f"not begun: {failed_condition} failed", 0.0)
                continue
            keeper.show(f"==== {name}\n".encode())
            outcomes[name] = take(STEPS[name], end, is_dry, keeper)
            if STEPS[name].is_condition and outcomes[name].is_failure:
                failed_condition = name
    keeper.show(table(outcomes).encode())
    return not any(outcome.is_failure for outcome in outcomes.values())


def table(outcomes: dict[str, Outcome]) -> str:
    return "".join(
        f"{name:10} {outcome.seconds:6.0f} s  {outcome.how}\n" for name, outcome in outcomes.items()
    )


def make_runs(options: argparse.Namespace) -> bool:
    """Makes the runs that were asked for; returns whether all went well."""
    results = ROOT / ("build/rehearsal" if options.dry_run else "results")
    went_well = True
    for title, names in options.runs.items():
        folder = options.out or ROOT / "build"
        keeper = Keeper(title, folder, results, copies_results=options.out is not None)
        with keeper.log:
            went_well &= make_run(names, options.seconds, options.dry_run, keeper)
    return went_well


# ---- collecting

# what a benchmark's file and the record of a training run say at the least
COMMON = {"device_name": str, "torch": str, "commit": str, "date": str}
BENCHMARK = COMMON | {"what": str, "rounds": int, "rows": list}
TRAINING = COMMON | {"preset": str, "mlp": str, "epochs": list, "test_accuracy": float}


def problem_of(record: object) -> str:
    """What is wrong with the contents of a result; empty if nothing is."""
    if not isinstance(record, dict):
        return "it is no JSON object"
    if "measured" in record:
        try:
            check_measurements(record)
        except MeasurementError as error:
            return str(error)
        return ""
    schema = TRAINING if "test_accuracy" in record else BENCHMARK
    wrong = [key for key, kind in schema.items() if not isinstance(record.get(key), kind)]
    if wrong:
        return f"it lacks {', '.join(wrong)}, or has them in another type"
    if not record.get("rows", True):
        return "it has no rows"
    return problem_of_commit(record["commit"])


def problem_of_commit(commit: str) -> str:
    """What is wrong with a commit that a result names: only a whole commit can be looked up."""
    command = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    return f"its commit {commit} is none of this repository" if done.returncode else ""


def collect(folder: Path) -> bool:
    """Puts the results from the archives of a folder into results/; returns whether all fit."""
    archives = sorted(folder.glob("*.zip"))
    if not archives:
        print(f"there is no archive in {folder}")
    all_fit = bool(archives)
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                all_fit &= collect_one(path.name, name, archive.read(name))
    return all_fit


def collect_one(archive: str, name: str, content: bytes) -> bool:
    """Puts one file from an archive in its place, if it fits; says what it did."""
    file_name = Path(name).name
    if not name.startswith("results/"):
        target = ROOT / "build/collected" / file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        print(f"{archive}: {name} is in build/collected")
        return True
    try:
        record = json.loads(content)
    except ValueError:
        record = None
    if problem := problem_of(record):
        print(f"{archive}: {name} is refused: {problem}")
        return False
    folder = ROOT / ("results/readers" if "measured" in record else "results")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / file_name, record)
    print(f"{archive}: {name} is in {folder.relative_to(ROOT)}")
    return True


# ---- the command line


def runs_of(names: list[str]) -> dict[str, tuple[str, ...]]:
    """The runs that are asked for by their names; single steps become a run of their own."""
    runs = {name: RUNS[name] for name in names if name in RUNS}
    steps = tuple(name for name in names if name in STEPS)
    return runs | ({"steps": steps} if steps else {})


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = f"{', '.join(RUNS)}, or steps: {', '.join(STEPS)}"
    parser.add_argument("names", nargs="*", help=f"default: all runs of {choices}")
    seconds = "for each run; no step begins later, and the last one is stopped"
    parser.add_argument("--seconds", type=float, default=RUN_SECONDS, help=seconds)
    parser.add_argument("--out", type=Path, help="folder for logs, clock rates and results")
    parser.add_argument("--dry-run", action="store_true", help="try everything without a GPU")
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="put results into results/")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(STEPS) - set(RUNS))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {choices}")
    options.runs = runs_of(options.names or list(RUNS))
    if options.collect or options.dry_run:
        return options
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --dry-run tries everything without one")
    if git_commit() == "unknown":
        parser.error("this copy has no git history: set KATLIB_COMMIT to its commit, 12 digits")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return int(not (collect(options.collect) if options.collect else make_runs(options)))


if __name__ == "__main__":
    sys.exit(main())
