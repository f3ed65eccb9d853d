"""KAT in timm: `import katlib.timm` adds kat_tiny_patch16_224, kat_small_patch16_224 and kat_base_patch16_224 to its registry.

    model = timm.create_model("kat_tiny_patch16_224", num_classes=10, drop_path_rate=0.1)        # and all else that a ViT of timm's takes

They are timm's own `VisionTransformer` with `GRKANMlp` in its `mlp_layer` slot, so features, gradient checkpointing and resizing are
timm's; weights fit `katlib.VisionTransformer` under the same names. timm's training script does not import katlib, so run it by this module:

    torchrun --nproc-per-node=8 -m katlib.timm train.py --model kat_tiny_patch16_224 ...

timm is Ross Wightman's PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.
"""

import runpy
import sys
from functools import partial

try:
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
except ImportError as error:
    raise ImportError("katlib.timm needs timm: pip install timm") from error

from katlib.grkan import GRKANMlp
from katlib.images import IMAGENET
from katlib.init import mimetic_
from katlib.pretrained import OFFICIAL, SIZES, renamed
from katlib.rational import GroupRational


class KAT(VisionTransformer):
    """timm's Vision Transformer whose weights start as KAT's: variance-preserving in the MLPs, mimetic in the attention.

    timm's constructor draws every linear map from N(0, 0.02^2), whatever it was; that is how the released code lost the initialisation of its
    paper. Here `init_weights` draws those of the blocks anew after timm has, so it holds however often it is called. Coefficients of
    rational functions are spared from weight decay, as in `katlib.train`.

    Args: those of timm's `VisionTransformer`.
    """

    def init_weights(self, *args, **kwargs) -> None:
        super().init_weights(*args, **kwargs)
        for block in self.blocks:
            mimetic_(block.attn.qkv, block.attn.proj, block.attn.num_heads)
            block.mlp.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """The names of parameters that weight decay must not pull at."""
        return super().no_weight_decay() | {
            f"{name}.{part}"
            for name, module in self.named_modules()
            if isinstance(module, GroupRational)
            for part, _ in module.named_parameters()
        }


def _weights(state: dict, model: KAT) -> dict:
    """A released or FlashKAT's state dict as this model's, resized by timm where the image or patch size differs."""
    return checkpoint_filter_fn({renamed(name): value for name, value in state.items()}, model)


def _create(
    name: str, pretrained: bool = False, act_init=("identity", "swish"), groups: int = 8, **kwargs
) -> KAT:
    mlp_layer = partial(GRKANMlp, init=act_init, groups=groups)
    kwargs = (
        {"weight_init": "skip"} if pretrained else {}
    ) | kwargs  # weights that are replaced at once need no minute of decompositions
    kwargs = (
        SIZES[name.split("_")[1]] | {"patch_size": 16, "depth": 12, "mlp_layer": mlp_layer} | kwargs
    )
    return build_model_with_cfg(
        KAT,
        name,
        pretrained,
        pretrained_filter_fn=_weights,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **kwargs,
    )


def kat_tiny_patch16_224(pretrained: bool = False, **kwargs) -> KAT:
    """KAT-T, 5,718,328 parameters: width 192, 12 blocks, 3 heads. `act_init` and `groups` go to `GRKANMlp`, the rest to timm's ViT."""
    return _create("kat_tiny_patch16_224", pretrained, **kwargs)


def kat_small_patch16_224(pretrained: bool = False, **kwargs) -> KAT:
    """KAT-S, 22,051,576 parameters: width 384, 12 blocks, 6 heads. Arguments as for `kat_tiny_patch16_224`."""
    return _create("kat_small_patch16_224", pretrained, **kwargs)


def kat_base_patch16_224(pretrained: bool = False, **kwargs) -> KAT:
    """KAT-B, 86,568,568 parameters: width 768, 12 blocks, 12 heads. Arguments as for `kat_tiny_patch16_224`."""
    return _create("kat_base_patch16_224", pretrained, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        name: IMAGENET
        | {
            "hf_hub_id": repository,
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": None,
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "mit",
        }
        for name, repository in OFFICIAL.items()
    }
)


def main() -> None:
    """Runs the script that the first argument names, with the KATs registered."""
    if len(sys.argv) < 2:
        sys.exit(
            "usage: python -m katlib.timm SCRIPT.py [its arguments]; the script finds KAT in timm's registry"
        )
    import katlib.timm  # noqa: F401: under its own name, which the registry keeps

    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
elif __name__ == "katlib.timm":
    for create in (kat_tiny_patch16_224, kat_small_patch16_224, kat_base_patch16_224):
        register_model(create)
