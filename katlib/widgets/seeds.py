"""SeedsExplorer: how often the interval of a study with a few seeds misses the truth."""

from __future__ import annotations

import traitlets

from katlib.widgets.live import Finite, LiveFigure, source

# "t" takes Student's t for the number of seeds, "normal" takes 1.96 for all
MULTIPLIERS = ("t", "normal")


class SeedsExplorer(LiveFigure):
    """Studies of a few seeds, drawn at random around a true difference, and their 95% intervals.

    A study has one difference of two models for each seed, and its interval is the mean difference
    plus and minus a multiple of s / sqrt(seeds). The page counts how many intervals miss the true
    difference, and how many leave out 0.

    Args:
        difference: the true difference, -2.5 to 2.5 points.
        scatter: standard deviation of a single seed's difference, 0.05 to 2.5 points.
        seeds: of each study, 2 to 20.
        multiplier: "t" for Student's t, or "normal" for 1.96, which holds only for many seeds.

    Attributes: the same. All can be assigned.

    Raises:
        traitlets.TraitError: a number out of range, or an unknown multiplier.

    Example:
        >>> explorer = katlib.SeedsExplorer(difference=0.5, scatter=0.9, seeds=5)
        >>> explorer.multiplier = "normal"  # more intervals miss
    """

    _esm = source("random.js", "seeds.js")
    difference = Finite(0.5, min=-2.5, max=2.5).tag(sync=True)
    scatter = Finite(1.0, min=0.05, max=2.5).tag(sync=True)
    seeds = traitlets.Int(5, min=2, max=20).tag(sync=True)
    multiplier = traitlets.Enum(MULTIPLIERS, "t").tag(sync=True)

    def __init__(
        self,
        difference: float = 0.5,
        scatter: float = 1.0,
        seeds: int = 5,
        multiplier: str = "t",
    ):
        super().__init__(difference=difference, scatter=scatter, seeds=seeds, multiplier=multiplier)
