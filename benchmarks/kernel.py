"""Times the rational function, forward, backward and both.

    python benchmarks/kernel.py --device cuda [--dtype bfloat16] [--rounds 25]
    python benchmarks/kernel.py --variant [NAME_OR_FILE.cu ...]
    python benchmarks/kernel.py --dry-run

`make bench` runs it too. The function is compared with F.gelu, with a copy of the same memory (the
ceiling), and with the reference in PyTorch as it is and under torch.compile. On a GPU also with the
kernels alone, with CUDA graphs, with the stages of the ladder, and with the public kernels of
others where they can be imported (README.md). Writes results/kernel-DEVICE.json.

With --variant it times alternative sources of the kernel beside the present one, each checked
against float64 first, and writes results/variants-DEVICE.json; without a GPU it counts their
registers, spills and instructions instead.
"""

import argparse
import contextlib
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import fake_gpu
import torch
import variants
from timing import (
    host_microseconds,
    keep_memory,
    quantiles,
    ratio,
    slug,
    store,
    stored_rows,
    turns,
)
from torch import Tensor
from torch.nn import functional as F

import katlib
from katlib.cuda import ladder
from katlib.rational import initial_coefficients

GROUPS = 8
TOKENS = 197

# rows and channels; the last shape shows what a call costs
CPU_SHAPES = (
    (128 * 65, 128),
    (128 * 65, 512),
    (8192, 512),
    (32 * TOKENS, 192),
    (32 * TOKENS, 768),
    (64, 128),
)

# What a GPU computes in KAT-T, KAT-S and KAT-B with 128 images, before and after their first linear
# map, in the order of what is worth knowing first.
WIDTHS = (768, 192, 3072, 384, 1536)
MODEL_SHAPES = tuple((128 * TOKENS, width) for width in WIDTHS)
# where the call itself counts: a few tokens, one, and one image
SMALL_SHAPES = ((64, 128), (1, 192), (TOKENS, 192))
# of a tensor that is four times an H100's cache in bfloat16
LARGE_ELEMENTS = 100_000_000
LARGE_SHAPES = tuple((math.ceil(LARGE_ELEMENTS / (TOKENS * w)) * TOKENS, w) for w in WIDTHS)
# beside the reference, the ladder and the kernels of others, which take long
COMPARED_SHAPES = MODEL_SHAPES[:1]
# those between which a variant is chosen
VARIANT_SHAPES = MODEL_SHAPES[:3]

# of a rehearsal on a GPU that is not there
REHEARSAL_ROWS, REHEARSAL_ROUNDS = 4, 2

# what a GPU may spend on one slow way, in seconds
GPU_PATIENCE = 2.0

# tensors of x's size that each part has to move: x, y; x, g, dx; all of them
TENSORS_MOVED = {"copy": 2, "forward": 2, "backward": 3, "both": 5}

# A variant is wrong where its error is more than so many times the present kernel's, or than so
# many units of the arithmetic's rounding.
WORSE, UNITS = 2.0, 16

Ways = dict[str, Callable[[], object]]


class Case(NamedTuple):
    """The tensors of one row."""

    x: Tensor  # (rows, channels)
    g: Tensor  # the gradient of the output, like x
    a: Tensor  # the numerator (1, m + 1)
    b: Tensor  # the denominators (GROUPS, n)

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x, self.a, self.b


def draw_case(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Case:
    """Normal x and g, and the coefficients of swish."""
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    g = torch.randn(shape, device=device).to(dtype)
    coefficient_dtype = torch.promote_types(dtype, torch.float32)
    numerator, denominator = (
        c.to(device, coefficient_dtype) for c in initial_coefficients("swish")
    )
    a = numerator.repeat(1, 1).requires_grad_()  # (1, m + 1)
    b = denominator.repeat(GROUPS, 1).requires_grad_()  # (GROUPS, n)
    return Case(x, g, a, b)


def forward_and_backward(
    function: Callable[..., Tensor], leaves: tuple[Tensor, ...], g: Tensor
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*leaves), leaves, g)


