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
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from katlib.architecture import Architecture
from katlib.fit import RationalFit, fit_rational, refit
from katlib.grkan import GRKANMlp

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
        model: a ViT of timm's or `katlib.VisionTransformer(mlp="mlp")`; any module whose MLPs are
            `fc1`, an activation `act`, `fc2`. It is not changed, and shares no parameters with the
            result: all are copied.
        images: (B, C, H, W), normalised as for the model, B of 16 or more: on them the activations'
            inputs and the change of the logits are measured. Default: 16 of Gaussian noise, good
            for a model that is not trained; a trained one deserves real images.
        groups: of the rational functions; all start alike.
        degrees: (m, n) of the rational functions. Default: (5, 4), the released KATs', or (7, 6)
            where those miss the tolerance.
        tolerance: of the largest change of a logit, in units of the logits' root mean square; a
            result that misses it comes with a warning.

    Returns:
        A copy of the model, in the same mode, whose MLPs are `GRKANMlp`. Its attribute `conversion`
        is a dictionary: `degrees`; `largest_logit_change`; `logit_scale`, the root mean square of
        the model's logits; `relative_change`, their ratio; and `layers`, for each MLP its
        `activation`, the `interval` of the fit, its largest error there, `max_error`, and the root
        mean square of its error on what the activation is given, `typical_error`.
        The dropout after the activation is kept; a dropout after `fc2` is not, for a `GRKANMlp` has
        none.

    Raises:
        ValueError: no such MLP, gated ones (SwiGLU), a norm between the layers, convolutions for
            linear maps, an activation with parameters of its own or that mixes channels, a KAT, or
            groups that do not divide the widths.

    Example:
        >>> vit = katlib.VisionTransformer(
        ...     img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10,
        ...     mlp="mlp",
        ... )
        >>> katlib.from_vit(vit).conversion["relative_change"] < 1e-2
        True
    """
    mlps = _convertible_mlps(model)
    kat = copy.deepcopy(model).eval()
    device = next(kat.parameters()).device
    images = (_noise_images(kat) if images is None else images).to(device)
    logits, inputs = _record_activation_inputs(kat, list(mlps), images)
    scale = max(logits.float().square().mean().sqrt().item(), 1e-30)
    for pair in (degrees,) if degrees else DEGREES:
        fits = _fit_activations(mlps, inputs, pair)
        _replace_mlps(kat, mlps, fits, groups)
        change = (kat(images) - logits).abs().max().item()
        if change <= tolerance * scale:
            break
    else:
        warnings.warn(
            f"the logits change by up to {change / scale:.1%} of their root mean square, more than "
            f"the tolerance of {tolerance:.1%}",
            stacklevel=3,
        )
    conversion = {
        "degrees": pair,
        "largest_logit_change": change,
        "logit_scale": scale,
        "relative_change": change / scale,
        "layers": {name: _fit_report(mlps[name], fits[name], inputs[name]) for name in mlps},
    }
    cast(Any, kat).conversion = conversion
    _describe_as_kat(kat, groups, pair, next(iter(fits.values())))
    return kat.train(model.training)


@dataclass(frozen=True)
class _Mlp:
    """The parts of an MLP that can be converted."""

    fc1: nn.Linear
    act: nn.Module
    fc2: nn.Linear
    # after the activation
    dropout: float

    def activation(self, x: Tensor) -> Tensor:
        """act(x); x keeps its values even if the activation works in place."""
        return self.act(x.clone())


def _record_activation_inputs(
    model: nn.Module, names: list[str], images: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and for the MLP of each name what its activation was given: (values,) float64."""
    inputs: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs[name] = arguments[0].detach().flatten().double().cpu()

        return record

    hooks = []
    for name in names:
        act = model.get_submodule(name).get_submodule("act")
        hooks.append(act.register_forward_pre_hook(recorder(name)))
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, inputs


