"""Hundreds of damaged and hostile files: each is read, or refused with the one error, soon and in little memory.

They are read in a process of their own whose address space is limited, so that a crash or a bomb fails the test
and not the machine.
"""

import io
import json
import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from dataset_script.synthetic import draw_knee

KNEE = draw_knee(3, "L", 0, image_size=64)
DICOM = Path(__file__).parent / "data" / "dicom"
LIMIT = 1024**3

# Reads every file of a folder, as named in names.json, and reports what became of it.
READER = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (2 * 1024**3,) * 2)
from dataset_script.radiograph import RadiographError, read_radiograph
report = {}
for name in json.load(open(sys.argv[1] + "/names.json")):
    path, start = sys.argv[1] + "/files/" + name, time.process_time()
    try:
        image = read_radiograph(path).image
        image.load()
        outcome = "read" if image.mode == "L" and min(image.size) >= 32 else f"wrong: {image}"
    except RadiographError as refusal:
        outcome = "refused: " + str(refusal) if name in str(refusal) else "nameless: " + str(refusal)
    report[name] = (outcome, time.process_time() - start)
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]  # unlike ru_maxrss, from exec on
json.dump([report, int(peak[0].split()[1]) * 1024], open(sys.argv[1] + "/report.json", "w"))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory in Linux's /proc")


