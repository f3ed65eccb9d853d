"""DenominatorExplorer: what one set of coefficients becomes under each of four denominators."""

import traitlets

from katlib.rational import RELEASED_GELU, STORED, initial_coefficients
from katlib.widgets.explorer import TARGETS
from katlib.widgets.live import Coefficients, LiveFigure, source


class DenominatorExplorer(LiveFigure):
    """P(x) / Q(x) for one numerator and one b under four denominators, with a handle for each b_j.

    A: 1 + sum |b_j| |x|^j, which KAT's kernels and katlib evaluate; B: 1 + |sum b_j x^j|, which the paper writes; signed:
    1 + sum |b_j| x^j, which the released PyTorch fallback evaluates; plain: 1 + sum b_j x^j, without absolute values.

    Args:
        numerator, denominator: a_0 .. a_m and b_1 .. b_n, lists or tensors; by default those of the released "gelu".
        target: "identity", "relu", "gelu", "swish" or "tanh"; what the errors on [-3, 3] are measured against.

    Attributes: the same, all of them can be assigned.

    Raises:
        ValueError: an unknown target.

    Example:
        >>> katlib.DenominatorExplorer(denominator=[-0.2, 0.1, 0.0, 0.0]).denominator
        [-0.2, 0.1, 0.0, 0.0]
    """

    _esm = source("rational.js", "denominator.js")
    numerator = Coefficients().tag(sync=True)
    denominator = Coefficients().tag(sync=True)
    target = traitlets.Enum(TARGETS).tag(sync=True)
    interval = traitlets.List([-3.0, 3.0]).tag(sync=True)
    presets = traitlets.List().tag(sync=True)

    def __init__(
        self, numerator=RELEASED_GELU[0], denominator=RELEASED_GELU[1], target: str = "gelu"
    ):
        if target not in TARGETS:
            raise ValueError(
                f"target={target!r} is not known; allowed are {', '.join(map(repr, TARGETS))}"
            )
        presets = {"released “gelu”": RELEASED_GELU} | {
            name: (STORED[name]["5,4"]["numerator"], STORED[name]["5,4"]["denominator"])
            for name in ("gelu", "swish")
        }
        identity = [c.tolist() for c in initial_coefficients("identity")]
        presets["a pole at 2"] = (identity[0], [-0.5, 0.0, 0.0, 0.0])
        super().__init__(
            numerator=numerator,
            denominator=denominator,
            target=target,
            presets=[[name, *map(list, pair)] for name, pair in presets.items()],
        )
