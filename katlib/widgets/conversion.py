"""ConversionExplorer: an MLP before and after its activation becomes a rational function.

    before: W_2 GELU(W_1 x)        after: W_2 F(W_1 F_1(x)),  F_1 the identity

`python -m katlib.widgets.conversion` writes `gelu_fits.json`, the fits that the figure shows: for
each pair of degrees, on [-2, 2] to [-8, 8].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import traitlets

from katlib.files import write_json
from katlib.fit import fit_rational
from katlib.widgets.live import Finite, LiveFigure, finite_numbers, shown, source
from katlib.widgets.rational import POINTS, Pair, target_curve, values
from katlib.widgets.still import Curve

DEGREES = ((3, 2), (5, 4), (7, 6))
REACHES = range(2, 9)
LEAST_SPREAD, MOST_SPREAD = 0.25, 5.0
FITS = Path(__file__).parent / "gelu_fits.json"

# tokens, channels and hidden units of the small MLP
TOKENS, WIDTH, HIDDEN = 64, 4, 16


class ConversionExplorer(LiveFigure):
    """GELU and a rational function that was fitted to it, within a small MLP.

    It shows both functions, their difference, and by how much (in RMS, relative to what the MLP
    returned) the output changes. The MLP has random weights without biases, 4 channels and 16
    hidden units. The fits are those of `katlib.fit_rational("gelu", degrees, (-reach, reach))`.

    Args:
        degrees: of the rational function: (3, 2), (5, 4) or (7, 6).
        reach: the fit's interval is [-reach, reach]; 2 to 8.
        spread: standard deviation of the hidden inputs W_1 x, 0.25 to 5.

    Attributes: the same. All of them can be assigned.

    Raises:
        ValueError: an option that the figure does not know.
        traitlets.TraitError: the same when it is assigned.

    Example:
        >>> katlib.ConversionExplorer(degrees=(7, 6), reach=5).reach
        5
    """

    _esm = source("rational.js", "conversion.js")
    degrees: traitlets.Tuple = traitlets.Tuple(traitlets.Int(), traitlets.Int()).tag(sync=True)
    reach = traitlets.Int(min=REACHES[0], max=REACHES[-1]).tag(sync=True)
    spread = Finite(min=LEAST_SPREAD, max=MOST_SPREAD).tag(sync=True)
    fits: traitlets.Dict[str, list] = traitlets.Dict(read_only=True).tag(sync=True)
    mlp: traitlets.Dict[str, list] = traitlets.Dict(read_only=True).tag(sync=True)

    def __init__(self, degrees: tuple[int, int] = (5, 4), reach: int = 3, spread: float = 1.0):
        _check_degrees(degrees)
        if reach not in REACHES:
            raise ValueError(
                f"reach={shown(reach)}; allowed are whole numbers from {REACHES[0]} to "
                f"{REACHES[-1]}"
            )
        (number,) = finite_numbers("spread", [spread], count=1)
        if not LEAST_SPREAD <= number <= MOST_SPREAD:
            raise ValueError(f"spread={shown(spread)}; allowed are {LEAST_SPREAD} to {MOST_SPREAD}")
        super().__init__(degrees=tuple(degrees), reach=int(reach), spread=number)

    @traitlets.default("fits")
    def _stored_fits(self) -> dict[str, list[Pair]]:
        return json.loads(FITS.read_text(encoding="utf-8"))

    @traitlets.default("mlp")
    def _random_mlp(self) -> dict[str, list[list[float]]]:
        generator = torch.Generator().manual_seed(0)
        sizes = {"inputs": (TOKENS, WIDTH), "fc1": (HIDDEN, WIDTH), "fc2": (WIDTH, HIDDEN)}
        # three digits, so that a page need not store more
        return {
            name: torch.randn(size, generator=generator, dtype=torch.float64)
            .mul(1000)
            .round()
            .div(1000)
            .tolist()
            for name, size in sizes.items()
        }

    def _still(self) -> list[Curve]:
        m, n = self.degrees
        fit = self.fits[f"{m},{n}"][self.reach - REACHES[0]]
        return [target_curve("gelu"), Curve("F", POINTS, values(POINTS, *fit))]

    @traitlets.validate("degrees")
    def _check_assigned_degrees(self, proposal: Any) -> tuple[int, int]:
        try:
            _check_degrees(proposal["value"])
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None
        return proposal["value"]


def _check_degrees(degrees: Any) -> None:
    if degrees not in DEGREES:
        raise ValueError(f"degrees={shown(degrees)}; allowed are {', '.join(map(str, DEGREES))}")


def main() -> None:
    """Writes the fits: by degrees, one for each reach, numerator and denominator."""
    fits = {}
    for m, n in DEGREES:
        found = [fit_rational("gelu", (m, n), (-reach, reach)) for reach in REACHES]
        fits[f"{m},{n}"] = [[fit.numerator.tolist(), fit.denominator.tolist()] for fit in found]
    write_json(FITS, fits)


if __name__ == "__main__":
    main()
