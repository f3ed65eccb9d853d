"""TrainedExplorer: what a trained KAT has learned, epoch by epoch, over its real inputs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import traitlets

from katlib.provenance import ROOT
from katlib.widgets.live import LiveFigure, source
from katlib.widgets.rational import quadrature

# of the book's trained KAT; an installed package has no results
RECORD = ROOT / "results" / "inside-kat-cifar10.json"
NAME = re.compile(r"blocks\.(\d+)\.mlp\.(act[12])")


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
        ValueError: a record of a model without blocks of `GRKANMlp`, or without an epoch.
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
            record = json.loads(RECORD.read_text())
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
            record=json.dumps(record, separators=(",", ":")),
            quadrature=quadrature(),
            block=most_moved.block if block is None else block,
            function=most_moved.function if function is None else function,
            group=most_moved.group if group is None else group,
            epoch=epoch + epochs if -epochs <= epoch < 0 else epoch,
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


def _distances_moved(record: Mapping[str, Any]) -> dict[Place, float]:
    """How far each function has moved from its start after the last epoch."""
    epochs, functions = record["epochs"], record["functions"]
    matches = [NAME.fullmatch(name) for name in functions]
    last_distances = [history["moved"][-1] for history in functions.values()] if epochs else []
    group_counts = {len(distances) for distances in last_distances}
    if not all(matches) or len(group_counts) != 1:
        raise ValueError(
            f"the record has {len(epochs)} epochs of {list(functions)}; needed are 1 or more "
            "epochs of blocks.N.mlp.act1 and act2, all of the same number of groups"
        )
    moved: dict[Place, float] = {}
    for match, distances in zip(matches, last_distances):
        assert match is not None
        for group, distance in enumerate(distances):
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
