"""What a trained KAT has learned: every rational function after every epoch, and its real inputs.

`Recorder` goes into `katlib.train.train(on_epoch=...)`. After each epoch it sends a fixed batch of
images through the model. For each `GroupRational` and each of its groups it keeps the coefficients,
a histogram of the inputs x, and these statistics:

    mean, std       of x
    inside          share of x in [-3, 3], where the starting coefficients were fitted
    moved           E|F(x) - F_0(x)|, the distance from the start F_0 under the density of the
                    inputs: a change where no input falls does not count
    second_moment   E[F(x)^2], which the initialisation takes to be E[F_0(z)^2], z ~ N(0, 1)
                    (arXiv 2409.10594, section 4.3)

A record is a dictionary that can be stored as JSON, about 16 kB an epoch for 4 blocks of 8 groups.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from katlib.book.results import FOLDER
from katlib.files import write_json
from katlib.provenance import device_name, git_commit
from katlib.rational import GroupRational, rational
from katlib.train.data import normalize

# the counts of a histogram are shares of the inputs, in units of 1 / UNIT
UNIT = 10_000
# the starting coefficients are fitted on [-3, 3] (`katlib.fit`)
FITTED = 3.0
STATISTICS = ("mean", "std", "inside", "moved", "second_moment")

# significant digits that are kept; 9 hold every float32 exactly
COEFFICIENT_DIGITS = 9
METRIC_DIGITS = 7
STATISTIC_DIGITS = 6

# JSON without spaces
COMPACT = (",", ":")

# what is known of one `GroupRational`: lists with an entry for each epoch
History = dict[str, list]


class _Provenance(TypedDict, total=False):
    """Where the last entry was measured; a record without entries has none."""

    device_name: str
    torch: str
    commit: str
    date: str


class Record(_Provenance):
    """What a `Recorder` has kept so far.

    Attributes:
        kind: "inside", which tells these records from others.
        images: number of images in the fixed batch.
        interval, bins: of the histograms.
        unit: the sum of a histogram's counts.
        fitted: the interval on which the starting coefficients were fitted.
        epochs: the metrics of each epoch.
        functions: maps the name of each `GroupRational` to its history.
    """

    kind: str
    images: int
    interval: list[float]
    bins: int
    unit: int
    fitted: list[float]
    epochs: list[dict]
    functions: dict[str, History]


def group_histogram(x: Tensor, groups: int, interval: tuple[float, float], bins: int) -> Tensor:
    """Counts how many values of x fall into each bin, separately for each group.

    Args:
        x: (..., C); its groups are blocks of neighbouring channels.
        groups: their number.
        interval: (lo, hi), divided into bins of equal width; a bin contains its left edge.
        bins: their number.

    Returns:
        (groups, bins + 2) int64; the first and the last column count the values below and above
        the interval.
    """
    low, high = interval
    columns = bins + 2
    bin_number = ((x.double() - low) * (bins / (high - low))).floor()
    column = bin_number.clamp(-1, bins).long() + 1  # (..., C)
    group = torch.arange(groups, device=x.device).repeat_interleave(x.shape[-1] // groups)  # (C,)
    cell = (column + group * columns).flatten()
    return torch.bincount(cell, minlength=groups * columns).view(groups, columns)


def proportional_counts(counts: Tensor, total: int = UNIT) -> Tensor:
    """Whole numbers in proportion to `counts` that sum to `total` in each row.

    They are rounded by the method of largest remainders, as seats are shared out after an election.

    Args:
        counts: (groups, bins), not all 0 in any row.
        total: what each row sums to.
    """
    exact = counts.double() * total / counts.sum(1, keepdim=True)
    whole = exact.floor()
    missing = total - whole.sum(1, keepdim=True)
    largest_first = (exact - whole).argsort(dim=1, descending=True, stable=True)
    rank = largest_first.argsort(dim=1)
    return (whole + (rank < missing)).long()


def round_significant(value: float, digits: int) -> float:
    """The value with this many significant digits."""
    return float(f"{value:.{digits}g}")


def round_nested(values: list, digits: int) -> list:
    """Nested lists of floats with this many significant digits."""
    return [
        round_nested(value, digits) if isinstance(value, list) else round_significant(value, digits)
        for value in values
    ]


class Recorder:
    """Keeps the learned functions and the density of their inputs, epoch by epoch.

    Called as `recorder(model, metrics)`, it adds an epoch. `metrics` holds "epoch", 0 for the
    untrained model, and any other numbers, which are kept beside it. Entries of this and of later
    epochs are replaced. `katlib.train.train(..., on_epoch=recorder)` calls it after each epoch; for
    the start, call it before with a model of the same preset and seed.

    Args:
        images: (N, 3, H, W) uint8, the fixed batch, best taken from the test set. They go through
            the model in one piece, in evaluation mode (256 images of the small KAT take 0.5 GB).
        path: if given, the record is written there after every call. A record that is there already
            is continued from the epoch of the first call, as a resumed run needs it.
        interval: (lo, hi) of the histograms.
        bins: their number of bins.

    Attributes:
        record: what it has so far. record["epochs"] is the list of the metrics. record["functions"]
            maps the name of each `GroupRational` to lists with an entry for each epoch: "numerator"
            (Gn rows of a_0 .. a_m); "denominator" (Gd rows of b_1 .. b_n); "counts" (for each group
            the shares of its inputs in the bins, in units of 1 / record["unit"], the first and the
            last for those below and above the interval); and for each group the "mean" and "std" of
            its inputs x, "inside", their share in [-3, 3], "moved", E|F(x) - F_0(x)| with the first
            entry for F_0, and "second_moment", E[F(x)^2].

    Raises:
        ValueError: images of another shape or dtype, an empty interval, or no bins; when called, a
            model without a `GroupRational` or with others than before, or an input that is not
            finite.

    Example:
        >>> from katlib.book.recorder import Recorder
        >>> model = katlib.VisionTransformer(
        ...     img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, groups=4
        ... )
        >>> recorder = Recorder(torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8))
        >>> recorder(model, {"epoch": 0})
        >>> recorder.record["functions"]["blocks.0.mlp.act1"]["moved"][-1]  # by group
        [0.0, 0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        images: Tensor,
        path: str | Path | None = None,
        interval: tuple[float, float] = (-6.0, 6.0),
        bins: int = 48,
    ):
        if images.ndim != 4 or len(images) == 0 or images.dtype != torch.uint8:
            raise ValueError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; "
                "they must be uint8 (N, 3, H, W), N >= 1"
            )
        low, high = interval
        if not low < high or bins < 1:
            raise ValueError(
                f"interval={interval}, bins={bins}; allowed are lo < hi and 1 or more bins"
            )
        self.images = images
        self.path = Path(path) if path else None
        self.record: Record = {
            "kind": "inside",
            "images": len(images),
            "interval": [float(low), float(high)],
            "bins": bins,
            "unit": UNIT,
            "fitted": [-FITTED, FITTED],
            "epochs": [],
            "functions": {},
        }
        if self.path is not None and self.path.exists():
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            self.record["epochs"] = stored["epochs"]
            self.record["functions"] = stored["functions"]

    @torch.no_grad()
    def __call__(self, model: nn.Module, metrics: Mapping[str, object]) -> None:
        model = _unwrapped(model)
        functions = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, GroupRational)
        }
        earlier_epochs = [
            entry for entry in self.record["epochs"] if entry["epoch"] < metrics["epoch"]
        ]
        histories = self._earlier_histories(functions, len(earlier_epochs))
        device = next(model.parameters()).device
        with self._observed(functions, histories), _evaluation_mode(model):
            model(normalize(self.images.to(device)))
        self.record["epochs"] = [*earlier_epochs, _rounded_numbers(metrics)]
        self.record["functions"] = histories
        self.record["device_name"] = device_name(device)
        self.record["torch"] = torch.__version__
        self.record["commit"] = git_commit()
        self.record["date"] = date.today().isoformat()
        if self.path is not None:
            write_json(self.path, self.record, separators=COMPACT)

    def _earlier_histories(
        self, functions: Mapping[str, GroupRational], epochs: int
    ) -> dict[str, History]:
        """Copies of the model's histories up to the first `epochs` entries."""
        recorded = self.record["functions"]
        if not functions or (epochs > 0 and set(functions) != set(recorded)):
            raise ValueError(
                f"the model has the rational functions {sorted(functions)}, "
                f"the record {sorted(recorded)}"
            )
        if epochs == 0:
            return {name: {} for name in functions}
        return {
            name: {key: entries[:epochs] for key, entries in recorded[name].items()}
            for name in functions
        }

    @contextmanager
    def _observed(
        self, functions: Mapping[str, GroupRational], histories: Mapping[str, History]
    ) -> Iterator[None]:
        """While this is active, a function that runs adds an entry to its history."""
        hooks = [
            module.register_forward_pre_hook(partial(self._observe, name, histories[name]))
            for name, module in functions.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _observe(
        self, name: str, history: History, module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        """Adds to `history` what the function is now and what its input is."""
        assert isinstance(module, GroupRational)
        x = inputs[0].float().movedim(module.dim, -1)  # (..., C)
        if not x.isfinite().all():
            raise ValueError(f"an input of {name} is not finite")
        a, b = module.weight_numerator, module.weight_denominator
        groups = math.lcm(len(a), len(b))
        _append(history, "numerator", round_nested(a.tolist(), COEFFICIENT_DIGITS))
        _append(history, "denominator", round_nested(b.tolist(), COEFFICIENT_DIGITS))
        start = (
            torch.tensor(history["numerator"][0], device=x.device),
            torch.tensor(history["denominator"][0], device=x.device),
        )
        statistics = _statistics(x, groups, (a.float(), b.float()), start)
        for key in STATISTICS:
            _append(history, key, round_nested(statistics[key].tolist(), STATISTIC_DIGITS))
        low, high = self.record["interval"]
        counts = group_histogram(x, groups, (low, high), self.record["bins"])
        _append(history, "counts", proportional_counts(counts).tolist())


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel` ("module") and `torch.compile` ("_orig_mod")."""
    for wrapped_as in ("module", "_orig_mod"):
        model = getattr(model, wrapped_as, model)
    return model


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _append(history: History, key: str, entry: list) -> None:
    history.setdefault(key, []).append(entry)


def _rounded_numbers(metrics: Mapping[str, object]) -> dict[str, int | float]:
    """The numbers among the metrics; whole numbers stay exact."""
    numbers: dict[str, int | float] = {}
    for key, value in metrics.items():
        if isinstance(value, int):
            numbers[key] = value
        elif isinstance(value, float):
            numbers[key] = round_significant(value, METRIC_DIGITS)
    return numbers


def _statistics(
    x: Tensor, groups: int, coefficients: tuple[Tensor, Tensor], start: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """The `STATISTICS` of a function and its inputs x (..., C), each (groups,) in float64."""
    y = rational(x, *coefficients)
    distance = (y - rational(x, *start)).abs()
    mean = _group_means(x, groups)
    variance = _group_means(x**2, groups) - mean**2
    return {
        "mean": mean,
        "std": variance.clamp_min(0).sqrt(),
        "inside": _group_means(x.abs() <= FITTED, groups),
        "moved": _group_means(distance, groups),
        "second_moment": _group_means(y**2, groups),
    }


def _group_means(values: Tensor, groups: int) -> Tensor:
    """The mean of each group's values: (..., C) -> (groups,), in float64."""
    parts = values.double().unflatten(-1, (groups, -1))  # (..., groups, C / groups)
    return parts.movedim(-2, 0).flatten(1).mean(1)


def load_record(path: str | Path | None = None) -> Record:
    """A stored record; by default results/inside-kat-cifar10.json, that of the book's trained KAT.

    Raises:
        FileNotFoundError: there is no such file; the stored records come with the book's
            repository, not with the package.

    Example:
        >>> from katlib.book.recorder import load_record
        >>> len(load_record()["epochs"])
        16
    """
    path = FOLDER / "inside-kat-cifar10.json" if path is None else Path(path)
    return json.loads(path.read_text(encoding="utf-8"))


def coefficients(record: Record, name: str, group: int, epoch: int = -1) -> tuple[Tensor, Tensor]:
    """The coefficients of one group: a_0 .. a_m and b_1 .. b_n, float64.

    Args:
        record: from a `Recorder` or `load_record`.
        name: a key of record["functions"].
        group: its number.
        epoch: a place in record["epochs"]: 0 is the start, -1 the end.
    """
    history = record["functions"][name]
    a = torch.tensor(history["numerator"][epoch], dtype=torch.float64)  # (Gn, m + 1)
    b = torch.tensor(history["denominator"][epoch], dtype=torch.float64)  # (Gd, n)
    groups = math.lcm(len(a), len(b))
    return a[group * len(a) // groups], b[group * len(b) // groups]


def density(record: Record, name: str, group: int, epoch: int = -1) -> tuple[Tensor, Tensor]:
    """Where the inputs of one group fall.

    Args:
        record: from a `Recorder` or `load_record`.
        name: a key of record["functions"].
        group: its number.
        epoch: a place in record["epochs"]: 0 is the start, -1 the end.

    Returns:
        The middles of the bins and the share of the inputs in each, both (bins,) float64. The
        shares sum to 1 less what lies outside of the interval.
    """
    low, high = record["interval"]
    bins = record["bins"]
    middles = low + (torch.arange(bins, dtype=torch.float64) + 0.5) * (high - low) / bins
    _below, *counts, _above = record["functions"][name]["counts"][epoch][group]
    return middles, torch.tensor(counts, dtype=torch.float64) / record["unit"]
