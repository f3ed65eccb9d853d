"""The tables of the book's results page, each made from files in `results/` and from nothing else: `TABLES` maps a name to the function that makes it."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

from katlib.book.html import Html, table
from katlib.book.results import FOLDER, RUN_COLUMNS, stored_runs
from katlib.book.statistics import Comparison, compare


def read(name: str, folder: Path = FOLDER) -> dict:
    """The contents of results/`name`.json."""
    return json.loads((folder / f"{name}.json").read_text())


def made(record: dict) -> str:
    """Where and when: the words that end a caption."""
    return f"{record['device_name']}, torch {record['torch']}, commit {record['commit'][:7]}, {record['date']}."


def points(fraction: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return f"{100 * fraction:+.2f}".replace("-", "−")


def quantiles(ms: dict, digits: int = 1) -> str:
    """The 20th, 50th and 80th percentile of a time."""
    return ", ".join(f"{ms[q]:.{digits}f}" for q in ("p20", "p50", "p80"))


# a training step of a KAT beside its ViT's
STEP_COLUMNS: dict[str, Callable[[dict], str]] = {
    "model": lambda row: row["model"],
    "batch": lambda row: str(row["batch"]),
    "KAT, ms (p20, p50, p80)": lambda row: quantiles(row["ms"]["KAT"]),
    "ViT, ms (p20, p50, p80)": lambda row: quantiles(row["ms"]["ViT"]),
    "KAT / ViT": lambda row: f"{row['ratio']:.3f}",
}


def runs(folder: Path = FOLDER) -> Html:
    """The runs on all of CIFAR-10 that stand by themselves."""
    columns = RUN_COLUMNS | {"learning rate": lambda run: f"{run['config']['lr']:g}"}
    return table(
        sorted(stored_runs(folder), key=lambda run: -run["test_accuracy"]),
        columns,
        "Runs on all of CIFAR-10, tested on all 10,000 test images.",
    )


def study(folder: Path = FOLDER, part: str = "study", title: str = "The study") -> Html:
    """Every condition of the study: mean and standard deviation over seeds, and the paired difference to the KAT."""
    found = stored_runs(folder / part)
    columns: dict[str, Callable[[Comparison], str]] = {
        "condition": lambda c: c.title,
        "parameters": lambda c: f"{c.parameters:,}",
        "seeds": lambda c: str(len(c.accuracies)),
        "test accuracy, %": lambda c: f"{100 * c.mean:.2f} ± {100 * c.std:.2f}",
        "difference, points": lambda c: (
            f"{points(c.difference)} ± {100 * c.difference_std:.2f}" if c.differences else ""
        ),
        "95% interval": lambda c: f"{points(c.low)} to {points(c.high)}" if c.differences else "",
        "p": lambda c: f"{c.p:.3f}" if c.differences else "",
    }
    first = found[0]
    return table(
        compare(found),
        columns,
        f"{title}, {first['preset']}, {first['config']['epochs']} epochs of {first['config']['train_images']:,} images. Mean ± standard "
        f"deviation over seeds; differences to the KAT, paired by seed, with the interval and p of the paired t-test. {made(first)}",
    )


def study_again(folder: Path = FOLDER) -> Html:
    """The KAT and its twin, at both learning rates, from five seeds that the study had not seen."""
    return study(folder, "study-again", "Five other seeds")


def study_cost(folder: Path = FOLDER) -> Html:
    """Time of a training step and memory kept for backward, by condition."""
    record = read("study-cost-cpu", folder)
    columns: dict[str, Callable[[dict], str]] = {
        "condition": lambda row: row["title"],
        "ms a step (p20, p50, p80)": lambda row: quantiles(row["ms"]),
        "in units of the twin's": lambda row: f"{row['ratio_to_mlp']:.2f}",
        "kept for backward, MiB": lambda row: f"{row['kept_bytes'] / 2**20:.1f}",
    }
    return table(
        record["rows"],
        columns,
        f"What a training step of the study's models costs, batch 128, {record['rounds']} rounds in turns. {made(record)}",
    )


def learning_rates(folder: Path = FOLDER) -> Html:
    """The learning rates that were tried."""
    record = read("study-lr", folder)
    columns: dict[str, Callable[[dict], str]] = {
        "model": lambda row: {"grkan": "KAT", "mlp": "MLP twin"}[row["mlp"]],
        "peak learning rate": lambda row: f"{row['lr']:g}",
        "accuracy, %": lambda row: f"{100 * row['accuracy']:.2f}",
    }
    return table(
        sorted(record["rows"], key=lambda row: (row["mlp"], row["lr"])),
        columns,
        f"Learning rates: {record['what']}. {made(record)}",
    )


def kernel(folder: Path = FOLDER) -> Html:
    """The rational function beside GELU, forward and backward."""
    record = read("kernel-cpu", folder)

    def way(row: dict) -> dict:
        return row["ways"]["katlib"]

    columns: dict[str, Callable[[dict], str]] = {
        "shape": lambda row: " × ".join(map(str, row["shape"])),
        "dtype": lambda row: row["dtype"],
        "ms (p20, p50, p80)": lambda row: quantiles(way(row)["ms"], 3),
        "GB/s": lambda row: f"{way(row)['GB_per_s']:.1f}",
        "share of a copy": lambda row: f"{way(row)['share_of_copy']:.0%}",
        "in units of F.gelu": lambda row: f"{way(row)['ratio_to_gelu']:.2f}",
        "eager reference": lambda row: f"{row['ways']['reference']['ratio_to_gelu']:.1f}",
        "largest error": lambda row: f"{max(row['error'].values()):.1e}",
    }
    return table(
        record["rows"],
        columns,
        f"katlib.rational, forward and backward, {record['what'].split(', ', 1)[1]}; {record['rounds']} rounds in turns. {made(record)}",
    )


def model(folder: Path = FOLDER) -> Html:
    """A training step of a KAT beside the same ViT's."""
    record = read("model-cpu", folder)
    return table(
        record["rows"],
        STEP_COLUMNS,
        f"{record['what'][0].upper() + record['what'][1:]}; {record['rounds']} rounds in turns. {made(record)}",
    )


