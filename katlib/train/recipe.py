"""What is trained and how: the presets, the model and the optimizer that a `Config` describes, and what happens to a batch of images."""

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchvision.transforms import v2

from katlib.init import truncated_normal_
from katlib.rational import GroupRational
from katlib.train.data import augment, normalize
from katlib.vit import VisionTransformer


@dataclass(frozen=True)
class Config:
    """A model and its recipe; each field is a flag of `python -m katlib.train`. Those of the rational functions are without effect for an MLP."""

    patch_size: int = 4
    embed_dim: int = 128
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: float = 4.0
    # the rational functions
    groups: int | None = 8  # of denominators; None: one for each channel
    numerator_groups: int | None = 1
    degrees: tuple[int, int] = (5, 4)
    act_init: tuple[str, str] = ("identity", "swish")
    learned: bool = True  # False: the coefficients stay where they start
    weight_std: float | None = None  # of the MLPs' matrices; None: variance-preserving
    # the recipe
    batch_size: int = 128
    lr: float = 1e-3  # the peak of warm-up and cosine decay
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of all steps
    label_smoothing: float = 0.1
    clip_grad: float = 1.0
    drop: float = 0.0
    drop_path: float = 0.0  # of the last block, rising linearly from 0
    rand_augment: int = 0  # operations on an image (RandAugment, arXiv 1909.13719)
    magnitude: int = 9  # of RandAugment, 0 to 30
    mixup: float = 0.0  # alpha of Beta(alpha, alpha) (arXiv 1710.09412)
    cutmix: float = 0.0  # the same (arXiv 1905.04899); with both, each batch takes one of the two
    ema: float = 0.0  # decay of an average of the weights, which is then what is evaluated; 0: none


NANO = Config()
PRESETS = {
    "cifar-pico": replace(NANO, patch_size=8, embed_dim=64, num_heads=2),
    "cifar-nano": NANO,
    "cifar-small": replace(
        NANO,
        embed_dim=192,
        depth=6,
        num_heads=3,
        batch_size=256,
        drop_path=0.1,
        rand_augment=1,
        mixup=0.2,
        cutmix=1.0,
        ema=0.999,
    ),
    "cifar-base": replace(
        NANO,
        embed_dim=256,
        depth=12,
        num_heads=4,
        batch_size=512,
        drop_path=0.1,
        rand_augment=2,
        mixup=0.2,
        cutmix=1.0,
        ema=0.9995,
    ),
}


def build_model(config: Config, mlp: str) -> VisionTransformer:
    """The model of a preset; `mlp` is "grkan" for a KAT and "mlp" for its twin."""
    model = VisionTransformer(
        img_size=32,
        patch_size=config.patch_size,
        num_classes=10,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        mlp=mlp,
        groups=config.groups,
        numerator_groups=config.numerator_groups,
        degrees=tuple(config.degrees),
        act_init=config.act_init,
        drop_rate=config.drop,
        drop_path_rate=config.drop_path,
    )
    for block in model.blocks if config.weight_std is not None else ():
        for linear in (block.mlp.fc1, block.mlp.fc2):
            truncated_normal_(linear.weight, config.weight_std)
    for module in model.modules():
        if isinstance(module, GroupRational):
            module.requires_grad_(config.learned)
    return model


def build_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW whose weight decay spares biases, norms, embeddings and the coefficients of rational functions: only matrices decay."""
    spared = {
        id(p) for m in model.modules() if isinstance(m, GroupRational) for p in m.parameters()
    }
    learned = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in learned if p.ndim in (2, 4) and id(p) not in spared]
    others = [p for p in learned if not (p.ndim in (2, 4) and id(p) not in spared)]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(0.9, 0.95),
        fused=True,
    )


def learning_rate(step: int, steps: int, config: Config) -> float:
    """Linear warm-up to `config.lr`, then a cosine down to 0 at step `steps`."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def prepare(
    images: Tensor,
    labels: Tensor,
    config: Config,
    generator: torch.Generator,
    seed: int,
    classes: int = 10,
) -> tuple[Tensor, Tensor]:
    """A batch as the model gets it: augmented, normalised, mixed.

    Args:
        images, labels: uint8 (B, 3, 32, 32) and int64 (B,), on the device that computes.
        generator: of that device, for shifts and mirror images.
        seed: for all else that is random here. The same generator and seed give the same batch in every process.

    Returns:
        Images float32 (B, 3, 32, 32), and either the labels or, mixed, the classes' probabilities (B, classes).
    """
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the CPU's global generator
        torch.default_generator.manual_seed(seed)
        if config.rand_augment:
            transform = v2.RandAugment(
                config.rand_augment, config.magnitude
            )  # one draw for each 16 images
            images = torch.cat([transform(part) for part in images.split(16)])
        x = augment(normalize(images), generator)
        mixers = [
            kind(alpha=alpha, num_classes=classes)
            for kind, alpha in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
            if alpha > 0
        ]
        if mixers:
            x, labels = v2.RandomChoice(mixers)(x, labels)
    return x, labels


class Average:
    """An exponential moving average of a model's weights, the copy `model` of which is evaluated. The decay of step t is (1 + t) / (10 + t), up to `decay`, so that
    the first weights are soon forgotten."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.steps = copy.deepcopy(model).requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(
            list(self.model.parameters()), list(model.parameters()), self.steps
        )
