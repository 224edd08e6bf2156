"""Where an X-ray lies: a file here, or an object in a store that fsspec opens, by a URL as of S3, GCS or the Hub."""

import os
import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import NamedTuple

from dataset_script.pixels import CLIPKOAError
from dataset_script.radiograph import MAX_BYTES, Radiograph, RadiographError, read_radiograph
from dataset_script.sniffing import HEAD_BYTES, is_hidden, why_left_out

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# What stores call the time of the last change, or else what changes with the content; the first that is there counts.
_TIMES = ("LastModified", "updated", "mtime", "last_modified", "created", "ETag", "etag", "blob_id")

Stamp = tuple[int | None, str | None]  # bytes, and the time of the last change as UTC


class SourceError(CLIPKOAError, OSError):
    """A store that cannot be read; the message names the input and says why."""


class Listed(str):
    """The name of an object that a store listed, which said its size and time besides: nobody need ask again."""

    stamp: Stamp


class Waiting(NamedTuple):
    """An X-ray that is to be graded: its number among the inputs, and its file as it was when it was looked at."""

    number: int
    file: str
    size: int | None  # bytes
    modified: str | None  # as `stamp` writes it

    @classmethod
    def looked_at(cls, number: int, file: str) -> "Waiting":
        """It as it is now."""
        return cls(number, file, *stamp(file))


def is_remote(name: str) -> bool:
    """Whether a name is that of an object in a store, or of a prefix or pattern of such."""
    return bool(_URL.match(name))


def stamp(file: str) -> Stamp:
    """Size in bytes and time of the last change (UTC, to the nanosecond) of a file; None for one that is not there.

    A store that keeps no time says its tag of the content instead.
    """
    if isinstance(file, Listed):
        return file.stamp
    if is_remote(file):
        return _stamp_of_object(file)
    try:
        found = os.stat(file)
    except OSError:
        return None, None
    seconds, rest = divmod(found.st_mtime_ns, 10**9)
    return found.st_size, f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def _stamp_of_object(url: str) -> Stamp:
    try:
        system, path = _opened(url)
        return _stamp_of(system.info(path))
    except Exception:  # stores raise nearly every kind there is; reading it will tell
        return None, None


def stamp_at_hand(file: str) -> Stamp | None:
    """`stamp`, but None where a store would have to be asked for each object."""
    return None if is_remote(file) and not isinstance(file, Listed) else stamp(file)


def read_xray(file: str, keep_polarity: bool = False) -> Radiograph:
    """`read_radiograph` of a file or of an object.

    Raises:
        RadiographError: it cannot be fetched or read.
    """
    if not is_remote(file):
        return read_radiograph(file, keep_polarity=keep_polarity)
    return read_radiograph(_fetch(file), name=file, keep_polarity=keep_polarity)


def try_to_read(file: str, keep_polarity: bool = False) -> Radiograph | RadiographError:
    """What `read_xray` gives of a file, or says of one that cannot be read."""
    try:
        return read_xray(file, keep_polarity)
    except RadiographError as error:
        return error


def _fetch(file: str) -> bytes:
    try:
        system, path = _opened(file)
        size = system.info(path).get("size")
        if size is None:
            content = _beginning(system, path, MAX_BYTES + 1)
            size = len(content)
        elif size <= MAX_BYTES:
            content = system.cat_file(path)
        if size <= MAX_BYTES:
            return content
    except FileNotFoundError as error:
        raise RadiographError(f"{file}: there is no such object.") from error
    except Exception as error:
        raise RadiographError(f"{file} cannot be fetched: {_reason(error)}") from error
    raise RadiographError(f"{file} has more than {MAX_BYTES:,} bytes: no radiograph is so large.")


def _beginning(system, path: str, count: int) -> bytes:
    """At most so many bytes of an object whose size the store does not say, and no more of it than these."""
    content = bytearray()
    with system.open(path, "rb") as stream:
        while len(content) < count and (part := stream.read(count - len(content))):
            content += part
    return bytes(content)


def list_objects(url: str) -> Iterator[Listed]:
    """The X-rays below a prefix or of a pattern, or the one object, as `find_xrays` takes files of a folder.

    Raises:
        SourceError: the store cannot be asked.
    """
    try:
        system, path = _opened(url)
        is_pattern = any(sign in path for sign in "*?[")
        found = (system.glob if is_pattern else system.find)(path, detail=True)
        for name, info in found.items():
            if info.get("type", "file") != "file":  # HTTP says nothing of the one object that was asked for
                continue
            if is_pattern or name == path or _is_xray_below(system, path, name, info):
                listed = Listed(system.unstrip_protocol(name))
                listed.stamp = _stamp_of(info)
                yield listed
    except ImportError as error:
        raise SourceError(
            f"{url}: {_reason(error)} (S3 needs pip install 'clip-koa[s3]', GCS 'clip-koa[gs]')."
        ) from error
    except Exception as error:
        raise SourceError(f"{url} cannot be listed: {_reason(error)}") from error


def _is_xray_below(system, prefix: str, name: str, info: dict) -> bool:
    if any(map(is_hidden, name[len(prefix) :].split("/"))):
        return False

    def head(name: str) -> bytes:
        if info.get("size") is None:  # a server that may send all of it, whatever is asked for
            return _beginning(system, name, HEAD_BYTES)
        return system.cat_file(name, 0, HEAD_BYTES)

    return why_left_out(name, head) is None


def _opened(url: str):
    """The file system of a store, and the path in it."""
    from fsspec.core import url_to_fs  # a second of imports that local files do without

    return url_to_fs(url)


def _stamp_of(info: dict) -> Stamp:
    value = next((info[name] for name in _TIMES if info.get(name) is not None), None)
    if isinstance(value, (int, float)):
        value = datetime.fromtimestamp(value, timezone.utc)
    if isinstance(value, datetime):
        value = value.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return info.get("size"), None if value is None else str(value)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
