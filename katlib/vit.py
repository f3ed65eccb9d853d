"""The Vision Transformer, with the usual MLPs or with group-rational KAN layers in their place.

    x = x + attention(norm(x))
    x = x + mlp(norm(x))

(Dosovitskiy et al., arXiv 2010.11929). With `mlp="grkan"` it is KAT (arXiv 2409.10594, equation
10). Module and parameter names are timm's and the released KAT's, so that their weights fit.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from katlib.architecture import Architecture
from katlib.grkan import GRKANMlp
from katlib.init import (
    Activation,
    gain_at_start,
    mimetic_,
    normal_,
    reset_by,
    truncated_normal_,
    undrawn_linear,
    variance_preserving_,
)
from katlib.mlps import ChannelPReLU, SquaredReLU, SwiGLU, squared_relu


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762), with mimetic initialisation."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = undrawn_linear(dim, 3 * dim)
        self.proj = undrawn_linear(dim, dim)
        for layer in (self.qkv, self.proj):
            # values and projection are factors of one product, so they are drawn together
            reset_by(layer, self.reset_parameters)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        mimetic_(self.qkv, self.proj, self.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, C / heads)
        x = attention(q, k, v)  # (B, heads, N, C / heads)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))  # (B, N, C)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax of the scaled products of queries and keys, times the values.

    It is `F.scaled_dot_product_attention`, except in half precision on a CPU: there PyTorch's fused
    kernel is slower than the three steps one after the other. Forward and backward took five times
    as long in bfloat16 at 64 tokens (torch 2.11, AMD EPYC).

    Args:
        q, k, v: (B, heads, N, d).

    Returns:
        (B, heads, N, d).
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, heads, N, N)
        return scores.softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Mlp(nn.Module):
    """The MLP of a ViT: linear, activation, linear; initialised by the same rule as `GRKANMlp`.

    Args:
        in_features, hidden_features: sizes of the last dimension outside and within.
        drop: dropout probability after the activation.
        act: the activation; default: GELU.
        start: the same as a function of a tensor or a name, from which the second linear map's
            scale follows (`katlib.gain`).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        drop: float = 0.0,
        act: nn.Module | None = None,
        start: Activation = "gelu",
    ):
        super().__init__()
        self.gain = gain_at_start(start)
        self.fc1 = undrawn_linear(in_features, hidden_features)
        self.act = nn.GELU() if act is None else act
        self.drop1 = nn.Dropout(drop)
        self.fc2 = undrawn_linear(hidden_features, in_features)
        reset_by(self.fc1, partial(variance_preserving_, self.fc1))
        reset_by(self.fc2, partial(variance_preserving_, self.fc2, self.gain))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws both linear maps anew."""
        variance_preserving_(self.fc1)
        variance_preserving_(self.fc2, self.gain)

    def forward(self, x: Tensor) -> Tensor:
        # (B, N, C) -> (B, N, hidden) -> (B, N, C)
        return self.fc2(self.drop1(self.act(self.fc1(x))))


class DropPath(nn.Module):
    """Drops a residual branch for whole samples while training (arXiv 1603.09382)."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        mask = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep)  # (B, 1, 1)
        return x * mask / keep


class Block(nn.Module):
    """One transformer block: attention, then the MLP, each after a norm and beside a shortcut."""

    attn: Attention
    mlp: Mlp | SwiGLU | GRKANMlp

    def __init__(self, dim: int, num_heads: int, mlp: Mlp | SwiGLU | GRKANMlp, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))  # (B, N, C)
        return x + self.drop_path(self.mlp(self.norm2(x)))  # (B, N, C)


