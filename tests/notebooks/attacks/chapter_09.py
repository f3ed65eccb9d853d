"""Answers to the exercises of chapter 9."""

import torch

from attacks import Attack


def times_of(ops, peak, bandwidth):
    """The seconds of arithmetic and of memory of each operation."""
    return [(flops / peak, size / bandwidth) for flops, size in ops]


def by_max(ops, peak, bandwidth):
    times = times_of(ops, peak, bandwidth)
    total = sum(max(pair) for pair in times)
    return total, sum(memory for arithmetic, memory in times if memory > arithmetic) / total


def by_tensors(ops, peak, bandwidth):
    flops, size = torch.tensor(ops, dtype=torch.float64).T
    memory = size / bandwidth
    bounds = torch.maximum(flops / peak, memory)
    return torch.stack([bounds.sum(), bounds[bounds == memory].sum() / bounds.sum()])


def by_intensity(ops, peak, bandwidth):
    total = waiting = 0.0
    for flops, size in ops:
        bound = max(flops / peak, size / bandwidth)
        total += bound
        waiting += bound * (flops < size * peak / bandwidth)
    return total, waiting / total


def with_share(share):
    """The right time with another share."""
    return lambda *given: (by_max(*given)[0], share(times_of(*given)))


def with_time(time):
    """The right share of another time."""
    return lambda *given: (time(times_of(*given)), by_max(*given)[1])


def memory_bound(times):
    return [(arithmetic, memory) for arithmetic, memory in times if memory > arithmetic]


def eager_bytes(m, n):
    return 4 * (sum(5 * k - 1 for k in (m, n)) + 5)


def tokens(d, r, s):
    return s * r * d / (2 * (d - s * r))


ATTACKS = {
    "9.1": Attack(
        right=[(by_max,), (by_tensors,), (by_intensity,)],
        wrong={
            "the bound of the sums": (
                lambda ops, peak, bandwidth: (
                    max(sum(f for f, _ in ops) / peak, sum(s for _, s in ops) / bandwidth),
                    by_max(ops, peak, bandwidth)[1],
                ),
            ),
            "no overlap": (with_time(lambda t: sum(map(sum, t))),),
            "arithmetic alone": (with_time(lambda t: sum(a for a, _ in t)),),
            "memory alone": (with_time(lambda t: sum(m for _, m in t)),),
            "the longest operation": (with_time(lambda t: max(map(max, t))),),
            "the share of the operations": (with_share(lambda t: len(memory_bound(t)) / len(t)),),
            "the share of the bytes": (
                with_share(lambda t: sum(m for _, m in memory_bound(t)) / sum(m for _, m in t)),
            ),
            "all bytes' time": (
                with_share(lambda t: sum(m for _, m in t) / sum(max(pair) for pair in t)),
            ),
            "the share of the others": (lambda *given: (by_max(*given)[0], 1 - by_max(*given)[1]),),
            "seconds instead of a share": (
                with_share(lambda t: sum(m for _, m in memory_bound(t))),
            ),
            "percent": (lambda *given: (by_max(*given)[0], 100 * by_max(*given)[1]),),
            "the two exchanged": (lambda *given: by_max(*given)[::-1],),
            "the time alone": (lambda *given: by_max(*given)[0],),
            "the machine of the first trials alone": (
                lambda ops, peak, bandwidth: by_max(ops, 100e9, 20e9),
            ),
            "its peak alone": (lambda ops, peak, bandwidth: by_max(ops, 100e9, bandwidth),),
            "its bandwidth alone": (lambda ops, peak, bandwidth: by_max(ops, peak, 20e9),),
            "FLOPs and bytes exchanged": (
                lambda ops, peak, bandwidth: by_max([op[::-1] for op in ops], peak, bandwidth),
            ),
        },
    ),
    "9.2": Attack(
        right=[
            (eager_bytes, 20),
            (lambda m, n: 20 * (m + n) + 12, 20.0),
            (lambda m, n: 4.0 * (5 * m - 1 + 5 * n - 1 + 5), 4 * 5),
        ],
        wrong={
            "the answer that stands there": (lambda m, n: 8 * (2 * m + 2 * n + 2), 20),
            "each product reads two": (lambda m, n: 20 * (m + n) + 20, 20),
            "without |x|": (lambda m, n: 20 * (m + n) + 4, 20),
            "without the division": (lambda m, n: 20 * (m + n), 20),
            "tensors instead of bytes": (lambda m, n: 5 * (m + n) + 3, 20),
            "bytes of a CPU": (lambda m, n: 4 * (7 * (m + n) + 5), 20),
            "m alone": (lambda m, n: 40 * m + 12, 20),
            "right for (5, 4) alone": (lambda m, n: 192, 20),
            "one pass": (lambda m, n: 8, 20),
            "half types": (lambda m, n: eager_bytes(m, n) / 2, 20),
            "swish in one pass": (eager_bytes, 8),
            "swish reads x once": (eager_bytes, 16),
            "swish of a CPU": (eager_bytes, 28),
        },
    ),
    "9.3": Attack(
        right=[
            (tokens,),
            (lambda d, r, s: 1 / (2 / (s * r) - 2 / d),),
            (lambda d, r, s: s * r / 2 / (1 - s * r / d),),
        ],
        wrong={
            "the answer that stands there": (lambda d, r, s: s * r / 2,),
            "tokens read and not written": (lambda d, r, s: s * r * d / (2 * d - s * r),),
            "one FLOP for a multiplication and an addition": (
                lambda d, r, s: s * r * d / (d - 2 * s * r) if d != 2 * s * r else 0.0,
            ),
            "the bytes of a number left out": (
                lambda d, r, s: r * d / (2 * (d - r)) if d != r else 0.0,
            ),
            "float32": (lambda d, r, s: tokens(d, r, 4) if d != 4 * r else 0.0,),
            "the ridge point left out": (lambda d, r, s: s * d / (2 * (d - s)),),
            "the width left out": (lambda d, r, s: tokens(4096, r, s),),
            "the inverse": (lambda d, r, s: 1 / tokens(d, r, s),),
            "the width that N needs": (lambda d, r, s: 2 * s * r * d / (d - s * r),),
            "rounded up": (lambda d, r, s: -(-tokens(d, r, s) // 1) + 1,),
        },
    ),
}
