"""TrainedExplorer: the learned functions of a trained KAT, epoch by epoch, over the inputs that they really receive."""

import json
import re

import traitlets

from katlib.book.recorder import load_record
from katlib.widgets.explorer import _rule
from katlib.widgets.live import LiveFigure, source

NAME = re.compile(r"blocks\.(\d+)\.mlp\.(act[12])")


class TrainedExplorer(LiveFigure):
    """One function of a trained KAT: F over the density of its inputs, its start and its change, with training as a film, and all others beside it.

    Args:
        record: what `katlib.book.recorder.Recorder` recorded, or `katlib.book.recorder.load_record` read; by default that of the book's trained KAT, which
            comes with its repository.
        block, function, group: which function to show first: the number of a block, "act1" or "act2", the number of a group;
            by default the one that has moved most, E|F - start| under the density of its inputs, after the last epoch.
        epoch: a place in record["epochs"], 0 for the start; the last by default.

    Attributes: block, function, group and epoch; all can be assigned, and follow the figure where there is a kernel.

    Raises:
        ValueError: a record of a model without blocks of `GRKANMlp`, or without an epoch.
        traitlets.TraitError: a block, function, group or epoch that the record does not have.

    Example:
        >>> explorer = katlib.TrainedExplorer()
        >>> explorer.block, explorer.function = 0, "act2"
    """

    _esm = source("rational.js", "trained.js")
    record = traitlets.Unicode().tag(
        sync=True
    )  # JSON: as nested lists it would fill a notebook with lines
    quadrature = traitlets.List().tag(sync=True)
    block = traitlets.Int().tag(sync=True)
    function = traitlets.Unicode().tag(sync=True)
    group = traitlets.Int().tag(sync=True)
    epoch = traitlets.Int().tag(sync=True)

    def __init__(
        self,
        record: dict | None = None,
        block: int | None = None,
        function: str | None = None,
        group: int | None = None,
        epoch: int = -1,
    ):
        record = load_record() if record is None else record
        names = [match for match in map(NAME.fullmatch, record["functions"]) if match]
        sizes = (
            {len(function["moved"][-1]) for function in record["functions"].values()}
            if record["epochs"]
            else set()
        )
        if len(names) != len(record["functions"]) or len(sizes) != 1:
            raise ValueError(
                f"the record has {len(record['epochs'])} epochs of {list(record['functions'])}; needed are 1 or more epochs of "
                "blocks.N.mlp.act1 and act2, all of the same number of groups"
            )
        moved = {
            (int(match[1]), match[2], group): value
            for match in names
            for group, value in enumerate(record["functions"][match[0]]["moved"][-1])
        }
        keys, wanted, epochs = (
            ("block", "function", "group"),
            (block, function, group),
            len(record["epochs"]),
        )
        self._allowed = {key: {place[i] for place in moved} for i, key in enumerate(keys)} | {
            "epoch": set(range(epochs))
        }
        fitting = [
            place for place in moved if all(want in (None, is_) for want, is_ in zip(wanted, place))
        ]
        most = max(fitting or moved, key=moved.get)
        first = {key: is_ if want is None else want for key, want, is_ in zip(keys, wanted, most)}
        super().__init__(
            record=json.dumps(record, separators=(",", ":")),
            quadrature=_rule(),
            epoch=epoch % epochs if -epochs <= epoch < 0 else epoch,
            **first,
        )

    @traitlets.validate("block", "function", "group", "epoch")
    def _known(self, proposal):
        key, value = proposal["trait"].name, proposal["value"]
        if value not in self._allowed[key]:
            raise traitlets.TraitError(
                f"{key}={value!r}; the record has {', '.join(map(repr, sorted(self._allowed[key])))}"
            )
        return value
