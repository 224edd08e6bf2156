"""Looks into the bytes of one file of a release: text, JSON, PNG, safetensors or ONNX, and nothing hidden in it."""

import hashlib
import io
import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import BinaryIO

import yaml
from PIL import Image
from safetensors import SafetensorError, safe_open

from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.forms import FORMS, IMAGE_NAME, PERSON, SECRET, find_form
from clip_koa.publishing.graph_check import check_graph
from clip_koa.publishing.plain_files import open_plain
from dataset_script.pixels import MAX_PIXELS

# Keys of JSON that name people or files, written without lines and capitals.
_NAMING_KEYS = re.compile(
    r"(?:person|people|patient|subject|participant)(?:s|ids?|names?)?|files?|filenames?|filepaths?|paths?|mrn"
    r"|patient\w*|accession\w*|(?:study|series|sopinstance)\w*uid|institution\w*|operators?name|birthdate"
)
# Under such keys an integer counts something, and is nobody's number.
_COUNTING_KEYS = re.compile(r"(?:num|count|size|bytes|param|steps|total|seed|length|max|offset|vocab)", re.IGNORECASE)
_PERSON_NUMBER = range(9_000_000, 10_000_000)
_FORMS_OF_CODE = tuple(form for form in FORMS if form.kind != PERSON)
_SECRET_FORMS = tuple(form for form in FORMS if form.kind == SECRET)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_VOCABULARIES = ("vocab.json", "merges.txt")
_BETWEEN = "\n\0\n"  # no form reaches from one string to the next over it
_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs"}
_SOFTWARE = re.compile(rb"Software\0Matplotlib version[\w.]+, https://matplotlib\.org/")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by the PNG's colour type
_PART = 2**22  # bytes of a large file that are held at once


@dataclass(frozen=True)
class CheckedFile:
    """A file of a release as it was when it was checked."""

    name: str  # relative to the release
    size: int  # bytes
    sha256: str


def check_file(folder: Path, name: str, private: Mapping[str, str]) -> CheckedFile:
    """Looks into one file; it may hold what the project's own code and a release's figures do, and nothing else.

    Args:
        folder: the release.
        name: of the file, relative to it, which tells how it is read.
        private: what it may not hold, such as the token of this session, and what that is.

    Raises:
        ReleaseError: a link, a find, damage, or bytes that no reader shows; one line that names the file.
    """
    file = open_plain(folder, name)
    if file is None:
        raise ReleaseError(f"{name} is no longer there: build the release anew.")
    with file:
        if name.endswith(".safetensors"):
            _check_tensors(folder / name, name, file)
            file.seek(0)
            parts = iter(partial(file.read, _PART), b"")
        else:
            parts = [file.read()]
            checks = {".png": _check_picture, ".onnx": check_graph}
            check = checks.get(PurePath(name).suffix, partial(_check_document, private=private))
            check(name, parts[0])
        return _digest(name, parts, private)


def check_known_file(folder: Path, name: str, private: Mapping[str, str], sha256: str) -> CheckedFile:
    """Looks whether a file is still the one that the release was built with, and holds nothing private.

    Args:
        sha256: of the file that was made or checked when the release was built.

    Raises:
        ReleaseError: another file, or a find.
    """
    file = open_plain(folder, name)
    if file is None:
        raise ReleaseError(f"{name} is no longer there: build the release anew.")
    with file:
        checked = _digest(name, iter(partial(file.read, _PART), b""), private)
    if checked.sha256 != sha256:
        raise ReleaseError(f"{name} is not the file that the release was built with: build it anew.")
    return checked


def _digest(name: str, parts: Iterable[bytes], private: Mapping[str, str]) -> CheckedFile:
    """Digest of the bytes, which are searched for what is private, also where it lies across two parts."""
    digest, size, tail = hashlib.sha256(), 0, b""
    overlap = max((len(value.encode()) for value in private), default=0)
    for part in parts:
        digest.update(part)
        size += len(part)
        tail += part
        for value, what in private.items():
            if value.encode() in tail:
                raise ReleaseError(f"{name} holds {what}: build the release anew without it.")
        tail = tail[max(0, len(tail) - overlap) :]
    return CheckedFile(name, size, digest.hexdigest())


def _check_document(name: str, content: bytes, *, private: Mapping[str, str]) -> None:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReleaseError(f"{name} is no text in UTF-8: a release holds text, PNG, safetensors and ONNX.") from error
    if found := _CONTROL.search(text):
        raise ReleaseError(f"{name} holds the control character {found[0]!r}: a release's text holds none.")
    if name in _VOCABULARIES:  # its parts of words are no sentence
        _refuse(name, find_form(text, _SECRET_FORMS))
    elif name.endswith(".json"):
        _refuse(name, find_form(text, _SECRET_FORMS))
        _check_values(name, _parse_json(name, text), private)
    elif name.endswith(".py"):  # the project's own code; its comments name made-up X-rays
        _refuse(name, find_form(text, _FORMS_OF_CODE))
    else:
        _refuse(name, find_form(text))
        if front := _FRONT_MATTER.match(text.replace("\r\n", "\n")):
            _check_values(name, _parse_yaml(name, front[1]), private)


