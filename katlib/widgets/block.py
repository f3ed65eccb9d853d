"""BlockExplorer: a transformer block, its parts, their code and their shapes."""

from __future__ import annotations

import ast
import contextlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import torch
import traitlets
from torch import Tensor, nn

from katlib import reference, vit
from katlib.rational import GroupRational
from katlib.widgets.live import FOLDER, LiveFigure, shown, source

KINDS = ("grkan", "mlp")
MOST = 10**5


class BlockExplorer(LiveFigure):
    """A KAT block or a ViT block; a click on a part shows its code and its shapes.

    The shapes are those that `katlib.VisionTransformer`'s first block has when it runs, and the
    code is read from the package.

    Args:
        embed_dim, num_heads, groups: of the model, see `katlib.VisionTransformer`; by default
            KAT-T's.
        tokens: the number of tokens of an image; by default 196 patches and a class token.
        kind: "grkan" for the KAT block, "mlp" for the ViT block.
        part: the part that is shown, for example "mlp.act1".

    Attributes:
        kind, part: as above. Can be assigned.

    Raises:
        ValueError: sizes of which there is no model, or another kind.
        traitlets.TraitError: a kind or a part that there is not is assigned.

    Example:
        >>> explorer = katlib.BlockExplorer(embed_dim=64, num_heads=2, tokens=65, part="mlp.fc1")
        >>> [part["output"] for part in explorer.blocks["grkan"] if part["name"] == explorer.part]
        [[1, 65, 256]]
    """

    _esm = source("block.js")
    _css = LiveFigure._css + (FOLDER / "block.css").read_text(encoding="utf-8")
    kind = traitlets.Enum(KINDS).tag(sync=True)
    part = traitlets.Unicode().tag(sync=True)
    blocks: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    sources: traitlets.Dict[str, str] = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        embed_dim: int = 192,
        num_heads: int = 3,
        tokens: int = 197,
        groups: int = 8,
        kind: str = "grkan",
        part: str = "mlp.act1",
    ):
        if kind not in KINDS:
            raise ValueError(f"kind={shown(kind)}; allowed are {', '.join(KINDS)}")
        if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= MOST:
            raise ValueError(f"tokens={shown(tokens)}; allowed are whole numbers from 1 to {MOST}")
        sources: dict[str, str] = {}
        blocks = {
            name: _parts_of(_first_block(name, embed_dim, num_heads, groups), tokens, sources)
            for name in KINDS
        }
        try:
            super().__init__(blocks=blocks, sources=sources, kind=kind, part=part)
        except traitlets.TraitError as error:
            raise ValueError(str(error)) from None

    @traitlets.validate("part")
    def _check_part(self, proposal: Any) -> str:
        names = [part["name"] for parts in self.blocks.values() for part in parts]
        if proposal["value"] not in names:
            allowed = ", ".join(dict.fromkeys(names))
            raise traitlets.TraitError(f"part={shown(proposal['value'])}; allowed are {allowed}")
        return proposal["value"]

    @traitlets.validate("blocks", "sources")
    def _keep_the_blocks(self, proposal: Any) -> Any:
        return self._keep_what_was_drawn(proposal)


def _first_block(kind: str, embed_dim: int, num_heads: int, groups: int) -> vit.Block:
    """A block without numbers: only its shapes are asked for."""
    with torch.device("meta"):
        model = vit.VisionTransformer(
            embed_dim=embed_dim, num_heads=num_heads, depth=1, mlp=kind, groups=groups
        )
    block = model.eval().blocks[0]
    assert isinstance(block, vit.Block)
    return block


# ---- what a pass through the block tells


def _parts_of(block: vit.Block, tokens: int, sources: dict[str, str]) -> list[dict]:
    """The parts in the order in which they run; adds the code that they need to `sources`."""
    parts: list[dict] = []

    def note(name: str, caller: nn.Module, call: str, inputs: Tensor, output: Tensor) -> dict:
        part = {"name": name, "input": list(inputs.shape), "output": list(output.shape)}
        part |= {"says": "", "parameters": [], "own": ""}
        parts.append(part | _place(caller, call, sources))
        return parts[-1]

    def hook(name: str) -> Callable[..., None]:
        parent, _, leaf = name.rpartition(".")
        caller = block.get_submodule(parent)

        def run(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if name == "norm2":
                note("+ attention", block, "self.attn(", inputs[0], inputs[0])
            part = note(name, caller, f"self.{leaf}(", inputs[0], output)
            part["says"] = repr(module)
            part["parameters"] = [[key, list(p.shape)] for key, p in module.named_parameters()]
            if isinstance(module, GroupRational):
                # what every kernel of the function computes
                part["own"] = _add_source(reference.evaluate, sources)

        return run

    def attention(q: Tensor, output: Tensor) -> None:
        part = note("attn.softmax", block.attn, "attention(", q, output)
        part["says"] = "softmax(q kᵀ / √d) v, for each head"

    hooks = [
        module.register_forward_hook(hook(name))
        for name, module in block.named_modules()
        if not list(module.children()) and not isinstance(module, (nn.Dropout, vit.DropPath))
    ]
    width = block.norm1.normalized_shape[0]
    x = torch.empty(1, tokens, width, device="meta")
    with torch.no_grad(), _attention_seen_by(attention):
        y = block(x)
    for handle in hooks:
        handle.remove()
    note("+ mlp", block, "self.mlp(", y, y)
    return parts


@contextlib.contextmanager
def _attention_seen_by(see: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Inside, `see` gets the queries and the result of each attention, which is not a module."""
    before = vit.attention

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = before(q, k, v)
        see(q, output)
        return output

    vit.attention = attention
    try:
        yield
    finally:
        vit.attention = before


def _add_source(function: Callable[..., Any], sources: dict[str, str]) -> str:
    """Adds a function's code, without its docstring, to `sources`; returns its name there."""
    name = f"{function.__module__}.{function.__qualname__}"
    text = textwrap.dedent(inspect.getsource(function)).rstrip()
    lines = text.splitlines()
    if function.__doc__:
        (definition,) = ast.parse(text).body
        assert isinstance(definition, ast.FunctionDef)
        docstring = definition.body[0]
        del lines[docstring.lineno - 1 : docstring.end_lineno]
    sources[name] = "\n".join(lines)
    return name


def _place(caller: nn.Module, call: str, sources: dict[str, str]) -> dict:
    """Where a part is called: the name of the code, and the number of its line."""
    name = _add_source(type(caller).forward, sources)
    lines = sources[name].splitlines()
    return {"code": name, "line": next(i for i, line in enumerate(lines) if call in line)}
