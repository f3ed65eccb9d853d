"""From ViT to KAT: a trained Vision Transformer's MLPs as GR-KAN layers of the same function.

    W_2 act(W_1 x + c_1) + c_2    ->    W_2 F_2(W_1 F_1(x) + c_1) + c_2

F_1 is the identity, exactly, and F_2 is fitted to act, so that training goes on from where the ViT
is (arXiv 2409.10594, section 4.4: KATs that start from a ViT end 0.5 to 1.1 points higher). Each
layer's fit is made where it will be used: on the interval that W_1 x + c_1 spans, measured on
images.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from katlib.architecture import Architecture
from katlib.fit import RationalFit, chebyshev_points, fit_rational, refit, resolve_target
from katlib.grkan import GRKANIntermediate, GRKANMlp
from katlib.rational import GroupRational
from katlib.vit_mlps import FoundMlp, activation_name, convertible_mlps, named_in_errors

# of each activation's inputs, and of each MLP's outputs, at most so many are kept: 512 KiB
KEPT_SAMPLES = 2**16
# on how many of an activation's inputs its fit is refined; they are chosen evenly by rank
REFIT_SAMPLES = 4000
# the fitted interval is this much wider than the measured one, for other images go a bit further
INTERVAL_MARGIN = 1.1
# the released KATs' degrees, and those that are tried where these miss the tolerance
DEGREES = ((5, 4), (7, 6))


@torch.no_grad()
def from_vit(
    model: nn.Module,
    images: Tensor | None = None,
    *,
    groups: int = 8,
    degrees: tuple[int, int] | None = None,
    tolerance: float = 1e-2,
) -> nn.Module:
    """A KAT that computes what a Vision Transformer with MLPs computes, ready to be trained on.

    Args:
        model: a ViT of timm's, torchvision's or Hugging Face's, or
            `katlib.VisionTransformer(mlp="mlp")`; any module whose MLPs are two linear maps (`fc1`
            and `fc2`, `up_proj` and `down_proj`, or the two in a `torch.nn.Sequential`) and an
            activation between them, which may be a module or a function. It is not changed, and
            shares no parameters with the result: all are copied.
        images: (B, C, H, W), normalised as for the model, B of 16 or more: on them the activations'
            inputs and the change of the logits are measured. Default: 16 of Gaussian noise, good
            for a model that is not trained; a trained one deserves real images.
        groups: of the rational functions; all start alike.
        degrees: (m, n) of the rational functions. Default: (5, 4), the released KATs', or (7, 6)
            where those miss the tolerance.
        tolerance: of the largest change of a logit, in units of the logits' root mean square, and
            of the root mean square change of each MLP's output, in units of that output's; a result
            that misses it comes with a warning.

    Returns:
        A copy of the model, in the same mode, whose MLPs are `GRKANMlp`; in Hugging Face's older
        models, where an MLP is divided between `intermediate` and `output`, the former becomes a
        `GRKANIntermediate`. An MLP that stands in several places still does. MLPs of positions,
        which compute a position's bias, and squeeze-excite blocks are left as they are. The copy of
        a half-precision model is measured in float32; its linear maps keep their type, and the
        functions' coefficients are float32.

        Its attribute `conversion` is a dictionary: `degrees`; `largest_logit_change`;
        `logit_scale`, the root mean square of the model's logits; `relative_change`, their ratio;
        `left_alone`, the names of other MLPs, each with the reason; and `layers`, for each MLP its
        `activation`, the `interval` of the fit, its largest error there, `max_error`, the root mean
        square of its error on what the activation is given, `typical_error`, and `output_change`,
        by how much the MLP's output changes. The last two are measured on a random sample of at
        most 65,536 numbers.
        The dropout after the activation is kept; a dropout after `fc2` is not, for a `GRKANMlp` has
        none.

    Raises:
        ValueError: no such MLP, gated ones (SwiGLU), a norm between the layers, convolutions for
            linear maps, an activation with parameters of its own or that mixes channels, an MLP
            that computes more than its parts, a KAT, a model on the meta device, or groups that do
            not divide the widths. The message names the module.

    Example:
        >>> vit = katlib.VisionTransformer(
        ...     img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10,
        ...     mlp="mlp",
        ... )
        >>> katlib.from_vit(vit).conversion["relative_change"] < 1e-2
        True
    """
    convertible_mlps(model)
    kat = copy.deepcopy(model).eval()
    with _half_as_float32(kat):
        first = next(kat.parameters())
        images = _noise_images(kat) if images is None else images
        images = images.to(first.device, first.dtype)
        mlps, left_alone = _mlps_that_see_images(kat, convertible_mlps(kat), images)
        before = _record(kat, mlps, images, inputs=True)
        for pair in (degrees,) if degrees else DEGREES:
            fits = _fit_activations(mlps, before.inputs, pair)
            _replace_mlps(kat, mlps, fits, groups)
            changes = _Changes.between(before, _record(kat, mlps, images, inputs=False))
            if changes.largest <= tolerance:
                break
        else:
            _warn_of_changes(changes, tolerance)
    cast(Any, kat).conversion = {
        "degrees": pair,
        "largest_logit_change": changes.largest_logit_change,
        "logit_scale": changes.logit_scale,
        "relative_change": changes.logits,
        "left_alone": left_alone,
        "layers": {
            name: _fit_report(mlp, fits[name], before.inputs[name].values)
            | {"output_change": changes.outputs[name]}
            for name, mlp in mlps.items()
        },
    }
    _describe_as_kat(kat, groups, pair, next(iter(fits.values())))
    return kat.train(model.training)


@contextmanager
def _half_as_float32(model: nn.Module) -> Iterator[None]:
    """Makes what a model has in half precision float32, and in the end half precision again.

    Rounding to half precision would change the logits more than the fits do.
    """
    tensors = [
        (t, t.dtype)
        for t in (*model.parameters(), *model.buffers())
        if t.dtype in (torch.float16, torch.bfloat16)
    ]
    for t, _ in tensors:
        t.data = t.data.float()
    try:
        yield
    finally:
        for t, dtype in tensors:
            t.data = t.data.to(dtype)


@dataclass
class _Sample:
    """A random sample of all numbers that were added, never more than `KEPT_SAMPLES` of them."""

    values: Tensor = field(
        default_factory=lambda: torch.empty(0, dtype=torch.float64, device="cpu")
    )
    # how many were added, and the largest absolute value among them
    count: int = 0
    reach: float = 0.0
    # the same draws each time, so that two runs keep the numbers of the same places
    generator: torch.Generator = field(
        default_factory=lambda: torch.Generator("cpu").manual_seed(0)
    )

    def add(self, x: Tensor) -> None:
        x = x.detach().flatten()
        if not x.numel():
            return
        low, high = x.aminmax()
        largest = max(-low.item(), high.item())
        self.reach = largest if math.isnan(largest) else max(self.reach, largest)
        total = self.count + x.numel()
        # each keeps its share, as in a reservoir
        kept = min(KEPT_SAMPLES, total)
        new = round(kept * x.numel() / total)
        parts = [self._draw(self.values, kept - new), self._draw(x, new).double().cpu()]
        self.values = torch.cat(parts)
        self.count = total

    def _draw(self, x: Tensor, size: int) -> Tensor:
        if size == len(x):
            return x
        if len(x) <= 16 * KEPT_SAMPLES:
            places = torch.randperm(len(x), generator=self.generator, device="cpu")[:size]
        else:
            # among so many, hardly a place comes twice
            places = torch.randint(len(x), (size,), generator=self.generator, device="cpu")
        return x[places.to(x.device)]


@dataclass
class _Record:
    """What a model computed from images."""

    logits: Tensor
    # by the MLPs' names: what the activation was given, and what the MLP returned
    inputs: dict[str, _Sample]
    outputs: dict[str, _Sample]


def _record(kat: nn.Module, mlps: dict[str, FoundMlp], images: Tensor, inputs: bool) -> _Record:
    """Runs the model; of the activations' inputs only if it still has its activations."""
    record = _Record(images, {}, {})
    hooks = []
    for name, mlp in mlps.items():
        sample = record.outputs.setdefault(name, _Sample())
        hooks.append(_sample_output(kat.get_submodule(name), sample))
        if inputs:
            hooks.append(_sample_output(mlp.fc1, record.inputs.setdefault(name, _Sample())))
    try:
        record.logits = _logits(kat, images)
    finally:
        for hook in hooks:
            hook.remove()
    for name, sample in record.inputs.items():
        if not math.isfinite(sample.reach):
            raise ValueError(
                f"{mlps[name].title} gives its activation numbers that are not finite; are the "
                "images and the model's weights finite?"
            )
    return record


