"""Writing a file whole or not at all."""

import os
from pathlib import Path


def write_file(path: Path, content: bytes) -> Path:
    """Writes a file so that a kill leaves the old or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return path
