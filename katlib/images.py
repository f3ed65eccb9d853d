"""What the images of a data set must look like, and what its classes are.

The keys are timm's: `mean` and `std` of the training pixels per channel, scaled to [0, 1];
`crop_pct`, the share of the image that is looked at; `interpolation`, by which it is resized.
"""

# CIFAR-10 (Krizhevsky 2009); a test computes both from the training images
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
CIFAR10 = {
    "mean": MEAN,
    "std": STD,
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "classes": list(CLASSES),
}

# what the released KATs were trained and evaluated with, by the commands on the release's page
IMAGENET = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
}