class PatchEmbed(nn.Module):
    """Cuts an image into patches and maps each to a token."""

    def __init__(self, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        reset_by(self.proj, self.reset_parameters)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the map anew: a patch of N(0, 1) becomes a token of variance 1."""
        normal_(self.proj.weight, 1 / math.sqrt(self.proj.weight[0].numel()))
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, 3, H, W) -> (B, N, C)


class ConvTokenizer(nn.Module):
    """Makes tokens by 3 x 3 convolutions, each with ReLU and a max pool that halves the side.

    It is the tokenizer of the compact convolutional transformer (CCT, arXiv 2104.05704). Tokens see
    pixels beyond their own, which patches do not.
    """

    def __init__(self, channels: tuple[int, ...], in_chans: int):
        super().__init__()
        before = (in_chans, *channels)
        self.conv_layers = nn.Sequential(
            *[
                nn.Sequential(
                    nn.Conv2d(before[i], before[i + 1], 3, padding=1, bias=False),
                    nn.ReLU(),
                    nn.MaxPool2d(3, 2, 1),
                )
                for i in range(len(channels))
            ]
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # for ReLU (He et al., arXiv 1502.01852)
                std = math.sqrt(2 / module.weight[0].numel())
                reset_by(module, partial(normal_, module.weight, std))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the convolutions anew."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        # channels last: convolutions are quicker, and the tokens lie as attention wants them
        x = x.contiguous(memory_format=torch.channels_last)
        return self.conv_layers(x).flatten(2).transpose(1, 2)  # (B, 3, H, W) -> (B, N, C)


class VisionTransformer(nn.Module):
    """A Vision Transformer (`mlp="mlp"`) or a Kolmogorov-Arnold Transformer (`mlp="grkan"`).

    Args:
        img_size, patch_size: side lengths in pixels; patch_size divides img_size.
        in_chans: channels of the image.
        num_classes: outputs.
        embed_dim, depth, num_heads: width, number of blocks, attention heads; num_heads divides
            embed_dim.
        mlp_ratio: hidden width of the MLP, in units of embed_dim.
        mlp: "grkan", "mlp", or one of the others in `katlib.architecture.MLPS`.
        groups, act_init, degrees, numerator_groups: of the rational functions (`GRKANMlp`); without
            effect for others than "grkan".
        drop_rate: dropout after the embedding and within the MLPs.
        drop_path_rate: stochastic depth, rising linearly from 0 at the first block to this at the
            last.
        stem, global_pool: how tokens are made and what the head sees, see
            `katlib.architecture.Architecture`.

    Input (B, in_chans, img_size, img_size), output logits (B, num_classes). Two models built from
    the same seed, one of each kind, start with the same attention, embedding and head.

    Attributes:
        architecture: the arguments, as an `Architecture`.

    Raises:
        ValueError: arguments out of range, sizes that do not divide, or an unknown `mlp`, before
            anything is built; or an unknown start in `act_init`.

    Example:
        >>> model = katlib.VisionTransformer(
        ...     img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10
        ... )
        >>> model(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    # what `katlib.load_pretrained` knows of a model; others have no such attribute
    pretrained_cfg: dict[str, Any]

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        mlp: str = "grkan",
        groups: int | None = 8,
        act_init: Any = ("identity", "swish"),
        degrees: tuple[int, int] = (5, 4),
        numerator_groups: int | None = 1,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem: str = "patch",
        global_pool: str = "token",
    ):
        super().__init__()
        self.architecture = architecture = Architecture(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            mlp=mlp,
            groups=groups,
            act_init=act_init,
            degrees=degrees,
            numerator_groups=numerator_groups,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            stem=stem,
            global_pool=global_pool,
        )
        self.img_size = img_size
        self.patch_embed = make_stem(architecture)
        self.cls_token: nn.Parameter | None = None
        self.attention_pool: nn.Linear | None = None
        if global_pool == "token":
            self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        else:
            self.attention_pool = nn.Linear(embed_dim, 1)
        self.pos_embed = nn.Parameter(torch.empty(1, architecture.tokens, embed_dim))
        self.reset_parameters()
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.Sequential(*[make_block(architecture, i) for i in range(depth)])
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = undrawn_linear(embed_dim, num_classes)
        reset_by(self.head, partial(_draw_head, self.head))
        self.head.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the class token and the positions anew.

        All modules within have a `reset_parameters` of their own. To reset the whole model:
        `model.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)`.
        """
        if self.cls_token is not None:
            normal_(self.cls_token, 1e-6)
        truncated_normal_(self.pos_embed, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(
                f"images have shape {tuple(x.shape)}; they must be "
                f"(B, channels, {self.img_size}, {self.img_size})"
            )
        x = self.patch_embed(x)  # (B, patches, C)
        if self.cls_token is not None:
            cls_token = self.cls_token.expand(x.shape[0], -1, -1)  # (B, 1, C)
            x = torch.cat([cls_token, x], 1)  # (B, 1 + patches, C)
        x = self.norm(self.blocks(self.pos_drop(x + self.pos_embed)))  # (B, tokens, C)
        return self.head(self.pool(x))  # (B, num_classes)

    def pool(self, x: Tensor) -> Tensor:
        """What the head sees of the tokens (B, tokens, C): (B, C)."""
        if self.attention_pool is None:
            # torch 2.6 cannot export x[:, 0] for a batch of any size
            return x.select(1, 0)
        weights = self.attention_pool(x).softmax(1)  # (B, tokens, 1)
        return (weights.transpose(1, 2) @ x).squeeze(1)


def _draw_head(head: nn.Linear) -> None:
    truncated_normal_(head.weight, 0.02)
    nn.init.zeros_(head.bias)


def make_stem(architecture: Architecture) -> PatchEmbed | ConvTokenizer:
    """What makes tokens of an image."""
    if architecture.stem == "conv":
        return ConvTokenizer(architecture.stem_channels, architecture.in_chans)
    return PatchEmbed(architecture.patch_size, architecture.in_chans, architecture.embed_dim)


def make_block(architecture: Architecture, index: int) -> Block:
    """Block number `index`, from 0, of a model."""
    drop_path = architecture.drop_path_rate * index / max(1, architecture.depth - 1)
    return Block(architecture.embed_dim, architecture.num_heads, make_mlp(architecture), drop_path)


def make_mlp(architecture: Architecture) -> Mlp | SwiGLU | GRKANMlp:
    """What stands in the MLP's place in a block. A new kind is added here and in `MLPS`."""
    dim, hidden = architecture.embed_dim, architecture.hidden_features
    drop = architecture.drop_rate
    match architecture.mlp:
        case "mlp":
            return Mlp(dim, hidden, drop)
        case "relu2":
            return Mlp(dim, hidden, drop, SquaredReLU(), squared_relu)
        case "prelu":
            act = ChannelPReLU(hidden)
            return Mlp(dim, hidden, drop, act, partial(F.leaky_relu, negative_slope=act.start))
        case "swiglu":
            return SwiGLU(dim, hidden, drop)
        case "grkan":
            return GRKANMlp(
                dim,
                hidden,
                drop=drop,
                groups=architecture.groups,
                init=architecture.act_init,
                degrees=architecture.degrees,
                numerator_groups=architecture.numerator_groups,
            )
    raise NotImplementedError(f"mlp={architecture.mlp!r} has no case in make_mlp")