def _sample_output(module: nn.Module, sample: _Sample) -> Any:
    """Adds all that a module returns to a sample, until the hook that is returned is removed."""
    return module.register_forward_hook(lambda module, arguments, output: sample.add(output))


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """What a model returns, or the logits or the last hidden state in what it returns."""
    output = model(images)
    for name in ("logits", "last_hidden_state"):
        if isinstance(getattr(output, name, None), Tensor):
            output = getattr(output, name)
    if isinstance(output, (tuple, list)) and output:
        output = output[-1]
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{type(model).__name__} returns a {type(output).__name__}; it must return a tensor, "
            "a list of tensors, or something with logits"
        )
    return output


@dataclass
class _Changes:
    """By how much a model's logits and its MLPs' outputs change."""

    largest_logit_change: float
    logit_scale: float
    # by the MLPs' names; root mean squares
    outputs: dict[str, float]

    @classmethod
    def between(cls, before: _Record, after: _Record) -> "_Changes":
        logits = before.logits.double()
        return cls(
            (after.logits - logits).abs().max().item(),
            max(_root_mean_square(logits), 1e-30),
            {
                name: _root_mean_square(after.outputs[name].values - sample.values)
                / max(_root_mean_square(sample.values), 1e-30)
                for name, sample in before.outputs.items()
            },
        )

    @property
    def logits(self) -> float:
        return self.largest_logit_change / self.logit_scale

    @property
    def worst_mlp(self) -> str:
        return max(self.outputs, key=self.outputs.__getitem__)

    @property
    def largest(self) -> float:
        """Of the MLPs too: what a head of zeros returns does not change, whatever it is given."""
        return max(self.logits, self.outputs[self.worst_mlp])


