"""SummationExplorer: what the order of adding and the number format do to a long sum."""

from __future__ import annotations

from typing import Any

import traitlets

from katlib.widgets.live import LiveFigure, shown, source

ORDERS = ("one by one", "32 threads", "tree")
FORMATS = ("float32", "bfloat16", "float16")
TERMS = ("ones", "one sign", "both signs")
# 2 to this power is the largest number of terms
MOST_STEPS = 20


class SummationExplorer(LiveFigure):
    """Sums of up to 2^20 terms in three orders, and how many of their binary digits are right.

    "one by one" has one running sum. "32 threads" has 32 of them, which take the terms in turn, and
    adds their sums in pairs. "tree" adds neighbours in pairs, then the sums in pairs. The figure
    adds as PyTorch does on a CPU: in float32, rounding every result to the format. Below the
    curves stands one late addition in binary, with the digits that it cuts off.

    Args:
        order: "one by one", "32 threads" or "tree".
        format: "float32", "bfloat16" or "float16"; of the terms and of all sums.
        terms: "ones" for terms that are all 1, "one sign" for random ones between 0 and 1, or
            "both signs" for random ones between -1/2 and 1/2.
        steps: k, where 2^k terms are added; 0 to 20.

    Attributes: the same. All of them can be assigned.

    Raises:
        ValueError: an option that the figure does not know.
        traitlets.TraitError: the same when it is assigned.

    Example:
        >>> katlib.SummationExplorer(format="bfloat16", terms="ones", steps=9).order
        'one by one'
    """

    _esm = source("summation.js")
    order = traitlets.Enum(ORDERS).tag(sync=True)
    format = traitlets.Enum(FORMATS).tag(sync=True)
    terms = traitlets.Enum(TERMS).tag(sync=True)
    steps = traitlets.Int(min=0, max=MOST_STEPS).tag(sync=True)

    def __init__(
        self,
        order: str = "one by one",
        format: str = "float32",
        terms: str = "one sign",
        steps: int = MOST_STEPS,
    ):
        _check("order", order, ORDERS)
        _check("format", format, FORMATS)
        _check("terms", terms, TERMS)
        if steps not in range(MOST_STEPS + 1):
            raise ValueError(f"steps={shown(steps)}; allowed are 0 to {MOST_STEPS}")
        super().__init__(order=order, format=format, terms=terms, steps=steps)


def _check(name: str, value: Any, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(f"{name}={shown(value)}; allowed are {', '.join(map(repr, options))}")
