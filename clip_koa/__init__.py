"""The workshop: what the commands share. A published model never needs it."""

from pathlib import Path

# The checkpoint that comes with the project; a package that was installed without the checkout has none.
RELEASED_MODEL = Path(__file__).parents[1] / "models" / "clip-koa-small"
