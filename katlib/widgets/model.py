"""ModelExplorer: a whole trained KAT, computed in the page."""

from __future__ import annotations

import base64
import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import traitlets
from torch import Tensor, nn

from katlib.grkan import GRKANMlp
from katlib.pretrained import load_pretrained
from katlib.rational import STORED, GroupRational, initial_coefficients
from katlib.vit import Block, VisionTransformer
from katlib.widgets.images import load_images
from katlib.widgets.live import LiveFigure, shown, source
from katlib.widgets.rational import checked_pair, preset_list

# what a page computes in a moment, and can show
MAX_PARAMETERS = 2_000_000
MAX_FUNCTIONS = 16
MAX_CLASSES = 20
MAX_IMAGES = 50

# what a function can be replaced by, beside the identity
PRESETS = ("relu", "gelu")

# a_0 .. a_m and b_1 .. b_n; None: GELU itself
Function = list[list[float]] | None


class ModelExplorer(LiveFigure):
    """A whole KAT or ViT, computed in the browser, whose learned functions can be bent.

    It shows an image and its tokens, the attention of every head, the probabilities after each
    block, and all learned functions. A function can be dragged or replaced, an MLP or a head can be
    removed, and the probabilities and the accuracy on all images follow. No kernel is needed; with
    one, the attributes sync both ways.

    Args:
        model: a `katlib.VisionTransformer` with GR-KANs or with ordinary MLPs, whose
            `pretrained_cfg` says what its images are like; default: "kat-cifar10-compact". The page
            gets its weights rounded to float16.
        images: a pair of images, uint8 (N, 3, img_size, img_size), and labels, (N,); default: 20
            test images of CIFAR-10, the first two of each class.

    Attributes:
        model: the model. `write_back` changes it, and nothing else does.
        coefficients: the functions that are edited, by block, layer and group, such as
            "blocks.0.mlp.act1.3": a pair of lists, a_0 .. a_m and b_1 .. b_n. Can be assigned; {}
            takes all edits back.
        removed: what is removed, such as "blocks.0.mlp" and, for head 2 of block 1,
            "blocks.1.attn.2". Can be assigned.
        image: the number of the image that is shown. Can be assigned.
        function: the function that is shown, named as in `coefficients`. Can be assigned.

    Raises:
        ValueError: another model, one that is too large for a page, has other MLPs or does not say
            how its images are normalised, or images that do not fit it.
        traitlets.TraitError: names, numbers or lengths that do not fit are assigned.

    Example:
        >>> explorer = katlib.ModelExplorer()
        >>> explorer.removed = ["blocks.3.mlp"]  # the figure follows
        >>> explorer.write_back()  # and so does explorer.model
    """

    _esm = source("rational.js", "model_engine.js", "model_parts.js", "model.js")
    # as JSON: stored in a notebook, nested lists would fill it with lines
    spec = traitlets.Unicode().tag(sync=True)
    weights = traitlets.Bytes().tag(sync=True)
    pictures = traitlets.Unicode().tag(sync=True)
    coefficients: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    removed: traitlets.List[str] = traitlets.List(traitlets.Unicode()).tag(sync=True)
    image = traitlets.Int().tag(sync=True)
    function = traitlets.Unicode().tag(sync=True)

    def __init__(
        self, model: VisionTransformer | None = None, images: tuple[Tensor, Tensor] | None = None
    ):
        model = load_pretrained("kat-cifar10-compact") if model is None else model
        _check_model(model)
        pixels, labels = _checked_images(load_images() if images is None else images, model)
        self.model = model
        self._start = _linear_maps_that_are_changed(model)
        self._functions = _functions(model)
        self._names = _removable(model)
        self._images = len(pixels)
        rounded = _rounded(model)
        super().__init__(
            spec=json.dumps(_spec(rounded, pixels, labels), separators=(",", ":"), allow_nan=False),
            weights=_as_halves(rounded),
            pictures=base64.b64encode(pixels.numpy().tobytes()).decode(),
            # a frog, where there is one
            image=12 if images is None else 0,
            function=f"{next(iter(self._functions))}.0",
        )

    @traitlets.validate("spec", "weights", "pictures")
    def _keep_the_model(self, proposal: Any) -> Any:
        return self._keep_what_was_drawn(proposal)

    @traitlets.validate("coefficients")
    def _check_coefficients(self, proposal: Any) -> dict[str, list[list[float]]]:
        known = _by_group(self._functions)
        return {
            name: self._checked_function(name, pair, known)
            for name, pair in proposal["value"].items()
        }

    def _checked_function(
        self, name: str, pair: Any, known: Mapping[str, Function]
    ) -> list[list[float]]:
        if name not in known:
            raise traitlets.TraitError(f"coefficients has {name!r}; allowed are {_some(known)}")
        try:
            numerator, denominator = checked_pair(*pair)
        except (TypeError, ValueError) as error:
            raise traitlets.TraitError(f"coefficients[{name!r}]: {error}") from None
        lengths = [len(row) for row in known[name] or _presets(self.model)[0][1:]]
        if [len(numerator), len(denominator)] != lengths:
            raise traitlets.TraitError(
                f"coefficients[{name!r}] has {len(numerator)} and {len(denominator)} numbers; "
                f"needed are {lengths[0]} and {lengths[1]}"
            )
        return [numerator, denominator]

    @traitlets.validate("removed")
    def _check_removed(self, proposal: Any) -> list[str]:
        unknown = [name for name in proposal["value"] if name not in self._names]
        if unknown:
            raise traitlets.TraitError(
                f"removed has {unknown[0]!r}; allowed are {_some(self._names)}"
            )
        return sorted(set(proposal["value"]))

    @traitlets.validate("image")
    def _check_image(self, proposal: Any) -> int:
        if proposal["value"] not in range(self._images):
            raise traitlets.TraitError(
                f"image={proposal['value']}; there are images 0 to {self._images - 1}"
            )
        return proposal["value"]

    @traitlets.validate("function")
    def _check_function(self, proposal: Any) -> str:
        known = _by_group(self._functions)
        if proposal["value"] not in known:
            raise traitlets.TraitError(
                f"function={proposal['value']!r}; allowed are {_some(known)}"
            )
        return proposal["value"]

    @torch.no_grad()
    def write_back(self) -> None:
        """Gives `model` what the figure shows: its functions, without what is removed.

        The weights are changed in place. Where groups share coefficients and now differ, all
        rational functions of the model get coefficients for each group, as new parameters, and
        `model.architecture` says so. What is removed has zeros in the linear map after it. Once
        the edits are taken back and written again, the model computes what it did before.

        Raises:
            ValueError: the figure has another function in the place of a GELU, which has no
                coefficients.
        """
        fixed = [name for name in self.coefficients if _by_group(self._functions)[name] is None]
        if fixed:
            raise ValueError(
                f"{fixed[0]} is GELU, which has no coefficients to write to; take the edit back"
            )
        _write_linear_maps(self.model, self._start, self.removed)
        _write_functions(self.model, self._edited_functions())

    def _edited_functions(self) -> dict[str, list[Function]]:
        """The functions of all layers, with what is edited."""
        return {
            layer: [self.coefficients.get(f"{layer}.{g}", pair) for g, pair in enumerate(pairs)]
            for layer, pairs in self._functions.items()
        }


