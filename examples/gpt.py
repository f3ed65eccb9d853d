"""A character-level GPT with MLPs (GELU), and with GR-KAN layers in their place.

    python examples/gpt.py --steps 300

The text is Python's own documentation, the docstrings of the standard library's modules, which
every Python brings along. It depends on the version, so compare runs of one Python only (the record
has the text's hash). Both models see the same batches, and their attention, embedding and head
start the same.
"""

import argparse
import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import loop
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import katlib
from katlib.train.recipe import Config
from katlib.vit import Mlp

WIDTH = 64
DEPTH = 2
HEADS = 2
CONTEXT = 64
MLPS = ("mlp", "grkan")
CONFIG = Config(lr=3e-3)

# windows that the test loss is computed for at a time
TEST_BATCH = 64


# ---- the text


def stdlib_text(limit: int = 400_000) -> str:
    """The docstrings in the standard library's top folder, modules by name, as ASCII.

    Only the first `limit` characters.
    """
    parts = []
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for docstring in docstrings(path):
            parts.append(docstring.encode("ascii", "ignore").decode() + "\n\n")
            size += len(parts[-1])
        if size >= limit:
            break
    return "".join(parts)[:limit]


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


# ---- the model


def make_mlp(name: str) -> nn.Module:
    """The part of a block that follows its attention; `name` is "grkan" or "mlp"."""
    if name == "grkan":
        return katlib.GRKANMlp(WIDTH, 4 * WIDTH, init=("identity", "gelu"))
    if name == "mlp":
        return Mlp(WIDTH, 4 * WIDTH)
    raise ValueError(f"mlp={name!r} is not known; allowed are {', '.join(MLPS)}")


class Block(nn.Module):
    """A transformer block that looks back only: attention, then an MLP or a GR-KAN.

    Each follows a norm and is added to a shortcut.
    """

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))  # (B, N, C)
        return x + self.mlp(self.norm2(x))  # (B, N, C)

    def attention(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).view(B, N, 3, HEADS, C // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, C / heads)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, heads, N, C / heads)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))  # (B, N, C)


class GPT(nn.Module):
    """Predicts the next character: (B, N) int64 -> logits (B, N, characters).

    Args:
        characters: how many different ones there are.
        mlp: "grkan" or "mlp".
    """

    def __init__(self, characters: int, mlp: str):
        super().__init__()
        self.token = nn.Embedding(characters, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*[Block(make_mlp(mlp)) for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position[: tokens.shape[1]]  # (B, N, C)
        return self.head(self.norm(self.blocks(x)))  # (B, N, characters)


# ---- training and testing


def loss_on(model: nn.Module, text: Tensor, starts: Tensor) -> Tensor:
    """Mean cross-entropy, in nats per character, over windows of the text.

    Args:
        model: predicts the next character.
        text: (characters of the text,) int64.
        starts: (B,) int64, where the windows of CONTEXT characters begin.
    """
    offsets = torch.arange(CONTEXT + 1, device=text.device)
    windows = text[starts[:, None] + offsets]  # (B, CONTEXT + 1)
    logits = model(windows[:, :-1])  # (B, CONTEXT, characters)
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, text: Tensor, most_windows: int) -> float:
    """Mean cross-entropy over the first windows of the text, which follow each other."""
    model.eval()
    starts = torch.arange(0, len(text) - CONTEXT - 1, CONTEXT, device=text.device)[:most_windows]
    total = 0.0
    for some_starts in starts.split(TEST_BATCH):
        total += loss_on(model, text, some_starts).item() * len(some_starts)
    return total / len(starts)


def run(
    mlp: str,
    seed: int,
    characters: int,
    training_text: Tensor,
    test_text: Tensor,
    opts: argparse.Namespace,
) -> dict:
    """Trains and tests one model; returns its row of the record."""
    torch.manual_seed(seed)
    model = GPT(characters, mlp).to(opts.device)

    def loss_of_batch(generator: torch.Generator) -> Tensor:
        last_start = len(training_text) - CONTEXT - 1
        starts = torch.randint(last_start, (opts.batch,), generator=generator)
        return loss_on(model, training_text, starts.to(opts.device))

    row = {"mlp": mlp, "seed": seed}
    row |= loop.train(model, loss_of_batch, opts.steps, seed, CONFIG)
    row["loss"] = evaluate(model, test_text, most_windows=10 * opts.steps)
    return row


def main() -> None:
    opts = loop.options(__doc__.splitlines()[0], steps=300, batch=32)
    text = stdlib_text()
    characters = sorted(set(text))
    tokens = torch.tensor([characters.index(c) for c in text], device=opts.device)
    training_size = int(0.9 * len(tokens))
    training_text, test_text = tokens[:training_size], tokens[training_size:]
    rows = []
    for seed in range(opts.seeds):
        for mlp in MLPS:
            row = run(mlp, seed, len(characters), training_text, test_text, opts)
            rows.append(row)
            print(
                f"{mlp:5} seed {seed}: {row['parameters']:,} parameters, "
                f"test loss {row['loss']:.4f} nats a character, {row['train_s']:.0f} s",
                flush=True,
            )
    loop.store(
        opts.out,
        "a character-level GPT on the standard library's docstrings, "
        "with MLPs (GELU) or GR-KANs that start as GELU",
        opts,
        rows,
        characters=len(characters),
        text_length=len(text),
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        python=sys.version.split()[0],
    )


if __name__ == "__main__":
    main()
