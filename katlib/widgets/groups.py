"""GroupExplorer: which channels of a layer share a function, and what the layer then costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import traitlets

from katlib.widgets.live import LiveFigure, finite_numbers, shown, source

# as many channels as the figure draws, and as many functions as it can tell apart
CHANNELS = 8
SHARINGS = ("edge", "channel", "group")
# the larger layer that is counted beside the drawn one: the second of KAT-T's MLP, turned round
LAYER = (192, 768)


class GroupExplorer(LiveFigure):
    """A layer from 8 channels to 3 outputs: each channel has a function, which it may share.

    Dragging the box of a channel onto another one makes the two share a function. A table counts
    functions, coefficients, weights and operations, for the drawn layer and for one from 192 to 768
    channels that shares in the same way. Functions have degrees (5, 4), and biases are not counted.

    Args:
        functions: 8 whole numbers from 0 to 7, the function of each channel; channels with the same
            number share.
        sharing: "edge" for a function on each edge, "channel" for one in each channel, or "group"
            for those of `functions`, where each drawn channel stands for an eighth of the larger
            layer's channels.
        shared_numerator: True if all functions have one numerator, as in KAT.

    Attributes: the same. All of them can be assigned.

    Raises:
        ValueError: something else than 8 numbers from 0 to 7, or an unknown way to share.
        traitlets.TraitError: the same when it is assigned.

    Example:
        >>> explorer = katlib.GroupExplorer([0, 0, 0, 0, 1, 1, 1, 1])
        >>> explorer.functions[2] == explorer.functions[3]
        True
    """

    _esm = source("groups.js")
    functions: traitlets.List[int] = traitlets.List().tag(sync=True)
    sharing = traitlets.Enum(SHARINGS).tag(sync=True)
    shared_numerator = traitlets.Bool().tag(sync=True)
    layer: traitlets.List[int] = traitlets.List(list(LAYER), read_only=True).tag(sync=True)

    def __init__(
        self,
        functions: Sequence[int] = (0, 0, 1, 1, 2, 2, 3, 3),
        sharing: str = "group",
        shared_numerator: bool = False,
    ):
        if sharing not in SHARINGS:
            raise ValueError(
                f"sharing={shown(sharing)}; allowed are {', '.join(map(repr, SHARINGS))}"
            )
        super().__init__(
            functions=_checked_functions(functions),
            sharing=sharing,
            shared_numerator=shared_numerator,
        )

    @traitlets.validate("functions")
    def _check_functions(self, proposal: Any) -> list[int]:
        try:
            return _checked_functions(proposal["value"])
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None


def _checked_functions(functions: Any) -> list[int]:
    """The functions as a list of whole numbers, or a ValueError."""
    try:
        numbers = finite_numbers("functions", functions, count=CHANNELS)
    except ValueError:
        numbers = []
    if len(numbers) != CHANNELS or any(number not in range(CHANNELS) for number in numbers):
        raise ValueError(
            f"functions={shown(functions)}; allowed are {CHANNELS} whole numbers from 0 to "
            f"{CHANNELS - 1}"
        )
    return [int(number) for number in numbers]
