"""The float64 oracle of the CUDA backend: data, `katlib.rational_reference` for the values, and how large an error each value may have.

A sum cannot be more exact than its largest terms are, so errors are measured in units of the sum of the absolute terms.
"""

import torch

import katlib

NAMES = ("y", "dx", "da", "db")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def data(rows, groups, span, m=5, n=4, dtype=torch.float32, scale=1.5, a_share=1, b_share=1):
    """`a_share` neighbouring groups share a row of a, `b_share` one of b."""
    x, g = torch.randn(2, rows, groups, span, dtype=torch.float64)
    real = torch.promote_types(dtype, torch.float32)
    a, b = (
        torch.randn(groups // a_share, m + 1, dtype=real),
        torch.randn(groups // b_share, n, dtype=real),
    )
    return g.to(dtype), (scale * x).to(dtype), a, b


def with_zeros(g, x, a, b):
    """Zeros of both signs in x and, in every other group, in b: the kernels take sign(0) as +1."""
    x.view(-1)[::5] = 0.0
    x.view(-1)[2::5] = -0.0
    b[::2, 0] = 0.0
    b[::2, -1] = -0.0
    return g, x, a, b


def expected(g, x, a, b):
    """y, dx, da, db of the tensors as (rows, G, span), (Ga, m + 1), (Gb, n), in float64."""
    g, x, a, b = (t.detach().cpu().double() for t in (g, x, a, b))
    rows, groups, span = x.shape
    x, a, b = (t.requires_grad_() for t in (x, a, b))
    y = katlib.rational_reference(x.reshape(rows, groups * span), a, b).reshape(x.shape)
    return (
        y.detach(),
        *torch.autograd.grad(y, (x, a, b), g, allow_unused=True, materialize_grads=True),
    )


def magnitudes(g, x, a, b):
    """The sums of the absolute terms of y, dx, da and db, straight from the definition."""
    g, z, a, b = (t.detach().cpu().double().abs() for t in (g, x, a, b))
    shares = [z.shape[1] // len(t) for t in (a, b)]
    a, b = (
        [c[:, None] for c in t.repeat_interleave(share, 0).unbind(1)]
        for t, share in zip((a, b), shares)
    )  # each (G, 1)
    P = sum(c * z**i for i, c in enumerate(a))
    Q = 1 + sum(c * z**j for j, c in enumerate(b, 1))
    slope_P = sum((i * c * z ** (i - 1) for i, c in enumerate(a) if i), torch.zeros_like(z))
    slope_Q = sum((j * c * z ** (j - 1) for j, c in enumerate(b, 1)), torch.zeros_like(z))
    da = [(g * z**i / Q).sum((0, 2)) for i in range(len(a))]
    db = [(g * P / Q**2 * z**j).sum((0, 2)) for j in range(1, len(b) + 1)]
    sums = torch.stack(da, 1), torch.stack(db, 1) if db else z.new_zeros(len(a[0]), 0)
    return (
        P / Q,
        g * (slope_P / Q + P * slope_Q / Q**2),
        *(t.unflatten(0, (-1, share)).sum(1) for t, share in zip(sums, shares)),
    )


def errors(results, g, x, a, b) -> dict[str, float]:
    """The largest error of each result in units of the rounding error of its type, eps, of what it may be wrong by.

    y and dx of a half type are rounded from float32, by half an eps; all else is wrong in proportion to its absolute terms.
    """
    worst = {}
    for name, got, want, size in zip(NAMES, results, expected(g, x, a, b), magnitudes(g, x, a, b)):
        real = torch.promote_types(got.dtype, torch.float32)
        unit = torch.finfo(real).eps * size + torch.finfo(got.dtype).tiny
        error = (got.detach().cpu().double() - want).abs()
        if got.dtype != real:
            error = (
                error
                - torch.finfo(got.dtype).eps
                / 2
                * (1 + 1e-3)
                * want.abs().clamp_min(torch.finfo(got.dtype).tiny)
            ).clamp_min(0)
        worst[name] = (error / unit).nan_to_num(nan=torch.inf).max().item() if got.numel() else 0.0
    return worst
