"""Times the rational function on the CPU, forward + backward, beside F.gelu and the reference in PyTorch: `make bench`.

The three take turns, so that whatever else the machine does slows all of them; medians and their ratios count. Writes results/kernel-cpu.json.
"""

import statistics
import time
from datetime import date
from pathlib import Path

import torch
from torch.nn import functional as F

import katlib
from katlib.rational import initial_coefficients
from katlib.results import device_name, git_commit, write_json

SHAPES = ((128 * 65, 128), (128 * 65, 512), (8192, 512), (32 * 197, 192), (32 * 197, 768), (64, 128))    # the last: what a call costs
ROUNDS, GROUPS = 25, 8


def measure(shape: tuple[int, int], dtype: torch.dtype) -> dict:
    """Milliseconds of one forward and backward (p20, p50, p80) for each implementation, and errors against float64."""
    x = torch.randn(shape).to(dtype).requires_grad_()
    g = torch.randn(shape).to(dtype)
    a, b = (c.float().repeat(n, 1).requires_grad_() for c, n in zip(initial_coefficients("swish"), (1, GROUPS)))
    ways = {
        "gelu": lambda: torch.autograd.grad(F.gelu(x), x, g),
        "katlib": lambda: torch.autograd.grad(katlib.rational(x, a, b), (x, a, b), g),
        "reference": lambda: torch.autograd.grad(katlib.rational_reference(x, a, b), (x, a, b), g),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(ROUNDS):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if i >= 3:                                                  # the first warm up
                times[name].append(1e3 * (time.perf_counter() - started))
    oracle = [t.detach().double().requires_grad_() for t in (x, a, b)]
    expected = torch.autograd.grad(katlib.rational_reference(*oracle), oracle, g.double())
    errors = [(mine.double() - true).abs().max().item() / true.abs().max().item() for mine, true in zip(ways["katlib"](), expected)]
    quantiles = {name: dict(zip(("p20", "p50", "p80"), (statistics.quantiles(t, n=10)[k] for k in (1, 4, 7)))) for name, t in times.items()}
    return {"shape": shape, "groups": GROUPS, "dtype": str(dtype).removeprefix("torch."), "ms": quantiles,
            "ratio_to_gelu": statistics.median(k / e for k, e in zip(times["katlib"], times["gelu"])),
            "ratio_to_reference": statistics.median(k / e for k, e in zip(times["katlib"], times["reference"])),
            "relative_error": dict(zip(("dx", "da", "db"), errors))}


def main() -> None:
    torch.manual_seed(0)
    rows = []
    print(f"{'shape':>14} {'dtype':9} {'gelu ms':>9} {'katlib ms':>10} {'ref. ms':>9}   to gelu   to reference")
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            row = measure(shape, dtype)
            rows.append(row)
            gelu, ours, reference = (row["ms"][name]["p50"] for name in ("gelu", "katlib", "reference"))
            print(f"{str(shape):>14} {row['dtype']:9} {gelu:9.3f} {ours:10.3f} {reference:9.2f} {row['ratio_to_gelu']:9.2f} {row['ratio_to_reference']:14.3f}")
    record = {"what": "rational function, degrees (5, 4), forward + backward", "device_name": device_name(torch.device("cpu")), "torch": torch.__version__,
              "commit": git_commit(), "date": date.today().isoformat(), "rounds": ROUNDS - 3, "rows": rows}
    write_json(Path(__file__).resolve().parents[1] / "results" / "kernel-cpu.json", record)


if __name__ == "__main__":
    main()
