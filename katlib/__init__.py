"""katlib: the Kolmogorov-Arnold Transformer (KAT, arXiv 2409.10594).

To understand KAT, read `reference`, `rational`, `init`, `grkan` and `vit`, in this order. Around
them stand `ops` and the kernels in `cpu` and `cuda`, then `fit`, `formula`, `spline`,
`architecture`, `convert`, `pretrained` and `timm`. Three packages come with extras: `train`,
`widgets` and `book`.
"""

from importlib import import_module

from katlib.convert import from_vit
from katlib.fit import RationalFit, fit_rational
from katlib.formula import Formula, formula
from katlib.grkan import GRKAN, GRKANMlp
from katlib.init import gain
from katlib.pretrained import load_pretrained, save_pretrained
from katlib.rational import GroupRational, rational, rational_reference
from katlib.spline import SplineKAN
from katlib.vit import VisionTransformer

__version__ = "0.1.0"

LIVE = (
    "RationalExplorer",
    "DenominatorExplorer",
    "SplineExplorer",
    "TrainedExplorer",
    "ConversionExplorer",
    "SplineCostExplorer",
    "ReductionExplorer",
    "RooflineExplorer",
    "BlockExplorer",
    "SummationExplorer",
    "GroupExplorer",
    "ModelExplorer",
    "DepthExplorer",
    "PadeExplorer",
    "FitExplorer",
    "SeedsExplorer",
)
# loaded at first use: they need packages that only extras bring
_LAZY = {"load_cifar10": "katlib.train.data"} | dict.fromkeys(LIVE, "katlib.widgets")

__all__ = [
    "rational",
    "rational_reference",
    "GroupRational",
    "GRKAN",
    "GRKANMlp",
    "SplineKAN",
    "VisionTransformer",
    "load_pretrained",
    "save_pretrained",
    "from_vit",
    "RationalFit",
    "fit_rational",
    "Formula",
    "formula",
    "gain",
    "load_cifar10",
    *LIVE,
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'katlib' has no attribute {name!r}")
