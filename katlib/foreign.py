"""What timm's Vision Transformers can have and katlib's cannot, by the names of timm's arguments.

Such a model may well have tensors of katlib's names and shapes and compute something else, so it
cannot be saved as if it were katlib's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

# of katlib's and timm's layer norms alike
NORM_EPS = 1e-6


def foreign_features(model: nn.Module) -> list[str]:
    """The features of a Vision Transformer that katlib's format cannot express.

    Args:
        model: a Vision Transformer of timm's or one like it.

    Returns:
        Their names, as timm's constructor has them: "global_pool='avg'", "qk_norm=True".

    Example:
        >>> import timm
        >>> from katlib.foreign import foreign_features
        >>> foreign_features(timm.create_model("vit_tiny_patch16_224", depth=1, init_values=1e-5))
        ['init_values']
    """
    found = [name for name, is_used in _OF_MODELS.items() if is_used(model)]
    pool = getattr(model, "global_pool", "token")
    if pool != "token":
        found.append(f"global_pool={pool!r}")
    for block in cast(Iterable[nn.Module], getattr(model, "blocks", [])):
        found += [name for name, is_used in _OF_BLOCKS.items() if is_used(block)]
        found += [name for name in (_other_norm(block), _other_activation(block)) if name]
    # each once, in this order
    return list(dict.fromkeys(found))


def _get(module: Any, path: str) -> Any:
    """A part by its dotted path, or None."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _is_used(path: str) -> Callable[[nn.Module], bool]:
    """Whether the module there does anything."""

    def check(module: nn.Module) -> bool:
        part = _get(module, path)
        return isinstance(part, nn.Module) and not isinstance(part, nn.Identity)

    return check


def _lacks_bias(path: str) -> Callable[[nn.Module], bool]:
    def check(module: nn.Module) -> bool:
        layer = _get(module, path)
        return isinstance(layer, nn.Linear) and layer.bias is None

    return check


_OF_MODELS: dict[str, Callable[[nn.Module], bool]] = {
    "class_token=False": lambda model: getattr(model, "cls_token", model) is None,
    "reg_tokens": lambda model: _get(model, "reg_token") is not None,
    "pos_embed='none'": lambda model: getattr(model, "pos_embed", model) is None,
    "no_embed_class=True": lambda model: bool(_get(model, "no_embed_class")),
    "pre_norm=True": _is_used("norm_pre"),
    "fc_norm=True": _is_used("fc_norm"),
    "final_norm=False": lambda model: (
        isinstance(_get(model, "norm"), nn.Identity) and not _is_used("fc_norm")(model)
    ),
    "embed_norm_layer": _is_used("patch_embed.norm"),
    "num_classes=0": lambda model: isinstance(_get(model, "head"), nn.Identity),
}

_OF_BLOCKS: dict[str, Callable[[nn.Module], bool]] = {
    "init_values": _is_used("ls1"),
    "qk_norm=True": _is_used("attn.q_norm"),
    "scale_attn_norm=True": _is_used("attn.norm"),
    "scale_mlp_norm=True": _is_used("mlp.norm"),
    "qkv_bias=False": _lacks_bias("attn.qkv"),
    "proj_bias=False": _lacks_bias("attn.proj"),
}


def _other_norm(block: nn.Module) -> str | None:
    norm = _get(block, "norm1")
    if norm is None or (isinstance(norm, nn.LayerNorm) and norm.eps == NORM_EPS):
        return None
    return f"norm_layer={norm}"


def _other_activation(block: nn.Module) -> str | None:
    """The activation of an MLP, unless it is GELU; a GR-KAN has none."""
    act = _get(block, "mlp.act")
    if act is None or _is_gelu(act):
        return None
    return f"act_layer={act}"


@torch.no_grad()
def _is_gelu(act: nn.Module) -> bool:
    if next(act.parameters(), None) is not None:
        return False
    x = torch.linspace(-4, 4, 33, dtype=torch.float64, device="cpu")
    # some work in place, and some halve the channels
    y = act(x.clone())
    return y.shape == x.shape and torch.allclose(y, F.gelu(x))
