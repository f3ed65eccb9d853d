"""The directive `api`: the docstrings of katlib's public names, for the page `book/api.md`.

    ```{api} katlib.rational katlib.grkan
    :also: katlib.train.data.CIFAR10
    ```

lists the public names that are defined in these modules, in the order of `katlib.__all__`, and then
other names, given by their whole path. `{api} *` lists the public names that no other directive of
its page has taken, and `{api-index}` lists them all, one line each.

Docstrings are plain text with `code` in backticks. Whatever else reStructuredText would take for
markup, such as |x| or *args, is escaped, so that a docstring reads the same in Python and on the
page.
"""

import inspect
import re
from importlib import import_module
from typing import ClassVar

from sphinx.util.docutils import SphinxDirective

# what reStructuredText would take for markup outside of backticks
MARKUP = re.compile(r"(?<!\\)[|*\\]|(?<=\w)_(?!\w)")

# names that have an entry on the page, so that `code` in a docstring can link to them
LINKED_NAMES: set[str] = set()


def public_names() -> dict[str, str]:
    """The public names of katlib, and for each the module that defines it."""
    import katlib

    return {name: getattr(katlib, name).__module__ for name in katlib.__all__}


def is_within(module: str, parents: list[str]) -> bool:
    """Whether a module is one of these or lies in one of these packages; `*` stands for all."""
    if "*" in parents:
        return True
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


class Api(SphinxDirective):
    """Lists public names by their modules, with their docstrings."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar = {"also": str}

    def run(self):
        modules = self.arguments[0].split()
        other_paths = self.options.get("also", "").split()
        LINKED_NAMES.update(public_names())
        LINKED_NAMES.update(path.rsplit(".", 1)[1] for path in other_paths)
        paths = [f"katlib.{name}" for name in self.take_names(modules)] + other_paths
        lines = []
        for path in paths:
            lines += [*autodoc_lines(path), ""]
        return parse(self, lines) if lines else []

    def take_names(self, modules: list[str]) -> list[str]:
        """The public names of these modules that no directive of this page has taken before."""
        taken = self.env.temp_data.setdefault("katlib_api", set())
        names = [
            name
            for name, module in public_names().items()
            if name not in taken and is_within(module, modules)
        ]
        taken.update(names)
        return names


class Index(SphinxDirective):
    """Lists every public name with the first line of its docstring."""

    def run(self):
        import katlib

        LINKED_NAMES.update(public_names())
        lines = []
        for name in public_names():
            summary = inspect.getdoc(getattr(katlib, name)).splitlines()[0]
            lines.append(f"- `{name} <.{name}>`: {escaped(summary)}")
        return parse(self, lines)


def parse(directive: SphinxDirective, lines: list[str]) -> list:
    """The nodes of some lines of reStructuredText, within a page of Markdown."""
    text = "\n".join(lines)
    return directive.parse_text_to_nodes(f"```{{eval-rst}}\n{text}\n```\n")


def autodoc_lines(path: str) -> list[str]:
    """autodoc's directive for one name; for a class with the methods that have docstrings."""
    module, name = path.rsplit(".", 1)
    thing = getattr(import_module(module), name)
    if not inspect.isclass(thing):
        return [f".. autofunction:: {path}"]
    methods = [
        key
        for key, method in vars(thing).items()
        if inspect.isroutine(method) and method.__doc__ and not key.startswith("_")
    ]
    lines = [f".. autoclass:: {path}"]
    if methods:
        lines.append(f"   :members: {', '.join(methods)}")
    return lines


def escaped(line: str) -> str:
    """A docstring's line as reStructuredText that means what it says.

    `code` that is the name of an entry becomes a link to it.
    """
    parts = re.split(r"(``.*?``|`.*?`)", line)
    for i, part in enumerate(parts):
        code = part.strip("`")
        if not part.startswith("`"):
            parts[i] = MARKUP.sub(r"\\\g<0>", part)
        elif code.rsplit(".", 1)[-1] in LINKED_NAMES:
            name = code.rsplit(".", 1)[-1]
            parts[i] = f"`{code} <.{name}>`"
    return "".join(parts)


def escape_docstring(app, what, name, obj, options, lines):
    """Escapes a docstring's lines, in place; autodoc calls it for each docstring."""
    in_example = False
    for i, line in enumerate(lines):
        # an example goes on until the next empty line
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        if in_example:
            continue
        # of a module: its own parameters, beside the arguments of its constructor
        if re.fullmatch(r"Parameters( \(.*\))?:", line):
            line = "Learned parameters:"
        lines[i] = escaped(line)


def setup(app):
    app.add_directive("api", Api)
    app.add_directive("api-index", Index)
    # before napoleon, whose priority is 500
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
