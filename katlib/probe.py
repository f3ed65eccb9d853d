"""One fixed image, and what a model makes of it: how a file's function is recognised.

Names and shapes of tensors do not determine a function. Four heads and two heads have the same
weights, and so have two activations. The outputs for one image do tell them apart, so they travel
with the weights and are compared when these are loaded.

All is computed in float64 on the CPU, from the weights as the file has them. Machines and versions
then agree to many digits, and the comparison can be strict.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

# largest difference of an output, in units of the largest output
TOLERANCE = 1e-4

GOLDEN_RATIO = 0.6180339887498949

Outputs = dict[str, Tensor]


def probe_image(channels: int, size: int) -> Tensor:
    """The image (1, channels, size, size), float64, of mean 0 and variance 1.

    Its pixels are the fractional parts of k^2 times the golden ratio, for k = 0, 1, 2, ...: as
    irregular as noise, but by a formula that no version of a random generator can change.

    Example:
        >>> from katlib.probe import probe_image
        >>> image = probe_image(3, 32)
        >>> f"{image.mean():.2f} {image.std():.2f}"
        '-0.02 0.99'
    """
    k = torch.arange(channels * size * size, dtype=torch.float64, device="cpu")
    uniform = (k * k * GOLDEN_RATIO) % 1
    return (math.sqrt(12) * (uniform - 0.5)).view(1, channels, size, size)


@torch.no_grad()
def probe_outputs(
    model: nn.Module, channels: int, size: int, weights: Mapping[str, Tensor] | None = None
) -> Outputs:
    """What a model makes of the probe image, in evaluation mode, in float64 on the CPU.

    The features that enter the head belong to it, because a head of zeros makes all models alike.
    The model may have any dtype and lie on any device; it is not changed.

    Args:
        model: a model with a linear map `head`, which makes the logits.
        channels, size: of its images.
        weights: {name: tensor} to compute with in place of the model's own.

    Returns:
        `features` (embed_dim,) and `logits` (num_classes,).
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    weights = {name: _as_float64(value) for name, value in (own | dict(weights or {})).items()}
    features: list[Tensor] = []
    head = model.get_submodule("head")
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    try:
        with _evaluation_mode(model), torch.autocast("cpu", enabled=False):
            image = probe_image(channels, size)
            logits = functional_call(model, weights, (image,), tie_weights=False)
    finally:
        hook.remove()
    return {"features": features[0].flatten(), "logits": logits.flatten()}


def largest_difference(found: Outputs, expected: Outputs) -> float:
    """The largest difference of two models' outputs, in units of the largest that is expected.

    It is infinite for other numbers of outputs, and for outputs that are not finite.
    """
    return max(_relative_difference(found[name], expected[name]) for name in expected)


def as_json(outputs: Outputs) -> dict[str, list[float]]:
    """The outputs as a file's header has them, with seven digits."""
    return {name: [float(f"{v:.7g}") for v in values] for name, values in outputs.items()}


def from_json(stored: Any) -> Outputs:
    """The outputs that a file's header has.

    Raises:
        ValueError: it has something else.
    """
    if not isinstance(stored, dict) or stored.keys() != {"features", "logits"}:
        raise ValueError(f"probe={stored!r:.100}; it needs features and logits")
    outputs = {}
    for name, values in stored.items():
        if not isinstance(values, list) or not all(is_number(v) for v in values):
            raise ValueError(f"the probe's {name} are no list of numbers")
        outputs[name] = torch.tensor([float(v) for v in values], dtype=torch.float64, device="cpu")
    return outputs


def is_number(value: object) -> bool:
    """Whether a value from JSON is a number that float64 can hold, and no bool."""
    return type(value) in (int, float) and abs(cast(float, value)) <= sys.float_info.max


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape or not expected.isfinite().all():
        return math.inf
    if not expected.numel():
        return 0.0
    difference = (found - expected).abs().max().item()
    # outputs that are all 0 have no scale of their own
    scale = expected.abs().max().item() or 1.0
    return difference / scale if math.isfinite(difference) else math.inf


def _as_float64(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return value.double() if value.is_floating_point() else value


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards for each module the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
