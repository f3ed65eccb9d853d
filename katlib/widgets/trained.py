"""TrainedExplorer: what a trained KAT has learned, epoch by epoch, over its real inputs."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import numpy as np
import traitlets

from katlib.provenance import ROOT
from katlib.widgets.live import LiveFigure, shown, source
from katlib.widgets.rational import quadrature, values
from katlib.widgets.still import Curve

# of the book's trained KAT; an installed package has no results
RECORD = ROOT / "results" / "inside-kat-cifar10.json"
NAME = re.compile(r"blocks\.(\d+)\.mlp\.(act[12])")

ANY_NUMBER = range(sys.maxsize)
ONE_OR_MORE = range(1, sys.maxsize)


class Place(NamedTuple):
    """Where a rational function is in a KAT."""

    block: int
    function: str
    group: int


class TrainedExplorer(LiveFigure):
    """One function of a trained KAT over the density of its inputs, with training as a film.

    It shows F, its start and how far it has moved, and all other functions beside it.

    Args:
        record: what `katlib.book.recorder.Recorder` recorded, or `katlib.book.recorder.load_record`
            read; by default that of the book's trained KAT, which comes with its repository.
        block, function, group: which function to show first: the number of a block, "act1" or
            "act2", the number of a group; by default the one that has moved most, E|F - start|
            under the density of its inputs, after the last epoch.
        epoch: a place in record["epochs"], 0 for the start; the last by default.

    Attributes: block, function, group and epoch; all can be assigned, and follow the figure where
        there is a kernel.

    Raises:
        ValueError: a record of a model without blocks of `GRKANMlp` or without an epoch, or one
            that is damaged or holds coefficients or statistics that are not finite.
        traitlets.TraitError: a block, function, group or epoch that the record does not have.
        FileNotFoundError: no record is given, and there is no repository.

    Example:
        >>> explorer = katlib.TrainedExplorer()
        >>> explorer.block, explorer.function = 0, "act2"
    """

    _esm = source("rational.js", "trained.js")
    # as JSON: stored in a notebook, nested lists would fill it with lines
    record = traitlets.Unicode().tag(sync=True)
    quadrature: traitlets.List[Any] = traitlets.List().tag(sync=True)
    block = traitlets.Int().tag(sync=True)
    function = traitlets.Unicode().tag(sync=True)
    group = traitlets.Int().tag(sync=True)
    epoch = traitlets.Int().tag(sync=True)

    def __init__(
        self,
        record: Mapping[str, Any] | None = None,
        block: int | None = None,
        function: str | None = None,
        group: int | None = None,
        epoch: int = -1,
    ):
        if record is None:
            record = json.loads(RECORD.read_text(encoding="utf-8"))
        _check_record(record)
        moved = _distances_moved(record)
        epochs = len(record["epochs"])
        # what each of the traits may be, for the validation below
        self._allowed: dict[str, set] = {
            "block": {place.block for place in moved},
            "function": {place.function for place in moved},
            "group": {place.group for place in moved},
            "epoch": set(range(epochs)),
        }
        most_moved = _most_moved(moved, block, function, group)
        super().__init__(
            record=json.dumps(_with_finite_metrics(record), separators=(",", ":"), allow_nan=False),
            quadrature=quadrature(),
            block=most_moved.block if block is None else block,
            function=most_moved.function if function is None else function,
            group=most_moved.group if group is None else group,
            epoch=epoch + epochs if epoch in range(-epochs, 0) else epoch,
        )

    @traitlets.validate("block", "function", "group", "epoch")
    def _check_in_record(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        allowed = self._allowed[name]
        if value not in allowed:
            raise traitlets.TraitError(
                f"{name}={value!r}; the record has {', '.join(map(repr, sorted(allowed)))}"
            )
        return value

    def _still(self) -> list[Curve]:
        record = json.loads(self.record)
        history = record["functions"][f"blocks.{self.block}.mlp.{self.function}"]
        low, high = record["interval"]
        x = np.linspace(low, high, 81)

        def curve(name: str, epoch: int, dashed: bool = False) -> Curve:
            a, b = history["numerator"][epoch], history["denominator"][epoch]
            groups = math.lcm(len(a), len(b))
            row = [rows[self.group * len(rows) // groups] for rows in (a, b)]
            return Curve(name, x, values(x, *row), dashed)

        now = f"F after epoch {record['epochs'][self.epoch]['epoch']}"
        return [curve(now, self.epoch), curve("its start", 0, dashed=True)]


def _check_record(record: Any) -> None:
    """Raises a ValueError for a record that the page could not draw."""
    if not isinstance(record, Mapping):
        raise ValueError(f"record={shown(record)}; allowed is what a Recorder recorded")
    wrong = [key for key, is_right in _ENTRIES.items() if not is_right(record.get(key))]
    if wrong:
        raise ValueError(
            f"the record's {wrong[0]} is {shown(record.get(wrong[0]))}; "
            "allowed is what a Recorder recorded"
        )
    _check_functions(record["functions"], len(record["epochs"]), record["bins"])


def _check_functions(functions: Mapping[str, Any], epochs: int, bins: int) -> None:
    blocks = {match[1] for match in map(NAME.fullmatch, functions) if match}
    complete = {f"blocks.{block}.mlp.{act}" for block in blocks for act in ("act1", "act2")}
    groups = len(_last_distances(next(iter(functions.values()), None)))
    if not epochs or not groups or set(functions) != complete:
        raise ValueError(
            f"the record has {epochs} epochs of {list(functions)}; needed are 1 or more "
            "epochs of blocks.N.mlp.act1 and act2 with their groups"
        )
    for name, history in functions.items():
        wrong = _wrong_entries(history, epochs, groups, bins)
        if wrong:
            raise ValueError(
                f"the record's {', '.join(wrong)} of {name} cannot be drawn; needed are finite "
                f"numbers for each of {epochs} epochs and {groups} groups"
            )


def _last_distances(history: Any) -> list:
    """An entry for each group, if the history is whole."""
    moved = history.get("moved") if isinstance(history, Mapping) else None
    last = moved[-1] if isinstance(moved, list) and moved else None
    return last if isinstance(last, list) else []


def _wrong_entries(history: Any, epochs: int, groups: int, bins: int) -> list[str]:
    """The names of what one function's history lacks or has damaged."""
    if not isinstance(history, Mapping):
        return ["history"]
    statistics = ("mean", "std", "inside", "moved", "second_moment")
    sizes: dict[str, tuple[Container[int], ...]] = {
        "numerator": ([epochs], range(1, groups + 1), ONE_OR_MORE),
        "denominator": ([epochs], range(1, groups + 1), ANY_NUMBER),
        "counts": ([epochs], [groups], [bins + 2]),
        **{key: ([epochs], [groups]) for key in statistics},
    }
    return [key for key, size in sizes.items() if not _is_nested(history.get(key), size)]