def _example(
    name: str,
    kind: str,
    titles: dict[str, str],
    measure: str,
    heading: str,
    scale: float,
    digits: int,
    folder: Path,
) -> Html:
    """An example's runs: for each kind of model the mean and standard deviation over seeds, and the differences to the first kind, paired by seed."""
    record = read(f"example-{name}", folder)
    values = {
        key: {row["seed"]: scale * row[measure] for row in record["rows"] if row[kind] == key}
        for key in titles
    }
    first = next(iter(titles))

    def difference(key: str) -> str:
        differences = [values[key][seed] - values[first][seed] for seed in values[first]]
        return (
            f"{statistics.mean(differences):+.{digits}f} ± {statistics.stdev(differences):.{digits}f}".replace(
                "-", "−"
            )
            if key != first
            else ""
        )

    columns: dict[str, Callable[[str], str]] = {
        "model": lambda key: titles[key],
        "parameters": lambda key: (
            f"{next(row['parameters'] for row in record['rows'] if row[kind] == key):,}"
        ),
        "seeds": lambda key: str(len(values[key])),
        heading: lambda key: (
            f"{statistics.mean(values[key].values()):.{digits}f} ± {statistics.stdev(values[key].values()):.{digits}f}"
        ),
        f"difference to {titles[first]}": difference,
    }
    return table(
        list(titles),
        columns,
        f"{record['what'][0].upper() + record['what'][1:]}; {record['steps']} steps of {record['batch']}. Mean ± standard deviation over "
        f"seeds, the differences paired by seed. {made(record)}",
    )


def convnet(folder: Path = FOLDER) -> Html:
    """`examples/convnet.py`: a learned activation in a ConvNet."""
    titles = {"relu": "ReLU", "gelu": "GELU", "rational": "rational, from GELU"}
    return _example("convnet", "activation", titles, "accuracy", "test accuracy, %", 100, 2, folder)


def gpt(folder: Path = FOLDER) -> Html:
    """`examples/gpt.py`: GR-KAN layers in a GPT."""
    return _example(
        "gpt",
        "mlp",
        {"mlp": "MLP, GELU", "grkan": "GR-KAN, from GELU"},
        "loss",
        "test loss, nats a character",
        1,
        4,
        folder,
    )


def inference(folder: Path = FOLDER) -> Html:
    """Inference of a KAT beside the same ViT's, eagerly, compiled and by onnxruntime."""
    record = read("inference-cpu", folder)
    rows = [(row, how) for row in record["rows"] for how in row["ratio"]]

    def ms(row: dict, model: str, how: str) -> str:
        return quantiles(row["ms"][model if how == "eager" else f"{model} {how}"], 2)

    columns: dict[str, Callable[[tuple[dict, str]], str]] = {
        "model": lambda r: r[0]["model"],
        "batch": lambda r: str(r[0]["batch"]),
        "by": lambda r: {
            "eager": "PyTorch",
            "compiled": "torch.compile",
            "onnxruntime": "onnxruntime",
        }[r[1]],
        "KAT, ms (p20, p50, p80)": lambda r: ms(r[0], "KAT", r[1]),
        "ViT, ms (p20, p50, p80)": lambda r: ms(r[0], "ViT", r[1]),
        "KAT / ViT": lambda r: f"{r[0]['ratio'][r[1]]:.2f}",
    }
    return table(
        rows,
        columns,
        f"{record['what'][0].upper() + record['what'][1:]}; {record['rounds']} rounds in turns. {made(record)}",
    )


def scale_steps(folder: Path = FOLDER) -> Html:
    """Time and peak memory of training steps at several sizes."""
    record = read("scale-cpu", folder)
    columns = STEP_COLUMNS | {
        "KAT, peak MB": lambda row: f"{row['peak_bytes']['KAT'] / 1e6:.0f}",
        "ViT, peak MB": lambda row: f"{row['peak_bytes']['ViT'] / 1e6:.0f}",
    }
    rows = [row for row in record["rows"] if row["kind"] == "step"]
    return table(
        rows,
        columns,
        f"Training steps in float32, and the most memory that they take; {record['rounds']} rounds in turns. {made(record)}",
    )


def scale_parallel(folder: Path = FOLDER) -> Html:
    """Data parallelism on two processes."""
    record = read("scale-cpu", folder)
    columns: dict[str, Callable[[dict], str]] = {
        "model": lambda row: f"KAT-{row['model']}",
        "images each": lambda row: str(row["batch_of_each"]),
        "gradients, MB": lambda row: f"{row['gradient_bytes'] / 1e6:.1f}",
        **{
            f"{title}, ms": lambda row, way=way: f"{row['ms'][way]['p50']:.1f}"
            for way, title in (
                ("alone", "alone"),
                ("beside", "two beside each other"),
                ("sum", "the sum"),
                ("together", "together"),
            )
        },
        "efficiency": lambda row: f"{row['efficiency']:.0%}",
    }
    rows = [row for row in record["rows"] if row["kind"] == "parallel"]
    return table(
        rows,
        columns,
        f"A step of one process alone, of two beside each other, and of two that sum their gradients (gloo, one thread each): medians of "
        f"{3 * record['rounds']} rounds in turns. {made(record)}",
    )


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
}
