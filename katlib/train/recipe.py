"""What is trained and how.

A `Config` describes a model and its training; `PRESETS` are the named ones. This module makes the
model and the optimizer of a config, the learning rate of a step and a batch of images.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchvision.transforms import v2

from katlib.architecture import Architecture, check_int, check_name, check_number
from katlib.init import truncated_normal_
from katlib.rational import GroupRational
from katlib.train.data import MEAN, STD, augment, cutout, normalize
from katlib.vit import Block, VisionTransformer

# the flat names of a config: flags of the command line, keywords of `train` and keys of a record's
# `config`, in the record's order; and where a `Config` keeps each of them
FLAT_NAMES = {
    "patch_size": "architecture.patch_size",
    "embed_dim": "architecture.embed_dim",
    "depth": "architecture.depth",
    "num_heads": "architecture.num_heads",
    "mlp_ratio": "architecture.mlp_ratio",
    "groups": "architecture.groups",
    "numerator_groups": "architecture.numerator_groups",
    "degrees": "architecture.degrees",
    "act_init": "architecture.act_init",
    "stem": "architecture.stem",
    "global_pool": "architecture.global_pool",
    "learned": "learned",
    "weight_std": "weight_std",
    "batch_size": "batch_size",
    "optimizer": "optimizer",
    "lr": "lr",
    "muon_lr": "muon_lr",
    "coefficient_lr": "coefficient_lr",
    "weight_decay": "weight_decay",
    "coefficient_decay": "coefficient_decay",
    "warmup": "warmup",
    "frozen_until": "frozen_until",
    "schedule": "schedule",
    "precision": "precision",
    "label_smoothing": "label_smoothing",
    "clip_grad": "clip_grad",
    "drop": "architecture.drop_rate",
    "drop_path": "architecture.drop_path_rate",
    "shift": "shift",
    "cutout": "cutout",
    "rand_augment": "rand_augment",
    "magnitude": "magnitude",
    "mixup": "mixup",
    "cutmix": "cutmix",
    "ema": "ema",
}

# the recipe's numbers, with the least and the largest that is allowed
WHOLE_NUMBERS = {
    "batch_size": (1, math.inf),
    # each operation takes time, and after a hundred there is nothing to see
    "rand_augment": (0, 100),
    "magnitude": (0, 30),
}
NUMBERS = {
    "lr": (0, math.inf),
    "muon_lr": (0, math.inf),
    "coefficient_lr": (0, math.inf),
    "weight_decay": (0, math.inf),
    "coefficient_decay": (0, math.inf),
    "warmup": (0, 1),
    "frozen_until": (0, 1),
    "label_smoothing": (0, 1),
    "clip_grad": (0, math.inf),
    "mixup": (0, math.inf),
    "cutmix": (0, math.inf),
    "ema": (0, 1),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": ("adamw", "muon"),
    "schedule": ("cosine", "linear"),
    "precision": ("auto", "float32", "bf16", "fp16"),
}

# of Beta(alpha, alpha); for much smaller ones float32 has no draws
LEAST_ALPHA = 1e-4

# in pixels of the image, whose side length is the most
PIXELS = ("shift", "cutout")

# what the images of CIFAR-10 and their classes ask of a model
CIFAR10_SIZES: dict[str, Any] = {"img_size": 32, "in_chans": 3, "num_classes": 10}

NANO = Architecture(**CIFAR10_SIZES, patch_size=4, embed_dim=128, depth=4, num_heads=4)


@dataclass(frozen=True)
class Config:
    """A model and the recipe of its training.

    Args:
        architecture: the model. For other images than CIFAR-10, `train` changes its size of images,
            channels and number of classes (see `fit`).
        learned: whether the coefficients of the rational functions are trained; if not, they stay
            where they start.
        weight_std: standard deviation of the MLPs' initial matrices; None for the
            variance-preserving one.
        batch_size: images in a step, of all processes together.
        optimizer: "adamw" for all parameters, or "muon" for the matrices of the blocks' linear maps
            (arXiv 2502.16982) and AdamW for the others.
        lr: peak learning rate of AdamW, between warm-up and decay.
        muon_lr: peak learning rate of Muon.
        coefficient_lr: learning rate of the rational functions' coefficients, in units of `lr`.
        weight_decay: for matrices only.
        coefficient_decay: weight decay of the coefficients.
        warmup: the share of all steps in which the learning rate rises.
        frozen_until: the share of all steps in which the coefficients do not learn yet.
        schedule: how the learning rate decays to 0, "cosine" or "linear".
        precision: "float32"; "bf16" or "fp16" for mixed precision (autocast); "auto" for "float32"
            on the CPU, and on a GPU for "bf16" if it computes in bfloat16 and for "fp16" if not.
        label_smoothing: the probability that is spread over all classes.
        clip_grad: largest norm of the gradient; 0 for no clipping.
        shift: largest shift of a training image, in pixels each way.
        cutout: side length of the square that is blanked in each training image
            (arXiv 1708.04552), in pixels; 0 for none.
        rand_augment: operations on an image (RandAugment, arXiv 1909.13719).
        magnitude: of RandAugment, 0 to 30.
        mixup: alpha of Beta(alpha, alpha) (arXiv 1710.09412); 0 for none.
        cutmix: likewise (arXiv 1905.04899). With both, each batch takes one of the two.
        ema: decay of a moving average of the weights, which is then what is evaluated; 0 for none.

    Raises:
        ValueError: a value of another type or out of range.

    Example:
        >>> from katlib.train.recipe import Config
        >>> config = Config(batch_size=64).replace(embed_dim=64, drop_path=0.1)
        >>> config.batch_size, config.architecture.embed_dim, config.architecture.drop_path_rate
        (64, 64, 0.1)
    """

    architecture: Architecture = NANO
    learned: bool = True
    weight_std: float | None = None
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 1e-3
    muon_lr: float = 0.02
    coefficient_lr: float = 1.0
    weight_decay: float = 0.05
    coefficient_decay: float = 0.0
    warmup: float = 0.1
    frozen_until: float = 0.0
    schedule: str = "cosine"
    precision: str = "auto"
    label_smoothing: float = 0.1
    clip_grad: float = 1.0
    shift: int = 4
    cutout: int = 0
    rand_augment: int = 0
    magnitude: int = 9
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.learned, bool):
            raise ValueError(f"learned={self.learned!r:.100}; allowed are True and False")
        for name, (least, most) in WHOLE_NUMBERS.items():
            check_int(name, getattr(self, name), least, most)
        for name in PIXELS:
            check_int(name, getattr(self, name), 0, self.architecture.img_size)
        if self.rand_augment and self.architecture.in_chans not in (1, 3):
            raise ValueError(
                f"rand_augment={self.rand_augment}: RandAugment is for images of 1 or 3 channels, "
                f"and these have {self.architecture.in_chans}"
            )
        for name, (least, most) in NUMBERS.items():
            check_number(name, getattr(self, name), least, most)
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if 0 < alpha < LEAST_ALPHA:
                raise ValueError(
                    f"{name}={alpha}; allowed are 0 for none, and {LEAST_ALPHA} or more"
                )
        for name, allowed in CHOICES.items():
            check_name(name, getattr(self, name), allowed)
        if self.weight_std is not None:
            check_number("weight_std", self.weight_std, 0)
        try:
            self.as_dict()
        except TypeError as error:
            raise ValueError(f"a config must be storable as JSON: {error}") from error

    def as_dict(self) -> dict[str, Any]:
        """The flat names and their values, as JSON has them: lists instead of tuples.

        Example:
            >>> from katlib.train.recipe import Config
            >>> list(Config().as_dict().items())[:2]
            [('patch_size', 4), ('embed_dim', 128)]
        """
        values = {name: attrgetter(path)(self) for name, path in FLAT_NAMES.items()}
        return json.loads(json.dumps(values))

    def replace(self, mlp: str | None = None, **changes: Any) -> Config:
        """A copy with some values changed, which are given by their flat names.

        Args:
            mlp: "grkan" or "mlp"; None leaves it as it is.
            changes: `patch_size`, `lr` and the other keys of `as_dict`.

        Raises:
            ValueError: an unknown name, or a value that is not allowed.
        """
        return self._changed({} if mlp is None else {"mlp": mlp}, changes)

    def fit(self, sizes: Mapping[str, int], mlp: str | None = None, **changes: Any) -> Config:
        """A copy for images and classes of these sizes, with some values changed.

        Args:
            sizes: `img_size`, `in_chans` and `num_classes` of the data.
            mlp, changes: as for `replace`. Sizes and changes come at once, because a `patch_size`
                may divide one size of images and not another.

        Raises:
            ValueError: as for `replace`; or the architecture is for other images: it has a size
                that is neither the data's nor CIFAR-10's, as all presets have it.

        Example:
            >>> from katlib.train.recipe import Config
            >>> config = Config().fit({"img_size": 28, "in_chans": 1, "num_classes": 26})
            >>> config.architecture.patches
            49
        """
        for name, size in sizes.items():
            own = getattr(self.architecture, name)
            if own not in (size, CIFAR10_SIZES[name]):
                raise ValueError(
                    f"the architecture has {name}={own}; for these images it is {size}"
                )
        return self._changed(dict(sizes) if mlp is None else {**sizes, "mlp": mlp}, changes)

    def _changed(self, of_architecture: dict[str, Any], changes: Mapping[str, Any]) -> Config:
        """A copy with other fields of the architecture, and other values under flat names."""
        unknown = sorted(set(changes) - set(FLAT_NAMES))
        if unknown:
            raise ValueError(f"{unknown} are not fields of Config; it has {', '.join(FLAT_NAMES)}")
        of_recipe: dict[str, Any] = {}
        for name, value in changes.items():
            owner, _, field = FLAT_NAMES[name].rpartition(".")
            if owner:
                of_architecture[field] = value
            else:
                of_recipe[field] = value
        architecture = replace(self.architecture, **of_architecture)
        return replace(self, architecture=architecture, **of_recipe)


# tokens from convolutions: about 52 million multiply-adds an image
COMPACT = Architecture(
    **CIFAR10_SIZES,
    patch_size=4,
    embed_dim=128,
    depth=4,
    num_heads=4,
    mlp_ratio=1.5,
    stem="conv",
    global_pool="seq",
)

# What the presets with this tokenizer share. The learning rates are the better of two pairs that
# were tried with `cifar-compact` on held-out training images: results/compact-rates.
COMPACT_RECIPE = Config(
    architecture=COMPACT,
    optimizer="muon",
    lr=1.5e-3,
    muon_lr=0.01,
    schedule="linear",
    precision="bf16",
    shift=2,
    cutout=8,
)

PRESETS: dict[str, Config] = {
    "cifar-pico": Config().replace(patch_size=8, embed_dim=64, num_heads=2),
    "cifar-nano": Config(),
    "cifar-compact": COMPACT_RECIPE,
    # The two larger ones are for GPUs and untried until a GPU has tried them.
    "cifar-small": COMPACT_RECIPE.replace(
        embed_dim=256, depth=6, mlp_ratio=2.0, batch_size=256, drop_path=0.1
    ),
    "cifar-base": COMPACT_RECIPE.replace(
        embed_dim=384,
        depth=7,
        num_heads=6,
        mlp_ratio=2.0,
        batch_size=512,
        drop_path=0.1,
        cutmix=1.0,
    ),
}


def build_model(config: Config, mlp: str | None = None) -> VisionTransformer:
    """The model of a config, with new weights.

    Args:
        config: its architecture, and how the weights and coefficients of its MLPs start.
        mlp: "grkan" for a KAT, "mlp" for its twin; None for what the config's architecture says.
    """
    architecture = config.replace(mlp=mlp).architecture
    model = VisionTransformer(**architecture.as_dict())
    if config.weight_std is not None:
        for block in model.blocks:
            assert isinstance(block, Block)
            for module in block.mlp.modules():
                if isinstance(module, nn.Linear):
                    truncated_normal_(module.weight, config.weight_std)
    for module in model.modules():
        if isinstance(module, GroupRational):
            module.requires_grad_(config.learned)
    return model


def build_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer | Combined:
    """The optimizer of a model: AdamW, with Muon for a part of it if the config says so.

    Weight decay is for matrices: biases, norms, embeddings and the coefficients of rational
    functions are spared. Each parameter group has its peak learning rate as `initial_lr`, and
    `coefficients` tells whether it holds those of rational functions.

    Raises:
        ValueError: Muon with a version of torch that does not have it.
    """
    parts = split_parameters(model, config.optimizer == "muon")
    adamw = torch.optim.AdamW(
        [
            {"params": parts.matrices, "weight_decay": config.weight_decay},
            {"params": parts.others, "weight_decay": 0.0},
            {
                "params": parts.coefficients,
                "weight_decay": config.coefficient_decay,
                "lr": config.lr * config.coefficient_lr,
            },
        ],
        lr=config.lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    adamw.param_groups[2]["coefficients"] = True
    optimizer = Combined([adamw, _muon(parts.of_muon, config)]) if parts.of_muon else adamw
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        group.setdefault("coefficients", False)
    return optimizer


def _muon(parameters: list[nn.Parameter], config: Config) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer='muon' needs torch 2.9 or newer; this is {torch.__version__}")
    return torch.optim.Muon(
        parameters, lr=config.muon_lr, weight_decay=config.weight_decay, momentum=0.95
    )


class Combined:
    """Several optimizers, each for some parameters, that step together.

    It has what a training loop and a checkpoint use of a `torch.optim.Optimizer`; parameters are
    numbered through.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]):
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        state: dict[int, Any] = {}
        groups = []
        for first, optimizer in zip(self._first_numbers(), self.optimizers, strict=True):
            own = optimizer.state_dict()
            state |= {first + index: values for index, values in own["state"].items()}
            for group in own["param_groups"]:
                groups.append(group | {"params": [first + index for index in group["params"]]})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        groups = iter(state_dict["param_groups"])
        for first, optimizer in zip(self._first_numbers(), self.optimizers, strict=True):
            own_groups = [next(groups) for _ in optimizer.param_groups]
            numbers = [number for group in own_groups for number in group["params"]]
            states = state_dict["state"]
            own_state = {number - first: states[number] for number in numbers if number in states}
            for group in own_groups:
                group["params"] = [number - first for number in group["params"]]
            optimizer.load_state_dict({"state": own_state, "param_groups": own_groups})

    def _first_numbers(self) -> list[int]:
        """The number of each optimizer's first parameter."""
        counts = [
            sum(len(group["params"]) for group in optimizer.param_groups)
            for optimizer in self.optimizers
        ]
        return [sum(counts[:index]) for index in range(len(counts))]


