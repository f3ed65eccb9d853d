"""What a trained KAT has learned: every rational function after every epoch, and the inputs that it really receives.

`Recorder` goes into `katlib.train.train(on_epoch=...)`. After an epoch it sends a fixed batch of images through the model and keeps, for
each `GroupRational` and each of its groups, the coefficients, a histogram of the inputs x and what follows from them:

    mean, std       of x
    inside          share of x in [-3, 3], where the starting coefficients were fitted
    moved           E|F(x) - F_0(x)|, the distance from the start F_0 where inputs fall: a change where none falls means nothing
    second_moment   E[F(x)^2], which the initialisation takes to be E[F_0(z)^2], z ~ N(0, 1) (arXiv 2409.10594, section 4.3)

A record is a dictionary that JSON holds: some 16 kB an epoch for 4 blocks of 8 groups.
"""

import json
import math
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from katlib.book.results import FOLDER
from katlib.provenance import device_name, git_commit
from katlib.rational import GroupRational, rational
from katlib.train.data import normalize

UNIT = 10_000  # a histogram's counts are shares of the inputs in units of 1 / UNIT
FITTED = 3.0  # starting coefficients are fitted on [-3, 3] (`katlib.fit`)
STATISTICS = ("mean", "std", "inside", "moved", "second_moment")


def shares(counts: Tensor, unit: int = UNIT) -> Tensor:
    """Counts (groups, bins), not all 0 in any row, as whole numbers in proportion to them that sum to `unit` in each row (largest remainders)."""
    exact = counts.double() * unit / counts.sum(1, keepdim=True)
    whole = exact.floor()
    rank = (exact - whole).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (whole + (rank < unit - whole.sum(1, keepdim=True))).long()


