"""Live figures, each an anywidget that draws and computes everything in the browser.

Needs katlib's extra `widgets` (anywidget, ipywidgets).
"""

from katlib.extras import require

require("widgets", "anywidget", "ipywidgets")

from katlib.widgets.denominator import DenominatorExplorer
from katlib.widgets.explorer import RationalExplorer
from katlib.widgets.spline import SplineExplorer
from katlib.widgets.trained import TrainedExplorer

__all__ = ["DenominatorExplorer", "RationalExplorer", "SplineExplorer", "TrainedExplorer"]
