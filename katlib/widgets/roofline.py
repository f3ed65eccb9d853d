"""RooflineExplorer: which limit of a GPU binds a kernel."""

from __future__ import annotations

from typing import Any

import traitlets

from katlib.widgets.live import Finite, LiveFigure, shown, source
from katlib.widgets.still import Curve

MOST_BYTES = 16.0
MOST_INSTRUCTIONS = 120.0
# degrees (m, n) of the rational functions that the figure offers: KAT's, and the kernel's largest
DEGREES = (5, 4), (8, 8)
BFLOAT16_BYTES = 2
FLOAT32_BYTES = 4


class RooflineExplorer(LiveFigure):
    """The roofline of a GPU, and a kernel that can be dragged about below it.

    The kernel is given by the bytes that it moves for an element and the instructions that it
    issues for it. A GPU moves so many bytes a second, issues so many instructions, and does so much
    float32 arithmetic, by `katlib.book.cost.CHIPS`. What takes longest binds.

    Args:
        chip: a name of `katlib.book.cost.CHIPS`.
        bytes: of an element, up to 16; by default those of the backward kernel in bfloat16.
        instructions: of an element, up to 120; by default those of the backward kernel by
            `katlib.book.cost.rational_instructions`.
        share: of the instructions, how much is float32 arithmetic; by default as in that kernel.

    Attributes: the same, all of them can be assigned.

    Raises:
        ValueError: an unknown chip, or numbers that are out of range.
        traitlets.TraitError: the same when it is assigned.

    Example:
        >>> katlib.RooflineExplorer("B200", bytes=4).instructions
        45.125
    """

    _esm = source("roofline.js")
    chip = traitlets.Unicode().tag(sync=True)
    bytes = Finite(min=0.25, max=MOST_BYTES).tag(sync=True)
    instructions = Finite(min=0.5, max=MOST_INSTRUCTIONS).tag(sync=True)
    share = Finite(min=0.01, max=1.0).tag(sync=True)
    chips: traitlets.List[Any] = traitlets.List().tag(sync=True)
    kernels: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def __init__(
        self,
        chip: str = "H100",
        bytes: float | None = None,
        instructions: float | None = None,
        share: float | None = None,
    ):
        kernels = _known_kernels()
        # the backward kernel of KAT's degrees
        _, *usual = kernels[1]
        given = [bytes, instructions, share]
        numbers = [usual[i] if value is None else value for i, value in enumerate(given)]
        try:
            super().__init__(
                chips=_known_chips(),
                kernels=kernels,
                chip=chip,
                bytes=numbers[0],
                instructions=numbers[1],
                share=numbers[2],
            )
        except traitlets.TraitError as error:
            raise ValueError(str(error)) from None

    @traitlets.validate("chip")
    def _check_chip(self, proposal: Any) -> str:
        names = [name for name, *_ in _known_chips()]
        if proposal["value"] not in names:
            raise traitlets.TraitError(
                f"chip={shown(proposal['value'])} is not known; allowed are {', '.join(names)}"
            )
        return proposal["value"]

    @traitlets.validate("chips", "kernels")
    def _keep_the_machines(self, proposal: Any) -> Any:
        return self._keep_what_was_drawn(proposal)

    def _still(self) -> list[Curve]:
        """The room of the chosen GPU, and of the oldest and the newest one."""
        first, *_, last = (name for name, *_ in self.chips)
        names = dict.fromkeys([self.chip, first, last])
        rates = {name: numbers for name, *numbers in self.chips}
        curves = []
        for name in names:
            issue, arithmetic, bandwidth = rates[name]
            most = MOST_BYTES * min(issue, arithmetic / self.share) / bandwidth
            title = f"{name}: instructions that memory has time for, by bytes"
            curves.append(Curve(title, [0, MOST_BYTES], [0, most], dashed=name != self.chip))
        return curves


def _known_chips() -> list[list]:
    """Name, instructions a second, float32 arithmetic a second and bytes a second of each GPU."""
    # katlib.book needs more packages than the other figures do
    from katlib.book.cost import CHIPS

    return [[chip.name, chip.issue, chip.arithmetic, chip.bandwidth] for chip in CHIPS.values()]


def _known_kernels() -> list[list]:
    """Name, bytes, instructions and the share of float32 arithmetic of katlib's kernels."""
    from katlib.book.cost import rational_instructions

    kernels: list[list[Any]] = []
    for m, n in DEGREES:
        for name, moved, backward in (("forward", 2, False), ("backward", 3, True)):
            instructions, arithmetic = rational_instructions(m, n, backward)
            bytes = moved * BFLOAT16_BYTES
            label = f"{name} ({m}, {n})"
            kernels.append([label, bytes, instructions, arithmetic / instructions])
    # the same instructions on elements of twice the size
    name, bytes, *counts = kernels[1]
    return [*kernels, [f"{name}, float32", bytes * FLOAT32_BYTES // BFLOAT16_BYTES, *counts]]
