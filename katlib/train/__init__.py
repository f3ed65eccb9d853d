"""Training on CIFAR-10: the loop, its recipe, the data and the checkpoints.

    python -m katlib.train --preset cifar-nano --mlp grkan --epochs 3 --out runs/kat

Needs katlib's extra `train` (torchvision, pillow, tqdm).

    __main__    the command line
    loop        `train` and its steps
    recipe      model, optimizer, learning rate and batches of a `Config`; the presets
    data        CIFAR-10, downloaded and cached
    checkpoint  what a run is resumed from
    record      what a run leaves behind
"""

from katlib.extras import require

require("train", "torchvision", "PIL", "tqdm")

from katlib.train.loop import TrainingDiverged, evaluate, train

__all__ = ["TrainingDiverged", "evaluate", "train"]