# ---- what can be shown


def _check_model(model: Any) -> None:
    """Raises a ValueError for a model that the page could not compute or draw."""
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"model={shown(model)}; allowed is a katlib.VisionTransformer "
            "(katlib.load_pretrained loads one)"
        )
    architecture = model.architecture
    if architecture.mlp not in ("grkan", "mlp"):
        raise ValueError(f"the model has mlp={architecture.mlp!r}; allowed are 'grkan' and 'mlp'")
    for name, value, most in (
        ("parameters", sum(p.numel() for p in model.parameters()), MAX_PARAMETERS),
        ("classes", architecture.num_classes, MAX_CLASSES),
        ("functions in a layer", max(map(len, _functions(model).values())), MAX_FUNCTIONS),
    ):
        if value > most:
            raise ValueError(f"the model has {value:,} {name}; a page can show {most:,}")
    if architecture.in_chans != 3:
        raise ValueError(f"the model's images have {architecture.in_chans} channels, not 3")
    if not _image_settings(model):
        raise ValueError(
            "the model does not say how its images are normalised; give it "
            'model.pretrained_cfg = {"mean": (...), "std": (...), "classes": [...]}'
        )


def _image_settings(model: VisionTransformer) -> dict[str, Any]:
    """The mean and standard deviation of the pixels and the names of the classes, if it says so."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    settings = {name: cfg.get(name) for name in ("mean", "std", "classes")}
    settings["classes"] = settings["classes"] or [
        f"class {label}" for label in range(model.architecture.num_classes)
    ]
    return settings if all(settings.values()) else {}


def _checked_images(images: Any, model: VisionTransformer) -> tuple[Tensor, Tensor]:
    """The pixels on the CPU and the labels.

    Raises:
        ValueError: they do not fit the model.
    """
    size, classes = model.architecture.img_size, model.architecture.num_classes
    pixels: Any = None
    labels: Any = None
    if isinstance(images, (tuple, list)) and len(images) == 2:
        pixels, labels = images
    is_right = (
        isinstance(pixels, Tensor)
        and pixels.dtype == torch.uint8
        and pixels.ndim == 4
        and pixels.shape[1:] == (3, size, size)
        and 1 <= len(pixels) <= MAX_IMAGES
        and isinstance(labels, Tensor)
        and labels.shape == pixels.shape[:1]
        and bool(((labels >= 0) & (labels < classes)).all())
    )
    if not is_right:
        raise ValueError(
            f"images={shown(images)}; allowed is a pair of images, uint8 (N, 3, {size}, {size}) "
            f"with N up to {MAX_IMAGES}, and labels, (N,) from 0 to {classes - 1}"
        )
    return pixels.cpu().contiguous(), labels.cpu()


def _some(names: Iterator[str] | Sequence[str] | Mapping[str, Any]) -> str:
    first, *_, last = names
    return f"{first!r} to {last!r}"


# ---- the learned functions


def _layers(model: VisionTransformer) -> Iterator[tuple[str, nn.Module]]:
    """The layers with functions, each with its name."""
    for index, block in enumerate(model.blocks):
        mlp = cast(Block, block).mlp
        names = ("act1", "act2") if isinstance(mlp, GRKANMlp) else ("act",)
        for name in names:
            yield f"blocks.{index}.mlp.{name}", getattr(mlp, name)


def _functions(model: VisionTransformer) -> dict[str, list[Function]]:
    """The functions of each layer, one for each group."""
    functions: dict[str, list[Function]] = {}
    for name, act in _layers(model):
        if isinstance(act, GroupRational):
            a, b = act.weight_numerator.tolist(), act.weight_denominator.tolist()
            count = math.lcm(len(a), len(b))
            functions[name] = [
                [a[g * len(a) // count], b[g * len(b) // count]] for g in range(count)
            ]
        else:
            functions[name] = [None]
    return functions


def _by_group(functions: Mapping[str, list[Function]]) -> dict[str, Function]:
    """The same by the names that `ModelExplorer.coefficients` has."""
    return {
        f"{name}.{g}": pair for name, pairs in functions.items() for g, pair in enumerate(pairs)
    }


def _starts(model: VisionTransformer) -> dict[str, Function]:
    """What the functions of each layer were before training, where that is known."""
    starts: dict[str, Function] = {}
    for name, act in _layers(model):
        start = getattr(act, "start", None)
        starts[name] = start and [list(start[0][0]), list(start[1][0])]
    return starts


def _presets(model: VisionTransformer) -> list[list]:
    """What a function can be replaced by: [name, numerator, denominator]."""
    act = next(act for _, act in _layers(model))
    degrees = (5, 4)
    if isinstance(act, GroupRational):
        degrees = (act.weight_numerator.shape[1] - 1, act.weight_denominator.shape[1])
    m, n = degrees
    known = [name for name in PRESETS if f"{m},{n}" in STORED.get(name, {})]
    if m >= 1:
        known = ["identity", *known]
    return preset_list({name: initial_coefficients(name, degrees) for name in known})


# ---- what the page gets


def _rounded(model: VisionTransformer) -> VisionTransformer:
    """A copy in evaluation mode whose weights, except for coefficients, are float16's numbers."""
    rounded = copy.deepcopy(model).cpu().float().eval()
    coefficients = {
        id(p) for m in rounded.modules() if isinstance(m, GroupRational) for p in m.parameters()
    }
    for parameter in rounded.parameters():
        if id(parameter) not in coefficients:
            parameter.data = parameter.data.half().float()
        if not parameter.isfinite().all():
            raise ValueError("the model has weights that are not finite in float16")
    return rounded


