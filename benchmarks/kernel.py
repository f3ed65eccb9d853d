"""Times the rational function: `make bench`, or python benchmarks/kernel.py --device cuda [--dtype bfloat16] [--rounds 30].

Forward, backward, and both, beside F.gelu, a copy of the same memory (the ceiling), the reference in PyTorch as it is and under torch.compile;
on a GPU also the stages of the ladder, and the public kernels of others where they can be imported (see README.md). Writes results/kernel-DEVICE.json.
"""

import argparse
import importlib
import math

import torch
from timing import keep_memory, quantiles, ratio, slug, store, turns
from torch.nn import functional as F

import katlib
from katlib.rational import initial_coefficients

GROUPS, TOKENS = 8, 197
WIDTHS = (
    192,
    768,
    384,
    1536,
    3072,
)  # of KAT-T, KAT-S and KAT-B, before and after their first linear map
CPU_SHAPES = (
    (128 * 65, 128),
    (128 * 65, 512),
    (8192, 512),
    (32 * TOKENS, 192),
    (32 * TOKENS, 768),
    (64, 128),
)  # the last: what a call costs
ELEMENTS = 100_000_000  # on a GPU: 200 MB in bfloat16, four times an H100's cache


def peers(x, g, a, b, shape) -> dict:
    """Forward + backward of the public kernels, as they are called in training: under autocast they cast to float32 first."""
    found = {}
    numerator, denominator = (
        a.detach().repeat(GROUPS, 1).requires_grad_(),
        b.detach().clone().requires_grad_(),
    )
    x3, g3 = x.detach().view(-1, TOKENS, shape[1]).requires_grad_(), g.view(-1, TOKENS, shape[1])

    def both(function):
        y = function(x3.float())
        return torch.autograd.grad(y.to(x.dtype), (x3, numerator, denominator), g3)

    for name, module, call in (
        (
            "flashkat",
            "rational_kat.kernels.flash_rational_triton",
            lambda m: lambda v: m.FlashRationalTriton1DGroup.apply(v, numerator, denominator),
        ),
        (
            "official_triton",
            "kat_rational.rational_triton",
            lambda m: lambda v: m.RationalTriton1DGroup.apply(v, numerator, denominator, GROUPS),
        ),
    ):
        try:
            function = call(importlib.import_module(module))
            both(function)
        except Exception as error:  # not installed, or it does not run here: said, and left out
            print(
                f"  {name} is left out: {type(error).__name__}: {str(error).splitlines()[0][:100]}"
            )
        else:
            found[name] = lambda function=function: both(function)
    return found