def _fit_activations(
    mlps: dict[str, _Mlp], inputs: dict[str, Tensor], degrees: tuple[int, int]
) -> dict[str, RationalFit]:
    """A fit to each MLP's activation, best where its inputs are."""
    fits = {}
    # fits on the whole interval, the slow part, which layers share
    wide_fits: dict[tuple[str, int], RationalFit] = {}
    for name, mlp in mlps.items():
        x = inputs[name]
        # a whole number, so that many layers have the same
        reach = max(3, math.ceil(INTERVAL_MARGIN * x.abs().max().item()))
        key = (repr(mlp.act), reach)
        if key not in wide_fits:
            wide_fits[key] = fit_rational(mlp.activation, degrees, (-reach, reach), rounds=10)
        samples = x.sort().values[:: math.ceil(len(x) / REFIT_SAMPLES)]
        fits[name] = refit(wide_fits[key], mlp.activation, samples)
    return fits


def _replace_mlps(
    kat: nn.Module, mlps: dict[str, _Mlp], fits: dict[str, RationalFit], groups: int
) -> None:
    """Puts a `GRKANMlp` in the place of each MLP, in place."""
    for name, mlp in mlps.items():
        replacement = _as_grkan_mlp(mlp, fits[name], groups)
        parent, _, attribute = name.rpartition(".")
        setattr(kat.get_submodule(parent), attribute, replacement)


def _as_grkan_mlp(mlp: _Mlp, fit: RationalFit, groups: int) -> GRKANMlp:
    """An MLP's linear maps, copied, behind the identity and the fitted activation."""
    new = GRKANMlp(
        mlp.fc1.in_features,
        mlp.fc1.out_features,
        mlp.fc2.out_features,
        groups=groups,
        degrees=(len(fit.numerator) - 1, len(fit.denominator)),
        init=("identity", fit),
    )
    new.fc1 = copy.deepcopy(mlp.fc1)
    new.fc2 = copy.deepcopy(mlp.fc2)
    new.drop2.p = mlp.dropout
    return new.to(mlp.fc1.weight.device).eval()


