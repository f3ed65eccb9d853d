"""What the book's pages are made with: figures, tables, stored results and records of training.

Needs katlib's extra `notebooks` (matplotlib, and what the extras `train` and `widgets` bring).
"""

from katlib.extras import require

require("notebooks", "matplotlib")
