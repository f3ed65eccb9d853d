"""The float64 oracle of the CUDA backend.

It makes data, computes what is expected by `katlib.rational_reference`, and says how large an
error each value may have. A sum cannot be more exact than its largest terms are, so errors are
measured in units of the sum of the absolute terms.
"""

import torch

import katlib

NAMES = ("y", "dx", "da", "db")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def data(rows, groups, span, m=5, n=4, dtype=torch.float32, scale=1.5, a_share=1, b_share=1):
    """Random g and x (rows, groups, span), a (groups / a_share, m + 1), b (groups / b_share, n).

    `a_share` neighbouring groups share a row of a, `b_share` one of b.
    """
    x, g = torch.randn(2, rows, groups, span, dtype=torch.float64)
    compute = torch.promote_types(dtype, torch.float32)
    a = torch.randn(groups // a_share, m + 1, dtype=compute)
    b = torch.randn(groups // b_share, n, dtype=compute)
    return g.to(dtype), (scale * x).to(dtype), a, b


def with_zeros(g, x, a, b):
    """Zeros of both signs in x and, in every other group, in b: the kernels take sign(0) as +1."""
    x.view(-1)[::5] = 0.0
    x.view(-1)[2::5] = -0.0
    b[::2, 0] = 0.0
    b[::2, -1] = -0.0
    return g, x, a, b


# The largest half, and a million in the types that have a wider range
HUGE_INPUTS = [(torch.float16, 65504.0), (torch.bfloat16, 1e6), (torch.float32, 1e6)]
HUGE_DEGREES = [(5, 4), (5, 5), (6, 6), (0, 8), (7, 6), (8, 8)]
HUGE_COEFFICIENTS = ("random", "ones", "hundreds")


def huge(dtype, largest, m, n, coefficients="random"):
    """`data` (16, 2, 8) of which two thirds are huge, of either sign."""
    g, x, a, b = data(16, 2, 8, m, n, dtype)
    x.view(-1)[::3] = largest
    x.view(-1)[1::3] = -largest
    if coefficients == "ones":
        a[:], b[:] = 1, 1
    if coefficients == "hundreds":
        b[:] = 100 * b.sign()
    # or F itself would be too large for a half
    a[:, n + 1 :] = 0
    return g, x, a, b


def _as_float64(*tensors):
    return tuple(t.detach().double() for t in tensors)


def expected(g, x, a, b):
    """y, dx, da, db for x and g (rows, G, span), a (Ga, m + 1), b (Gb, n), in float64."""
    g, x, a, b = _as_float64(g, x, a, b)
    for t in (x, a, b):
        t.requires_grad_()
    rows, groups, span = x.shape
    y = katlib.rational_reference(x.reshape(rows, groups * span), a, b).reshape(x.shape)
    gradients = torch.autograd.grad(y, (x, a, b), g, allow_unused=True, materialize_grads=True)
    return y.detach(), *gradients


def _per_group(c, groups):
    """The columns of coefficients (rows, k), each as (G, 1): a row belongs to several groups."""
    return [column[:, None] for column in c.repeat_interleave(groups // len(c), 0).unbind(1)]


def _sum_shared(sums, rows):
    """Adds up what belongs to groups that share a row: (G, k) -> (rows, k)."""
    return sums.unflatten(0, (rows, -1)).sum(1)


def magnitudes(g, x, a, b):
    """The sums of the absolute terms of y, dx, da and db, straight from the definition."""
    g, z, a, b = (t.abs() for t in _as_float64(g, x, a, b))
    groups = z.shape[1]
    numerator, denominator = _per_group(a, groups), _per_group(b, groups)
    P = sum(c * z**i for i, c in enumerate(numerator))
    Q = 1 + sum(c * z**j for j, c in enumerate(denominator, 1))
    P_slope, Q_slope = torch.zeros_like(z), torch.zeros_like(z)
    for i, c in enumerate(numerator[1:], 1):
        P_slope += i * c * z ** (i - 1)
    for j, c in enumerate(denominator, 1):
        Q_slope += j * c * z ** (j - 1)

    # each (G,)
    da = [(g * z**i / Q).sum((0, 2)) for i in range(len(numerator))]
    db = [(g * P / Q**2 * z**j).sum((0, 2)) for j in range(1, len(denominator) + 1)]
    da_sums = torch.stack(da, 1)
    db_sums = torch.stack(db, 1) if db else z.new_zeros(groups, 0)
    return (
        P / Q,
        g * (P_slope / Q + P * Q_slope / Q**2),
        _sum_shared(da_sums, len(a)),
        _sum_shared(db_sums, len(b)),
    )


def _error(got, want, magnitude) -> float:
    """The largest error of one result, see `errors`."""
    if not got.numel():
        return 0.0
    own = torch.finfo(got.dtype)
    compute = torch.promote_types(got.dtype, torch.float32)
    unit = torch.finfo(compute).eps * magnitude + own.tiny
    got, rounded = got.detach(), want.to(got.dtype)
    # infinity is right where the true value is too large for the type
    error = torch.where(got == rounded, 0, (got.double() - want).abs())
    if got.dtype != compute:
        # what rounding to a half type costs is no error of the kernel
        rounding = own.eps / 2 * (1 + 1e-3) * want.abs().clamp_min(own.tiny)
        error = (error - rounding).clamp_min(0)
    return (error / unit).nan_to_num(nan=torch.inf).max().item()


def errors(results, g, x, a, b) -> dict[str, float]:
    """The largest error of each result, in units of what its arithmetic must be allowed.

    This unit is the rounding error eps of the type of the arithmetic, times the sum of the absolute
    terms. y and dx of a half type are rounded from float32 at the end, and may be wrong by half an
    eps of their own type in addition.

    Args:
        results: y, dx, da and db, or None in the place of what was not computed.
        g, x, a, b: from what; x and g are (rows, G, span).
    """
    wanted = zip(NAMES, results, expected(g, x, a, b), magnitudes(g, x, a, b))
    return {
        name: _error(got, want, magnitude)
        for name, got, want, magnitude in wanted
        if got is not None
    }