class Parts(NamedTuple):
    """The learned parameters of a model by how they are trained."""

    matrices: list[nn.Parameter]
    others: list[nn.Parameter]
    coefficients: list[nn.Parameter]
    of_muon: list[nn.Parameter]


def split_parameters(model: nn.Module, muon: bool = False) -> Parts:
    """The parameters that learn: matrices, coefficients of rational functions, others.

    The coefficients are two-dimensional too, so they are told from matrices by their module.

    Args:
        model: any model.
        muon: whether the matrices of its blocks' linear maps are a part of their own.
    """
    coefficients = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, GroupRational)
        for parameter in module.parameters()
    }
    of_blocks = {
        id(module.weight)
        for block in model.modules()
        if isinstance(block, Block)
        for module in block.modules()
        if isinstance(module, nn.Linear)
    }
    parts = Parts([], [], [], [])
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in coefficients:
            parts.coefficients.append(parameter)
        elif muon and id(parameter) in of_blocks:
            parts.of_muon.append(parameter)
        # 4: a convolution's matrix, such as the patch embedding's
        elif parameter.ndim in (2, 4):
            parts.matrices.append(parameter)
        else:
            parts.others.append(parameter)
    return parts


def set_learning_rates(
    optimizer: torch.optim.Optimizer | Combined, step: int, steps: int, config: Config
) -> None:
    """Sets the learning rates of a step: each group's `initial_lr` times `schedule`.

    Args:
        optimizer: of `build_optimizer`.
        step, steps, config: as for `schedule`.
    """
    factor = schedule(step, steps, config)
    frozen = step < round(config.frozen_until * steps)
    for group in optimizer.param_groups:
        waits = frozen and group["coefficients"]
        group["lr"] = 0.0 if waits else group["initial_lr"] * factor


