"""katlib: the Kolmogorov-Arnold Transformer (KAT, arXiv 2409.10594), small enough to read in an evening."""

from katlib.convert import from_vit
from katlib.data import load_cifar10
from katlib.fit import RationalFit, fit_rational
from katlib.grkan import GRKAN, GRKANMlp
from katlib.init import gain
from katlib.pretrained import load_pretrained, save_pretrained
from katlib.rational import GroupRational, rational, rational_reference
from katlib.spline import SplineKAN
from katlib.vit import VisionTransformer

__version__ = "0.1.0"
LIVE = ("RationalExplorer", "DenominatorExplorer", "SplineExplorer", "TrainedExplorer")        # loaded when first used: training needs no ipywidgets
__all__ = ["rational", "rational_reference", "GroupRational", "GRKAN", "GRKANMlp", "SplineKAN", "VisionTransformer", "load_pretrained", "save_pretrained", "from_vit",
           "RationalFit", "fit_rational", "gain", "load_cifar10", *LIVE]


def __getattr__(name: str):
    if name in LIVE:
        from katlib import widgets
        return getattr(widgets, name)
    raise AttributeError(f"module 'katlib' has no attribute {name!r}")
