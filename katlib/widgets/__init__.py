"""Live figures, each an anywidget that draws and computes everything in the browser.

Needs katlib's extra `widgets` (anywidget, ipywidgets).
"""

from katlib.extras import require

require("widgets", "anywidget", "ipywidgets")

from katlib.widgets.block import BlockExplorer
from katlib.widgets.conversion import ConversionExplorer
from katlib.widgets.denominator import DenominatorExplorer
from katlib.widgets.depth import DepthExplorer
from katlib.widgets.explorer import RationalExplorer
from katlib.widgets.fit import FitExplorer
from katlib.widgets.groups import GroupExplorer
from katlib.widgets.model import ModelExplorer
from katlib.widgets.pade import PadeExplorer
from katlib.widgets.reduction import ReductionExplorer
from katlib.widgets.roofline import RooflineExplorer
from katlib.widgets.seeds import SeedsExplorer
from katlib.widgets.spline import SplineExplorer
from katlib.widgets.spline_cost import SplineCostExplorer
from katlib.widgets.summation import SummationExplorer
from katlib.widgets.trained import TrainedExplorer

__all__ = [
    "BlockExplorer",
    "ConversionExplorer",
    "DenominatorExplorer",
    "DepthExplorer",
    "FitExplorer",
    "GroupExplorer",
    "ModelExplorer",
    "PadeExplorer",
    "RationalExplorer",
    "ReductionExplorer",
    "RooflineExplorer",
    "SeedsExplorer",
    "SplineCostExplorer",
    "SplineExplorer",
    "SummationExplorer",
    "TrainedExplorer",
]
