"""The directive `api`: what the docstrings of katlib's public names say, for the page `book/api.md`.

    ```{api} katlib.rational katlib.grkan       the public names that are defined in these modules, in the order of `katlib.__all__`
    :also: katlib.train.data.CIFAR10                  more names, by their whole path
    ```

`{api} *` takes the public names that no other directive of its page has taken, and `{api-index}` lists them all, a line each. Docstrings are plain text with `code` in backticks: whatever else
reStructuredText would take for a mark, such as |x| or *args, is escaped, so that a docstring is read in Python as it is on the page.
"""

import inspect
import re

from sphinx.util.docutils import SphinxDirective

MARKS = re.compile(r"(?<!\\)[|*\\]|(?<=\w)_(?!\w)")  # outside of backticks

LISTED: set[str] = set()  # names that a docstring's `code` leads to


def public_names() -> dict[str, str]:
    """{name: the module that defines it} for all public names of katlib."""
    import katlib

    return {name: getattr(katlib, name).__module__ for name in katlib.__all__}


class Api(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"also": str}

    def run(self):
        taken = self.env.temp_data.setdefault("katlib_api", set())
        modules = self.arguments[0].split()
        names = [
            name
            for name, module in public_names().items()
            if name not in taken
            and ("*" in modules or any(f"{module}.".startswith(f"{m}.") for m in modules))
        ]
        taken.update(names)
        lines = []
        more = self.options.get("also", "").split()
        LISTED.update(public_names(), (path.rsplit(".", 1)[1] for path in more))
        for path in [f"katlib.{name}" for name in names] + more:
            lines += [*described(path), ""]
        return (
            self.parse_text_to_nodes("```{eval-rst}\n" + "\n".join(lines) + "\n```\n")
            if lines
            else []
        )


class Index(SphinxDirective):
    """Every public name with the first line of its docstring."""

    def run(self):
        import katlib

        LISTED.update(public_names())
        lines = [
            f"- `{name} <.{name}>`: {escaped(inspect.getdoc(getattr(katlib, name)).splitlines()[0])}"
            for name in public_names()
        ]
        return self.parse_text_to_nodes("```{eval-rst}\n" + "\n".join(lines) + "\n```\n")


def described(path: str) -> list[str]:
    """autodoc's directive for one name; of a class, the methods that have a docstring of their own are listed too."""
    module, name = path.rsplit(".", 1)
    thing = getattr(__import__(module, fromlist=[name]), name)
    if not inspect.isclass(thing):
        return [f".. autofunction:: {path}"]
    methods = [
        key
        for key, method in vars(thing).items()
        if inspect.isroutine(method) and method.__doc__ and not key.startswith("_")
    ]
    return [f".. autoclass:: {path}", *([f"   :members: {', '.join(methods)}"] if methods else [])]


def escaped(line: str) -> str:
    """A docstring's line as reStructuredText that means what it says; `code` that is the name of an entry leads to it."""
    parts = re.split(r"(``.*?``|`.*?`)", line)
    for i, part in enumerate(parts):
        if not part.startswith("`"):
            parts[i] = MARKS.sub(r"\\\g<0>", part)
        elif (name := part.strip("`").rsplit(".", 1)[-1]) in LISTED:
            parts[i] = f"`{part.strip('`')} <.{name}>`"
    return "".join(parts)


def plain_text(app, what, name, obj, options, lines):
    """Makes a docstring's lines reStructuredText that means what they say."""
    in_example = False
    for i, line in enumerate(lines):
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        if in_example:
            continue
        if re.fullmatch(
            r"Parameters( \(.*\))?:", line
        ):  # a module's own, beside the arguments of its constructor
            line = "Learned parameters:"
        lines[i] = escaped(line)


def setup(app):
    app.add_directive("api", Api)
    app.add_directive("api-index", Index)
    app.connect(
        "autodoc-process-docstring", plain_text, priority=400
    )  # before napoleon, whose priority is 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