def schedule(step: int, steps: int, config: Config) -> float:
    """The learning rate of a step as a share of its peak: a linear warm-up, then the decay to 0.

    Args:
        step: from 0.
        steps: of the whole training; the decay reaches 0 at step number `steps`.
        config: its `warmup` and `schedule`.
    """
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done))


def learning_rate(step: int, steps: int, config: Config) -> float:
    """The learning rate of AdamW in a step: `config.lr` times `schedule`."""
    return config.lr * schedule(step, steps, config)


def prepare(
    images: Tensor,
    labels: Tensor,
    config: Config,
    generator: torch.Generator,
    seed: int,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> tuple[Tensor, Tensor]:
    """A batch as the model gets it: augmented, normalised, mixed.

    The same generator and seed give the same batch in every process.

    Args:
        images, labels: uint8 (B, C, H, W) and int64 (B,), on the device that computes.
        config: its shifts, cutout, RandAugment, mixup and CutMix, and the number of classes.
        generator: of that device, for shifts, mirror images and cutout.
        seed: for all else that is random here.
        mean, std: what the images are normalised with, as for `katlib.train.data.normalize`.

    Returns:
        Images float32 (B, C, H, W), and either the labels or, mixed, the classes' probabilities
        (B, classes).
    """
    # torchvision draws from the CPU's global generator, which is put back afterwards
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if config.rand_augment:
            images = _rand_augment(images, config)
        x = augment(normalize(images, mean, std), generator, config.shift)
        if config.cutout:
            x = cutout(x, config.cutout, generator)
        mixers = _mixers(config)
        if mixers:
            x, labels = v2.RandomChoice(mixers)(x, labels)
    return x, labels


def _rand_augment(images: Tensor, config: Config) -> Tensor:
    """RandAugment; torchvision draws once a call, so that 16 images share their operations."""
    transform = v2.RandAugment(config.rand_augment, config.magnitude)
    return torch.cat([transform(part) for part in images.split(16)])


def _mixers(config: Config) -> list[nn.Module]:
    classes = config.architecture.num_classes
    mixers: list[nn.Module] = []
    if config.mixup > 0:
        mixers.append(v2.MixUp(alpha=config.mixup, num_classes=classes))
    if config.cutmix > 0:
        mixers.append(v2.CutMix(alpha=config.cutmix, num_classes=classes))
    return mixers


class Average:
    """An exponential moving average of a model's weights.

    The decay of step t is (1 + t) / (10 + t), up to `decay`, so that the first weights are soon
    forgotten.

    Attributes:
        model: a copy of the model, with the averaged weights.
        steps: number of updates.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the weights of `model`."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        average = get_ema_multi_avg_fn(decay)
        average(list(self.model.parameters()), list(model.parameters()), self.steps)
