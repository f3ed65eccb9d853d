"""Live figures, each an anywidget: `RationalExplorer`, `DenominatorExplorer`, `SplineExplorer`."""

from katlib.widgets.denominator import DenominatorExplorer
from katlib.widgets.explorer import RationalExplorer
from katlib.widgets.spline import SplineExplorer

__all__ = ["RationalExplorer", "DenominatorExplorer", "SplineExplorer"]
