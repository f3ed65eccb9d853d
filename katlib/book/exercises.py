"""How the exercises of the notebooks answer.

A check is a function in the notebook: it gets the reader's answer and returns whether it is right,
after it has said what is wrong or that nothing is. It raises for no answer whatever, and it does
not give the answer away.

    def check_1_1(slope):
        slope = numbers(slope)
        if slope is None:
            return False
        if abs(slope - 0.5) > 1e-6:
            return not_yet("at x = 2 the line is too steep." if slope > 0.5 else "too flat.")
        return right()
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor


def right(message: str = "") -> bool:
    """Says that the answer is right, and why if there is more to say; returns True."""
    print("Right." if not message else f"Right: {message}")
    return True


def not_yet(message: str) -> bool:
    """Says what is wrong with the answer, as a whole sentence; returns False."""
    print(f"Not yet: {message}")
    return False


def numbers(answer: Any, *shape: int, what: str = "the answer") -> Tensor | None:
    """The reader's numbers as a float64 tensor; None, after a word, if they are none.

    Args:
        answer: a number, a list of them, an array or a tensor; fractions are numbers too, and
            complex numbers are refused, even those whose imaginary part is 0.
        shape: that it must have: none for a single number, -1 for a size that is free.
        what: what the message calls it.

    Example:
        >>> from katlib.book.exercises import numbers
        >>> numbers([1, 2], 2)
        tensor([1., 2.], dtype=torch.float64)
        >>> numbers([1, float("nan")], 2, what="b")
        Not yet: b has a value that is not finite.
    """
    try:
        answer = _without_fractions(answer)
        given = torch.as_tensor(answer).detach()
        if not isinstance(answer, (Tensor, np.ndarray)) and not given.is_complex():
            # again, because torch reads Python's numbers as float32
            given = torch.as_tensor(answer, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        not_yet(f"{what} must be {_describe(shape)}.")
        return None
    if given.is_complex():
        not_yet(f"{what} must be real, and it is complex.")
        return None
    given = given.to("cpu", torch.float64)
    fits = given.ndim == len(shape) and all(
        size in (-1, n) for size, n in zip(shape, given.shape, strict=True)
    )
    if not fits or answer is True or answer is False:
        not_yet(f"{what} must be {_describe(shape)}.")
        return None
    if not given.isfinite().all():
        not_yet(f"{what} has a value that is not finite.")
        return None
    return given


def whole_number(answer: Any, what: str = "the answer") -> int | None:
    """The reader's whole number; None, after a word, if it is none."""
    number = numbers(answer, what=what)
    if number is None:
        return None
    if number.item() != math.floor(number.item()):
        not_yet(f"{what} must be a whole number.")
        return None
    return int(number.item())


def output(function: Any, *arguments: Any, like: Tensor | None = None) -> Tensor | None:
    """What the reader's function returns, as float64; None, after a word, if it cannot be used.

    Args:
        function: the reader's.
        arguments: what it is called with; tensors are copied, so that it cannot change them.
        like: a tensor of the shape that the result must have; None for a single number.
    """
    if not callable(function):
        not_yet("the answer must be a function.")
        return None
    copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    try:
        result = function(*copies)
    # whatever the reader's function raises is an answer too
    except Exception as error:
        not_yet(f"your function raised {type(error).__name__}: {error}")
        return None
    if result is None:
        not_yet("your function returns nothing yet.")
        return None
    shape = () if like is None else tuple(like.shape)
    return numbers(result, *shape, what="what your function returns")


def outputs(function: Any, *arguments: Any, like: tuple[Tensor, ...]) -> list[Tensor] | None:
    """As `output`, for a function that returns a tuple of tensors of these shapes.

    It may also stack them in one tensor or array.
    """
    kept: list[Any] = []

    def run(*copies: Any) -> float:
        kept.append(function(*copies))
        return 0.0

    if not callable(function):
        not_yet("the answer must be a function.")
        return None
    if output(run, *arguments) is None:
        return None
    (results,) = kept
    if isinstance(results, (Tensor, np.ndarray)) and results.ndim > 0:
        results = list(results)
    if not isinstance(results, (tuple, list)) or len(results) != len(like):
        not_yet(f"your function must return {len(like)} tensors.")
        return None
    tensors = []
    for number, (result, expected) in enumerate(zip(results, like, strict=True), 1):
        what = f"number {number} of what your function returns"
        tensor = numbers(result, *expected.shape, what=what)
        if tensor is None:
            return None
        tensors.append(tensor)
    return tensors


def _without_fractions(answer: Any) -> Any:
    """The answer with each `Fraction` as a float; torch knows no fractions."""
    if isinstance(answer, Fraction):
        return float(answer)
    if isinstance(answer, (list, tuple)):
        return [_without_fractions(item) for item in answer]
    if isinstance(answer, np.ndarray) and answer.dtype == object:
        return _without_fractions(answer.tolist())
    return answer


def _describe(shape: tuple[int, ...]) -> str:
    if not shape:
        return "one number"
    if shape == (-1,):
        return "a list of numbers"
    if len(shape) == 1:
        return f"a list of {shape[0]} numbers"
    sizes = ", ".join("any" if size == -1 else str(size) for size in shape)
    return f"numbers of shape ({sizes})"
