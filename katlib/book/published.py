"""Numbers from papers that the book compares with; nothing here was measured by it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What papers report of one size of a Vision Transformer, trained on ImageNet-1k.

    Accuracies are in percent of the validation images, rates in training images a second on one
    H200.

    Attributes:
        size: "T", "S" or "B".
        vit: a ViT as the KAT paper cites it (arXiv 2409.10594).
        deit: the same network with DeiT's recipe (arXiv 2012.12877, table 5), without distillation.
        kat: the KAT (arXiv 2409.10594).
        kat_from_vit: a KAT that started from a trained ViT (same paper).
        vit_rate, kat_rate, flash_rate: of the ViT, of the KAT with the released kernels, and with
            FlashKAT's (arXiv 2505.13813).
    """

    size: str
    vit: float
    deit: float
    kat: float
    kat_from_vit: float
    vit_rate: float
    kat_rate: float
    flash_rate: float


IMAGENET = (
    Published("T", 72.7, 72.2, 74.6, 75.7, 8955, 88, 6318),
    Published("S", 78.8, 79.8, 81.2, 82.0, 5312, 43, 3742),
    Published("B", 79.1, 81.8, 82.3, 82.8, 2457, 21, 1802),
)
