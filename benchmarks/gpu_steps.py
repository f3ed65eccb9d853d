"""Steps of gpu.py that are no programs of their own.

    python benchmarks/gpu_steps.py smoke                 every type once, against float64
    python benchmarks/gpu_steps.py launch [--tiny]       launches both kernels, for a profiler
    python benchmarks/gpu_steps.py profile               has NVIDIA's profiler watch that
    python benchmarks/gpu_steps.py train grkan           trains cifar-compact on CIFAR-10
    python benchmarks/gpu_steps.py chapters 09 10 12     runs chapters

With --dry-run at toy size on a GPU that is not there.
"""

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import cifar_parts
import fake_gpu
import timing
import torch
from timing import slug, store
from torch import Tensor

import katlib
import katlib.cuda
from katlib.files import write_json
from katlib.rational import initial_coefficients
from katlib.train import train
from katlib.train.data import CIFAR10

ROOT = Path(__file__).resolve().parents[1]
DEVICE = torch.device("cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# ---- the smoke test

# rounding errors of the type in which y and dx are stored, and of float32 for sums
SMOKE_LIMIT = 64


def smoke(options: argparse.Namespace) -> None:
    """Forward and backward in every type against float64; exits at the first that is wrong."""
    print(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), torch.__version__)
    if not katlib.cuda.available():
        sys.exit("the kernels cannot be compiled or loaded here")
    for dtype in DTYPES:
        worst = worst_error(dtype)
        print(f"{dtype!s:15} {worst:6.1f} roundings at most", flush=True)
        # a NaN is wrong, too
        if not worst < SMOKE_LIMIT:
            sys.exit(f"{dtype} is wrong")


def draw(shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """g, x, a (1, 6) and b (8, 4) on the GPU."""
    torch.manual_seed(0)
    x, g = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(2))
    compute = torch.promote_types(dtype, torch.float32)
    a, b = (c.to(DEVICE, compute)[None] for c in initial_coefficients("swish"))
    return g, x, a, b.repeat(8, 1)


def worst_error(dtype: torch.dtype) -> float:
    """The largest error of y, dx, da and db, in roundings of their largest value."""
    g, *inputs = draw((257, 192), dtype)
    wide = [t.double().requires_grad_() for t in inputs]
    for t in inputs:
        t.requires_grad_()
    y, expected = katlib.rational(*inputs), katlib.rational_reference(*wide)
    results = (y, *torch.autograd.grad(y, inputs, g))
    references = (expected, *torch.autograd.grad(expected, wide, g.double()))
    errors = [
        (result - reference).abs().max() / reference.abs().max() / torch.finfo(result.dtype).eps
        for result, reference in zip(results, references)
    ]
    return max(error.item() for error in errors)


# ---- the profiler

PROFILED_SHAPE, TINY_SHAPE = (128 * 197, 768), (257, 192)
PROFILED_DTYPES = (torch.bfloat16, torch.float32)
KERNELS = ("rational_forward", "rational_backward", "rational_finish")
STALLS = (
    *("barrier", "branch_resolving", "dispatch_stall", "drain", "imc_miss", "lg_throttle"),
    *("long_scoreboard", "math_pipe_throttle", "membar", "mio_throttle", "misc", "no_instruction"),
    *("not_selected", "selected", "short_scoreboard", "sleeping", "tex_throttle", "wait"),
)
# what the results call a metric, and what the profiler calls it
METRICS = {
    "ns": "gpu__time_duration.sum",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram_bytes_read": "dram__bytes_read.sum",
    "dram_bytes_written": "dram__bytes_write.sum",
    "issue_percent": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "instructions": "smsp__inst_executed.sum",
} | {
    f"stalled_{reason}": f"smsp__average_warps_issue_stalled_{reason}_per_issue_active.ratio"
    for reason in STALLS
}


def launch(options: argparse.Namespace) -> None:
    """Launches every kernel of rational.cu once in each type."""
    shape = TINY_SHAPE if options.tiny or options.dry_run else PROFILED_SHAPE
    for dtype in DTYPES if options.tiny else PROFILED_DTYPES:
        g, *inputs = draw(shape, dtype)
        for t in inputs:
            t.requires_grad_()
        torch.autograd.grad(katlib.rational(*inputs), inputs, g)
        torch.cuda.synchronize()
        print(f"launched {dtype}", flush=True)


def profile(options: argparse.Namespace) -> None:
    """Stores what the profiler says of each kernel; see `METRICS`."""
    from gpu import PROFILER, find_program

    program = find_program(PROFILER)
    if program is None:
        sys.exit(f"there is no {PROFILER}")
    choice = ["--kernel-name", "regex:^rational_", "--metrics", ",".join(METRICS.values())]
    # the clocks as they are, or the shares are those of a slower device
    form = ["--csv", "--print-units", "base", "--clock-control", "none"]
    launched = [sys.executable, __file__, "launch"]
    done = subprocess.run([program, *choice, *form, *launched], stdout=subprocess.PIPE, text=True)
    rows = profiled_rows(done.stdout)
    if done.returncode or not rows:
        # without the right to read the counters it says so
        sys.exit(f"{done.stdout[-2000:]}\n{PROFILER} failed with {done.returncode}")
    for row in rows:
        print(row["dtype"], row["kernel"], row["metrics"])
    what = "what NVIDIA's profiler says of the kernels, each launched once with a cold cache"
    store(f"profile-{slug(DEVICE)}", what, DEVICE, 1, rows)


