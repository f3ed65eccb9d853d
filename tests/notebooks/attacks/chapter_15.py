"""Answers to the exercises of chapter 15."""

import torch

from attacks import Attack


def largest_batch(B, vit_bytes, L, N, C):
    return B * vit_bytes // (vit_bytes + 2 * L * N * C)


def largest_batch_by_search(B, vit_bytes, L, N, C):
    batch = B
    while batch * (vit_bytes + 2 * L * N * C) > B * vit_bytes:
        batch -= 1
    return torch.tensor(batch)


def batch_with(extra):
    """The solution with another count of the bytes that come on top for an image."""

    def answer(B, vit_bytes, L, N, C):
        return B * vit_bytes // (vit_bytes + extra(L, N, C))

    return (answer,)


def rescaled(a, b, c):
    i, j = torch.arange(len(a)), torch.arange(1, len(b) + 1)
    return a * c ** (i - 1.0), b * float(c) ** j


def rescaled_by_a_loop(a, b, c):
    new_a = [value * c**i / c for i, value in enumerate(a.tolist())]
    new_b = [abs(value) * c**j for j, value in enumerate(b.tolist(), 1)]
    return torch.tensor(new_a, dtype=torch.float64), torch.tensor(new_b, dtype=torch.float64)


def fold(W, c, s, t):
    size = W.shape[1] // len(s)
    s, t = s.repeat_interleave(size), t.repeat_interleave(size)
    return W * s, W @ t + c


def fold_by_probing(W, c, s, t):
    """The biases are what 0 becomes, and the columns what the unit vectors add to that."""

    def layer(x):
        lines = s[:, None] * x.unflatten(-1, (len(s), -1)) + t[:, None]
        return lines.flatten(-2) @ W.T + c

    bias = layer(torch.zeros(W.shape[1], dtype=W.dtype))
    return (layer(torch.eye(W.shape[1], dtype=W.dtype)) - bias).T, bias


def fold_with(change):
    """The solution with its two parts changed by a function of them and of W, c, s, t."""

    def answer(W, c, s, t):
        size = W.shape[1] // len(s)
        return change(W, c, s.repeat_interleave(size), t.repeat_interleave(size))

    return answer


def interleaved(W, c, s, t):
    size = W.shape[1] // len(s)
    s, t = s.repeat(size), t.repeat(size)
    return W * s, W @ t + c


ATTACKS = {
    "15.1": Attack(
        right=[(largest_batch,), (largest_batch_by_search,)],
        wrong={
            "the starter": (lambda B, vit_bytes, L, N, C: 0,),
            "the ViT's batch": (lambda B, vit_bytes, L, N, C: B,),
            "not a whole number": (
                lambda B, vit_bytes, L, N, C: B * vit_bytes / (vit_bytes + 2 * L * N * C),
            ),
            "rounded to the nearest": (
                lambda B, vit_bytes, L, N, C: round(B * vit_bytes / (vit_bytes + 2 * L * N * C)),
            ),
            "the ratio subtracted": (
                lambda B, vit_bytes, L, N, C: int(B * (1 - 2 * L * N * C / vit_bytes)),
            ),
            "one byte each": batch_with(lambda L, N, C: L * N * C),
            "float32": batch_with(lambda L, N, C: 4 * L * N * C),
            "the hidden layer's width": batch_with(lambda L, N, C: 8 * L * N * C),
            "both functions": batch_with(lambda L, N, C: 10 * L * N * C),
            "one block": batch_with(lambda L, N, C: 2 * N * C),
            "no tokens": batch_with(lambda L, N, C: 2 * L * C),
            "no channels": batch_with(lambda L, N, C: 2 * L * N),
            "without the class token": batch_with(lambda L, N, C: 2 * L * (N - 1) * C),
            "a block more": batch_with(lambda L, N, C: 2 * (L + 1) * N * C),
        },
    ),
    "15.2": Attack(
        right=[(rescaled,), (rescaled_by_a_loop,)],
        wrong={
            "unchanged": (lambda a, b, c: (a, b),),
            "not divided by c": (lambda a, b, c: (a * c ** torch.arange(len(a)), b),),
            "b left alone": (lambda a, b, c: (rescaled(a, b, c)[0], b),),
            "a left alone": (lambda a, b, c: (a, rescaled(a, b, c)[1]),),
            "F(c x) alone": (lambda a, b, c: (c * rescaled(a, b, c)[0], rescaled(a, b, c)[1]),),
            "b divided, too": (lambda a, b, c: (rescaled(a, b, c)[0], rescaled(a, b, c)[1] / c),),
            "b's powers from 0": (
                lambda a, b, c: (rescaled(a, b, c)[0], b * c ** torch.arange(len(b))),
            ),
            "c inverted": (lambda a, b, c: rescaled(a, b, 1 / c),),
            "always CLIP's c": (lambda a, b, c: rescaled(a, b, 1.702),),
            "the same factor for all": (lambda a, b, c: (a * c, b * c),),
        },
    ),
    "15.3": Attack(
        right=[(fold,), (fold_by_probing,)],
        wrong={
            "unchanged": (lambda W, c, s, t: (W, c),),
            "t left out": (fold_with(lambda W, c, s, t: (W * s, c)),),
            "c left out": (fold_with(lambda W, c, s, t: (W * s, W @ t)),),
            "s left out": (fold_with(lambda W, c, s, t: (W, W @ t + c)),),
            "t added without W": (fold_with(lambda W, c, s, t: (W * s, c + t.sum())),),
            "t scaled by s": (fold_with(lambda W, c, s, t: (W * s, W @ (s * t) + c)),),
            "divided by s": (fold_with(lambda W, c, s, t: (W / s, W @ t + c)),),
            "t subtracted": (fold_with(lambda W, c, s, t: (W * s, c - W @ t)),),
            "channels dealt out in turn": (interleaved,),
            "the first group's line for all": (
                lambda W, c, s, t: (W * s[0], W @ torch.full_like(W[0], t[0].item()) + c),
            ),
        },
    ),
}
