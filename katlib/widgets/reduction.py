"""ReductionExplorer: how a GPU's threads add up the gradient of one coefficient."""

from __future__ import annotations

from typing import Any

import traitlets

from katlib.cuda import jit
from katlib.cuda.ladder import STAGES
from katlib.widgets.live import FOLDER, LiveFigure, shown, source

KERNEL = {"rational.cu": "katlib's kernel: wide loads, teams of threads, then a second kernel"}
DESCRIPTIONS = STAGES | KERNEL
# the page counts in floating-point numbers, which are exact far beyond this
MOST_ROWS = 10**7
FIXED = ("groups", "span", "itemsize", "multiprocessors", "ladder_threads", "kernel_threads")


class ReductionExplorer(LiveFigure):
    """The threads of a block, and who adds to what, step by step.

    It shows one coefficient's sum for one group, in each of the stages of
    `katlib.cuda.ladder` and in rational.cu. All terms are 1, so that a sum is the number of
    elements in it. The launches are those that `katlib.cuda` plans. Each group has coefficients of
    its own.

    Args:
        rows, groups, span: the sizes of x, (rows, groups, span); by default those of KAT-T's second
            function for 128 images of 197 tokens.
        stage: a name of `katlib.cuda.ladder.STAGES`, or "rational.cu".
        step: the step that is shown, from 0; beyond the last one, the last.
        itemsize: bytes of an element, 2 or 4.
        multiprocessors: of the GPU; by default an H100's.
        ladder_threads, kernel_threads: the threads that one multiprocessor holds at once, of a
            stage of the ladder and of rational.cu's backward kernel.

    Attributes: the same. `rows`, `stage` and `step` can be assigned.

    Raises:
        ValueError: an unknown stage, or sizes that are out of range.
        traitlets.TraitError: the same when it is assigned.

    Example:
        >>> katlib.ReductionExplorer(rows=197, stage="stage4_block_reduction", step=2).step
        2
    """

    _esm = source("reduction.js")
    _css = LiveFigure._css + (FOLDER / "reduction.css").read_text(encoding="utf-8")
    stage = traitlets.Enum(tuple(DESCRIPTIONS)).tag(sync=True)
    step = traitlets.Int(min=0).tag(sync=True)
    rows = traitlets.Int(min=1, max=MOST_ROWS).tag(sync=True)
    groups = traitlets.Int().tag(sync=True)
    span = traitlets.Int().tag(sync=True)
    itemsize = traitlets.Int().tag(sync=True)
    multiprocessors = traitlets.Int().tag(sync=True)
    ladder_threads = traitlets.Int().tag(sync=True)
    kernel_threads = traitlets.Int().tag(sync=True)
    stages: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def __init__(
        self,
        rows: int = 128 * 197,
        groups: int = 8,
        span: int = 96,
        stage: str = "stage5_two_stages",
        step: int = 0,
        itemsize: int = 4,
        multiprocessors: int = 132,
        ladder_threads: int = 5 * jit.THREADS,
        kernel_threads: int = 4 * jit.THREADS,
    ):
        if stage not in DESCRIPTIONS:
            raise ValueError(
                f"stage={shown(stage)} is not known; allowed are {', '.join(DESCRIPTIONS)}"
            )
        if itemsize not in (2, 4):
            raise ValueError(f"itemsize={shown(itemsize)}; allowed are 2 and 4")
        _check_sizes(rows=(rows, 1), groups=(groups, 1), span=(span, 1), step=(step, 0))
        _check_sizes(
            multiprocessors=(multiprocessors, 1),
            ladder_threads=(ladder_threads, jit.THREADS),
            kernel_threads=(kernel_threads, 1),
        )
        super().__init__(
            stage=stage,
            step=step,
            rows=rows,
            groups=groups,
            span=span,
            itemsize=itemsize,
            multiprocessors=multiprocessors,
            ladder_threads=ladder_threads,
            kernel_threads=kernel_threads,
            stages=[list(item) for item in DESCRIPTIONS.items()],
        )

    @traitlets.validate(*FIXED, "stages")
    def _keep_the_launch(self, proposal: Any) -> Any:
        return self._keep_what_was_drawn(proposal)


def _check_sizes(**sizes: tuple[Any, int]) -> None:
    """Raises a ValueError unless each size is a whole number that is no less than its limit."""
    for name, (value, least) in sizes.items():
        # True is the number 1 to Python, and a mistake here
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST_ROWS:
            raise ValueError(
                f"{name}={shown(value)}; allowed are whole numbers from {least} to {MOST_ROWS:,}"
            )
