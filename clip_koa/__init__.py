"""The workshop: what the scripts share. A published model never needs it."""

from pathlib import Path

# The checkpoint that comes with the project.
RELEASED_MODEL = Path(__file__).parents[1] / "models" / "clip-koa-small"
