"""The workshop's files: written as those of the corpus are (`dataset_script.files`), and told by their content."""

import hashlib
from pathlib import Path

from dataset_script.files import WriteError, as_text, path_of, replaced, write_file, writing

__all__ = ["WriteError", "as_text", "file_digest", "path_of", "replaced", "write_file", "writing"]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        if hasattr(hashlib, "file_digest"):  # Python 3.11
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while part := file.read(1 << 20):
            digest.update(part)
        return digest.hexdigest()
