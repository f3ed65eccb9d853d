"""Answers to the exercises: right ones that a check must take, and wrong ones that it must refuse.

`chapter_05.py` (for an appendix `appendix_1.py`) has a dictionary ATTACKS of `Attack` by the
exercise's number. `test_exercises.py` adds attacks that suit every exercise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Attack:
    """The arguments of a check, as tuples.

    Args:
        right: at least two different answers that are right, the solution's first.
        wrong: by what is wrong with them: each ingredient of the formula left out, the wrong
            answer that stands in the exercise, a neighbour of the right one.
        harmless: names of the general attacks (`test_exercises.GENERAL`) that happen to leave the
            answer right here, such as a changed sign where the sign does not matter.
    """

    right: list[tuple]
    wrong: dict[str, tuple] = field(default_factory=dict)
    harmless: tuple[str, ...] = ()


def changed(function: Callable, change: Callable[[Any], Any]) -> Callable:
    """The function with its result changed; tuples are changed item by item."""

    def other(*arguments):
        result = function(*arguments)
        if isinstance(result, (tuple, list)):
            return type(result)(change(item) for item in result)
        return change(result)

    return other
