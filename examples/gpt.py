"""A character-level GPT with MLPs (GELU) and with GR-KAN layers in their place, on Python's own documentation: python examples/gpt.py --steps 300

The text is the docstrings of the standard library's modules, which every Python brings along; it depends on the version, so compare runs of one
Python only (the record has its hash). Both models see the same batches and start from the same attention, embedding and head.
"""

import ast
import hashlib
import sys
import sysconfig
from pathlib import Path

import loop
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import katlib
from katlib.train.recipe import Config
from katlib.vit import Mlp

WIDTH, DEPTH, HEADS, CONTEXT = 64, 2, 2, 64


def stdlib_text(limit: int = 400_000) -> str:
    """The first `limit` characters of the docstrings in the standard library's top folder, modules by name; ASCII."""
    parts, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
                text := ast.get_docstring(node)
            ):
                parts.append(text.encode("ascii", "ignore").decode() + "\n\n")
                size += len(parts[-1])
        if size >= limit:
            break
    return "".join(parts)[:limit]


class Block(nn.Module):
    """A transformer block that looks back only: attention, then an MLP or a GR-KAN, each behind a norm and beside a shortcut."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = (
            self.qkv(self.norm1(x)).view(B, N, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, N, C / heads)
        attended = F.scaled_dot_product_attention(
            q, k, v, is_causal=True
        )  # (B, heads, N, C / heads)
        x = x + self.proj(attended.transpose(1, 2).reshape(B, N, C))  # (B, N, C)
        return x + self.mlp(self.norm2(x))  # (B, N, C)


class GPT(nn.Module):
    """Predicts the next character: (B, N) int64 -> (B, N, characters). `mlp` is "grkan" or "mlp"."""

    def __init__(self, characters: int, mlp: str):
        super().__init__()
        make = {
            "grkan": lambda: katlib.GRKANMlp(WIDTH, 4 * WIDTH, init=("identity", "gelu")),
            "mlp": lambda: Mlp(WIDTH, 4 * WIDTH),
        }[mlp]
        self.token, self.position = (
            nn.Embedding(characters, WIDTH),
            nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH)),
        )
        self.blocks = nn.Sequential(*[Block(make()) for _ in range(DEPTH)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(
            self.norm(self.blocks(self.token(tokens) + self.position[: tokens.shape[1]]))
        )


def loss_on(model: nn.Module, text: Tensor, starts: Tensor) -> Tensor:
    """Mean cross-entropy in nats a character over the windows of CONTEXT characters that begin at `starts`."""
    windows = text[
        starts[:, None] + torch.arange(CONTEXT + 1, device=text.device)
    ]  # (B, CONTEXT + 1)
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def main() -> None:
    opts = loop.options(__doc__.splitlines()[0], steps=300, batch=32)
    text = stdlib_text()
    characters = sorted(set(text))
    tokens = torch.tensor([characters.index(c) for c in text], device=opts.device)
    training, test = tokens.split([int(0.9 * len(tokens)), len(tokens) - int(0.9 * len(tokens))])
    rows = []
    for seed in range(opts.seeds):
        for mlp in ("mlp", "grkan"):
            torch.manual_seed(seed)
            model = GPT(len(characters), mlp).to(opts.device)

            def loss_of(generator: torch.Generator) -> Tensor:
                return loss_on(
                    model,
                    training,
                    torch.randint(
                        len(training) - CONTEXT - 1, (opts.batch,), generator=generator
                    ).to(opts.device),
                )

            row = {"mlp": mlp, "seed": seed} | loop.train(
                model, loss_of, opts.steps, seed, Config(lr=3e-3)
            )
            starts = torch.arange(0, len(test) - CONTEXT - 1, CONTEXT, device=opts.device)[
                : 10 * opts.steps
            ]
            with torch.no_grad():
                row["loss"] = sum(
                    loss_on(model.eval(), test, part).item() * len(part)
                    for part in starts.split(64)
                ) / len(starts)
            rows.append(row)
            print(
                f"{mlp:5} seed {seed}: {row['parameters']:,} parameters, test loss {row['loss']:.4f} nats a character, {row['train_s']:.0f} s",
                flush=True,
            )
    loop.store(
        opts.out,
        "a character-level GPT on the standard library's docstrings, with MLPs (GELU) or GR-KANs that start as GELU",
        opts,
        rows,
        characters=len(characters),
        text_length=len(text),
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        python=sys.version.split()[0],
    )


if __name__ == "__main__":
    main()
