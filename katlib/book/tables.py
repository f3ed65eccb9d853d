"""The tables of the book's pages, each made from files in `results/` and from nothing else.

`TABLES` maps a table's name to the function that makes it. Such a function reads its records, says
in a dictionary how the cells of each column are written, and adds the caption.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from katlib.book.html import Html, table
from katlib.book.published import IMAGENET, Published
from katlib.book.results import FOLDER, MODEL_NAMES, RUN_COLUMNS, stored_runs
from katlib.book.statistics import Comparison, compare

# the columns of a table of records: a heading, and how a record's cell is written
Columns = dict[str, Callable[[dict], str]]


def read(name: str, folder: Path = FOLDER) -> dict:
    """The contents of results/`name`.json."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def provenance_text(record: dict) -> str:
    """The words that end a caption: where a record was measured, by what, and when."""
    return (
        f"{record['device_name']}, torch {record['torch']}, "
        f"commit {record['commit'][:7]}, {record['date']}."
    )


def measured_caption(record: dict, what: str) -> str:
    """A caption for times that were measured in rounds, in which the models took turns."""
    return f"{what}; {record['rounds']} rounds in turns. {provenance_text(record)}"


def first_letter_large(text: str) -> str:
    """The text as the beginning of a sentence; unlike `str.capitalize` it leaves the rest alone."""
    return text[0].upper() + text[1:]


def with_minus_sign(text: str) -> str:
    """The text of a number, with the sign that is as wide as a plus instead of a hyphen."""
    return text.replace("-", "−")


