"""Finds the MLPs of a model that `katlib.from_vit` can convert, and names those that it cannot.

Known are the MLPs of timm, torchvision and Hugging Face: fc1, activation, fc2 under their various
names, in a Sequential, or divided between two modules.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from katlib.fit import Function, resolve_target
from katlib.grkan import GRKANIntermediate, GRKANMlp

# what the two linear maps of an MLP are called: by timm and most others, and by DINOv3
LINEAR_NAMES = (("fc1", "fc2"), ("up_proj", "down_proj"))
# what its activation is called: by timm, and by Hugging Face's models
ACTIVATION_NAMES = ("act", "activation", "activation_fn", "act_fn")
# the parts of a squeeze-excite block that no MLP has, by timm's and torchvision's names
GATE_NAMES = {"gate", "scale_activation", "sigmoid"}


@dataclass(frozen=True)
class Layers:
    """The layers of an MLP as they are found, before they are checked."""

    module: nn.Module
    fc1: nn.Module
    act: Any
    # None if W_2 is in another module
    fc2: nn.Module | None
    # after the activation
    dropout: float = 0.0
    # those of a Sequential before fc1 and after fc2
    before: tuple[nn.Module, ...] = ()
    after: tuple[nn.Module, ...] = ()
    # the names of those that no GR-KAN has
    others: tuple[str, ...] = ()

    @property
    def linear_maps(self) -> tuple[nn.Module, ...]:
        return (self.fc1,) if self.fc2 is None else (self.fc1, self.fc2)


@dataclass(frozen=True)
class FoundMlp:
    """An MLP that can be converted: its layers have passed all checks."""

    # all places where it stands, by their dotted names
    names: tuple[str, ...]
    layers: Layers

    @property
    def title(self) -> str:
        return _title(self.names[0], self.layers.module)

    @property
    def fc1(self) -> nn.Linear:
        return cast(nn.Linear, self.layers.fc1)

    @property
    def fc2(self) -> nn.Linear | None:
        return cast(nn.Linear | None, self.layers.fc2)

    @property
    def act(self) -> Function:
        return self.layers.act

    def output(self, x: Tensor) -> Tensor:
        """What its layers compute, without dropout."""
        for layer in self.layers.before:
            x = layer(x)
        hidden = self.act(self.fc1(x))
        return hidden if self.fc2 is None else self.fc2(hidden)


def _title(name: str, module: nn.Module) -> str:
    return f"{name or 'the model'} ({type(module).__name__})"


@contextmanager
def named_in_errors(mlp: FoundMlp) -> Iterator[None]:
    """Puts the MLP's name before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{mlp.title}: {error}") from error


def convertible_mlps(model: nn.Module) -> dict[str, FoundMlp]:
    """The MLPs of a model by their first names.

    Raises:
        ValueError: there is none, or one that cannot be converted.
    """
    if any(p.is_meta for p in model.parameters()):
        raise ValueError(f"{type(model).__name__} is on the meta device, where it has no numbers")
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    mlps = {}
    for module, names in places.items():
        title = _title(names[0], module)
        if _is_squeeze_excite(module):
            continue
        _refuse(title, module, _MODULE_CHECKS)
        layers = _layers_of(module)
        if layers is not None:
            _refuse(title, layers, _MLP_CHECKS)
            mlps[names[0]] = FoundMlp(tuple(names), layers)
    if not mlps:
        raise ValueError(
            f"{type(model).__name__} has no MLP made of fc1, act and fc2; nothing to convert"
        )
    if "" in mlps:
        raise ValueError(
            f"{mlps[''].title} is itself an MLP; convert a model that holds it, such as "
            "torch.nn.Sequential(mlp)"
        )
    return mlps


def _layers_of(module: nn.Module) -> Layers | None:
    """The layers of an MLP; None if the module is none."""
    if isinstance(module, nn.Sequential):
        return _layers_in_sequence(module)
    children = _children(module)
    if "dense" in children and callable(getattr(module, "intermediate_act_fn", None)):
        return _named_layers(module, ("dense", None), "intermediate_act_fn")
    for names in LINEAR_NAMES:
        if set(names) <= children.keys():
            return _named_layers(module, names, _activation_attribute(module, names))
    return None


def _named_layers(
    module: nn.Module, linear: tuple[str, str | None], activation: str | None
) -> Layers:
    """The layers of an MLP whose linear maps and activation have these names."""
    children = _children(module)
    first, second = linear
    others = (name for name in _unexplained(children) if name not in (first, second, activation))
    return Layers(
        module,
        children[first],
        getattr(module, activation) if activation else None,
        children[second] if second else None,
        dropout=getattr(children.get("drop1"), "p", 0.0),
        others=tuple(others),
    )


def _unexplained(children: dict[str, nn.Module]) -> list[str]:
    """The names of the layers that do something in evaluation mode."""
    return [
        name for name, child in children.items() if not isinstance(child, (nn.Identity, nn.Dropout))
    ]


def _activation_attribute(module: nn.Module, linear: tuple[str, ...]) -> str | None:
    """The name of a module's activation, which may be a plain function."""
    for name in ACTIVATION_NAMES:
        if callable(getattr(module, name, None)):
            return name
    unknown = [name for name in _unexplained(_children(module)) if name not in linear]
    return unknown[0] if len(unknown) == 1 else None


