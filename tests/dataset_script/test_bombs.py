"""Corpora that would fill the memory: each is read, or refused in a line that names it, in less than 1 GiB.

They are made in pieces and read in a process of its own, whose peak is measured anew for each.
"""

import bz2
import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from dataset_script.parquet_pages import PageError, check_pages, page_sizes
from dataset_script.synthetic import draw_knee

LIMIT = 1024**3
ROOT = Path(__file__).parents[2]
# Builds and audits every corpus that names.json names; reports the errors' lines, how many X-rays, and the peak.
READER = """
import json, sys, tempfile
from pathlib import Path
import datasets
from dataset_script.audit import audit_corpus
from dataset_script.knee_xray import CorpusError, load_knee_xray

def build(data):
    load_knee_xray(data, cache_dir=tempfile.mkdtemp(dir=data.parent))
    return []

def audit(data):
    return [entry["reason"] for entry in audit_corpus(data)["unreadable"]]

datasets.disable_progress_bars()
folder, report = Path(sys.argv[1]), {}
for name in json.loads((folder / "names.json").read_text()):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    lines = []
    for read in (build, audit):
        try:
            lines.append((read(folder / name) or ["read"])[0])
        except CorpusError as error:
            lines.append(str(error))
    peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    report[name] = (lines, int(peak[0].split()[1]) * 1024)
(folder / "report.json").write_text(json.dumps(report))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory in Linux's /proc"),
]


def _encoded(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


KNEE = _encoded(draw_knee(2, "L", 0, 40))
ZEROS = bytes(1 << 20)


def _inflating(archive: Path, megabytes: int, count: int = 1, start: bytes = b"") -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened:
        for number in range(count):
            with opened.open(f"train/{number % 5}/900000{number}L.png", "w") as member:
                member.write(start)
                for _ in range(megabytes):
                    member.write(ZEROS)


def _lying(archive: Path, megabytes: int, method: int = zipfile.ZIP_DEFLATED) -> None:
    """One entry whose headers say that it has 2,000 bytes, or that few bytes are a gigabyte."""
    name = b"train/0/9000001L.png"
    if method == zipfile.ZIP_DEFLATED:
        deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        content = b"".join(deflater.compress(ZEROS) for _ in range(megabytes)) + deflater.flush()
    else:
        compressor = bz2.BZ2Compressor()
        content = b"".join(compressor.compress(ZEROS) for _ in range(megabytes)) + compressor.flush()
    said = 2000 if megabytes > 1 else 10**9
    fields = struct.pack("<HHHHHIIIHH", 46, 0, method, 0, 0, 0, len(content), said, len(name), 0)
    local = b"PK\3\4" + fields + name + content
    central = b"PK\1\2" + struct.pack("<H", 46) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    archive.write_bytes(local + central + end)


def _many_entries(archive: Path) -> None:
    entry = b"PK\1\2" + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"x"
    with open(archive, "wb") as file:
        for _ in range(100):
            file.write(entry * 10_000)
        file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, len(entry) * 1_000_000, 0, 0))


def _deep_names(archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a/" * 20_000 + "x.png", b"")


def _large_images(folder: Path) -> None:
    """Flat pictures of 49 million pixels in few bytes, which threads would decode at once."""
    (folder / "train" / "0").mkdir(parents=True)
    flat = Image.new("L", (7000, 7000), 90)
    flat.paste(20, (0, 0, 3500, 7000))
    deep = Image.fromarray(np.asarray(flat, np.uint16) * 100)
    for number in range(3):
        options = {"compression": "tiff_adobe_deflate"}
        content = (
            _encoded(deep, "TIFF", **options) if number % 2 else _encoded(flat.convert("RGBA"), "TIFF", **options)
        )
        (folder / "train" / "0" / f"{number}.tif").write_bytes(content)


def _largest_gray(folder: Path) -> None:
    """Flat films of 119 million gray pixels, of 8 and of 16 bits."""
    (folder / "train" / "0").mkdir(parents=True)
    flat = np.full((10_900, 10_900), 90, np.uint8)
    flat[:, :5000] = 20
    Image.fromarray(flat).save(folder / "train" / "0" / "eight.png", compress_level=1)
    deep = Image.fromarray(flat.astype(np.uint16) * 100)
    deep.save(folder / "train" / "0" / "deep.tif", compression="tiff_adobe_deflate")


def _noise(folder: Path) -> None:
    """X-rays of 12 million pixels that do not compress, which wait to be written."""
    (folder / "train" / "1").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (3000, 4000), np.uint8)
    for number in range(8):
        Image.fromarray(noise).save(folder / "train" / "1" / f"{number}.bmp")
        noise = np.roll(noise, 1)


def _write_table(path: Path, columns: dict, **options) -> None:
    parquet.write_table(pyarrow.table(columns), path, **options)


def _shared_value(path: Path) -> None:
    """A dictionary of one value of 46 MB, and 6 rows that bear it."""
    values = pyarrow.array([KNEE + bytes(46 * 1024**2)], pyarrow.binary())
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 6, pyarrow.int32()), values)
    table = pyarrow.table({"image": column, "label": pyarrow.array([1] * 6)})
    parquet.write_table(table, path, compression="zstd", store_schema=False)


def _many_rows(path: Path) -> None:
    schema = pyarrow.schema({"image": pyarrow.binary(), "label": pyarrow.int64()})
    batch = pyarrow.record_batch([pyarrow.nulls(10_000_000, pyarrow.binary()), np.zeros(10_000_000, np.int64)], schema)
    with parquet.ParquetWriter(path, schema) as writer:
        for _ in range(6):
            writer.write_batch(batch, row_group_size=10_000_000)


def _long_names(path: Path) -> None:
    """Rows of one long name, as which they would have 20 GB of them."""
    names = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 20_000, pyarrow.int32()), ["x" * (1 << 20)])
    _write_table(path, {"image": [KNEE] * 20_000, "label": [0] * 20_000, "file": names})


def _lying_page(path: Path) -> None:
    """A page whose header says more than the file's metadata: that it has nearly 2 GiB."""
    _write_table(path, {"label": ["0"], "image": [KNEE]}, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    start = parquet.read_metadata(path).row_group(0).column(1).data_page_offset
    assert content[start : start + 3] == b"\x15\x00\x15"  # a data page, and then its two sizes as zigzag varints
    size = content[start + 3 : start + 5]
    assert content[start + 5 : start + 8] == b"\x15" + size
    bomb = b"\x15\x00\x15\xfe\xff\xff\xff\x0f\x15" + size
    path.write_bytes(bytes(content[:start]) + bomb + bytes(content[start + 8 :]))


def _line_without_end(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(b"file,label\n")
        for _ in range(400):
            file.write(b"x" * (1 << 20))


def _field_without_end(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(b'file,label\n"')
        for _ in range(200):
            file.write(b"xxxxxxxx\n" * 100_000)


# What is made, and what the builder's and the audit's line must say; "read" where it is to be read.
BOMBS = {
    "inflates.zip": (lambda path: _inflating(path, 510), "has 534,773,760 bytes, more than 50,331,648"),
    "several.zip": (lambda path: _inflating(path, 47, 5, KNEE[:8]), "9000000L.png is not a PNG, JPEG"),
    "lies.zip": (lambda path: _lying(path, 300), "9000001L.png is damaged"),
    "lies in bzip2.zip": (
        lambda path: _lying(path, 20, zipfile.ZIP_BZIP2),
        "9000001L.png is compressed by the method 12",
    ),
    "says much.zip": (lambda path: _lying(path, 1), "has 1,000,000,000 bytes, more than"),
    "entries.zip": (_many_entries, "has a list of entries of 47,000,000 bytes"),
    "deep.zip": (_deep_names, "has a name longer or deeper than files have"),
    "large images": (_large_images, "read"),
    "largest gray": (_largest_gray, "read"),
    "noise": (_noise, "read"),
    "value.parquet": (
        lambda path: _write_table(
            path, {"image": [KNEE + bytes(250 << 20)], "label": [0]}, compression="zstd", use_dictionary=False
        ),
        "has a page of 262,1",
    ),
    "shared.parquet": (_shared_value, "read"),
    "rows.parquet": (_many_rows, "has 60,000,000 rows, more than 1,000,000"),
    "names.parquet": (_long_names, "has a file of 1,048,576 bytes, more than 4,096"),
    "page.parquet": (_lying_page, "has a page of 2,147,483,647 bytes, more than"),
    "nested.parquet": (
        lambda path: _write_table(path, {"image": [KNEE], "label": [[0] * 10]}),
        "its column 'label' is of the type list",
    ),
    "line.csv": (_line_without_end, "line 2 has 1,048,576 characters or more"),
    "field.csv": (_field_without_end, "cannot be read as a UTF-8 .csv: field larger than field limit"),
}


class Outcome(NamedTuple):
    lines: list[str]
    peak: int


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("bombs")
    for name, (make, _) in BOMBS.items():
        make(folder / name)
    (folder / "names.json").write_text(json.dumps(list(BOMBS)))
    result = subprocess.run(
        [sys.executable, "-c", READER, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads((folder / "report.json").read_text())
    return {name: Outcome(*found) for name, found in report.items()}


@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_small_and_the_line_names_the_file(name, outcomes):
    lines, peak = outcomes[name]
    assert peak < LIMIT, f"{peak / 1024**2:.0f} MiB: {lines}"
    for line in lines:
        assert BOMBS[name][1] in line and "\n" not in line, line
        assert line == "read" or name in line


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_every_page_is_seen(version, compression, dictionary, tmp_path):
    """The headers say as much as Arrow's own metadata, whose sum is of headers and pages."""
    rows = [bytes([number % 7]) * 3000 for number in range(500)]
    path = tmp_path / "pages.parquet"
    options = {"compression": compression, "use_dictionary": dictionary, "data_page_version": version}
    options["write_statistics"] = False  # they would be in the headers
    _write_table(path, {"image": [{"bytes": row} for row in rows]}, row_group_size=200, data_page_size=9000, **options)
    metadata = parquet.read_metadata(path)
    with open(path, "rb") as file:
        check_pages(file, metadata, "image.bytes")
        largest = max(
            size
            for group in range(metadata.num_row_groups)
            for size in page_sizes(file, metadata.row_group(group).column(0))
        )
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(0)
            sizes = list(page_sizes(file, chunk))
            assert 0 < chunk.total_uncompressed_size - sum(sizes) < 100 * len(sizes)  # the headers themselves
        check_pages(file, metadata, "image.bytes", largest)
        with pytest.raises(PageError, match=f"a page of {largest:,} bytes, more than {largest - 1:,}"):
            check_pages(file, metadata, "image.bytes", largest - 1)


def test_delta_encodings_of_bytes_are_refused(tmp_path):
    path = tmp_path / "delta.parquet"
    _write_table(path, {"image": [KNEE] * 3}, use_dictionary=False, column_encoding={"image": "DELTA_BYTE_ARRAY"})
    with open(path, "rb") as file, pytest.raises(PageError, match="in a DELTA encoding: write it plain"):
        check_pages(file, parquet.read_metadata(path), "image")
