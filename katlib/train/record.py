"""What a training run leaves behind, as one dictionary: `result.json`."""

from torch import nn

from katlib.rational import GroupRational


def learned_activations(model: nn.Module) -> dict[str, dict]:
    """The coefficients of every `GroupRational` of the model, as lists under its name."""
    return {
        name: {
            "numerator": m.weight_numerator.tolist(),
            "denominator": m.weight_denominator.tolist(),
        }
        for name, m in model.named_modules()
        if isinstance(m, GroupRational)
    }