def _root_mean_square(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def _warn_of_changes(changes: _Changes, tolerance: float) -> None:
    """Says what misses the tolerance."""
    if changes.logits > tolerance:
        said = f"the logits change by up to {changes.logits:.1%} of their root mean square"
    else:
        change = changes.outputs[changes.worst_mlp]
        said = f"what {changes.worst_mlp} returns changes by {change:.1%} of its root mean square"
    warnings.warn(f"{said}, more than the tolerance of {tolerance:.1%}", stacklevel=4)


def _mlps_that_see_images(
    kat: nn.Module, mlps: dict[str, FoundMlp], images: Tensor
) -> tuple[dict[str, FoundMlp], dict[str, str]]:
    """The MLPs whose input depends on the image; for each other one, why it is left alone."""
    generator = torch.Generator("cpu").manual_seed(1)
    noise = torch.randn(images[:1].shape, generator=generator, device="cpu").to(images)
    of_image, of_noise = (_probe(kat, mlps, image) for image in (images[:1], noise))
    left_alone = {}
    for name, mlp in mlps.items():
        if name not in of_image:
            left_alone[name] = "the model does not use it on images"
            warnings.warn(
                f"{mlp.title} stays as it is: the model does not use it on these images",
                stacklevel=4,
            )
        elif of_image[name] == of_noise.get(name):
            left_alone[name] = "its input is the same for every image: it computes positions"
    seeing = {name: mlp for name, mlp in mlps.items() if name not in left_alone}
    if not seeing:
        raise ValueError(
            f"no MLP of {type(kat).__name__} depends on the images; nothing to convert: "
            f"{', '.join(mlps)}"
        )
    return seeing, left_alone


def _probe(kat: nn.Module, mlps: dict[str, FoundMlp], image: Tensor) -> dict[str, tuple]:
    """What tells one input of an MLP from another, for each MLP that the model uses.

    Raises:
        ValueError: an MLP does not compute what its parts compute.
    """
    seen: dict[str, tuple] = {}
    rows: dict[str, tuple[Tensor, Tensor]] = {}

    def probe(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple, keywords: dict, output: Tensor) -> None:
            x = (*arguments, *keywords.values())[0].detach()
            size, mean = x.abs().max().item(), x.double().mean().item()
            seen[name] = (*seen.get(name, ()), x.shape, size, mean)
            rows[name] = _first_rows(x), _first_rows(output)

        return hook

    hooks = [
        mlp.layers.module.register_forward_hook(probe(name), with_kwargs=True)
        for name, mlp in mlps.items()
    ]
    try:
        _logits(kat, image)
    finally:
        for hook in hooks:
            hook.remove()
    for name, (x, output) in rows.items():
        _check_parts(mlps[name], x, output)
    return seen


def _first_rows(x: Any) -> Tensor:
    """(rows, C): a few tokens of (..., C), enough to compare two functions of a token."""
    if not isinstance(x, Tensor):
        return torch.empty(0, device="cpu")
    return x.detach().reshape(-1, x.shape[-1])[:8].clone()


def _check_parts(mlp: FoundMlp, x: Tensor, output: Tensor) -> None:
    """Raises ValueError if the MLP computed something else from x than its layers do."""
    if x.shape[-1] == mlp.fc1.in_features:
        expected = mlp.output(x)
        if expected.shape == output.shape:
            error, scale = (expected - output).abs().max(), output.abs().max()
            # numbers that are not finite get a message of their own
            if error <= 1e-3 * scale or not scale.isfinite():
                return
    raise ValueError(
        f"{mlp.title} computes something else than a linear map, its activation and a linear map; "
        "no GR-KAN stands for it"
    )


def _fit_activations(
    mlps: dict[str, FoundMlp], inputs: dict[str, _Sample], degrees: tuple[int, int]
) -> dict[str, RationalFit]:
    """A fit to each MLP's activation, best where its inputs are."""
    fits = {}
    # fits on the whole interval, the slow part, which layers share
    wide_fits: dict[tuple[int, bytes], RationalFit] = {}
    for name, mlp in mlps.items():
        sample = inputs[name]
        # a whole number, so that many layers have the same
        reach = max(3, math.ceil(INTERVAL_MARGIN * sample.reach))
        function = resolve_target(mlp.act)
        sorted_values = sample.values.sort().values
        samples = sorted_values[:: math.ceil(len(sorted_values) / REFIT_SAMPLES)]
        with named_in_errors(mlp):
            # activations are the same function if their values are the same
            values = function(chebyshev_points(-reach, reach))
            key = (reach, values.numpy().tobytes())
            if key not in wide_fits:
                wide_fits[key] = fit_rational(function, degrees, (-reach, reach), rounds=10)
            fits[name] = refit(wide_fits[key], function, samples)
    return fits


def _replace_mlps(
    kat: nn.Module, mlps: dict[str, FoundMlp], fits: dict[str, RationalFit], groups: int
) -> None:
    """Puts a GR-KAN in the place of each MLP, in place."""
    for name, mlp in mlps.items():
        with named_in_errors(mlp):
            replacement = _as_grkan(mlp, fits[name], groups)
        for place in mlp.names:
            parent, _, attribute = place.rpartition(".")
            setattr(kat.get_submodule(parent), attribute, replacement)


def _as_grkan(mlp: FoundMlp, fit: RationalFit, groups: int) -> nn.Module:
    """An MLP's linear maps behind the identity and the fitted activation."""
    width, hidden = mlp.fc1.in_features, mlp.fc1.out_features
    degrees = (len(fit.numerator) - 1, len(fit.denominator))
    like: dict[str, Any] = {"device": mlp.fc1.weight.device, "dtype": mlp.fc1.weight.dtype}
    act1 = GroupRational(width, groups, "identity", degrees, **like)
    act2 = GroupRational(hidden, groups, fit, degrees, **like)
    if mlp.fc2 is None:
        return GRKANIntermediate(act1, mlp.fc1, act2).eval()
    # without numbers, for all its parts are about to be replaced
    new = GRKANMlp(width, hidden, mlp.fc2.out_features, groups=groups, device="meta")
    new.act1, new.fc1, new.act2, new.fc2 = act1, mlp.fc1, act2, mlp.fc2
    new.drop2.p = mlp.layers.dropout
    around = (*mlp.layers.before, new, *mlp.layers.after)
    return (new if len(around) == 1 else nn.Sequential(*around)).eval()


def _fit_report(mlp: FoundMlp, fit: RationalFit, x: Tensor) -> dict[str, Any]:
    """What `conversion["layers"]` says of the fit of one MLP."""
    return {
        "activation": activation_name(mlp.act),
        "interval": fit.interval,
        "max_error": fit.max_error,
        "typical_error": _root_mean_square(fit(x) - resolve_target(mlp.act)(x)),
    }


def _describe_as_kat(
    kat: nn.Module, groups: int, degrees: tuple[int, int], fit: RationalFit
) -> None:
    """Says in the `architecture` of a `katlib.VisionTransformer` what it has become."""
    architecture = getattr(kat, "architecture", None)
    if isinstance(architecture, Architecture):
        start = (fit.numerator.tolist(), fit.denominator.tolist())
        cast(Any, kat).architecture = replace(
            architecture,
            mlp="grkan",
            groups=groups,
            numerator_groups=1,
            degrees=degrees,
            act_init=("identity", start),
        )
        pretrained_cfg = getattr(kat, "pretrained_cfg", None)
        if isinstance(pretrained_cfg, dict):
            stated = {"architecture": cast(Any, kat).architecture.as_json()}
            cast(Any, kat).pretrained_cfg = pretrained_cfg | stated


def _noise_images(model: nn.Module) -> Tensor:
    """16 images of N(0, 1) of the size that the model says it takes."""
    owners = (model, getattr(model, "patch_embed", None), getattr(model, "config", None))
    # timm's and katlib's name, and torchvision's and Hugging Face's
    sizes = (getattr(owner, name, None) for owner in owners for name in ("img_size", "image_size"))
    size = next((size for size in sizes if size is not None), None)
    # the first convolution is the one that takes the images
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if size is None or convolution is None:
        raise ValueError(
            f"{type(model).__name__} does not say what size of images it takes; pass some as "
            "images="
        )
    height, width = (size, size) if isinstance(size, int) else size
    shape = (16, convolution.in_channels, height, width)
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