def _is_nested(value: Any, sizes: tuple[Container[int], ...]) -> bool:
    """Whether the value is lists within lists of these sizes, with finite numbers in them."""
    if not sizes:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return (
        isinstance(value, (list, tuple))
        and len(value) in sizes[0]
        and all(_is_nested(entry, sizes[1:]) for entry in value)
    )


def _is_interval(value: Any) -> bool:
    return _is_nested(value, ([2],)) and value[0] < value[1]


def _is_positive(value: Any) -> bool:
    return _is_nested(value, ()) and value > 0


def _is_list_of_epochs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, Mapping) and _is_nested(entry.get("epoch"), ()) for entry in value
    )


# what a record has beside what belongs to its functions, and when that can be drawn
_ENTRIES = {
    "interval": _is_interval,
    "bins": lambda value: isinstance(value, int) and value > 0,
    "unit": _is_positive,
    "epochs": _is_list_of_epochs,
    "functions": lambda value: isinstance(value, Mapping),
}


def _with_finite_metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without those metrics that are not finite, such as the loss of a failed run.

    JSON has no NaN, and a browser reads nothing of a text that has one.
    """
    epochs = [
        {
            key: value
            for key, value in metrics.items()
            if not isinstance(value, float) or math.isfinite(value)
        }
        for metrics in record["epochs"]
    ]
    return {**record, "epochs": epochs}


def _distances_moved(record: Mapping[str, Any]) -> dict[Place, float]:
    """How far each function has moved from its start after the last epoch."""
    moved: dict[Place, float] = {}
    for name, history in record["functions"].items():
        match = NAME.fullmatch(name)
        assert match is not None
        for group, distance in enumerate(history["moved"][-1]):
            moved[Place(int(match[1]), match[2], group)] = distance
    return moved


def _most_moved(
    moved: Mapping[Place, float], block: int | None, function: str | None, group: int | None
) -> Place:
    """The place that has moved most among those that fit what was asked for.

    If none fits, it is the one that has moved most of all; what was asked for is then refused when
    it is assigned.
    """
    candidates = [
        place
        for place in moved
        if block in (None, place.block)
        and function in (None, place.function)
        and group in (None, place.group)
    ]
    return max(candidates or moved, key=lambda place: moved[place])
