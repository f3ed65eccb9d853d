"""The tables of the book's results page, each made from files in `results/` and from nothing else: `TABLES` maps a name to the function that makes it."""

import json
from pathlib import Path
from typing import Callable

from katlib.results import FOLDER, RUN_COLUMNS, Comparison, Html, compare, stored_runs, table


def read(name: str, folder: Path = FOLDER) -> dict:
    """The contents of results/`name`.json."""
    return json.loads((folder / f"{name}.json").read_text())


def made(record: dict) -> str:
    """Where and when: the words that end a caption."""
    return f"{record['device_name']}, torch {record['torch']}, commit {record['commit'][:7]}, {record['date']}."


def points(fraction: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return f"{100 * fraction:+.2f}".replace("-", "−")


def runs(folder: Path = FOLDER) -> Html:
    """The runs on all of CIFAR-10 that stand by themselves."""
    columns = RUN_COLUMNS | {"learning rate": lambda run: f"{run['config']['lr']:g}"}
    return table(sorted(stored_runs(folder), key=lambda run: -run["test_accuracy"]), columns, "Runs on all of CIFAR-10, tested on all 10,000 test images.")


def study(folder: Path = FOLDER) -> Html:
    """Every condition of the study: mean and standard deviation over seeds, and the paired difference to the KAT."""
    found = stored_runs(folder / "study")
    columns: dict[str, Callable[[Comparison], str]] = {
        "condition": lambda c: c.title,
        "parameters": lambda c: f"{c.parameters:,}",
        "seeds": lambda c: str(len(c.accuracies)),
        "test accuracy, %": lambda c: f"{100 * c.mean:.2f} ± {100 * c.std:.2f}",
        "difference, points": lambda c: f"{points(c.difference)} ± {100 * c.difference_std:.2f}" if c.differences else "",
        "95% interval": lambda c: f"{points(c.low)} to {points(c.high)}" if c.differences else "",
        "p": lambda c: f"{c.p:.3f}" if c.differences else "",
    }
    first = found[0]
    return table(compare(found), columns, f"The study, {first['preset']}, {first['config']['epochs']} epochs of {first['config']['train_images']:,} images. Mean ± standard "
                 f"deviation over seeds; differences to the KAT, paired by seed, with the interval and p of the paired t-test. {made(first)}")


def study_cost(folder: Path = FOLDER) -> Html:
    """Time of a training step and memory kept for backward, by condition."""
    record = read("study-cost-cpu", folder)
    columns: dict[str, Callable[[dict], str]] = {
        "condition": lambda row: row["title"],
        "ms a step (p20, p50, p80)": lambda row: ", ".join(f"{row['ms'][q]:.1f}" for q in ("p20", "p50", "p80")),
        "in units of the twin's": lambda row: f"{row['ratio_to_mlp']:.2f}",
        "kept for backward, MiB": lambda row: f"{row['kept_bytes'] / 2**20:.1f}",
    }
    return table(record["rows"], columns, f"What a training step of the study's models costs, batch 128, {record['rounds']} rounds in turns. {made(record)}")


def learning_rates(folder: Path = FOLDER) -> Html:
    """The learning rates that were tried."""
    record = read("study-lr", folder)
    columns: dict[str, Callable[[dict], str]] = {
        "model": lambda row: {"grkan": "KAT", "mlp": "MLP twin"}[row["mlp"]],
        "peak learning rate": lambda row: f"{row['lr']:g}",
        "accuracy, %": lambda row: f"{100 * row['accuracy']:.2f}",
    }
    return table(sorted(record["rows"], key=lambda row: (row["mlp"], row["lr"])), columns, f"Learning rates: {record['what']}. {made(record)}")


def kernel(folder: Path = FOLDER) -> Html:
    """The rational function beside GELU, forward and backward."""
    record = read("kernel-cpu", folder)

    def way(row: dict) -> dict:
        return row["ways"]["katlib"]

    columns: dict[str, Callable[[dict], str]] = {
        "shape": lambda row: " × ".join(map(str, row["shape"])),
        "dtype": lambda row: row["dtype"],
        "ms (p20, p50, p80)": lambda row: ", ".join(f"{way(row)['ms'][q]:.3f}" for q in ("p20", "p50", "p80")),
        "GB/s": lambda row: f"{way(row)['GB_per_s']:.1f}",
        "share of a copy": lambda row: f"{way(row)['share_of_copy']:.0%}",
        "in units of F.gelu": lambda row: f"{way(row)['ratio_to_gelu']:.2f}",
        "eager reference": lambda row: f"{row['ways']['reference']['ratio_to_gelu']:.1f}",
        "largest error": lambda row: f"{max(row['error'].values()):.1e}",
    }
    return table(record["rows"], columns, f"katlib.rational, forward and backward, {record['what'].split(', ', 1)[1]}; {record['rounds']} rounds in turns. {made(record)}")


def model(folder: Path = FOLDER) -> Html:
    """A training step of a KAT beside the same ViT's."""
    record = read("model-cpu", folder)
    columns: dict[str, Callable[[dict], str]] = {
        "model": lambda row: row["model"], "batch": lambda row: str(row["batch"]),
        "KAT, ms (p20, p50, p80)": lambda row: ", ".join(f"{row['ms']['KAT'][q]:.1f}" for q in ("p20", "p50", "p80")),
        "ViT, ms (p20, p50, p80)": lambda row: ", ".join(f"{row['ms']['ViT'][q]:.1f}" for q in ("p20", "p50", "p80")),
        "KAT / ViT": lambda row: f"{row['ratio']:.3f}",
    }
    return table(record["rows"], columns, f"{record['what'][0].upper() + record['what'][1:]}; {record['rounds']} rounds in turns. {made(record)}")


TABLES: dict[str, Callable[..., Html]] = {"runs": runs, "study": study, "study-cost": study_cost, "learning-rates": learning_rates, "kernel": kernel,
                                          "model": model}
