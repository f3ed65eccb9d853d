"""Training on CIFAR-10: the loop, its recipe, the data and the checkpoints.

    python -m katlib.train --preset cifar-nano --mlp grkan --epochs 3 --out runs/kat

Needs katlib's extra `train` (torchvision, pillow, tqdm).
"""

from katlib.extras import require

require("train", "torchvision", "PIL", "tqdm")

from katlib.train.loop import TrainingDiverged, evaluate, train

__all__ = ["TrainingDiverged", "evaluate", "train"]
