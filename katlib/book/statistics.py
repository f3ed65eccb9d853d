"""The conditions of a study compared with each other: seed by seed, or all with one control."""

import math
import statistics
from dataclasses import dataclass

from katlib.extras import require


@dataclass(frozen=True)
class Condition:
    """The runs of one condition of a study. Accuracies are fractions.

    Attributes:
        condition: its key in the study.
        title: its name on the page.
        parameters: of its model.
        accuracies: of all its runs, in the order of the seeds.
    """

    condition: str
    title: str
    parameters: int
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the accuracies."""
        return statistics.mean(self.accuracies)

    @property
    def std(self) -> float:
        """Standard deviation of the accuracies."""
        return statistics.stdev(self.accuracies)


@dataclass(frozen=True)
class Comparison(Condition):
    """The runs of one condition beside those of another with the same seeds.

    The interval and p are those of the paired t-test, which takes the differences to be normally
    distributed.

    Attributes:
        differences: of the accuracies to the other condition, in the order of the seeds that both
            have; empty for a condition beside itself, for which `low`, `high` and `p` are not a
            number.
        low, high: the 95% confidence interval of the mean difference.
        p: of the two-sided test that the mean difference is 0.
    """

    differences: tuple[float, ...]
    low: float
    high: float
    p: float

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


def paired_interval(differences: list[float]) -> tuple[float, float]:
    """The 95% confidence interval of the mean of paired differences, by Student's t."""
    low, high, _ = _paired_test(differences, [0.0] * len(differences))
    return low, high


@dataclass(frozen=True)
class Difference(Condition):
    """All runs of one condition beside all runs of the control.

    Attributes:
        difference: of the mean accuracies, condition minus control; not a number for the control
            itself, as are `low`, `high` and `p`.
        low, high: the 95% simultaneous confidence interval of Dunnett's test: all intervals of the
            family hold together with a probability of 95%.
        p: of the test that the difference is 0, adjusted for the number of comparisons.
    """

    difference: float
    low: float
    high: float
    p: float

    @property
    def verdict(self) -> str:
        """Better or worse than the control, where the interval leaves out 0; else undecided."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "undecided"


def compare_with_control(runs: list[dict], control: str = "kat") -> list[Difference]:
    """Every condition of a study against one control, by Dunnett's test.

    The test takes all runs of a condition, whatever their seeds. It assumes normal scatter of the
    same size in every condition, which it estimates from all of them together: with three or four
    runs for each, that is much surer than an estimate for each pair. And it adjusts for the number
    of comparisons (Dunnett, J. Am. Stat. Assoc. 50, 1955).

    Args:
        runs: records with the keys "condition", "title", "seed", "parameters" and "test_accuracy".
        control: the condition that the others are compared with.

    Returns:
        The control itself, then the others by their difference, the most favourable first.

    Raises:
        ValueError: there are no runs of the control or of any other condition, or a condition has
            fewer than two runs.
        ImportError: scipy, of katlib's extra `notebooks`, is missing.
    """
    by_condition: dict[str, list[dict]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        by_condition.setdefault(run["condition"], []).append(run)
    if control not in by_condition or len(by_condition) < 2:
        raise ValueError(
            f"runs of {control!r} and of another condition are needed; there are runs of "
            f"{', '.join(by_condition) or 'none at all'}"
        )
    for name, own in by_condition.items():
        if len(own) < 2:
            raise ValueError(f"{name!r} has one run; its scatter needs two or more")
    others = [name for name in by_condition if name != control]
    differences = _dunnett(
        [[run["test_accuracy"] for run in by_condition[name]] for name in (control, *others)]
    )
    found = [
        _difference(by_condition[name], *numbers)
        for name, numbers in zip(others, differences, strict=True)
    ]
    found.sort(key=lambda difference: -difference.difference)
    return [_difference(by_condition[control], math.nan, math.nan, math.nan, math.nan), *found]


def _difference(
    runs: list[dict], difference: float, low: float, high: float, p: float
) -> Difference:
    return Difference(
        condition=runs[0]["condition"],
        title=runs[0]["title"],
        parameters=runs[0]["parameters"],
        accuracies=tuple(run["test_accuracy"] for run in runs),
        difference=difference,
        low=low,
        high=high,
        p=p,
    )


def _dunnett(samples: list[list[float]]) -> list[tuple[float, float, float, float]]:
    """Each sample after the first against the first: difference of the means, interval, p."""
    require("notebooks", "scipy")
    from scipy import stats

    control, *others = samples
    # its integral over the multivariate t distribution is sampled; the seed fixes the digits
    test = stats.dunnett(*others, control=control, random_state=0)
    interval = test.confidence_interval(0.95)
    return [
        (statistics.mean(other) - statistics.mean(control), float(low), float(high), float(p))
        for other, low, high, p in zip(
            others, interval.low, interval.high, test.pvalue, strict=True
        )
    ]
