"""Studies that stand beside the released model: they use the project's parts, and no part of it needs them."""
