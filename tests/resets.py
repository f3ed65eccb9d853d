"""The ways in which other programs reset a model's modules."""

from torch import nn


def parents_first(model: nn.Module) -> None:
    """As FSDP and torchtune do it."""
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def owners_last_first(model: nn.Module) -> None:
    """Only modules with parameters of their own, last ones first."""
    for module in reversed(list(model.modules())):
        if list(module.parameters(recurse=False)):
            module.reset_parameters()


def children_first(model: nn.Module) -> None:
    model.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)


RESETS = [parents_first, owners_last_first, children_first]
