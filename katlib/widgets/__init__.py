"""Live figures, each an anywidget: `RationalExplorer`, `DenominatorExplorer`, `SplineExplorer`, `TrainedExplorer`."""

from katlib.widgets.denominator import DenominatorExplorer
from katlib.widgets.explorer import RationalExplorer
from katlib.widgets.spline import SplineExplorer
from katlib.widgets.trained import TrainedExplorer

__all__ = ["RationalExplorer", "DenominatorExplorer", "SplineExplorer", "TrainedExplorer"]