def _weights(model: VisionTransformer) -> dict[str, Tensor]:
    """All weights but the coefficients."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if not name.endswith((".weight_numerator", ".weight_denominator"))
    }


def _as_halves(model: VisionTransformer) -> bytes:
    values = torch.cat([value.flatten() for value in _weights(model).values()])
    return values.half().numpy().tobytes()


@torch.no_grad()
def _spec(model: VisionTransformer, pixels: Tensor, labels: Tensor) -> dict[str, Any]:
    """What the page has to know beside the weights and the pixels."""
    architecture, settings = model.architecture, _image_settings(model)
    return {
        "side": architecture.img_size,
        "patch": architecture.patch_size,
        "width": architecture.embed_dim,
        "depth": architecture.depth,
        "heads": architecture.num_heads,
        "stem": architecture.stem,
        "mean": list(settings["mean"]),
        "std": list(settings["std"]),
        "classes": list(settings["classes"]),
        "tensors": [[name, value.numel()] for name, value in _weights(model).items()],
        "functions": _functions(model),
        "starts": _starts(model),
        "presets": _presets(model),
        "labels": labels.tolist(),
        # what the page shows until it has computed its own
        "logits": [
            [round(v, 6) for v in row] for row in model(_normalised(pixels, settings)).tolist()
        ],
    }


def _normalised(pixels: Tensor, settings: Mapping[str, Any]) -> Tensor:
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (pixels / 255 - mean) / std


# ---- writing back


def _removable(model: VisionTransformer) -> list[str]:
    """The names of what can be removed: heads and MLPs."""
    heads = range(model.architecture.num_heads)
    return [
        name
        for block in range(model.architecture.depth)
        for name in (*(f"blocks.{block}.attn.{head}" for head in heads), f"blocks.{block}.mlp")
    ]


def _linear_maps_that_are_changed(model: VisionTransformer) -> dict[str, Tensor]:
    """Copies of the linear maps after the heads and at the end of the MLPs."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight", "mlp.fc2.bias"))
    }