def _refuse(name: str, found: str | None) -> None:
    if found:
        raise ReleaseError(f"{name} holds {found}.")


def _parse_json(name: str, text: str):
    """The value; a dictionary is a list of its pairs, so that a key given twice hides nothing."""
    try:
        return json.loads(text, object_pairs_hook=_Pairs, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{name} is not valid JSON: {_first_line(error)}.") from error


def _parse_yaml(name: str, text: str):
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ReleaseError(f"{name}: its front matter is not valid YAML: {_first_line(error)}.") from error


class _Pairs(list):
    """The pairs of a dictionary, in their order."""


def _no_constant(constant: str):
    raise ValueError(f"{constant} is no JSON")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _check_values(name: str, value, private: Mapping[str, str]) -> None:
    """Looks at every string, key and number of what JSON or YAML holds, as they read once decoded."""
    of_data = name.endswith(".json")
    strings = []
    for key, part in _walk(value, skipped=("vocab", "merges") if name == "tokenizer.json" else ()):
        plain_key = re.sub(r"[^a-z]", "", str(key).lower())
        if of_data and not isinstance(part, int | float) and part and _NAMING_KEYS.fullmatch(plain_key):
            raise ReleaseError(f"{name} has {key!r}: names of people and files stay at home.")
        if isinstance(part, int) and part in _PERSON_NUMBER and not _COUNTING_KEYS.search(str(key)):
            raise ReleaseError(f"{name} holds {part}, which looks like a person's id: names of people stay at home.")
        strings.append(str(key))
        if not isinstance(part, dict | list | int | float | None):
            strings.append(str(part))
    text = _BETWEEN.join(strings)
    _digest(name, [text.encode("utf-8", "backslashreplace")], private)
    _refuse(name, find_form(text, (*FORMS, IMAGE_NAME) if of_data else FORMS))
    if name == "calibration.json" and (found := re.search(r"[^\0\n]*[/\\][^\0\n]*", text)):
        raise ReleaseError(f"{name} holds {found[0][:60]!r}: it may hold no file's name.")


def _walk(value, skipped: tuple[str, ...], key="") -> Iterator[tuple]:
    """Every value with the key that it, or the list that it is in, stands under."""
    waiting, seen = [(key, value)], set()
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, list | dict):
            if id(value) in seen:  # YAML may name one list in many places
                continue
            seen.add(id(value))
        if isinstance(value, _Pairs | dict):
            pairs = value.items() if isinstance(value, dict) else value
            waiting += [(name, part) for name, part in pairs if name not in skipped]
        elif isinstance(value, list):
            waiting += [(key, part) for part in value]


def _check_tensors(path: Path, name: str, file: BinaryIO) -> None:
    """The header as it is written, since a reader does not show a key that is given twice."""
    try:
        with safe_open(path, "np"):
            pass
        size = int.from_bytes(file.read(8), "little")  # which the reader found to be that of a header
        header = _parse_json(name, file.read(size).decode("utf-8"))
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise ReleaseError(f"{name} is no whole safetensors file: {_first_line(error)}.") from error
    strings = [key for key, _ in header]
    strings += [word for key, value in header if key == "__metadata__" for pair in value for word in pair]
    _refuse(name, find_form(_BETWEEN.join(strings)))


def _check_picture(name: str, content: bytes) -> None:
    """A PNG of pixels and nothing else: known chunks, no text but Matplotlib's name, no byte more than the pixels."""
    try:
        chunks = list(_chunks(content))
        for kind, body in chunks:
            if kind not in _CHUNKS and not (kind == b"tEXt" and _SOFTWARE.fullmatch(body)):
                raise ReleaseError(f"{name} carries metadata ({kind.decode('latin-1')}): save it without.")
        width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
        if interlaced or width * height > MAX_PIXELS:
            raise ReleaseError(f"{name} is interlaced or has {width} x {height} pixels: save it plainly and smaller.")
        expected = height * (1 + -(-width * bits * _CHANNELS[colour] // 8))  # a byte before each line names its filter
        unpacked = zlib.decompressobj()
        pixels = b"".join(body for kind, body in chunks if kind == b"IDAT")
        if len(unpacked.decompress(pixels, expected + 1)) != expected or not unpacked.eof or unpacked.unused_data:
            raise ValueError("its data are not those of its pixels")
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, KeyError, struct.error, zlib.error) as error:
        if isinstance(error, ReleaseError):
            raise
        raise ReleaseError(f"{name} is no whole PNG picture: {_first_line(error)}.") from error


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not content.startswith(_PNG):
        raise ValueError("it does not begin as one")
    place, kind = len(_PNG), b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", content, place)
        body = content[place + 8 : place + 8 + size]
        [sum_] = struct.unpack_from(">I", content, place + 8 + size)
        if sum_ != zlib.crc32(kind + body):
            raise ValueError(f"the checksum of its chunk {kind!r} is another")
        yield kind, body
        place += 12 + size
    if place != len(content):
        raise ValueError(f"{len(content) - place} bytes follow its end")