def add_if_it_runs(ways: Ways, name: str, title: str, run: Callable[[], object]) -> None:
    """Adds a way that may not work here; if it does not, says why and leaves it out."""
    try:
        run()
    # whatever it raises, the other ways are measured all the same
    except Exception as error:
        say_left_out(title, error)
    else:
        ways[name] = run


def say_left_out(title: str, error: Exception) -> None:
    reason = str(error).split("\n")[0][:100]
    print(f"  {title} is left out: {type(error).__name__}: {reason}")


def basic_ways(case: Case) -> Ways:
    """The copy, GELU and katlib's function."""
    x, g, leaves = case.x, case.g, case.leaves
    gelu_output = F.gelu(x)
    katlib_output = katlib.rational(*leaves)
    grad = partial(torch.autograd.grad, grad_outputs=g, retain_graph=True)
    return {
        "copy": partial(torch.empty_like(g).copy_, g),
        "gelu forward": partial(F.gelu, x),
        "gelu backward": partial(grad, gelu_output, x),
        "gelu": partial(forward_and_backward, F.gelu, (x,), g),
        "katlib forward": partial(katlib.rational, *leaves),
        "katlib backward": partial(grad, katlib_output, leaves),
        "katlib": partial(forward_and_backward, katlib.rational, leaves, g),
    }


def kernel_ways(case: Case, name: str = "kernel", source: Path | None = None) -> Ways:
    """The CUDA kernels without the operator and autograd around them.

    Args:
        case: the tensors.
        name: what the ways are called.
        source: the kernels' file, if not the present one.
    """
    x, a, b = (t.detach() for t in case.leaves)
    shape = (len(x), GROUPS, x.shape[1] // GROUPS)
    forward = partial(katlib.cuda.forward, x, a, b, shape)
    backward = partial(katlib.cuda.backward, case.g, x, a, b, shape)
    ways: Ways = {
        f"{name} forward": forward,
        f"{name} backward": backward,
        name: lambda: (forward(), backward()),
    }
    if source is None:
        return ways
    return {way: partial(run_with, source, run) for way, run in ways.items()}


def run_with(source: Path, run: Callable[[], object]) -> None:
    """Runs something with another source of the kernels."""
    with variants.in_use(source):
        run()


def captured(
    make_run: Callable[[], Callable[[], object]], stream: torch.cuda.Stream, pool: tuple[int, int]
) -> Callable[[], object]:
    """The replay of a call that is captured in a CUDA graph.

    Args:
        make_run: gives the call. It runs on the stream of the capture, because a backward pass runs
            where its forward pass did.
        stream: of the capture.
        pool: the memory of all graphs. Nobody reads what they compute, so they may share it.
    """
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run = make_run()
        for _ in range(3):
            run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        run()
    return partial(replay, graph, run)


def replay(graph: torch.cuda.CUDAGraph, run: Callable[[], object]) -> None:
    """Replays a graph; `run` is what it was captured from, and keeps the tensors that it reads."""
    graph.replay()


def makers_of_parts(
    function: Callable[..., Tensor], leaves: tuple[Tensor, ...], g: Tensor
) -> dict[str, Callable[[], Callable[[], object]]]:
    """For forward, backward and both, a function that gives the call."""

    def backward() -> Callable[[], object]:
        y = function(*leaves)
        return partial(torch.autograd.grad, y, leaves, g, retain_graph=True)

    return {
        " forward": lambda: partial(function, *leaves),
        " backward": backward,
        "": lambda: partial(forward_and_backward, function, leaves, g),
    }


def add_graph_ways(ways: Ways, case: Case) -> None:
    """GELU's and katlib's parts as CUDA graphs, in which Python takes no part."""
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    functions: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "gelu": (F.gelu, case.leaves[:1]),
        "katlib": (katlib.rational, case.leaves),
    }
    for name, (function, leaves) in functions.items():
        for part, make_run in makers_of_parts(function, leaves, case.g).items():
            way = f"{name} graph{part}"
            try:
                ways[way] = captured(make_run, stream, pool)
            # whatever it raises, the other ways are measured all the same
            except Exception as error:
                say_left_out(way, error)


