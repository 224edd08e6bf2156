"""What a file is, from its first bytes: suffixes are missing, wrong, or those of another program."""

import os
import re
import stat
from collections.abc import Callable

from dataset_script.dicom import is_dicom
from dataset_script.listing import LeftOut
from dataset_script.radiograph import SUFFIXES

# Bytes that tell the format; the DICOM prefix ends there (PS3.10).
HEAD_BYTES = 132

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Images that `read_radiograph` does not read, and archives: they may be X-rays, or hold some.
_OTHER_IMAGES = (
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("JPEG 2000", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
    ("JPEG XL", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")),
    ("HEIF", re.compile(rb".{4}ftyp(hei|hev|avi|mif|msf)", re.DOTALL)),
    ("a Photoshop file", re.compile(rb"8BPS")),
    ("NRRD", re.compile(rb"NRRD0")),
    # The first element of group 2 or 8: its VR, or a length under 64 KiB in implicit VR.
    ("DICOM without its prefix at byte 128", re.compile(rb"[\x02\x08]\0[\0-\x20]\0([A-Z]{2}|..\0\0)", re.DOTALL)),
)
_ARCHIVES = re.compile(rb"PK\x03\x04|PK\x05\x06|\x1f\x8b\x08|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|PAR1")


def is_xray(head: bytes) -> bool:
    """Whether a file that begins so is in a format of `read_radiograph`: PNG, JPEG, WebP, TIFF, BMP or DICOM."""
    return (
        head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *_TIFF))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        # The size of the header behind the two letters, with which a text may begin too.
        or (head[:2] == b"BM" and head[14:18] in {bytes((size, 0, 0, 0)) for size in (12, 40, 52, 56, 64, 108, 124)})
        or is_dicom(head)
    )


def named_as_xray(name: str) -> bool:
    """Whether a file's suffix is an X-ray's, in any case."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def why_left_out(name: str, read: Callable[[str], bytes]) -> LeftOut | None:
    """Why a file is none of the X-rays; None where it is one, by its suffix or else by its content.

    Args:
        name: of the file.
        read: gives the first `HEAD_BYTES` of a name.
    """
    if named_as_xray(name) or is_xray(head := read(name)):
        return None
    other = next((kind for kind, pattern in _OTHER_IMAGES if pattern.match(head)), "")
    if other:
        return LeftOut(name, f"{other} is not read", "image")
    if _ARCHIVES.match(head) or name.lower().endswith(".zip"):
        return LeftOut(name, "archives inside the data are not opened", "archive")
    return LeftOut(name, "no X-ray", "other")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or left by macOS: .DS_Store, ._name, __MACOSX."""
    return name.startswith((".", "__MACOSX"))


def read_head(path: str | os.PathLike) -> bytes:
    """The first `HEAD_BYTES` of a regular file; empty for anything else, and for what cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return b""
    try:
        return os.read(descriptor, HEAD_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(descriptor)