def _fit_report(mlp: _Mlp, fit: RationalFit, x: Tensor) -> dict[str, Any]:
    """What `conversion["layers"]` says of one MLP."""
    return {
        "activation": type(mlp.act).__name__,
        "interval": fit.interval,
        "max_error": fit.max_error,
        "typical_error": (fit(x) - mlp.activation(x)).square().mean().sqrt().item(),
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


def _convertible_mlps(model: nn.Module) -> dict[str, _Mlp]:
    """The MLPs of a model by their names.

    Raises:
        ValueError: there is none, or one that cannot be converted.
    """
    mlps = {}
    for name, module in model.named_modules():
        title = f"{name or 'the model'} ({type(module).__name__})"
        _refuse(title, module, _MODULE_CHECKS)
        if _has_both_layers(module):
            _refuse(title, module, _MLP_CHECKS)
            mlps[name] = _parts_of(module)
    if not mlps:
        raise ValueError(
            f"{type(model).__name__} has no MLP made of fc1, act and fc2; nothing to convert"
        )
    return mlps


def _parts_of(module: nn.Module) -> _Mlp:
    """The parts of a module that has passed all checks."""
    fc1, fc2 = _linear_layers(module)
    dropout = getattr(getattr(module, "drop1", None), "p", 0.0)
    return _Mlp(fc1, module.get_submodule("act"), fc2, dropout)


def _linear_layers(module: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """fc1 and fc2 of a module that has passed `_check_linear`."""
    fc1 = cast(nn.Linear, module.get_submodule("fc1"))
    fc2 = cast(nn.Linear, module.get_submodule("fc2"))
    return fc1, fc2


# Each check returns what is wrong with a module, in words that go on after its name, or None.
_Check = Callable[[nn.Module], str | None]


def _refuse(title: str, module: nn.Module, checks: tuple[_Check, ...]) -> None:
    """Raises ValueError with the first complaint of the checks."""
    for check in checks:
        complaint = check(module)
        if complaint is not None:
            raise ValueError(f"{title} {complaint}")


def _children(module: nn.Module) -> dict[str, nn.Module]:
    return dict(module.named_children())


def _has_both_layers(module: nn.Module) -> bool:
    return {"fc1", "fc2"} <= _children(module).keys()


def _check_not_grkan(module: nn.Module) -> str | None:
    return "is a GR-KAN already" if isinstance(module, GRKANMlp) else None


def _check_no_branches(module: nn.Module) -> str | None:
    # timm's SwiGLU has fc1_g and fc1_x, DINOv2's w1 and w2
    if {"fc1_g", "fc1_x", "w1", "w2"} & _children(module).keys():
        return (
            "is gated: the product of two branches is not a function of one, so no GR-KAN "
            "computes it"
        )
    return None


def _check_not_fused(module: nn.Module) -> str | None:
    if not _has_both_layers(module) and {"mlp_act", "in_proj"} <= _children(module).keys():
        return "computes attention and MLP in one product; there is no MLP by itself to replace"
    return None


def _check_linear(module: nn.Module) -> str | None:
    children = _children(module)
    fc1, fc2 = children["fc1"], children["fc2"]
    if isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear):
        return None
    return (
        f"has {type(fc1).__name__} and {type(fc2).__name__}; fc1 and fc2 must be linear maps "
        "(torch.nn.Linear)"
    )


def _check_not_gated(module: nn.Module) -> str | None:
    fc1, fc2 = _linear_layers(module)
    if fc1.out_features == fc2.in_features:
        return None
    return (
        f"is gated: fc1 makes {fc1.out_features} numbers and fc2 takes {fc2.in_features}; no "
        "GR-KAN computes the product between them"
    )


def _check_nothing_between(module: nn.Module) -> str | None:
    others = [
        name
        for name, child in _children(module).items()
        if name not in ("fc1", "act", "fc2") and not isinstance(child, (nn.Identity, nn.Dropout))
    ]
    if not others:
        return None
    return (
        f"has more than linear maps and an activation: {', '.join(others)}; a GR-KAN has no place "
        "for it"
    )


def _check_activation_is_fixed(module: nn.Module) -> str | None:
    act = _children(module).get("act")
    if act is not None and not list(act.parameters()):
        return None
    return (
        f"has the activation {type(act).__name__}; it must be a function without parameters of its "
        "own, such as GELU"
    )


def _check_activation_is_elementwise(module: nn.Module) -> str | None:
    act = module.get_submodule("act")
    x = torch.linspace(-2, 2, 8, dtype=torch.float64)
    try:
        one_by_one = torch.stack([act(value[None].clone())[0] for value in x])
        elementwise = torch.allclose(act(x.clone()), one_by_one)
    except (RuntimeError, IndexError):
        elementwise = False
    if elementwise:
        return None
    return (
        f"has the activation {type(act).__name__}, which mixes channels; it must act on each "
        "number by itself, as GELU does"
    )


# for every module of a model
_MODULE_CHECKS: tuple[_Check, ...] = (_check_not_grkan, _check_no_branches, _check_not_fused)
# for a module with fc1 and fc2; each relies on those before it
_MLP_CHECKS: tuple[_Check, ...] = (
    _check_linear,
    _check_not_gated,
    _check_nothing_between,
    _check_activation_is_fixed,
    _check_activation_is_elementwise,
)


def _noise_images(model: nn.Module) -> Tensor:
    """16 images of N(0, 1) of the size that the model says it takes."""
    embed = getattr(model, "patch_embed", None)
    size = getattr(model, "img_size", None) or getattr(embed, "img_size", None)
    projection = getattr(embed, "proj", None)
    if size is None or projection is None:
        raise ValueError(
            f"{type(model).__name__} does not say what size of images it takes; pass some as "
            "images="
        )
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, projection.in_channels, height, width, generator=generator)
