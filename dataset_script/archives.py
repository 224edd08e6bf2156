"""Reading .zip archives in place and in bounded pieces: nothing is unpacked, and no header is believed."""

import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataset_script.names import CorpusError, short
from dataset_script.sniffing import named_as_xray

# An X-ray out of an archive or Parquet is in memory several times while it is read. A radiograph of 3000x4000 pixels
# of 16 bits has 24 MB.
MAX_MEMBER_BYTES = 48 * 1024**2
# Of the list of an archive's entries, about 300,000; each takes about half a kB of memory.
MAX_DIRECTORY_BYTES = 32 * 1024**2
_PIECE = 1 << 20
# zipfile inflates these in pieces, others at once, of which a kB may hold a GB.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Longer and deeper names than any file system has.
_MAX_NAME, _MAX_FOLDERS_OF_NAME = 1024, 64
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")


@contextmanager
def open_archive(archive: Path) -> Iterator[zipfile.ZipFile]:
    """An open archive.

    Raises:
        CorpusError: it is damaged, no .zip, or has too many entries.
    """
    try:
        with open(archive, "rb") as file:
            size = _directory_bytes(file)
        if size > MAX_DIRECTORY_BYTES:
            raise CorpusError(f"{archive} has a list of entries of {size:,} bytes, too long to read: unpack it.")
        opened = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{archive} is damaged or no .zip: {error}. Download it again.") from error
    with opened:
        yield opened


def _directory_bytes(file) -> int:
    """How long an archive's end record says that its list of entries is; 0 where there is no such record."""
    file.seek(0, io.SEEK_END)
    length = file.tell()
    file.seek(max(0, length - _END.size - (1 << 16)))
    tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) - place < _END.size:
        return 0
    size = _END.unpack_from(tail, place)[5]
    place += length - len(tail) - 20 - _END_64.size  # a record of 64 bits comes before it, and then its locator
    if place >= 0:
        file.seek(place)
        record = _END_64.unpack(file.read(_END_64.size))
        size = max(size if size < 0xFFFFFFFF else 0, record[8]) if record[0] == b"PK\x06\x06" else size
    return size


def check_entries(opened: zipfile.ZipFile, archive: Path) -> None:
    """Refuses archives that were made to do harm, though nothing is ever unpacked.

    Raises:
        CorpusError: an entry that points outside, is a link, is encrypted, is there twice, or an X-ray too large.
    """
    seen = set()
    for entry in opened.infolist():
        name, reason = entry.filename, ""
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", name):
            reason = "points outside the archive"
        elif len(name) > _MAX_NAME or len(parts) > _MAX_FOLDERS_OF_NAME:
            reason = "has a name longer or deeper than files have"
        elif stat.S_ISLNK(entry.external_attr >> 16):
            reason = "is a link"
        elif entry.flag_bits & 1:
            reason = "is encrypted"
        elif entry.file_size > MAX_MEMBER_BYTES and named_as_xray(name):
            reason = f"has {entry.file_size:,} bytes, more than {MAX_MEMBER_BYTES:,}"
        elif name in seen:
            reason = "is there twice"
        if reason:
            raise CorpusError(f"{archive}: the entry {short(name)} {reason}; this archive is refused.")
        seen.add(name)


def read_member(opened: zipfile.ZipFile, name: str, limit: int | None = None) -> bytes:
    """The first `limit` bytes of an entry, or all.

    Raises:
        CorpusError: it is damaged, encrypted, not there, or has more than `MAX_MEMBER_BYTES`.
    """
    place = f"{opened.filename}/{name}"
    try:
        entry = opened.getinfo(name)
        if entry.compress_type not in _METHODS:
            raise CorpusError(f"{place} is compressed by the method {entry.compress_type}: pack it with deflate.")
        wanted = MAX_MEMBER_BYTES + 1 if limit is None else limit
        content = io.BytesIO()  # grows without a second copy, as joining pieces would not
        with opened.open(entry) as member:
            while content.tell() < wanted and (part := member.read(min(_PIECE, wanted - content.tell()))):
                content.write(part)
    except CorpusError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, KeyError) as error:
        raise CorpusError(f"{place} is damaged or cannot be read: {error}") from error
    except zlib.error as error:
        raise CorpusError(f"{place} is damaged: {error}") from error
    if limit is None and content.tell() > MAX_MEMBER_BYTES:
        raise CorpusError(f"{place} has more than {MAX_MEMBER_BYTES:,} bytes: unpack the archive.")
    return content.getvalue()
