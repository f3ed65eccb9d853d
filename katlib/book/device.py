"""What a notebook says about the machine that it runs on, and what a reader's GPU measured."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from katlib.files import write_json
from katlib.provenance import git_commit

# what a measurement's name may end with, after a comma
UNITS = ("ms", "GB/s", "GFLOP/s", "images/s", "%")
QUANTILES = ("p20", "p50", "p80")
# the keys of a file of measurements, with their types
KEYS: dict[str, type] = {
    "chapter": int,
    "device_name": str,
    "compute_capability": str,
    "torch": str,
    "cuda": str,
    "commit": str,
    "date": str,
    "measured": dict,
}


class MeasurementError(ValueError):
    """A file of measurements holds something else than it should; the message says what."""


def say_device(with_gpu: str, without: str) -> None:
    """Prints in one line which device was found, and what a notebook does on it.

    Args:
        with_gpu: what it does on a GPU.
        without: what it does on a processor.
    """
    if torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()}: {with_gpu}.")
        return
    threads = torch.get_num_threads()
    plural = "s" if threads > 1 else ""
    print(f"No GPU, {threads} CPU thread{plural}: {without}. With a GPU: {with_gpu}.")


def save_measurements(
    chapter: int, measured: Mapping[str, Sequence[float]], folder: str | Path = "."
) -> Path | None:
    """Writes what a chapter measured on a GPU into one small JSON file, and says where it is.

    Args:
        chapter: its number.
        measured: values by name. A name ends with a comma and its unit, one of `UNITS`. Of the
            values, which are two or more, the median is kept, and the 20th and 80th percentile.
        folder: where to write.

    Returns:
        The file's path; None where there is no GPU, or nothing was measured.

    Raises:
        MeasurementError: a name without a unit, or values that are not finite.

    Example:
        >>> from katlib.book.device import save_measurements
        >>> path = save_measurements(9, {"GELU, ms": [1.0, 1.1, 1.3]})  # doctest: +SKIP
        Written to katlib-chapter09-tesla-t4.json.
    """
    if not torch.cuda.is_available():
        print("There is no GPU here, so there is nothing to send in.")
        return None
    if not measured:
        print("Nothing was measured here, so there is nothing to send in.")
        return None
    name = torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    record = {
        "chapter": chapter,
        "device_name": name,
        "compute_capability": f"{major}.{minor}",
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
        "commit": git_commit(),
        "date": date.today().isoformat(),
        "measured": {title: _summary(values) for title, values in measured.items()},
    }
    check_measurements(record)
    short_name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = Path(folder) / f"katlib-chapter{chapter:02}-{short_name}.json"
    write_json(path, record)
    print(f"Written to {path}.")
    return path


def _summary(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        raise MeasurementError("one value has no spread: two are needed at least")
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive")
    quantiles = dict(zip(QUANTILES, (low, statistics.median(values), high)))
    return {"values": len(values)} | {key: float(f"{q:.4g}") for key, q in quantiles.items()}


def check_measurements(record: Any) -> None:
    """Checks the contents of a file of measurements, which may come from anybody.

    Args:
        record: what `json.load` made of it.

    Raises:
        MeasurementError: it is not as `save_measurements` writes it.
    """
    if not isinstance(record, dict) or set(record) != set(KEYS):
        raise MeasurementError(f"the keys must be {', '.join(KEYS)}")
    for key, kind in KEYS.items():
        if type(record[key]) is not kind:
            raise MeasurementError(f"{key} must be of type {kind.__name__}")
        if kind is str and not 0 < len(record[key]) <= 80:
            raise MeasurementError(f"{key} must have 1 to 80 characters")
    if not record["measured"]:
        raise MeasurementError("nothing was measured")
    for name, summary in record["measured"].items():
        _check_summary(name, summary)


def _check_summary(name: str, summary: Any) -> None:
    title, _, unit = name.rpartition(", ")
    if not title or unit not in UNITS or len(name) > 80:
        raise MeasurementError(f"{name!r} must end with a comma and one of {', '.join(UNITS)}")
    if not isinstance(summary, dict) or set(summary) != {"values", *QUANTILES}:
        raise MeasurementError(f"{name} must have values, {', '.join(QUANTILES)}")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in summary.values()):
        raise MeasurementError(f"{name} must have finite numbers")
    if not 0 <= summary["p20"] <= summary["p50"] <= summary["p80"] or summary["values"] < 2:
        raise MeasurementError(f"{name} must have two values or more, in order and not negative")