def measure(shape: tuple[int, int], dtype: torch.dtype, device: torch.device, rounds: int) -> dict:
    """One row: milliseconds of every way, bytes a second, share of the copy, ratio to gelu, errors against float64."""
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    g = torch.randn(shape, device=device).to(dtype)
    real = torch.promote_types(dtype, torch.float32)
    a, b = (
        c.to(device, real).repeat(n, 1).requires_grad_()
        for c, n in zip(initial_coefficients("swish"), (1, GROUPS))
    )
    leaves, target = (x, a, b), torch.empty_like(g)
    ours, gelu = katlib.rational(x, a, b), F.gelu(x)
    grad = torch.autograd.grad
    ways = {
        "copy": lambda: target.copy_(g),
        "gelu forward": lambda: F.gelu(x),
        "gelu backward": lambda: grad(gelu, x, g, retain_graph=True),
        "gelu": lambda: grad(F.gelu(x), x, g),
        "katlib forward": lambda: katlib.rational(x, a, b),
        "katlib backward": lambda: grad(ours, leaves, g, retain_graph=True),
        "katlib": lambda: grad(katlib.rational(x, a, b), leaves, g),
    }
    compiled = torch.compile(katlib.rational_reference)
    try:
        grad(compiled(x, a, b), leaves, g)
    except Exception as error:  # there is no compiler, say: the others are measured all the same
        print(
            f"  the compiled reference is left out: {type(error).__name__}: {str(error).splitlines()[0][:100]}"
        )
    else:
        ways["compiled reference"] = lambda: grad(compiled(x, a, b), leaves, g)
    if device.type == "cpu" or x.numel() <= 30_000_000 or dtype == torch.float32:
        ways["reference"] = lambda: grad(katlib.rational_reference(x, a, b), leaves, g)
    if device.type == "cuda" and dtype != torch.float64:
        from katlib.cuda import ladder

        grouped, grouped_g = (t.detach().view(shape[0], GROUPS, -1) for t in (x, g))
        full = a.detach().repeat(GROUPS, 1)
        for stage in ladder.STAGES:
            ways[f"{stage} backward"] = lambda stage=stage: ladder.backward(
                stage, grouped_g, grouped, full, b.detach()
            )
        ways |= peers(x, g, a, b, shape)
    times = turns(ways, device, rounds, patience=2 if device.type == "cuda" else math.inf)
    sizes = {
        "copy": 2,
        "forward": 2,
        "backward": 3,
        "both": 5,
    }  # tensors of x's size that have to be moved
    copy = x.numel() * x.element_size() * sizes["copy"] / (quantiles(times["copy"])["p50"] / 1e3)
    row = {
        "shape": list(shape),
        "groups": GROUPS,
        "dtype": str(dtype).removeprefix("torch."),
        "ways": {},
    }
    for name in ways:
        tensors = sizes.get(name.rsplit(" ")[-1], sizes["both"])
        ms = quantiles(times[name])
        rate = x.numel() * x.element_size() * tensors / (ms["p50"] / 1e3)
        part = name.rsplit(" ")[-1]
        gelu_way = f"gelu {part}" if part in ("forward", "backward") else "gelu"
        row["ways"][name] = {
            "ms": ms,
            "GB_per_s": rate / 1e9,
            "share_of_copy": rate / copy,
            "ratio_to_gelu": ratio(times, name, gelu_way),
        }
    row["error"] = errors(x, g, a, b)
    return row


def errors(x, g, a, b) -> dict[str, float]:
    """Largest errors of katlib's y, dx, da and db against float64, in units of the largest value; da and db summed in pieces."""
    mine = (katlib.rational(x, a, b), *torch.autograd.grad(katlib.rational(x, a, b), (x, a, b), g))
    worst, total = {"y": 0.0, "dx": 0.0}, [0.0, 0.0]
    rows = max(1, 4_000_000 // x.shape[1])
    for start in range(0, len(x), rows):
        piece = slice(start, start + rows)
        oracle = [t.detach().double().requires_grad_() for t in (x[piece], a, b)]
        y = katlib.rational_reference(*oracle)
        dx, *coefficients = torch.autograd.grad(y, oracle, g[piece].double())
        for name, got, true in (("y", mine[0][piece], y), ("dx", mine[1][piece], dx)):
            worst[name] = max(
                worst[name], ((got.double() - true).abs().max() / true.abs().max()).item()
            )
        total = [t + c for t, c in zip(total, coefficients)]
    return worst | {
        name: ((got.double() - true).abs().max() / true.abs().max()).item()
        for name, got, true in zip(("da", "db"), mine[2:], total)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype",
        nargs="*",
        default=("float32", "bfloat16"),
        choices=("float16", "bfloat16", "float32", "float64"),
    )
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    if device.type == "cpu":
        keep_memory()
    batch = {width: math.ceil(ELEMENTS / (TOKENS * width)) for width in WIDTHS}
    shapes = (
        CPU_SHAPES if device.type == "cpu" else [(batch[width] * TOKENS, width) for width in WIDTHS]
    )
    rows = []
    for shape in shapes:
        for dtype in options.dtype:
            row = measure(shape, getattr(torch, dtype), device, options.rounds)
            rows.append(row)
            print(
                f"{shape} {dtype}: errors "
                + ", ".join(f"{name} {error:.1e}" for name, error in row["error"].items())
            )
            for name, way in row["ways"].items():
                ms = way["ms"]
                print(
                    f"  {name:32} {ms['p20']:9.3f} {ms['p50']:9.3f} {ms['p80']:9.3f} ms {way['GB_per_s']:8.1f} GB/s {way['share_of_copy']:7.1%} of the copy"
                    f" {way['ratio_to_gelu']:8.2f} x gelu"
                )
            store(
                f"kernel-{slug(device)}",
                "rational function, degrees (5, 4), 8 groups",
                device,
                options.rounds,
                rows,
            )  # what was measured so far


if __name__ == "__main__":
    main()
