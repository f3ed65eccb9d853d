"""Times the rational function, forward, backward and both.

    python benchmarks/kernel.py --device cuda [--dtype bfloat16] [--rounds 30]

`make bench` runs it too. The function is compared with F.gelu, with a copy of the same memory (the
ceiling), and with the reference in PyTorch as it is and under torch.compile; on a GPU also with the
stages of the ladder, and with the public kernels of others where they can be imported (README.md).
Writes results/kernel-DEVICE.json.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from timing import keep_memory, quantiles, ratio, slug, store, turns
from torch import Tensor
from torch.nn import functional as F

import katlib
from katlib.cuda import ladder
from katlib.rational import initial_coefficients

GROUPS = 8
TOKENS = 197

# of KAT-T, KAT-S and KAT-B, before and after their first linear map
WIDTHS = (192, 768, 384, 1536, 3072)

# rows and channels; the last shape shows what a call costs
CPU_SHAPES = (
    (128 * 65, 128),
    (128 * 65, 512),
    (8192, 512),
    (32 * TOKENS, 192),
    (32 * TOKENS, 768),
    (64, 128),
)

# of a tensor on a GPU: 200 MB in bfloat16, four times an H100's cache
GPU_ELEMENTS = 100_000_000

# The uncompiled reference needs many temporary tensors of x's size. On a GPU it is timed in
# float32, and in the other types up to this many elements.
REFERENCE_ELEMENTS = 30_000_000

# what a GPU may spend on one slow way, in seconds
GPU_PATIENCE = 2.0

# tensors of x's size that each part has to move: x, y; x, g, dx; all of them
TENSORS_MOVED = {"copy": 2, "forward": 2, "backward": 3, "both": 5}

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
        reason = str(error).split("\n")[0][:100]
        print(f"  {title} is left out: {type(error).__name__}: {reason}")
    else:
        ways[name] = run


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


def add_reference_ways(ways: Ways, case: Case) -> None:
    """The reference under torch.compile, where there is a compiler, and as it is."""
    compiled = torch.compile(katlib.rational_reference)
    run = partial(forward_and_backward, compiled, case.leaves, case.g)
    add_if_it_runs(ways, "compiled reference", "the compiled reference", run)
    fits = case.x.numel() <= REFERENCE_ELEMENTS or case.x.dtype == torch.float32
    if case.x.device.type == "cpu" or fits:
        ways["reference"] = partial(
            forward_and_backward, katlib.rational_reference, case.leaves, case.g
        )


def add_ladder_ways(ways: Ways, case: Case) -> None:
    """The backward of every stage of the ladder."""
    rows = len(case.x)
    x, g = (t.detach().view(rows, GROUPS, -1) for t in (case.x, case.g))
    a = case.a.detach().repeat(GROUPS, 1)
    b = case.b.detach()
    for stage in ladder.STAGES:
        ways[f"{stage} backward"] = partial(ladder.backward, stage, g, x, a, b)


def flashkat(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    from rational_kat.kernels.flash_rational_triton import FlashRationalTriton1DGroup

    return FlashRationalTriton1DGroup.apply(x, numerator, denominator)


def official_triton(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    from kat_rational.rational_triton import RationalTriton1DGroup

    return RationalTriton1DGroup.apply(x, numerator, denominator, GROUPS)


def add_peer_ways(ways: Ways, case: Case) -> None:
    """The public kernels, called as in training: under autocast they cast to float32 first."""
    tokens = (-1, TOKENS, case.x.shape[1])
    x = case.x.detach().view(tokens).requires_grad_()
    g = case.g.view(tokens)
    numerator = case.a.detach().repeat(GROUPS, 1).requires_grad_()
    denominator = case.b.detach().clone().requires_grad_()

    def run(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y = function(x.float(), numerator, denominator).to(x.dtype)
        return torch.autograd.grad(y, (x, numerator, denominator), g)

    add_if_it_runs(ways, "flashkat", "flashkat", partial(run, flashkat))
    add_if_it_runs(ways, "official_triton", "official_triton", partial(run, official_triton))


def all_ways(case: Case) -> Ways:
    """Every way of computing the function on this device, as functions without arguments."""
    ways = basic_ways(case)
    add_reference_ways(ways, case)
    if case.x.device.type == "cuda" and case.x.dtype != torch.float64:
        add_ladder_ways(ways, case)
        add_peer_ways(ways, case)
    return ways


def summary(name: str, times: dict[str, list[float]], tensor_bytes: int) -> dict:
    """What is stored of one way: its time, its rate in bytes, and how it compares."""
    last_word = name.split(" ")[-1]
    part = last_word if last_word in TENSORS_MOVED else "both"
    ms = quantiles(times[name])
    rate = TENSORS_MOVED[part] * tensor_bytes / (ms["p50"] / 1e3)
    copy_rate = TENSORS_MOVED["copy"] * tensor_bytes / (quantiles(times["copy"])["p50"] / 1e3)
    same_part_of_gelu = f"gelu {part}" if part in ("forward", "backward") else "gelu"
    return {
        "ms": ms,
        "GB_per_s": rate / 1e9,
        "share_of_copy": rate / copy_rate,
        "ratio_to_gelu": ratio(times, name, same_part_of_gelu),
    }


def relative_error(computed: Tensor, expected: Tensor) -> float:
    """The largest error in units of the largest value."""
    return ((computed.double() - expected).abs().max() / expected.abs().max()).item()


def errors(case: Case) -> dict[str, float]:
    """Largest errors of katlib's y, dx, da and db against float64, in units of the largest value.

    float64 would not fit whole on a GPU, so it is computed for some rows at a time.
    """
    y = katlib.rational(*case.leaves)
    dx, da, db = torch.autograd.grad(y, case.leaves, case.g)
    rows_at_once = max(1, 4_000_000 // case.x.shape[1])
    worst_y = worst_dx = 0.0
    expected_da, expected_db = torch.zeros_like(da).double(), torch.zeros_like(db).double()
    for start in range(0, len(case.x), rows_at_once):
        piece = slice(start, start + rows_at_once)
        leaves = [t.detach().double().requires_grad_() for t in (case.x[piece], case.a, case.b)]
        expected_y = katlib.rational_reference(*leaves)
        gradients = torch.autograd.grad(expected_y, leaves, case.g[piece].double())
        worst_y = max(worst_y, relative_error(y[piece], expected_y))
        worst_dx = max(worst_dx, relative_error(dx[piece], gradients[0]))
        expected_da += gradients[1]
        expected_db += gradients[2]
    return {
        "y": worst_y,
        "dx": worst_dx,
        "da": relative_error(da, expected_da),
        "db": relative_error(db, expected_db),
    }


def measure(shape: tuple[int, int], dtype: torch.dtype, device: torch.device, rounds: int) -> dict:
    """One row of the result: all ways for one shape and dtype."""
    case = draw_case(shape, dtype, device)
    patience = GPU_PATIENCE if device.type == "cuda" else math.inf
    times = turns(all_ways(case), device, rounds, patience=patience)
    tensor_bytes = case.x.numel() * case.x.element_size()
    return {
        "shape": list(shape),
        "groups": GROUPS,
        "dtype": str(dtype).removeprefix("torch."),
        "ways": {name: summary(name, times, tensor_bytes) for name in times},
        "error": errors(case),
    }


def print_row(row: dict) -> None:
    largest_errors = ", ".join(f"{name} {error:.1e}" for name, error in row["error"].items())
    print(f"{tuple(row['shape'])} {row['dtype']}: errors {largest_errors}")
    for name, way in row["ways"].items():
        ms = way["ms"]
        print(
            f"  {name:32} {ms['p20']:9.3f} {ms['p50']:9.3f} {ms['p80']:9.3f} ms "
            f"{way['GB_per_s']:8.1f} GB/s {way['share_of_copy']:7.1%} of the copy "
            f"{way['ratio_to_gelu']:8.2f} x gelu"
        )


def shapes_for(device: torch.device) -> list[tuple[int, int]]:
    """(rows, channels) of the tensors that are timed on a device."""
    if device.type == "cpu":
        return list(CPU_SHAPES)
    return [(math.ceil(GPU_ELEMENTS / (TOKENS * width)) * TOKENS, width) for width in WIDTHS]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype",
        nargs="*",
        default=("float32", "bfloat16"),
        choices=("float16", "bfloat16", "float32", "float64"),
    )
    parser.add_argument("--rounds", type=int, default=25)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    device = torch.device(options.device)
    torch.manual_seed(0)
    if device.type == "cpu":
        keep_memory()
    what = "rational function, degrees (5, 4), 8 groups"
    rows = []
    for shape in shapes_for(device):
        for dtype in options.dtype:
            rows.append(measure(shape, getattr(torch, dtype), device, options.rounds))
            print_row(rows[-1])
            # after every row, so that a run that is stopped leaves what it has measured
            store(f"kernel-{slug(device)}", what, device, options.rounds, rows)


if __name__ == "__main__":
    main()
