"""The conditions of a study compared with each other, seed by seed."""

import math
import statistics
from dataclasses import dataclass

from katlib.extras import require


@dataclass(frozen=True)
class Comparison:
    """The runs of one condition beside those of another with the same seeds.

    Accuracies and their differences are fractions. The interval and p are those of the paired
    t-test, which takes the differences to be normally distributed.

    Attributes:
        condition: its key in the study.
        title: its name on the page.
        parameters: of its model.
        accuracies: of all seeds of the condition, in the order of the seeds.
        differences: to the other condition, in the order of the seeds that both have; empty for a
            condition beside itself, for which `low`, `high` and `p` are not a number.
        low, high: the 95% confidence interval of the mean difference.
        p: of the two-sided test that the mean difference is 0.
    """

    condition: str
    title: str
    parameters: int
    accuracies: tuple[float, ...]
    differences: tuple[float, ...]
    low: float
    high: float
    p: float

    @property
    def mean(self) -> float:
        """Mean of the accuracies."""
        return statistics.mean(self.accuracies)

    @property
    def std(self) -> float:
        """Standard deviation of the accuracies."""
        return statistics.stdev(self.accuracies)

    @property
    def difference(self) -> float:
        """Mean of the differences."""
        return statistics.mean(self.differences)

    @property
    def difference_std(self) -> float:
        """Standard deviation of the differences."""
        return statistics.stdev(self.differences)


def compare(runs: list[dict], to: str = "kat") -> list[Comparison]:
    """Every condition of a study's runs against the condition `to`, paired by seed.

    Args:
        runs: records with the keys "condition", "title", "seed", "parameters" and "test_accuracy".
        to: the condition that the others are compared with.

    Returns:
        The condition `to` itself, without differences; then the others by their mean difference,
        the most favourable first.

    Raises:
        ValueError: there are no runs of `to`, or a condition shares fewer than two seeds with it.
        ImportError: scipy, of katlib's extra `notebooks`, is missing.
    """
    runs_by_seed: dict[str, dict[int, dict]] = {}
    for run in runs:
        runs_by_seed.setdefault(run["condition"], {})[run["seed"]] = run
    if to not in runs_by_seed:
        raise ValueError(
            f"there are no runs of {to!r}; there are {', '.join(runs_by_seed) or 'none at all'}"
        )
    baseline = runs_by_seed.pop(to)
    first = _compare_condition(to, baseline, to, baseline)
    others = [
        _compare_condition(name, by_seed, to, baseline) for name, by_seed in runs_by_seed.items()
    ]
    others.sort(key=lambda comparison: -comparison.difference)
    return [first, *others]


def _compare_condition(
    name: str, runs: dict[int, dict], to: str, baseline: dict[int, dict]
) -> Comparison:
    """One condition beside the condition `to`; both as runs by seed."""
    common_seeds = sorted(set(runs) & set(baseline))
    if len(common_seeds) < 2:
        raise ValueError(
            f"{name!r} and {to!r} share the seeds {common_seeds}; a paired test needs two or more"
        )
    differences: tuple[float, ...] = ()
    low = high = p = math.nan
    if name != to:
        accuracies = [runs[seed]["test_accuracy"] for seed in common_seeds]
        baseline_accuracies = [baseline[seed]["test_accuracy"] for seed in common_seeds]
        differences = tuple(a - b for a, b in zip(accuracies, baseline_accuracies))
        low, high, p = _paired_test(accuracies, baseline_accuracies)
    any_run = next(iter(runs.values()))
    return Comparison(
        condition=name,
        title=any_run["title"],
        parameters=any_run["parameters"],
        accuracies=tuple(runs[seed]["test_accuracy"] for seed in sorted(runs)),
        differences=differences,
        low=low,
        high=high,
        p=p,
    )


def _paired_test(first: list[float], second: list[float]) -> tuple[float, float, float]:
    """Student's paired t-test: the 95% interval of the mean of first - second, and p."""
    # most chapters do without scipy
    require("notebooks", "scipy")
    from scipy import stats

    test = stats.ttest_rel(first, second)
    low, high = test.confidence_interval(0.95)
    return low, high, test.pvalue
