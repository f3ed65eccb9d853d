"""What a Vision Transformer or KAT is made of: one dataclass, checked before anything is built.

The model, the training presets, saved files and timm's registry all describe a model by an
`Architecture`. It is cheap to make, so a file or a command line that asks for impossible sizes gets
one sentence at once, before memory is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

MLPS = ("grkan", "mlp", "swiglu", "relu2", "prelu")
STEMS = ("patch", "conv")
POOLS = ("token", "seq")
RATIONAL_ARGUMENTS = ("groups", "act_init", "degrees", "numerator_groups")

# far above any ViT that has been trained (22 billion parameters, 48 blocks), but small enough that
# making the modules does not seem to hang
MAX_SIZE = 10**6
MAX_MLP_RATIO = 1000
MAX_DEPTH = 1000
MAX_DEGREE = 10**5
MAX_PARAMETERS = 10**11


@dataclass(frozen=True)
class Architecture:
    """The arguments of `katlib.VisionTransformer`; their names are timm's.

    Args:
        img_size, patch_size: side lengths in pixels; patch_size divides img_size.
        in_chans: channels of the image.
        num_classes: outputs.
        embed_dim, depth, num_heads: width, number of blocks, attention heads; num_heads divides
            embed_dim.
        mlp_ratio: hidden width of the MLP, in units of embed_dim.
        mlp: what stands in the MLP's place: "grkan" makes a KAT, "mlp" a ViT with GELU, "swiglu" a
            gated MLP whose hidden width is two thirds (arXiv 2002.05202), "relu2" and "prelu" MLPs
            with the square of ReLU (arXiv 2109.08668) and with a ReLU that learns a slope for each
            channel (arXiv 1502.01852).
        groups, numerator_groups: of the rational functions; divisors of embed_dim and of the hidden
            width, or None for one function for each channel.
        act_init: where the two rational functions of a block start, see
            `katlib.rational.initial_coefficients`.
        degrees: (m, n), the degrees of numerator and denominator. The four arguments of the
            rational functions have no effect for mlp="mlp".
        drop_rate: dropout after the embedding and within the MLPs.
        drop_path_rate: stochastic depth, rising linearly from 0 at the first block to this at the
            last.
        stem: how tokens are made: "patch" cuts the image into patches and maps each to a token,
            "conv" has log2(patch_size) convolutions, each of which halves the side length and all
            but the first of which double the channels (arXiv 2104.05704). Both give one token for
            each patch_size x patch_size pixels.
        global_pool: what the head sees: "token" the class token, "seq" a learned weighted mean of
            all tokens (sequence pooling, arXiv 2104.05704), and then there is no class token.

    Raises:
        ValueError: a value of another type or out of range, or sizes that do not divide.

    Example:
        >>> from katlib.architecture import Architecture
        >>> f"{Architecture(embed_dim=192, num_heads=3).parameters:,}"
        '5,718,328'
    """

    img_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    mlp: str = "grkan"
    groups: int | None = 8
    act_init: tuple[Any, Any] = ("identity", "swish")
    degrees: tuple[int, int] = (5, 4)
    numerator_groups: int | None = 1
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    stem: str = "patch"
    global_pool: str = "token"

    def __post_init__(self) -> None:
        # JSON and command lines have lists where a dataclass that can be compared needs tuples
        for name in ("act_init", "degrees"):
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
        for name in ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "num_heads"):
            check_int(name, getattr(self, name), 1, MAX_SIZE)
        check_int("depth", self.depth, 1, MAX_DEPTH)
        for name in ("drop_rate", "drop_path_rate"):
            check_number(name, getattr(self, name), 0, 1)
        if self.drop_path_rate == 1:
            raise ValueError("drop_path_rate=1 would always drop the last block; allowed is less")
        check_number("mlp_ratio", self.mlp_ratio, 0, MAX_MLP_RATIO)
        for name, allowed in (("mlp", MLPS), ("stem", STEMS), ("global_pool", POOLS)):
            check_name(name, getattr(self, name), allowed)
        _check_divides("patch_size", self.patch_size, "img_size", self.img_size)
        _check_divides("num_heads", self.num_heads, "embed_dim", self.embed_dim)
        if self.hidden_features < 1:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} leaves no hidden features")
        if self.stem == "conv":
            self._check_stem()
        if self.mlp == "grkan":
            self._check_rational_functions()
        if self.parameters > MAX_PARAMETERS:
            raise ValueError(
                f"embed_dim={self.embed_dim}, depth={self.depth}, img_size={self.img_size} and "
                f"num_classes={self.num_classes} make {self.parameters:,} parameters; allowed are "
                f"{MAX_PARAMETERS:,}"
            )

    def _check_stem(self) -> None:
        layers = self.patch_size.bit_length() - 1
        if self.patch_size != 2**layers or layers == 0:
            raise ValueError(
                f"patch_size={self.patch_size}; with stem='conv' allowed are powers of 2, from 2"
            )
        _check_divides("patch_size / 2 =", 2 ** (layers - 1), "embed_dim", self.embed_dim)

    def _check_rational_functions(self) -> None:
        for degree in self.degrees:
            check_int("degrees", degree, 0, MAX_DEGREE)
        for name in ("groups", "numerator_groups"):
            count = getattr(self, name)
            if count is None:
                continue
            check_int(name, count, 1)
            _check_divides(name, count, "embed_dim", self.embed_dim)
            _check_divides(name, count, "the hidden width", self.hidden_features)

    @classmethod
    def from_dict(cls, values: object) -> Architecture:
        """The architecture of a file's header.

        Raises:
            ValueError: not a dictionary, an argument that is not known, or a value that is wrong.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"an architecture is a dictionary of arguments, not {values!r:.100}")
        known = [field.name for field in fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(f"{unknown} are not known; an architecture has {', '.join(known)}")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The arguments of `VisionTransformer`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def as_json(self) -> dict[str, Any]:
        """The arguments as JSON has them, with lists for tuples; without those of the
        rational functions where there are none.

        Raises:
            TypeError: a start in `act_init` that is neither a name nor a pair of lists.
        """
        arguments = self.as_dict()
        if self.mlp != "grkan":
            for name in RATIONAL_ARGUMENTS:
                del arguments[name]
        return json.loads(json.dumps(arguments))

    @property
    def hidden_features(self) -> int:
        """Width of the MLP's hidden layer; a gated one has two thirds, and so the same cost."""
        if self.mlp == "swiglu":
            return round(self.embed_dim * self.mlp_ratio * 2 / 3)
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def stem_channels(self) -> tuple[int, ...]:
        """Channels after each convolution of the stem."""
        if self.stem == "patch":
            return (self.embed_dim,)
        layers = self.patch_size.bit_length() - 1
        return tuple(self.embed_dim // 2 ** (layers - 1 - i) for i in range(layers))

    @property
    def patches(self) -> int:
        """Tokens that are made of the image."""
        return (self.img_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Tokens in a block: those of the image, and the class token if there is one."""
        return self.patches + (self.global_pool == "token")

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        dim = self.embed_dim
        pool = dim if self.global_pool == "token" else dim + 1
        position = self.tokens * dim
        attention = 4 * (dim + 1) * dim
        norm = 2 * dim
        blocks = self.depth * (2 * norm + attention + self._mlp_parameters())
        head = (dim + 1) * self.num_classes
        return self._stem_parameters() + pool + position + blocks + norm + head

    def _stem_parameters(self) -> int:
        if self.stem == "patch":
            return (self.in_chans * self.patch_size**2 + 1) * self.embed_dim
        channels = (self.in_chans, *self.stem_channels)
        return sum(9 * before * after for before, after in pairwise(channels))

    def _mlp_parameters(self) -> int:
        dim, hidden = self.embed_dim, self.hidden_features
        matrices = (dim + 1) * hidden + (hidden + 1) * dim
        if self.mlp == "grkan":
            return matrices + self._coefficients(dim) + self._coefficients(hidden)
        if self.mlp == "swiglu":
            return matrices + (dim + 1) * hidden
        return matrices + (hidden if self.mlp == "prelu" else 0)

    def _coefficients(self, channels: int) -> int:
        """Number of coefficients of one `GroupRational`."""
        m, n = self.degrees
        groups = channels if self.groups is None else self.groups
        numerator_groups = channels if self.numerator_groups is None else self.numerator_groups
        return numerator_groups * (m + 1) + groups * n


def _pair(name: str, value: object) -> tuple:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{name}={value!r:.100}; allowed are pairs")
    return tuple(value)


def check_name(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises a ValueError unless `value` is one of the allowed names."""
    if value not in allowed:
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"{name}={value!r:.100} is not known; allowed are {names}")


def check_int(name: str, value: object, least: int, most: float = math.inf) -> None:
    """Raises a ValueError unless `value` is a whole number, and no bool, from least to most."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(_out_of_range(name, value, "whole numbers", least, most))


def check_number(name: str, value: object, least: float, most: float = math.inf) -> None:
    """Raises a ValueError unless `value` is a finite number, and no bool, from least to most."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or value == math.inf:  # type: ignore[operator]
        raise ValueError(_out_of_range(name, value, "numbers", least, most))


def _out_of_range(name: str, value: object, kind: str, least: float, most: float) -> str:
    limit = f"{least} or more" if most == math.inf else f"{least} to {most}"
    return f"{name}={value!r:.100}; allowed are {kind}, {limit}"


def _check_divides(name: str, value: int, whole_name: str, whole: int) -> None:
    if whole % value:
        raise ValueError(
            f"{name}={value} does not divide {whole_name}={whole}; use a divisor of {whole}"
        )


# Yang & Wang, arXiv 2409.10594, table 1
KAT_TINY = Architecture(embed_dim=192, num_heads=3)
KAT_SMALL = Architecture(embed_dim=384, num_heads=6)
KAT_BASE = Architecture(embed_dim=768, num_heads=12)