def _layers_in_sequence(module: nn.Sequential) -> Layers | None:
    """The layers of a Sequential of norms, a linear map, an activation and a linear map.

    It must end with as many numbers as it begins with. Others are heads.
    """
    layers = [layer for layer in module if not isinstance(layer, nn.Identity)]
    places = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    if len(places) != 2:
        return None
    first, second = places
    fc1, fc2 = cast(nn.Linear, layers[first]), cast(nn.Linear, layers[second])
    before, between, after = layers[:first], layers[first + 1 : second], layers[second + 1 :]
    is_mlp = (
        between
        and fc1.in_features == fc2.out_features
        and all(isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) for layer in before)
        and all(isinstance(layer, nn.Dropout) for layer in (*between[1:], *after))
    )
    if not is_mlp:
        return None
    dropout = max((layer.p for layer in between[1:] if isinstance(layer, nn.Dropout)), default=0.0)
    kept = tuple(layer for layer in after if isinstance(layer, nn.Dropout) and layer.p > 0)
    return Layers(module, fc1, between[0], fc2, dropout, tuple(before), kept)


# Each check returns what is wrong with a module, or with an MLP's layers, in words that go on after
# its name, or None.
_Check = Callable[[Any], str | None]


def _refuse(title: str, checked: Any, checks: tuple[_Check, ...]) -> None:
    """Raises ValueError with the first complaint of the checks."""
    for check in checks:
        complaint = check(checked)
        if complaint is not None:
            raise ValueError(f"{title} {complaint}")


def _children(module: nn.Module) -> dict[str, nn.Module]:
    """By their names, of which one module may have several."""
    named = module.named_modules(remove_duplicate=False)
    return {name: child for name, child in named if name and "." not in name}


def _is_squeeze_excite(module: nn.Module) -> bool:
    """Whether two layers make a factor for each channel: a gate without parameters follows them."""
    children = _children(module)
    gates = [children[name] for name in GATE_NAMES & children.keys()]
    return {"fc1", "fc2"} <= children.keys() and any(
        not isinstance(gate, nn.Identity) and not list(gate.parameters()) for gate in gates
    )


def _check_not_grkan(module: nn.Module) -> str | None:
    return "is a GR-KAN already" if isinstance(module, (GRKANMlp, GRKANIntermediate)) else None


def _check_no_branches(module: nn.Module) -> str | None:
    # timm's SwiGLU has fc1_g and fc1_x, DINOv2's w1 and w2, Hugging Face's gate_proj
    if {"fc1_g", "fc1_x", "w1", "w2", "gate_proj"} & _children(module).keys():
        return (
            "is gated: the product of two branches is not a function of one, so no GR-KAN "
            "computes it"
        )
    return None


def _check_not_fused(module: nn.Module) -> str | None:
    children = _children(module).keys()
    if not {"fc1", "fc2"} <= children and {"mlp_act", "in_proj"} <= children:
        return "computes attention and MLP in one product; there is no MLP by itself to replace"
    return None


def _check_linear(layers: Layers) -> str | None:
    if all(isinstance(layer, nn.Linear) for layer in layers.linear_maps):
        return None
    types = " and ".join(type(layer).__name__ for layer in layers.linear_maps)
    return f"has {types}; fc1 and fc2 must be linear maps (torch.nn.Linear)"


def _check_not_gated(layers: Layers) -> str | None:
    fc1, fc2 = cast(nn.Linear, layers.fc1), cast(nn.Linear | None, layers.fc2)
    if fc2 is None or fc1.out_features == fc2.in_features:
        return None
    return (
        f"is gated: fc1 makes {fc1.out_features} numbers and fc2 takes {fc2.in_features}; no "
        "GR-KAN computes the product between them"
    )


def _check_nothing_between(layers: Layers) -> str | None:
    if not layers.others:
        return None
    return (
        f"has more than linear maps and an activation: {', '.join(layers.others)}; a GR-KAN has no "
        "place for it"
    )


def _check_activation_is_fixed(layers: Layers) -> str | None:
    act = layers.act
    if act is None:
        return (
            "has no activation that can be found; it must be a module or a function, and an "
            f"attribute called {', '.join(ACTIVATION_NAMES)}"
        )
    if not isinstance(act, nn.Module) or not list(act.parameters()):
        return None
    return (
        f"has the activation {activation_name(act)}; it must be a function without parameters of "
        "its own, such as GELU"
    )


def _check_activation_is_elementwise(layers: Layers) -> str | None:
    x = torch.linspace(-2, 2, 8, dtype=torch.float64, device="cpu")
    try:
        act = resolve_target(layers.act)
        elementwise = torch.allclose(act(x), torch.cat([act(value[None]) for value in x]))
    except (ValueError, IndexError):
        elementwise = False
    if elementwise:
        return None
    return (
        f"has the activation {activation_name(layers.act)}, which mixes channels or is random; it "
        "must act on each number by itself, as GELU does"
    )


# for every module of a model
_MODULE_CHECKS: tuple[_Check, ...] = (_check_not_grkan, _check_no_branches, _check_not_fused)
# for a module with fc1 and fc2; each relies on those before it
_MLP_CHECKS: tuple[_Check, ...] = (
    _check_linear,
    _check_not_gated,
    _check_nothing_between,
    _check_activation_is_fixed,
    _check_activation_is_elementwise,
)


def activation_name(act: Any) -> str:
    if isinstance(act, nn.Module) or act is None:
        return type(act).__name__
    return getattr(act, "__name__", repr(act))
