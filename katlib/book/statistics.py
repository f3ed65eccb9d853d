"""Comparing the conditions of a study, seed by seed."""

import math
import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """The runs of one condition beside those of another with the same seeds. Accuracies are fractions; `low` and `high` bound the mean difference
    at 95%, `p` is that of the paired t-test (two-sided; both by Student's t, for differences that scatter normally)."""

    condition: str
    title: str
    parameters: int
    accuracies: tuple[float, ...]  # by seed, all seeds of the condition
    differences: tuple[float, ...]  # to the other condition, by seed, where both have it
    low: float
    high: float
    p: float

    mean = property(lambda self: statistics.mean(self.accuracies))
    std = property(lambda self: statistics.stdev(self.accuracies))
    difference = property(lambda self: statistics.mean(self.differences))
    difference_std = property(lambda self: statistics.stdev(self.differences))


def compare(runs: list[dict], to: str = "kat") -> list[Comparison]:
    """Every condition of a study's runs against the condition `to`, whose own comparison comes first, without differences; the others follow
    by their mean difference, the most favourable first.

    Raises:
        ValueError: there are no runs of `to`, or a condition shares fewer than two seeds with it.
    """
    from scipy import stats

    conditions: dict[str, dict[int, dict]] = {}
    for run in runs:
        conditions.setdefault(run["condition"], {})[run["seed"]] = run
    if to not in conditions:
        raise ValueError(
            f"there are no runs of {to!r}; there are {', '.join(conditions) or 'none at all'}"
        )
    found = []
    for name, by_seed in sorted(conditions.items(), key=lambda item: item[0] != to):
        run = next(iter(by_seed.values()))
        both = sorted(set(by_seed) & set(conditions[to]))
        if len(both) < 2:
            raise ValueError(
                f"{name!r} and {to!r} share the seeds {both}; a paired test needs two or more"
            )
        pairs = [
            [by_seed[seed]["test_accuracy"] for seed in both],
            [conditions[to][seed]["test_accuracy"] for seed in both],
        ]
        low = high = p = math.nan
        if name != to:
            test = stats.ttest_rel(*pairs)
            p, (low, high) = test.pvalue, test.confidence_interval(0.95)
        found.append(
            Comparison(
                name,
                run["title"],
                run["parameters"],
                tuple(by_seed[seed]["test_accuracy"] for seed in sorted(by_seed)),
                tuple(a - b for a, b in zip(*pairs)) if name != to else (),
                low,
                high,
                p,
            )
        )
    return found[:1] + sorted(found[1:], key=lambda comparison: -comparison.difference)
