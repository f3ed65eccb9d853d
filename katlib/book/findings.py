"""Numbers in the sentences of the book's pages, made from files in `results/` and from papers.

A page says {finding}`NAME`, and NAME is a key of `FINDINGS`: no number is typed into a sentence.
"""

import statistics
from collections.abc import Callable, Iterable

from katlib.book.published import IMAGENET
from katlib.book.statistics import paired_interval
from katlib.book.tables import CONVNET, GPT, Example, read, with_minus_sign


def span(values: Iterable[float], digits: int = 2) -> str:
    """The smallest and the largest value as "1.01 to 1.04", or one number if they look the same."""
    values = sorted(values)
    low, high = f"{values[0]:.{digits}f}", f"{values[-1]:.{digits}f}"
    return low if low == high else f"{low} to {high}"


def listed(values: Iterable[float]) -> str:
    """Percentage points of the three sizes, as "+2.4, +1.4 and +0.5"."""
    *most, last = [with_minus_sign(f"{value:+.1f}") for value in values]
    return f"{', '.join(most)} and {last}"


def example_lead(example: Example, variant: str, than: str, unit: str) -> str:
    """How far a variant of an example is ahead of another one: mean, 95% interval, seeds."""
    rows = read(example.record)["rows"]
    first, other = example.values_by_seed(rows, than), example.values_by_seed(rows, variant)
    differences = [other[seed] - first[seed] for seed in first]
    low, high = paired_interval(differences)
    mean = statistics.mean(differences)
    return with_minus_sign(
        f"{mean:+.{example.digits}f} {unit} (95% interval {low:+.{example.digits}f} to "
        f"{high:+.{example.digits}f}, {len(differences)} seeds)"
    )


def step_ratios() -> list[float]:
    """KAT against ViT: time of a training step on a CPU, from the nano model to KAT-B."""
    steps = [row["ratio"] for row in read("scale-cpu")["rows"] if row["kind"] == "step"]
    return [*steps, *(row["ratio"] for row in read("model-cpu")["rows"])]


def peak_ratios() -> list[float]:
    """KAT against ViT: the most memory of a training step."""
    rows = [row for row in read("scale-cpu")["rows"] if row["kind"] == "step"]
    return [row["peak_bytes"]["KAT"] / row["peak_bytes"]["ViT"] for row in rows]


def inference_ratios(way: str) -> list[float]:
    """KAT against ViT: inference by "eager", "compiled" or "onnxruntime", at each batch size."""
    return [row["ratio"][way] for row in read("inference-cpu")["rows"] if way in row["ratio"]]


def compact_run() -> dict:
    """The record of the larger of the two trained models that come with katlib."""
    return read("cifar-compact-grkan-seed0")


FINDINGS: dict[str, Callable[[], str]] = {
    "lead over ViT": lambda: listed(row.kat - row.vit for row in IMAGENET),
    "lead over DeiT": lambda: listed(row.kat - row.deit for row in IMAGENET),
    "released kernels": lambda: span((row.vit_rate / row.kat_rate for row in IMAGENET), 0),
    "FlashKAT": lambda: span(row.vit_rate / row.flash_rate for row in IMAGENET),
    "compact KAT": lambda: f"{compact_run()['test_accuracy']:.2%}",
    "compact parameters": lambda: f"{compact_run()['parameters']:,}",
    "compact epochs": lambda: str(len(compact_run()["epochs"])),
    "ConvNet": lambda: example_lead(CONVNET, "rational", "gelu", "points"),
    "GPT": lambda: example_lead(GPT, "grkan", "mlp", "nats a character"),
    "training step": lambda: span(step_ratios()),
    "peak memory": lambda: span(peak_ratios()),
    "eager inference": lambda: span(inference_ratios("eager")),
    "compiled inference": lambda: span(inference_ratios("compiled")),
    "onnxruntime inference": lambda: span(inference_ratios("onnxruntime"), 1),
}