def histogram(x: Tensor, groups: int, interval: tuple[float, float], bins: int) -> Tensor:
    """How many values of x fall where, by group: (groups, bins + 2) int64, of which the first and the last column are what lies below and above.

    x is (..., C), its groups are blocks of neighbouring channels; a bin holds its left edge.
    """
    lo, hi = interval
    place = ((x.double() - lo) * (bins / (hi - lo))).floor().clamp(
        -1, bins
    ).long() + 1  # (..., C), 0 to bins + 1
    row = torch.arange(groups, device=x.device).repeat_interleave(x.shape[-1] // groups)  # (C,)
    return torch.bincount((place + row * (bins + 2)).flatten(), minlength=groups * (bins + 2)).view(
        groups, bins + 2
    )


def rounded(values, digits: int):
    """A float, or nested lists of floats, with so many significant digits; 9 hold every float32 exactly."""
    return (
        [rounded(value, digits) for value in values]
        if isinstance(values, list)
        else float(f"{values:.{digits}g}")
    )


class Recorder:
    """Keeps the learned functions and the density of their inputs, epoch by epoch.

    Args:
        images: (N, 3, H, W) uint8, the fixed batch, best of the test set; they go through the model in one piece (256 images of the
            small KAT take 0.5 GB), in evaluation mode.
        path: if given, the record is written there after every call, whole or not at all; a record that is there already goes on
            from the epoch of the first call, as a resumed run does.
        interval, bins: of the histograms.

    Called as `recorder(model, metrics)`, it adds an epoch. `metrics` holds "epoch", 0 for the untrained model, and any other numbers of it,
    which are kept beside it. Entries of this and of later epochs that are there already are replaced.

    Attributes:
        record: what it has so far. record["epochs"] is the list of the metrics; record["functions"] maps the name of each `GroupRational`
            to lists with an entry for each of them: "numerator" (Gn rows of a_0 .. a_m), "denominator" (Gd rows of b_1 .. b_n), "counts"
            (for each group the shares of its inputs in the bins, in units of 1 / record["unit"], the first and the last for those below
            and above the interval), and for each group the "mean" and "std" of its inputs x, "inside", their share in [-3, 3], "moved",
            E|F(x) - F_0(x)| with the first entry for F_0, and "second_moment", E[F(x)^2].

    Raises:
        ValueError: images of another shape or dtype, an empty interval, or no bins; when called, a model without a `GroupRational` or
            with others than before, or an input that is not finite.

    Example:
        >>> recorder = katlib.book.recorder.Recorder(data.test_images[:256])
        >>> recorder(model, {"epoch": 0})                           # the start, before training
        >>> katlib.train.train("cifar-nano", on_epoch=recorder)     # must build the same model: the same preset and seed
        >>> recorder.record["functions"]["blocks.0.mlp.act1"]["moved"][-1]      # by group, after the last epoch
    """

    def __init__(
        self,
        images: Tensor,
        path: str | Path | None = None,
        interval: tuple[float, float] = (-6.0, 6.0),
        bins: int = 48,
    ):
        if images.ndim != 4 or len(images) == 0 or images.dtype != torch.uint8:
            raise ValueError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; they must be uint8 (N, 3, H, W), N >= 1"
            )
        if not interval[0] < interval[1] or bins < 1:
            raise ValueError(
                f"interval={interval}, bins={bins}; allowed are lo < hi and 1 or more bins"
            )
        self.images, self.path = images, Path(path) if path else None
        self.record = {
            "kind": "inside",
            "images": len(images),
            "interval": [float(v) for v in interval],
            "bins": bins,
            "unit": UNIT,
            "fitted": [-FITTED, FITTED],
            "epochs": [],
            "functions": {},
        }
        if self.path and self.path.exists():
            self.record |= {
                key: json.loads(self.path.read_text())[key] for key in ("epochs", "functions")
            }

    @torch.no_grad()
    def __call__(self, model: nn.Module, metrics: dict) -> None:
        for wrapper in ("module", "_orig_mod"):  # of DistributedDataParallel and of torch.compile
            model = getattr(model, wrapper, model)
        functions = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, GroupRational)
        }
        earlier = sum(entry["epoch"] < metrics["epoch"] for entry in self.record["epochs"])
        if not functions or (earlier and set(functions) != set(self.record["functions"])):
            raise ValueError(
                f"the model has the rational functions {sorted(functions)}, the record {sorted(self.record['functions'])}"
            )
        kept = {
            name: {
                key: values[:earlier]
                for key, values in self.record["functions"].get(name, {}).items()
            }
            if earlier
            else {}
            for name in functions
        }
        hooks = [
            module.register_forward_pre_hook(
                lambda m, inputs, name=name: self._look(name, m, inputs[0], kept[name])
            )
            for name, module in functions.items()
        ]
        device, training = next(model.parameters()).device, model.training
        model.eval()
        try:
            model(normalize(self.images.to(device)))
        finally:
            model.train(training)
            for hook in hooks:
                hook.remove()
        numbers = {
            key: value if isinstance(value, int) else rounded(value, 7)
            for key, value in metrics.items()
            if isinstance(value, (int, float))
        }
        self.record |= {
            "device_name": device_name(device),
            "torch": torch.__version__,
            "commit": git_commit(),
            "date": date.today().isoformat(),
            "epochs": self.record["epochs"][:earlier] + [numbers],
            "functions": kept,
        }
        if self.path:
            part = self.path.with_name(self.path.name + ".part")
            part.write_text(dumps(self.record) + "\n")
            part.replace(self.path)

    def _look(self, name: str, module: GroupRational, x: Tensor, kept: dict) -> None:
        """Adds to `kept` what one function is now and what its input x is; on no other axis than the last."""
        a, b = module.weight_numerator, module.weight_denominator
        groups = math.lcm(len(a), len(b))
        x = x.float().movedim(module.dim, -1)  # (..., C)
        if not x.isfinite().all():
            raise ValueError(f"an input of {name} is not finite")
        new = {"numerator": rounded(a.tolist(), 9), "denominator": rounded(b.tolist(), 9)}
        a0, b0 = (
            torch.tensor(kept.get(key, [new[key]])[0], device=x.device)
            for key in ("numerator", "denominator")
        )
        y = rational(x, a.float(), b.float())
        values = (x, x**2, x.abs() <= FITTED, (y - rational(x, a0, b0)).abs(), y**2)
        means = [
            v.double().unflatten(-1, (groups, -1)).movedim(-2, 0).flatten(1).mean(1) for v in values
        ]  # each (groups,)
        means[1] = (means[1] - means[0] ** 2).clamp_min(0).sqrt()
        new |= {key: rounded(mean.tolist(), 6) for key, mean in zip(STATISTICS, means)}
        new["counts"] = shares(
            histogram(x, groups, tuple(self.record["interval"]), self.record["bins"])
        ).tolist()
        for key, value in new.items():
            kept.setdefault(key, []).append(value)


def dumps(record: dict) -> str:
    """A record as compact JSON."""
    return json.dumps(record, separators=(",", ":"))


def load_record(path: str | Path | None = None) -> dict:
    """A stored record; by default results/inside-kat-cifar10.json, that of the book's trained KAT.

    Raises:
        FileNotFoundError: there is no such file; the stored records come with the book's repository, not with the package.
    """
    return json.loads(
        (FOLDER / "inside-kat-cifar10.json" if path is None else Path(path)).read_text()
    )


def coefficients(record: dict, name: str, group: int, epoch: int = -1) -> tuple[Tensor, Tensor]:
    """a_0 .. a_m and b_1 .. b_n, float64, of a group. `epoch` is a place in record["epochs"]: 0 the start, -1 the end."""
    function = record["functions"][name]
    a, b = (
        torch.tensor(function[key][epoch], dtype=torch.float64)
        for key in ("numerator", "denominator")
    )
    groups = math.lcm(len(a), len(b))
    return a[group * len(a) // groups], b[group * len(b) // groups]


def density(record: dict, name: str, group: int, epoch: int = -1) -> tuple[Tensor, Tensor]:
    """The middles of the bins and the share of the inputs in each, both (bins,) float64; the shares sum to 1 less what lies outside."""
    lo, hi = record["interval"]
    middles = (
        lo + (torch.arange(record["bins"], dtype=torch.float64) + 0.5) * (hi - lo) / record["bins"]
    )
    return middles, torch.tensor(
        record["functions"][name]["counts"][epoch][group][1:-1], dtype=torch.float64
    ) / record["unit"]
