"""Training on CIFAR-10 or images of one's own: the loop, its recipe, data and checkpoints.

    python -m katlib.train --preset cifar-nano --mlp grkan --epochs 3 --out runs/kat

Needs katlib's extra `train` (torchvision, pillow, tqdm).

    __main__    the command line
    loop        `train` and its steps
    start       what is settled before the first epoch: config, device, model
    recipe      model, optimizer, learning rate and batches of a `Config`; the presets
    data        CIFAR-10, downloaded and cached
    images      images of one's own, from tensors or a folder
    checkpoint  what a run is resumed from
    record      what a run leaves behind
"""

from katlib.extras import require

require("train", "torchvision", "PIL", "tqdm")

from katlib.train.images import ImageData, load_image_folder
from katlib.train.loop import TrainingDiverged, evaluate, train

__all__ = ["ImageData", "TrainingDiverged", "evaluate", "load_image_folder", "train"]
