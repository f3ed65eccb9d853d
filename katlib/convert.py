"""From ViT to KAT: a trained Vision Transformer's MLPs as GR-KAN layers that compute the same function.

    W_2 act(W_1 x + c_1) + c_2    ->    W_2 F_2(W_1 F_1(x) + c_1) + c_2    with F_1 = identity, exactly, and F_2 fitted to act

so that training goes on from where the ViT is (arXiv 2409.10594, section 4.4: their KATs that start from a ViT end 0.5 to 1.1 points higher).
The fit is made where it will be used: on the interval that W_1 x + c_1 spans in each layer, measured on images.
"""

import copy
import math
import warnings

import torch
from torch import Tensor, nn

from katlib.fit import fit_rational, refit
from katlib.grkan import GRKANMlp

SAMPLES = 4000  # of an activation's inputs, by size, on which its fit is refined
MARGIN = 1.1  # of the fitted over the measured interval: other images go a little further


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
        model: a ViT of timm's or `katlib.VisionTransformer(mlp="mlp")`; any module whose MLPs are `fc1`, an activation `act`, `fc2`. It is not
            changed, and shares no parameters with the result: all are copied.
        images: (B, C, H, W), normalised as for the model, B of 16 or more: on them the activations' inputs and the change of the logits
            are measured. Default: 16 of Gaussian noise, good for a model that is not trained; a trained one deserves real images.
        groups: of the rational functions; all start alike.
        degrees: (m, n) of the rational functions. Default: (5, 4), the released KATs', or (7, 6) where those miss the tolerance.
        tolerance: of the largest change of a logit, in units of the logits' root mean square; a result that misses it comes with a warning.

    Returns:
        A copy of the model, in the same mode, whose MLPs are `GRKANMlp`. Its attribute `conversion` is a dictionary: `degrees`;
        `largest_logit_change`; `logit_scale`, the root mean square of the model's logits; `relative_change`, their ratio; and `layers`, for
        each MLP its `activation`, the `interval` of the fit, its largest error there, `max_error`, and the root mean square of its error
        on what the activation is given, `typical_error`.
        The dropout after the activation is kept; a dropout after `fc2` is not, for a `GRKANMlp` has none.

    Raises:
        ValueError: no such MLP, gated ones (SwiGLU), a norm between the layers, convolutions for linear maps, an activation with
            parameters of its own or that mixes channels, a KAT, or groups that do not divide the widths.

    Example:
        >>> vit = katlib.VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10, mlp="mlp")
        >>> katlib.from_vit(vit).conversion["relative_change"] < 1e-2
        True
    """
    mlps = {name: module for name, module in model.named_modules() if _is_mlp(name, module)}
    if not mlps:
        raise ValueError(
            f"{type(model).__name__} has no MLP made of fc1, act and fc2; nothing to convert"
        )
    kat = copy.deepcopy(model).eval()
    device = next(kat.parameters()).device
    images = (_noise(kat) if images is None else images).to(device)
    seen: dict[str, Tensor] = {}

    def note(name: str):
        def hook(module, arguments):
            seen[name] = arguments[0].detach().flatten().double().cpu()

        return hook

    hooks = [kat.get_submodule(name).act.register_forward_pre_hook(note(name)) for name in mlps]
    logits = kat(images)
    for hook in hooks:
        hook.remove()
    scale = max(logits.float().square().mean().sqrt().item(), 1e-30)
    for pair in [degrees] if degrees else [(5, 4), (7, 6)]:
        layers = _replace(kat, mlps, seen, pair, groups)
        change = (kat(images) - logits).abs().max().item()
        if change <= tolerance * scale:
            break
    else:
        warnings.warn(
            f"the logits change by up to {change / scale:.1%} of their root mean square, more than the tolerance of {tolerance:.1%}",
            stacklevel=3,
        )
    kat.conversion = {
        "degrees": pair,
        "largest_logit_change": change,
        "logit_scale": scale,
        "relative_change": change / scale,
        "layers": layers,
    }
    return kat.train(model.training)


def _replace(
    kat: nn.Module,
    mlps: dict[str, nn.Module],
    seen: dict[str, Tensor],
    degrees: tuple[int, int],
    groups: int,
) -> dict[str, dict]:
    """Puts a `GRKANMlp` in the place of each MLP, in place; returns what is said of each fit."""
    layers, wide = {}, {}
    for name, mlp in mlps.items():
        x, act = (
            seen[name],
            (lambda x, act=mlp.act: act(x.clone())),
        )  # a clone: the activation may work in place
        reach = max(
            3.0, math.ceil(MARGIN * x.abs().max().item())
        )  # whole, so that layers share the slow part of the fit
        key = (repr(mlp.act), reach)
        wide[key] = wide.get(key) or fit_rational(act, degrees, (-reach, reach), rounds=10)
        fit = refit(wide[key], act, x.sort().values[:: math.ceil(len(x) / SAMPLES)])
        new = GRKANMlp(
            mlp.fc1.in_features,
            mlp.fc1.out_features,
            mlp.fc2.out_features,
            groups=groups,
            degrees=degrees,
            init=("identity", fit),
        )
        new.fc1, new.fc2 = copy.deepcopy(mlp.fc1), copy.deepcopy(mlp.fc2)
        new.drop2.p = getattr(getattr(mlp, "drop1", None), "p", 0.0)
        parent, _, last = name.rpartition(".")
        setattr(kat.get_submodule(parent), last, new.to(mlp.fc1.weight.device).eval())
        layers[name] = {
            "activation": type(mlp.act).__name__,
            "interval": fit.interval,
            "max_error": fit.max_error,
            "typical_error": (fit(x) - act(x)).square().mean().sqrt().item(),
        }
    return layers


def _is_mlp(name: str, module: nn.Module) -> bool:
    """Whether this is an MLP that can be converted; one that cannot is an error."""
    kind, parts = f"{name or 'the model'} ({type(module).__name__})", dict(module.named_children())
    if isinstance(module, GRKANMlp):
        raise ValueError(f"{kind} is a GR-KAN already")
    if {"fc1_g", "fc1_x", "w1", "w2"} & parts.keys():
        raise ValueError(
            f"{kind} is gated: the product of two branches is not a function of one, so no GR-KAN computes it"
        )
    if "fc2" not in parts or "fc1" not in parts:
        if {"mlp_act", "in_proj"} <= parts.keys():
            raise ValueError(
                f"{kind} computes attention and MLP in one product; there is no MLP by itself to replace"
            )
        return False
    fc1, fc2, act = parts["fc1"], parts["fc2"], parts.get("act")
    if not (isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear)):
        raise ValueError(
            f"{kind} has {type(fc1).__name__} and {type(fc2).__name__}; fc1 and fc2 must be linear maps (torch.nn.Linear)"
        )
    if fc1.out_features != fc2.in_features:
        raise ValueError(
            f"{kind} is gated: fc1 makes {fc1.out_features} numbers and fc2 takes {fc2.in_features}; no GR-KAN computes the product between them"
        )
    between = [
        part
        for part, child in parts.items()
        if part not in ("fc1", "act", "fc2") and not isinstance(child, (nn.Identity, nn.Dropout))
    ]
    if between:
        raise ValueError(
            f"{kind} has more than linear maps and an activation: {', '.join(between)}; a GR-KAN has no place for it"
        )
    if act is None or any(True for _ in act.parameters()):
        raise ValueError(
            f"{kind} has the activation {type(act).__name__}; it must be a function without parameters of its own, such as GELU"
        )
    x = torch.linspace(-2, 2, 8, dtype=torch.float64)
    try:
        alone = torch.stack([act(v[None].clone())[0] for v in x])
        same = torch.allclose(act(x.clone()), alone)
    except (RuntimeError, IndexError):
        same = False
    if not same:
        raise ValueError(
            f"{kind} has the activation {type(act).__name__}, which mixes channels; it must act on each number by itself, as GELU does"
        )
    return True


def _noise(model: nn.Module) -> Tensor:
    """16 images of N(0, 1) of the size that the model says it takes."""
    embed = getattr(model, "patch_embed", None)
    size = getattr(model, "img_size", None) or getattr(embed, "img_size", None)
    if size is None or not hasattr(embed, "proj"):
        raise ValueError(
            f"{type(model).__name__} does not say what size of images it takes; pass some as images="
        )
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(
        16, embed.proj.in_channels, height, width, generator=torch.Generator().manual_seed(0)
    )