def percentage_points(fraction: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return with_minus_sign(f"{100 * fraction:+.2f}")


def percentiles(milliseconds: Mapping[str, float], digits: int = 1) -> str:
    """The 20th, 50th and 80th percentile of a time."""
    return ", ".join(f"{milliseconds[name]:.{digits}f}" for name in ("p20", "p50", "p80"))


def megabytes(number_of_bytes: float, digits: int = 0) -> str:
    """A number of bytes in MB (10^6 bytes)."""
    return f"{number_of_bytes / 1e6:.{digits}f}"


# Training


def runs(folder: Path = FOLDER) -> Html:
    """The runs on all of CIFAR-10 that stand by themselves."""
    columns = RUN_COLUMNS | {"learning rate": lambda run: f"{run['config']['lr']:g}"}
    best_first = sorted(stored_runs(folder), key=lambda run: -run["test_accuracy"])
    return table(best_first, columns, "Runs on all of CIFAR-10, tested on all 10,000 test images.")


def study(folder: Path = FOLDER, part: str = "study", title: str = "The study") -> Html:
    """Every condition of the study: its accuracy over seeds, and its difference to the KAT."""
    found = stored_runs(folder / part)
    first = found[0]
    config = first["config"]
    columns: dict[str, Callable[[Comparison], str]] = {
        "condition": lambda comparison: comparison.title,
        "parameters": lambda comparison: f"{comparison.parameters:,}",
        "seeds": lambda comparison: str(len(comparison.accuracies)),
        "test accuracy, %": _accuracy_text,
        "difference, points": _difference_text,
        "95% interval": _interval_text,
        "p": _p_text,
    }
    caption = (
        f"{title}, {first['preset']}, {config['epochs']} epochs of {config['train_images']:,} "
        "images. Mean ± standard deviation over seeds; differences to the KAT, paired by seed, "
        f"with the interval and p of the paired t-test. {provenance_text(first)}"
    )
    return table(compare(found), columns, caption)


def _accuracy_text(comparison: Comparison) -> str:
    return f"{100 * comparison.mean:.2f} ± {100 * comparison.std:.2f}"


def _difference_text(comparison: Comparison) -> str:
    if not comparison.differences:
        return ""
    mean = percentage_points(comparison.difference)
    return f"{mean} ± {100 * comparison.difference_std:.2f}"


def _interval_text(comparison: Comparison) -> str:
    if not comparison.differences:
        return ""
    return f"{percentage_points(comparison.low)} to {percentage_points(comparison.high)}"


def _p_text(comparison: Comparison) -> str:
    if not comparison.differences:
        return ""
    return f"{comparison.p:.3f}"


def study_again(folder: Path = FOLDER) -> Html:
    """The KAT and its twin, at both learning rates, from five seeds that the study lacks."""
    return study(folder, "study-again", "Five other seeds")


def study_cost(folder: Path = FOLDER) -> Html:
    """Time of a training step and memory kept for backward, by condition."""
    record = read("study-cost-cpu", folder)
    columns: Columns = {
        "condition": lambda row: row["title"],
        "ms a step (p20, p50, p80)": lambda row: percentiles(row["ms"]),
        "in units of the twin's": lambda row: f"{row['ratio_to_mlp']:.2f}",
        "kept for backward, MiB": lambda row: f"{row['kept_bytes'] / 2**20:.1f}",
    }
    caption = (
        "What a training step of the study's models costs, batch 128, "
        f"{record['rounds']} rounds in turns. {provenance_text(record)}"
    )
    return table(record["rows"], columns, caption)


def learning_rates(folder: Path = FOLDER) -> Html:
    """The learning rates that were tried."""
    record = read("study-lr", folder)
    columns: Columns = {
        "model": lambda row: MODEL_NAMES[row["mlp"]],
        "peak learning rate": lambda row: f"{row['lr']:g}",
        "accuracy, %": lambda row: f"{100 * row['accuracy']:.2f}",
    }
    by_model_and_rate = sorted(record["rows"], key=lambda row: (row["mlp"], row["lr"]))
    caption = f"Learning rates: {record['what']}. {provenance_text(record)}"
    return table(by_model_and_rate, columns, caption)


# Speed and memory


# a training step of a KAT beside its ViT's
STEP_COLUMNS: Columns = {
    "model": lambda row: row["model"],
    "batch": lambda row: str(row["batch"]),
    "KAT, ms (p20, p50, p80)": lambda row: percentiles(row["ms"]["KAT"]),
    "ViT, ms (p20, p50, p80)": lambda row: percentiles(row["ms"]["ViT"]),
    "KAT / ViT": lambda row: f"{row['ratio']:.3f}",
}


def kernel(folder: Path = FOLDER) -> Html:
    """The rational function beside GELU, forward and backward."""
    record = read("kernel-cpu", folder)

    def ours(row: dict) -> dict:
        return row["ways"]["katlib"]

    columns: Columns = {
        "shape": lambda row: " × ".join(map(str, row["shape"])),
        "dtype": lambda row: row["dtype"],
        "ms (p20, p50, p80)": lambda row: percentiles(ours(row)["ms"], 3),
        "GB/s": lambda row: f"{ours(row)['GB_per_s']:.1f}",
        "share of a copy": lambda row: f"{ours(row)['share_of_copy']:.0%}",
        "in units of F.gelu": lambda row: f"{ours(row)['ratio_to_gelu']:.2f}",
        "eager reference": lambda row: f"{row['ways']['reference']['ratio_to_gelu']:.1f}",
        "largest error": lambda row: f"{max(row['error'].values()):.1e}",
    }
    # the record's own description begins with the function's name, which the caption adds to
    _, conditions = record["what"].split(", ", 1)
    what = f"katlib.rational, forward and backward, {conditions}"
    return table(record["rows"], columns, measured_caption(record, what))


def model(folder: Path = FOLDER) -> Html:
    """A training step of a KAT beside the same ViT's."""
    record = read("model-cpu", folder)
    caption = measured_caption(record, first_letter_large(record["what"]))
    return table(record["rows"], STEP_COLUMNS, caption)


@dataclass(frozen=True)
class _Inference:
    """A line of the table of inference: a model at a batch size, run in one way."""

    row: dict
    way: str

    def milliseconds(self, model: str) -> str:
        key = model if self.way == "eager" else f"{model} {self.way}"
        return percentiles(self.row["ms"][key], 2)


INFERENCE_WAYS = {
    "eager": "PyTorch",
    "compiled": "torch.compile",
    "onnxruntime": "onnxruntime",
}


def inference(folder: Path = FOLDER) -> Html:
    """Inference of a KAT beside the same ViT's, eagerly, compiled and by onnxruntime."""
    record = read("inference-cpu", folder)
    lines = [_Inference(row, way) for row in record["rows"] for way in row["ratio"]]
    columns: dict[str, Callable[[_Inference], str]] = {
        "model": lambda line: line.row["model"],
        "batch": lambda line: str(line.row["batch"]),
        "by": lambda line: INFERENCE_WAYS[line.way],
        "KAT, ms (p20, p50, p80)": lambda line: line.milliseconds("KAT"),
        "ViT, ms (p20, p50, p80)": lambda line: line.milliseconds("ViT"),
        "KAT / ViT": lambda line: f"{line.row['ratio'][line.way]:.2f}",
    }
    caption = measured_caption(record, first_letter_large(record["what"]))
    return table(lines, columns, caption)


def scale_steps(folder: Path = FOLDER) -> Html:
    """Time and peak memory of training steps at several sizes."""
    record = read("scale-cpu", folder)
    columns = STEP_COLUMNS | {
        "KAT, peak MB": lambda row: megabytes(row["peak_bytes"]["KAT"]),
        "ViT, peak MB": lambda row: megabytes(row["peak_bytes"]["ViT"]),
    }
    rows = [row for row in record["rows"] if row["kind"] == "step"]
    what = "Training steps in float32, and the most memory that they take"
    return table(rows, columns, measured_caption(record, what))


def scale_parallel(folder: Path = FOLDER) -> Html:
    """Data parallelism on two processes."""
    record = read("scale-cpu", folder)

    def median(row: dict, way: str) -> str:
        return f"{row['ms'][way]['p50']:.1f}"

    columns: Columns = {
        "model": lambda row: f"KAT-{row['model']}",
        "images each": lambda row: str(row["batch_of_each"]),
        "gradients, MB": lambda row: megabytes(row["gradient_bytes"], 1),
        "alone, ms": lambda row: median(row, "alone"),
        "two beside each other, ms": lambda row: median(row, "beside"),
        "the sum, ms": lambda row: median(row, "sum"),
        "together, ms": lambda row: median(row, "together"),
        "efficiency": lambda row: f"{row['efficiency']:.0%}",
    }
    rows = [row for row in record["rows"] if row["kind"] == "parallel"]
    caption = (
        "A step of one process alone, of two beside each other, and of two that sum their "
        f"gradients (gloo, one thread each): medians of {3 * record['rounds']} rounds in turns. "
        f"{provenance_text(record)}"
    )
    return table(rows, columns, caption)


# What papers report


def published_accuracy() -> Html:
    """ImageNet accuracies of the papers, and what lies between them."""
    columns: dict[str, Callable[[Published], str]] = {
        "size": lambda row: row.size,
        "ViT": lambda row: f"{row.vit:.1f}",
        "DeiT": lambda row: f"{row.deit:.1f}",
        "KAT": lambda row: f"{row.kat:.1f}",
        "KAT − ViT": lambda row: f"{row.kat - row.vit:+.1f}",
        "KAT − DeiT": lambda row: f"{row.kat - row.deit:+.1f}",
        "KAT from a ViT": lambda row: f"{row.kat_from_vit:.1f}",
    }
    return table(IMAGENET, columns, "ImageNet-1k top-1 accuracy in percent, as the papers report.")


def published_speed() -> Html:
    """FlashKAT's report of training throughput."""
    columns: dict[str, Callable[[Published], str]] = {
        "size": lambda row: row.size,
        "ViT": lambda row: f"{row.vit_rate:,.0f}",
        "KAT, released kernels": lambda row: f"{row.kat_rate:,.0f}",
        "KAT, FlashKAT's kernels": lambda row: f"{row.flash_rate:,.0f}",
        "step time against ViT: released": lambda row: f"{row.vit_rate / row.kat_rate:.0f}",
        "FlashKAT": lambda row: f"{row.vit_rate / row.flash_rate:.2f}",
    }
    caption = "Training images a second on one H200, as FlashKAT's authors report."
    return table(IMAGENET, columns, caption)


# The examples


@dataclass(frozen=True)
class Example:
    """What the table of an example's runs shows.

    Attributes:
        record: the example's name in results/.
        variant_key: the key of a run that says which model it is.
        variants: maps the values of that key to titles; the others are compared with the first.
        measure: the key of a run's result.
        heading: what that result is, with its unit.
        scale: from the stored result to that unit.
        digits: decimal places.
    """

    record: str
    variant_key: str
    variants: dict[str, str]
    measure: str
    heading: str
    scale: float
    digits: int

    def of_variant(self, rows: list[dict], variant: str) -> list[dict]:
        return [row for row in rows if row[self.variant_key] == variant]

    def values_by_seed(self, rows: list[dict], variant: str) -> dict[int, float]:
        return {
            row["seed"]: self.scale * row[self.measure] for row in self.of_variant(rows, variant)
        }

    def mean_and_deviation(self, values: list[float], sign: str = "") -> str:
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        return f"{mean:{sign}.{self.digits}f} ± {deviation:.{self.digits}f}"


CONVNET = Example(
    record="example-convnet",
    variant_key="activation",
    variants={"relu": "ReLU", "gelu": "GELU", "rational": "rational, from GELU"},
    measure="accuracy",
    heading="test accuracy, %",
    scale=100,
    digits=2,
)
GPT = Example(
    record="example-gpt",
    variant_key="mlp",
    variants={"mlp": "MLP, GELU", "grkan": "GR-KAN, from GELU"},
    measure="loss",
    heading="test loss, nats a character",
    scale=1,
    digits=4,
)


def convnet(folder: Path = FOLDER) -> Html:
    """`examples/convnet.py`: a learned activation in a ConvNet."""
    return _example_table(CONVNET, folder)


def gpt(folder: Path = FOLDER) -> Html:
    """`examples/gpt.py`: GR-KAN layers in a GPT."""
    return _example_table(GPT, folder)


def _example_table(example: Example, folder: Path) -> Html:
    """Mean and standard deviation over seeds, and differences to the first model by seed."""
    record = read(example.record, folder)
    rows = record["rows"]
    values = {variant: example.values_by_seed(rows, variant) for variant in example.variants}
    first = next(iter(example.variants))

    def parameters(variant: str) -> str:
        return f"{example.of_variant(rows, variant)[0]['parameters']:,}"

    def result(variant: str) -> str:
        return example.mean_and_deviation(list(values[variant].values()))

    def difference(variant: str) -> str:
        if variant == first:
            return ""
        differences = [values[variant][seed] - values[first][seed] for seed in values[first]]
        return with_minus_sign(example.mean_and_deviation(differences, sign="+"))

    columns: dict[str, Callable[[str], str]] = {
        "model": lambda variant: example.variants[variant],
        "parameters": parameters,
        "seeds": lambda variant: str(len(values[variant])),
        example.heading: result,
        f"difference to {example.variants[first]}": difference,
    }
    caption = (
        f"{first_letter_large(record['what'])}; {record['steps']} steps of {record['batch']}. "
        "Mean ± standard deviation over seeds, the differences paired by seed. "
        f"{provenance_text(record)}"
    )
    return table(example.variants, columns, caption)


TABLES: dict[str, Callable[..., Html]] = {
    "runs": runs,
    "study": study,
    "study-again": study_again,
    "study-cost": study_cost,
    "learning-rates": learning_rates,
    "kernel": kernel,
    "model": model,
    "convnet": convnet,
    "gpt": gpt,
    "inference": inference,
    "scale-steps": scale_steps,
    "scale-parallel": scale_parallel,
    "published-accuracy": published_accuracy,
    "published-speed": published_speed,
}