def add_reference_ways(ways: Ways, case: Case) -> None:
    """The reference under torch.compile, where there is a compiler, and as it is."""
    compiled = torch.compile(katlib.rational_reference)
    for name, title, function in (
        ("compiled reference", "the compiled reference", compiled),
        ("reference", "the reference", katlib.rational_reference),
    ):
        run = partial(forward_and_backward, function, case.leaves, case.g)
        add_if_it_runs(ways, name, title, run)


def add_ladder_ways(ways: Ways, case: Case) -> None:
    """The backward of every stage of the ladder."""
    rows = len(case.x)
    x, g = (t.detach().view(rows, GROUPS, -1) for t in (case.x, case.g))
    a = case.a.detach().repeat(GROUPS, 1)
    b = case.b.detach()
    for stage in ladder.STAGES:
        run = partial(ladder.backward, stage, g, x, a, b)
        add_if_it_runs(ways, f"{stage} backward", stage, run)


def flashkat(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    from rational_kat.kernels.flash_rational_triton import FlashRationalTriton1DGroup

    return FlashRationalTriton1DGroup.apply(x, numerator, denominator)


def official_triton(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    from kat_rational.rational_triton import RationalTriton1DGroup

    return RationalTriton1DGroup.apply(x, numerator, denominator, GROUPS)


def add_peer_ways(ways: Ways, case: Case) -> None:
    """The public kernels, called as in training: under autocast they cast to float32 first."""
    rows, channels = case.x.shape
    tokens = (-1, math.gcd(rows, TOKENS), channels)
    x = case.x.detach().view(tokens).requires_grad_()
    g = case.g.view(tokens)
    numerator = case.a.detach().repeat(GROUPS, 1).requires_grad_()
    denominator = case.b.detach().clone().requires_grad_()

    def run(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y = function(x.float(), numerator, denominator).to(x.dtype)
        return torch.autograd.grad(y, (x, numerator, denominator), g)

    add_if_it_runs(ways, "flashkat", "flashkat", partial(run, flashkat))
    add_if_it_runs(ways, "official_triton", "official_triton", partial(run, official_triton))


def gpu_ways(case: Case) -> Ways:
    """The basic ways, the kernels alone, and CUDA graphs."""
    ways = basic_ways(case)
    for name, run in kernel_ways(case).items():
        add_if_it_runs(ways, name, name, run)
    add_graph_ways(ways, case)
    return ways


def add_compared_ways(ways: Ways, case: Case, device: torch.device) -> None:
    """The reference, and on a GPU the ladder and the kernels of others."""
    add_reference_ways(ways, case)
    if device.type == "cuda" and case.x.dtype != torch.float64:
        add_ladder_ways(ways, case)
        add_peer_ways(ways, case)


def part_of(name: str) -> str:
    """Which of `TENSORS_MOVED` a way computes; its name ends with it, or it does both."""
    last_word = name.split(" ")[-1]
    return last_word if last_word in TENSORS_MOVED else "both"


def rates(name: str, times: dict[str, list[float]], tensor_bytes: int) -> dict:
    """A way's time, its rate in bytes, and that rate as a share of the copy's."""
    ms = quantiles(times[name])
    rate = TENSORS_MOVED[part_of(name)] * tensor_bytes / (ms["p50"] / 1e3)
    copy_rate = TENSORS_MOVED["copy"] * tensor_bytes / (quantiles(times["copy"])["p50"] / 1e3)
    return {"ms": ms, "GB_per_s": rate / 1e9, "share_of_copy": rate / copy_rate}


def same_part(name: str, of: str) -> str:
    """The way of `of` that computes the same part as this one."""
    part = part_of(name)
    return f"{of} {part}" if part in ("forward", "backward") else of


def summary(name: str, times: dict[str, list[float]], tensor_bytes: int) -> dict:
    """What is stored of one way: its time, its rate in bytes, and how it compares."""
    # a graph is compared with a graph
    graph_of_gelu = same_part(name, of="gelu graph")
    is_graph = " graph" in name and graph_of_gelu in times
    gelu = graph_of_gelu if is_graph else same_part(name, of="gelu")
    return rates(name, times, tensor_bytes) | {"ratio_to_gelu": ratio(times, name, gelu)}


def relative_error(computed: Tensor, expected: Tensor) -> float:
    """The largest error in units of the largest value."""
    return ((computed.double() - expected).abs().max() / expected.abs().max()).item()


def by_operator(case: Case) -> tuple[Tensor, ...]:
    """y, dx, da and db by `katlib.rational`."""
    y = katlib.rational(*case.leaves)
    return y, *torch.autograd.grad(y, case.leaves, case.g)


def by_source(source: Path, case: Case) -> tuple[Tensor, ...]:
    """y, dx, da and db by the kernels of this file."""
    x, a, b = (t.detach() for t in case.leaves)
    shape = (len(x), GROUPS, x.shape[1] // GROUPS)
    with variants.in_use(source):
        y = katlib.cuda.forward(x, a, b, shape)
        return y, *katlib.cuda.backward(case.g, x, a, b, shape)


def errors(
    case: Case, compute: Callable[[Case], tuple[Tensor, ...]] = by_operator
) -> dict[str, float]:
    """Largest errors of y, dx, da and db against float64, in units of the largest value.

    float64 would not fit whole on a GPU, so it is computed for some rows at a time.
    """
    y, dx, da, db = compute(case)
    rows_at_once = max(1, 4_000_000 // case.x.shape[1])
    worst_y = worst_dx = 0.0
    expected_da, expected_db = torch.zeros_like(da).double(), torch.zeros_like(db).double()
    for start in range(0, len(case.x), rows_at_once):
        piece = slice(start, start + rows_at_once)
        leaves = [t.detach().double().requires_grad_() for t in (case.x[piece], case.a, case.b)]
        expected_y = katlib.rational_reference(*leaves)
        gradients = torch.autograd.grad(expected_y, leaves, case.g[piece].double())
        worst_y = larger(worst_y, relative_error(y[piece], expected_y))
        worst_dx = larger(worst_dx, relative_error(dx[piece], gradients[0]))
        expected_da += gradients[1]
        expected_db += gradients[2]
    return {
        "y": worst_y,
        "dx": worst_dx,
        "da": relative_error(da, expected_da),
        "db": relative_error(db, expected_db),
    }


def larger(a: float, b: float) -> float:
    """The larger of two numbers; nan if one of them is, which max may hide."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def nothing() -> None:
    """A call that queues nothing."""


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    compared: bool = True,
) -> dict:
    """One row of the result: the ways of computing for one shape and dtype.

    Args:
        shape: rows and channels.
        dtype: of x.
        device: where.
        rounds: that are counted.
        compared: whether the reference, the ladder and the kernels of others take part.
    """
    on_gpu = device.type == "cuda"
    case = draw_case(shape, dtype, device)
    ways = gpu_ways(case) if on_gpu else basic_ways(case)
    host_us = {name: host_microseconds(run, device, rounds) for name, run in ways.items() if on_gpu}
    if compared:
        add_compared_ways(ways, case, device)
    times = turns(ways, device, rounds, patience=GPU_PATIENCE if on_gpu else math.inf)
    tensor_bytes = case.x.numel() * case.x.element_size()
    row = {
        "shape": list(shape),
        "groups": GROUPS,
        "dtype": name_of(dtype),
        "ways": {name: summary(name, times, tensor_bytes) for name in times},
        "error": errors(case),
    }
    if on_gpu:
        row["host_us"] = host_us
        # what the two events measure when there is nothing between them
        row["clock_ms"] = statistics.median(turns({"nothing": nothing}, device, rounds)["nothing"])
    return row


def print_row(row: dict) -> None:
    largest_errors = ", ".join(f"{name} {error:.1e}" for name, error in row["error"].items())
    print(f"{tuple(row['shape'])} {row['dtype']}: errors {largest_errors}")
    host_us = row.get("host_us", {})
    for name, way in row["ways"].items():
        ms = way["ms"]
        host = f"{host_us[name]:8.1f} us of the host" if name in host_us else ""
        print(
            f"  {name:32} {ms['p20']:9.4f} {ms['p50']:9.4f} {ms['p80']:9.4f} ms "
            f"{way['GB_per_s']:8.1f} GB/s {way['share_of_copy']:7.1%} of the copy "
            f"{way['ratio_to_gelu']:8.2f} x gelu {host}",
            flush=True,
        )


# ---- variants of the kernel


def is_wrong(error: dict[str, float], present: dict[str, float], dtype: torch.dtype) -> bool:
    """Whether a variant's errors are larger than the present kernel's and rounding explain."""
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    # written so that nan is wrong
    return not all(error[k] <= max(WORSE * present[k], UNITS * unit) for k in error)


def right_ones(
    sources: dict[str, Path], case: Case
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """The errors of the variants that are right, and for the others what is wrong with them."""
    present = errors(case, partial(by_source, katlib.cuda.SOURCE))
    right, left_out = {"present": present}, {}
    for name, source in sources.items():
        try:
            error = errors(case, partial(by_source, source))
        # a source that does not compile or launch
        except Exception as failure:
            left_out[name] = f"{type(failure).__name__}: {failure}"[:500]
            continue
        if is_wrong(error, present, case.x.dtype):
            left_out[name] = "wrong: " + ", ".join(f"{k} {e:.1e}" for k, e in error.items())
        else:
            right[name] = error
    return right, left_out


def measure_variants(
    sources: dict[str, Path],
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
) -> dict:
    """One row of the variants' result: the present kernel and all variants in turns."""
    case = draw_case(shape, dtype, device)
    right, left_out = right_ones(sources, case)
    ways: Ways = {"copy": partial(torch.empty_like(case.g).copy_, case.g)}
    for name in right:
        ways |= kernel_ways(case, name, sources.get(name))
    times = turns(ways, device, rounds)
    tensor_bytes = case.x.numel() * case.x.element_size()
    return {
        "shape": list(shape),
        "groups": GROUPS,
        "dtype": name_of(dtype),
        "ways": {
            name: rates(name, times, tensor_bytes)
            | {"ratio_to_present": ratio(times, name, same_part(name, of="present"))}
            for name in times
        },
        "error": right,
        "left_out": left_out,
    }


def print_variants(row: dict) -> None:
    print(f"{tuple(row['shape'])} {row['dtype']}")
    for name, why in row["left_out"].items():
        print(f"  {name} is left out: {why.splitlines()[0][:100]}")
    for name, way in row["ways"].items():
        print(
            f"  {name:32} {way['ms']['p50']:9.4f} ms {way['share_of_copy']:7.1%} of the copy "
            f"{way['ratio_to_present']:7.3f} x present",
            flush=True,
        )


def print_choice(rows: list[dict]) -> None:
    """The geometric mean over all rows of each variant's ratio to the present kernel."""
    names = [name for name in rows[0]["ways"] if name != "copy"]
    names = [name for name in names if all(name in row["ways"] for row in rows)]
    means = {
        name: statistics.geometric_mean(row["ways"][name]["ratio_to_present"] for row in rows)
        for name in names
    }
    print(f"over all {len(rows)} rows, in units of the present kernel's time")
    for name, mean in sorted(means.items(), key=lambda item: item[1]):
        print(f"  {name:32} {mean:7.3f}")


def print_counts(sources: dict[str, Path], dtypes: list[str]) -> None:
    """What the compiler makes of the variants for an H100; needs no GPU."""
    title = "instr/elem  reg  spills"
    print(f"{'sm_90':20} {'type':9} forward: {title}   backward: {title}")
    for name, source in {"present": katlib.cuda.SOURCE, **sources}.items():
        for dtype in dtypes:
            kernels = variants.count(source, getattr(torch, dtype))
            columns = "   ".join(
                f"{kernel.instructions:19.1f} {kernel.registers:4} {kernel.spills:7}"
                for kernel in (kernels["rational_forward"], kernels["rational_backward"])
            )
            print(f"{name:20} {dtype:9} {columns}", flush=True)


# ---- the program


class Job(NamedTuple):
    """A row that is to be measured, see `measure`."""

    shape: tuple[int, int]
    dtype: str
    compared: bool


def jobs(device: torch.device, dtypes: list[str], parts: list[str]) -> list[Job]:
    """The rows in the order in which they are measured."""
    if device.type == "cpu":
        return [Job(shape, dtype, True) for shape in CPU_SHAPES for dtype in dtypes]
    groups = {
        "rows": ((*MODEL_SHAPES, *SMALL_SHAPES, *LARGE_SHAPES), False),
        "compared": (COMPARED_SHAPES, True),
    }
    return [
        Job(shape, dtype, compared)
        for part in parts
        for shapes, compared in (groups[part],)
        for shape in shapes
        for dtype in dtypes
    ]


def put(rows: list[dict], row: dict) -> None:
    """Adds a row in the place of the one of the same shape and dtype, if there is one."""
    for i, other in enumerate(rows):
        if (other["shape"], other["dtype"]) == (row["shape"], row["dtype"]):
            rows[i] = row
            return
    rows.append(row)


def run_rows(options: argparse.Namespace, device: torch.device) -> None:
    """Measures the function's rows."""
    what = "rational function, degrees (5, 4), 8 groups"
    name = f"kernel-{slug(device)}"
    rows = stored_rows(name, device) if options.add else []
    for job in jobs(device, options.dtype, options.part):
        shape = toy(job.shape) if options.dry_run else job.shape
        dtype = getattr(torch, job.dtype)
        try:
            row = measure(shape, dtype, device, options.rounds, job.compared)
        except torch.OutOfMemoryError as error:
            say_left_out(f"{shape} {job.dtype}", error)
            continue
        print_row(row)
        put(rows, row)
        # after every row, so that a run that is stopped leaves what it has measured
        store(name, what, device, options.rounds, rows)


def run_variants(options: argparse.Namespace, device: torch.device) -> None:
    """Measures the variants, or counts their instructions where there is no GPU."""
    sources = {}
    for name in options.variant or variants.VARIANTS:
        sources[Path(name).stem] = variants.source_of(name)
    if device.type == "cpu":
        return print_counts(sources, options.dtype)
    what = "variants of the kernel, degrees (5, 4), 8 groups"
    rows: list[dict] = []
    for shape in VARIANT_SHAPES:
        for dtype in options.dtype:
            shape = toy(shape) if options.dry_run else shape
            row = measure_variants(sources, shape, getattr(torch, dtype), device, options.rounds)
            print_variants(row)
            put(rows, row)
            store(f"variants-{slug(device)}", what, device, options.rounds, rows)
    print_choice(rows)


def toy(shape: tuple[int, int]) -> tuple[int, int]:
    """A shape of as many channels and few rows."""
    rows, channels = shape
    return min(rows, REHEARSAL_ROWS), channels


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype",
        nargs="*",
        choices=("float16", "bfloat16", "float32", "float64"),
        help="default: float32 and bfloat16, on a GPU in the other order",
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument(
        "--part",
        nargs="*",
        default=("rows", "compared"),
        choices=("rows", "compared"),
        help="on a GPU: the shapes of models, or those beside the reference, the ladder and others",
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep the stored rows that are of the same device, commit and torch",
    )
    parser.add_argument(
        "--variant",
        nargs="*",
        metavar="NAME_OR_FILE.cu",
        help=f"time these against the present kernel; default: {', '.join(variants.VARIANTS)}",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run all of it with tiny tensors on a GPU that is not there; keep it apart",
    )
    options = parser.parse_args(arguments)
    if options.dry_run:
        options.device, options.rounds = "cuda", REHEARSAL_ROUNDS
    if not options.dtype:
        on_gpu = torch.device(options.device).type == "cuda"
        options.dtype = ["bfloat16", "float32"] if on_gpu else ["float32", "bfloat16"]
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    device = torch.device(options.device)
    torch.manual_seed(0)
    if device.type == "cpu":
        keep_memory()
    with fake_gpu.rehearsal() if options.dry_run else contextlib.nullcontext():
        if options.variant is None:
            run_rows(options, device)
        else:
            run_variants(options, device)


if __name__ == "__main__":
    main()
