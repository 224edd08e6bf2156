"""Files and folders: written whole or not at all, refusals that name them, names kept as text whatever their bytes."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from dataset_script.pixels import CLIPKOAError

# Control characters, line ends, bytes that are not UTF-8, a backslash that would be read as an escape, and the first
# character of a spreadsheet's formula.
_ESCAPED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|\\(?=x[0-9a-f]{2})|^[=+\-@]")
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


class WriteError(CLIPKOAError, OSError):
    """A file that could not be written; the message names it and says why."""


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Within it the system's refusal to write, such as a full disk, is told with the file's name in one line.

    Raises:
        WriteError: in place of any other OSError.
    """
    try:
        yield path
    except OSError as error:
        if error.errno is None:  # it is told already
            raise
        reason = os.strerror(error.errno)
        raise WriteError(f"{as_text(path)} could not be written: {reason}.") from error


def write_file(path: Path, content: bytes) -> Path:
    """Writes a file so that a kill leaves the old or the new one, never half of it.

    Raises:
        WriteError: it could not be written; the old one stays.
    """
    with replaced(path) as temporary:
        temporary.write_bytes(content)
    return path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Gives a temporary file beside `path` and puts it in its place when the block ends without an error.

    Raises:
        WriteError: it could not be written; what stood there still stands, and nothing half-written stays.
    """
    temporary = path.with_name(f".{path.name}.writing")
    with writing(path):
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_picture(path: Path, image: Image.Image) -> Path:
    """Writes a picture in the format that the file's suffix names.

    Raises:
        WriteError: a suffix of no format that can be written, or it could not be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise WriteError(f"{as_text(path)}: name a picture, such as {as_text(path.stem)}.png.")
    with replaced(path) as temporary:
        image.save(temporary, kind)
    return path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a hidden folder beside `path` and puts it in its place when the block ends without an error.

    Raises:
        WriteError: `path` is there and no empty folder, or could not be written; nothing half-written stays.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WriteError(f"{as_text(path)} is not an empty folder: name a new one.")
    temporary = path.with_name(f".{path.name}.writing")
    with writing(path):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                path.rmdir()
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def as_text(name: str | Path) -> str:
    r"""A file's name, or a text with one in it, as one line that any table and screen takes; `path_of` gives it back.

    Bytes that are not UTF-8, control characters and line ends become `\x0a` and the like, byte by byte. So does a
    backslash that would read as such an escape, and a first `=`, `+`, `-` or `@`, which spreadsheets would compute.
    Any other name stays as it is.
    """
    return _ESCAPED.sub(lambda found: "".join(f"\\x{byte:02x}" for byte in _bytes(found[0])), os.fspath(name))


def path_of(text: str) -> str:
    """The file that `as_text` wrote, ready to be opened."""
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode()))


def _bytes(character: str) -> bytes:
    # As Python reads names, a byte that is not UTF-8 is one of these; the other surrogates come from no file's name.
    is_byte = "\udc80" <= character <= "\udcff"
    return character.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
