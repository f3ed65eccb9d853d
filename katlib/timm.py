"""KAT in timm: importing this module adds three models to timm's registry.

They are kat_tiny_patch16_224, kat_small_patch16_224 and kat_base_patch16_224:

    import katlib.timm
    model = timm.create_model("kat_tiny_patch16_224", num_classes=10, drop_path_rate=0.1)

and all else that a ViT of timm's takes. They are timm's own `VisionTransformer` with `GRKANMlp` in
its `mlp_layer` slot, so features, gradient checkpointing and resizing are timm's; weights fit
`katlib.VisionTransformer` under the same names. timm's training script does not import katlib, so
run it by this module:

    torchrun --nproc-per-node=8 -m katlib.timm train.py --model kat_tiny_patch16_224 ...

timm is Ross Wightman's PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.
"""

import runpy
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol, cast

from torch import Tensor, nn

try:
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
except ImportError as error:
    raise ImportError("katlib.timm needs timm: pip install timm") from error

from katlib import hub
from katlib.architecture import KAT_TINY
from katlib.grkan import GRKANMlp
from katlib.images import IMAGENET
from katlib.init import mimetic_
from katlib.rational import GroupRational
from katlib.weight_files import katlib_name


class _Attention(Protocol):
    """What is used of timm's attention layers."""

    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int


class _Block(Protocol):
    """What is used of timm's blocks."""

    attn: _Attention
    mlp: GRKANMlp


class KAT(VisionTransformer):
    """timm's Vision Transformer whose weights start as KAT's.

    That is variance-preserving in the MLPs and mimetic in the attention. timm's constructor draws
    every linear map from N(0, 0.02^2), whatever it was; that is how the released code lost the
    initialisation of its paper. Here `init_weights` draws those of the blocks anew after timm has,
    so it holds however often it is called. Coefficients of rational functions are spared from
    weight decay, as in `katlib.train`.

    Args: those of timm's `VisionTransformer`.
    """

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """Draws all weights anew, timm's first, then those of the blocks as KAT's."""
        super().init_weights(*args, **kwargs)
        for block in cast(Iterable[_Block], self.blocks):
            mimetic_(block.attn.qkv, block.attn.proj, block.attn.num_heads)
            block.mlp.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """The names of parameters that weight decay must not pull at."""
        coefficients = {
            f"{name}.{parameter}"
            for name, module in self.named_modules()
            if isinstance(module, GroupRational)
            for parameter, _ in module.named_parameters()
        }
        return super().no_weight_decay() | coefficients


def kat_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> KAT:
    """KAT-T, 5,718,328 parameters: width 192, 12 blocks, 3 heads.

    Args:
        pretrained: whether to load the released weights.
        kwargs: `act_init` and `groups` go to `GRKANMlp`, the rest to timm's ViT.
    """
    return _create("kat_tiny_patch16_224", pretrained, **kwargs)


def kat_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> KAT:
    """KAT-S, 22,051,576 parameters: width 384, 12 blocks, 6 heads.

    Arguments as for `kat_tiny_patch16_224`.
    """
    return _create("kat_small_patch16_224", pretrained, **kwargs)


def kat_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> KAT:
    """KAT-B, 86,568,568 parameters: width 768, 12 blocks, 12 heads.

    Arguments as for `kat_tiny_patch16_224`.
    """
    return _create("kat_base_patch16_224", pretrained, **kwargs)


def _create(
    name: str,
    pretrained: bool,
    act_init: tuple[Any, Any] = KAT_TINY.act_init,
    groups: int | None = KAT_TINY.groups,
    **kwargs: Any,
) -> KAT:
    """A registered model; timm's arguments that are given go before those of its architecture."""
    architecture = hub.RELEASED[name]
    arguments: dict[str, Any] = {
        "embed_dim": architecture.embed_dim,
        "num_heads": architecture.num_heads,
        "depth": architecture.depth,
        "patch_size": architecture.patch_size,
        "mlp_ratio": architecture.mlp_ratio,
        "mlp_layer": partial(
            GRKANMlp,
            init=act_init,
            groups=groups,
            degrees=architecture.degrees,
            numerator_groups=architecture.numerator_groups,
        ),
    }
    if pretrained:
        # weights that are replaced at once need no minute of decompositions
        arguments["weight_init"] = "skip"
    arguments |= kwargs
    out_indices = arguments.pop("out_indices", 3)
    return build_model_with_cfg(
        KAT,
        name,
        pretrained,
        pretrained_filter_fn=_fitting_weights,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **arguments,
    )


def _fitting_weights(state: dict[str, Tensor], model: KAT) -> dict[str, Tensor]:
    """A released or FlashKAT's state dict as this model's.

    timm resizes it where the image or patch size differs.
    """
    return checkpoint_filter_fn({katlib_name(name): value for name, value in state.items()}, model)


def _timm_cfg(name: str) -> dict[str, Any]:
    """What timm's registry says of a released model."""
    architecture = hub.RELEASED[name]
    return IMAGENET | {
        "hf_hub_id": hub.repository(name),
        "num_classes": architecture.num_classes,
        "input_size": (architecture.in_chans, architecture.img_size, architecture.img_size),
        "pool_size": None,
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "mit",
    }


# timm looks for this name in the module of a registered model
default_cfgs = generate_default_cfgs({name: _timm_cfg(name) for name in hub.RELEASED})


def main() -> None:
    """Runs the script that the first argument names, with the KATs registered."""
    if len(sys.argv) < 2:
        sys.exit(
            "usage: python -m katlib.timm SCRIPT.py [its arguments]; the script finds KAT in "
            "timm's registry"
        )
    # run by -m, this module is __main__; the registry keeps the one under its own name
    import katlib.timm  # noqa: F401

    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
elif __name__ == "katlib.timm":
    for create in (kat_tiny_patch16_224, kat_small_patch16_224, kat_base_patch16_224):
        register_model(create)