def _write_linear_maps(
    model: VisionTransformer, start: Mapping[str, Tensor], removed: Sequence[str]
) -> None:
    """Zeros after what is removed, and what was there before everywhere else."""
    size = model.architecture.embed_dim // model.architecture.num_heads
    for name, value in start.items():
        parameter = model.get_parameter(name)
        parameter.copy_(value)
        part = name.rsplit(".", 2)[0]
        if part in removed:
            parameter.zero_()
        for head in range(model.architecture.num_heads):
            if name.endswith("proj.weight") and f"{part}.{head}" in removed:
                parameter[:, head * size : (head + 1) * size] = 0


def _write_functions(model: VisionTransformer, functions: Mapping[str, list[Function]]) -> None:
    acts = {name: act for name, act in _layers(model) if isinstance(act, GroupRational)}
    rows = {name: _as_tensors(functions[name]) for name in acts}
    can_share = all(_fits(act, rows[name]) for name, act in acts.items())
    for name, act in acts.items():
        for parameter, values in zip(_coefficients(act), rows[name], strict=True):
            if can_share:
                parameter.copy_(values[:: len(values) // len(parameter)])
        if not can_share:
            new = [nn.Parameter(values.to(act.weight_numerator)) for values in rows[name]]
            act.weight_numerator, act.weight_denominator = new
    if acts and not can_share:
        count = len(next(iter(functions.values())))
        model.architecture = replace(model.architecture, groups=count, numerator_groups=count)


def _as_tensors(pairs: Sequence[Function]) -> tuple[Tensor, Tensor]:
    numerators, denominators = zip(*cast(list[list[list[float]]], pairs), strict=True)
    return torch.tensor(numerators), torch.tensor(denominators)


def _coefficients(act: GroupRational) -> tuple[Tensor, Tensor]:
    return act.weight_numerator, act.weight_denominator


def _fits(act: GroupRational, rows: tuple[Tensor, Tensor]) -> bool:
    """Whether groups that share coefficients have the same ones."""
    shares = [
        values.view(len(parameter), -1, values.shape[1])
        for parameter, values in zip(_coefficients(act), rows, strict=True)
    ]
    return all(bool((share == share[:, :1]).all()) for share in shares)