def _encoded(image, format, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _whole_files() -> dict[str, bytes]:
    """One file of each kind that is read."""
    deep = Image.fromarray((np.asarray(KNEE, np.uint32) * 40 + 3000).astype(np.uint16))
    files = {
        "gray.png": _encoded(KNEE, "PNG"),
        "deep.png": _encoded(deep, "PNG"),
        "palette.png": _encoded(KNEE.convert("P"), "PNG"),
        "alpha.png": _encoded(KNEE.convert("RGBA"), "PNG"),
        "gray.jpg": _encoded(KNEE, "JPEG"),
        "cmyk.jpg": _encoded(KNEE.convert("CMYK"), "JPEG"),
        "progressive.jpg": _encoded(KNEE.convert("RGB"), "JPEG", progressive=True),
        "lossy.webp": _encoded(KNEE, "WEBP"),
        "lossless.webp": _encoded(KNEE, "WEBP", lossless=True),
        "raw.tif": _encoded(KNEE, "TIFF"),
        "deep.tif": _encoded(deep, "TIFF", compression="tiff_lzw"),
        "deflate.tif": _encoded(KNEE.convert("RGB"), "TIFF", compression="tiff_deflate"),
        "jpeg.tif": _encoded(KNEE.convert("RGB"), "TIFF", compression="jpeg"),
        "gray.bmp": _encoded(KNEE, "BMP"),
        "colour.bmp": _encoded(KNEE.convert("RGB"), "BMP"),
    }
    for name in ("window", "voi_lut", "jpeg_lossless_sv1", "jpeg_ls", "jpeg_2000", "rle", "deflated", "jpeg_baseline"):
        files[f"{name}.dcm"] = (DICOM / f"{name}.dcm").read_bytes()
    return files


def _mutations(name: str, content: bytes):
    """The file cut at every tenth, and with bytes flipped: a few, many, in its header, a run of noise."""
    for tenth in range(10):
        yield f"cut {tenth} {name}", content[: len(content) * tenth // 10]
    damage = random.Random(name)
    for number in range(12):
        mutated = bytearray(content)
        reach = len(content) if number % 3 else min(len(content), 300)
        for _ in range((1, 4, 16, 64)[number % 4]):
            mutated[damage.randrange(reach)] ^= 1 << damage.randrange(8)
        if number >= 10:
            start = damage.randrange(len(content) - 40)
            mutated[start : start + 40] = damage.randbytes(40)
        yield f"flip {number} {name}", bytes(mutated)


def _png_header_bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it has so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def _png_text_bomb() -> bytes:
    """A PNG whose comment inflates to 500 MB."""
    deflater = zlib.compressobj(9)
    comment = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(500)) + deflater.flush()
    data = b"Comment\0\0" + comment
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    whole = _encoded(KNEE, "PNG")
    return whole[:33] + chunk + whole[33:]


def _hostile_files() -> dict[str, bytes]:
    large_jpeg = bytearray(_encoded(KNEE, "JPEG"))
    frame = large_jpeg.index(b"\xff\xc0")
    large_jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    scans = _encoded(Image.new("RGB", (7000, 7000)), "JPEG", progressive=True)
    last = scans.rindex(b"\xff\xda")
    return {
        "zero.png": b"",
        "zero.dcm": b"",
        "text.png": b"a text file",
        "text.dcm": b"a text file",
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "picture.gif.png": _encoded(KNEE, "GIF"),
        "vector.eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
        "bomb.png": _png_header_bomb(60000, 60000),
        "huge.png": _png_header_bomb(2**31 - 1, 2**31 - 1),
        "comment.png": _png_text_bomb(),
        "bomb.jpg": bytes(large_jpeg),
        "scans.jpg": scans[:last] + scans[last:-2] * 200 + b"\xff\xd9",
        "bomb.webp": _encoded(Image.new("L", (16000, 16000)), "WEBP", lossless=True, method=0),
        "prefix.dcm": bytes(128) + b"DICM",
        "noise.dcm": bytes(128) + b"DICM" + random.Random(1).randbytes(5000),
    }


# What must be read, and right, however it is called; the largest of each kind shows the memory.
def _honest_files() -> dict[str, bytes]:
    knee, side = _encoded(KNEE, "PNG"), 7000
    large = np.zeros((side, side), np.uint8)
    large[::7] = 90
    return {
        "name with spaces.png": knee,
        "ĳ漢字🦵.png": knee,
        "line\nbreak.png": knee,
        "quote'\".png": knee,
        "wrong suffix.jpg": knee,
        "wrong suffix.dcm": _encoded(KNEE, "JPEG"),
        "no suffix": (DICOM / "window.dcm").read_bytes(),
        "dicom named.png": (DICOM / "rle.dcm").read_bytes(),
        "large deep.png": _encoded(Image.fromarray(large.astype(np.uint16) * 50), "PNG", compress_level=1),
        "large alpha.png": _encoded(Image.fromarray(large).convert("RGBA"), "PNG", compress_level=1),
        "large.jpg": _encoded(Image.fromarray(large), "JPEG"),
        "large float.tif": _encoded(
            Image.fromarray(large.astype(np.float32)), "TIFF", compression="tiff_adobe_deflate"
        ),
    }


def _write_special(folder: Path) -> list[str]:
    """What is no file at all, or may not be read."""
    (folder / "folder.png").mkdir()
    os.symlink(folder / "nowhere", folder / "dangling.png")
    os.symlink(folder / "loop.png", folder / "loop.png")
    os.mkfifo(folder / "pipe.png")
    names = ["folder.png", "dangling.png", "loop.png", "pipe.png", "missing.png", "x" * 300 + ".png"]
    if os.geteuid():  # root reads everything
        (folder / "secret.png").write_bytes(_encoded(KNEE, "PNG"))
        (folder / "secret.png").chmod(0)
        names.append("secret.png")
    return names


class Outcome(NamedTuple):
    report: dict[str, tuple[str, float]]  # name -> what became of it, seconds of a core
    peak: int  # resident memory, bytes
    hostile: list[str]
    honest: list[str]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> Outcome:
    pytest.importorskip("pydicom")
    pytest.importorskip("pylibjpeg")
    folder = tmp_path_factory.mktemp("abuse")
    (folder / "files").mkdir()
    hostile, honest = _hostile_files(), _honest_files()
    files = {**hostile, **honest}
    for name, content in _whole_files().items():
        files[name] = content
        files |= dict(_mutations(name, content))
    for name, content in files.items():
        (folder / "files" / name).write_bytes(content)
    names = [*files, *_write_special(folder / "files")]
    (folder / "names.json").write_text(json.dumps(names))
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", READER, str(folder)], cwd=root, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report, peak = json.loads((folder / "report.json").read_text())
    assert list(report) == names
    return Outcome(report, peak, list(hostile), [*honest, *_whole_files()])


def test_every_file_is_read_or_refused(outcome):
    report = outcome.report
    assert len([name for name in report if name.startswith(("cut", "flip"))]) >= 300
    assert {what.split(":")[0] for what, _ in report.values()} == {"read", "refused"}


def test_nothing_takes_long_or_much_memory(outcome):
    report = outcome.report
    slowest = max(report, key=lambda name: report[name][1])
    assert report[slowest][1] < 5, slowest  # seconds of a core; a file that inflates takes minutes
    assert outcome.peak < LIMIT, f"{outcome.peak / 1024**2:.0f} MB"


def test_whole_files_are_read(outcome):
    report = outcome.report
    for name in outcome.honest:
        assert report[name][0] == "read", (name, report[name])


def test_hostile_and_empty_files_are_refused(outcome):
    report = outcome.report
    for name in outcome.hostile:
        assert report[name][0].startswith("refused"), name
    for name in [name for name in report if name.startswith("cut 0")]:
        assert "is empty" in report[name][0] or "not a" in report[name][0], report[name]
    for name in ("folder.png", "dangling.png", "loop.png", "pipe.png", "missing.png", "x" * 300 + ".png"):
        assert report[name][0].startswith("refused"), name


def test_cut_files_are_not_passed_off_as_whole(outcome):
    """Half an X-ray is no X-ray, whatever the format."""
    report = outcome.report
    for name in _whole_files():
        for tenth in range(9):
            assert report[f"cut {tenth} {name}"][0].startswith("refused"), report[f"cut {tenth} {name}"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become nobody")
def test_a_file_without_permission_is_refused(tmp_path):
    """As root would read it all the same, a child process that gives root up tries."""
    path = tmp_path / "secret.png"
    path.write_bytes(_encoded(KNEE, "PNG"))
    path.chmod(0)
    for parent in path.parents:
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)
    code = (
        "import os, sys; from dataset_script.radiograph import RadiographError, read_radiograph\n"
        "os.setuid(65534)\n"
        "try: read_radiograph(sys.argv[1])\n"
        "except RadiographError as refusal: print(refusal)"
    )
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True)
    assert "secret.png" in result.stdout and "Permission denied" in result.stdout, result.stderr
