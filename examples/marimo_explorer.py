"""A live figure in marimo: drag a learned function, and the cells that read it run again.

    pip install marimo
    marimo edit examples/marimo_explorer.py

marimo has no widget manager of Jupyter's. `mo.ui.anywidget` makes a live figure one of its own
elements: a cell that names the element runs again when somebody drags a handle.
"""

import marimo

app = marimo.App()


@app.cell
def _():
    import marimo as mo

    import katlib

    return katlib, mo


@app.cell
def _(katlib, mo):
    module = katlib.GroupRational(8, groups=2, init="gelu")
    explorer = mo.ui.anywidget(katlib.RationalExplorer(module, group=1))
    explorer  # noqa: B018
    return explorer, module


@app.cell
def _(explorer, mo, module):
    explorer.widget.write_back()
    coefficients = module.weight_numerator[0].tolist()
    mo.md(f"a2 of the module is {coefficients[2]:.6f}.")
    return


if __name__ == "__main__":
    app.run()