def profiled_rows(output: str) -> list[dict]:
    """A row for each launch from the profiler's table, which follows other lines."""
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    launches: dict[str, dict] = {}
    names = {metric: name for name, metric in METRICS.items()}
    for line in csv.DictReader(lines[start:]):
        launch = launches.setdefault(
            line["ID"], {"kernel": line["Kernel Name"].split("(")[0], "metrics": {}}
        )
        # "n/a" and "no data" are of metrics that this device does not have
        with contextlib.suppress(ValueError):
            value = float(line["Metric Value"].replace(",", ""))
            launch["metrics"][names.get(line["Metric Name"], line["Metric Name"])] = value
    expected = [(str(dtype)[6:], kernel) for dtype in PROFILED_DTYPES for kernel in KERNELS]
    rows = []
    for launch, (dtype, kernel) in zip_longest(
        launches.values(), expected[: len(launches)], fillvalue=("unknown", "")
    ):
        is_expected = launch["kernel"] == kernel
        rows.append(
            {"dtype": dtype if is_expected else "unknown", "shape": PROFILED_SHAPE, **launch}
        )
    return rows


# ---- training

PRESET, EPOCHS = "cifar-compact", 20


def train_and_store(options: argparse.Namespace) -> None:
    """Trains, stores the metrics after every epoch, and the run's record at the end."""
    name = f"{PRESET}-{options.mlp}-seed0"
    epochs = []

    def keep(model: torch.nn.Module, metrics: dict) -> None:
        epochs.append(metrics)
        what = f"epochs of {PRESET}, {options.mlp}; a run that was stopped has no other record"
        store(f"epochs-{name}-{slug(DEVICE)}", what, DEVICE, 1, epochs)
        print(
            f"epoch {metrics['epoch']}: test accuracy {metrics['test_accuracy']:.2%}, "
            f"{metrics['images_per_s']:.0f} images/s",
            flush=True,
        )

    if options.dry_run:
        size = {"epochs": 2, "data": toy_data()}
    else:
        if not cifar_parts.cache().exists():
            cifar_parts.read(cifar_parts.FOLDER)
        size = {"epochs": EPOCHS}
    recipe = {"precision": "auto", "device": "cuda", "on_epoch": keep, "progress": False}
    record = train(PRESET, options.mlp, seed=0, **recipe, **size)
    write_json(timing.RESULTS / f"{name}-{slug(DEVICE)}.json", record)


def toy_data() -> CIFAR10:
    """Images and labels drawn at random, 32 to train on and 32 to test on."""
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(64) % 10
    return CIFAR10(images[:32], labels[:32], images[32:], labels[32:], sha256="drawn at random")


# ---- chapters

# what running a notebook as Jupyter does takes
JUPYTER = ("nbclient", "nbformat", "ipykernel", "anywidget")


def chapters(options: argparse.Namespace) -> None:
    """Runs chapters and stores their outputs; without Jupyter's packages only runs their code."""
    absent = [name for name in JUPYTER if find_spec(name) is None]
    if absent:
        print(
            f"{', '.join(absent)} cannot be imported, so no outputs are stored: the chapters' code "
            "runs, and what it prints is below"
        )
    for number in options.numbers:
        (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        print(f"== {path.name}", flush=True)
        if options.dry_run:
            for source in code_of(path):
                compile(source, path.name, "exec")
        elif absent:
            run_code(path)
        else:
            execute(number)


def execute(number: str) -> None:
    """Runs a notebook as Jupyter does. What it measured it writes beside itself."""
    program = [sys.executable, str(ROOT / "book/_ext/notebooks.py"), "execute", number]
    subprocess.run(program, check=True)
    keep_measurements(ROOT / "notebooks")


def code_of(path: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_code(path: Path) -> None:
    """Runs a notebook's cells one after the other as one program."""
    folder = ROOT / "build" / "chapters"
    folder.mkdir(parents=True, exist_ok=True)
    # what it writes is found there
    os.chdir(folder)
    names = {"__name__": "__main__"}
    for source in code_of(path):
        exec(compile(source, path.name, "exec"), names)
    keep_measurements(folder)


def keep_measurements(folder: Path) -> None:
    """Puts what a chapter's last cell wrote among the results."""
    for path in folder.glob("katlib-chapter*.json"):
        os.replace(path, timing.RESULTS / path.name)


# ---- the command line

ACTIONS = {
    "smoke": smoke,
    "launch": launch,
    "profile": profile,
    "train": train_and_store,
    "chapters": chapters,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="action", required=True)
    for name in ACTIONS:
        command = commands.add_parser(name)
        command.add_argument("--dry-run", action="store_true")
        if name == "launch":
            command.add_argument("--tiny", action="store_true")
        if name == "train":
            command.add_argument("mlp", choices=("grkan", "mlp"))
        if name == "chapters":
            command.add_argument("numbers", nargs="+")
    options = parser.parse_args(arguments)
    with fake_gpu.rehearsal() if options.dry_run else contextlib.nullcontext():
        ACTIONS[options.action](options)


if __name__ == "__main__":
    main()
