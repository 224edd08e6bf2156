"""Graded X-rays in Parquet files, listed and read in bounded pieces."""

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet

from dataset_script.archives import MAX_MEMBER_BYTES
from dataset_script.listing import Xray
from dataset_script.names import CorpusError, GradeNames, short, split_in_path
from dataset_script.parquet_pages import MAX_PAGE_BYTES, MAX_ROWS, PageError, check_pages
from dataset_script.tables import grade_of_cell, laterality_of_cell, text_of_cell

EXPECTED = (
    "Expected .parquet files with the columns image and label, and where there are any file,person_id,laterality."
)
# Of a file's own metadata, which takes many times as much memory as it has bytes; of pages and strings of names.
_MAX_METADATA, _MAX_PAGE_OF_NAMES, _MAX_NAME = 16 * 1024**2, 32 * 1024**2, 4096
_MAX_CHARACTERS = 128 * 1024**2
_OPTIONAL = ("file", "person_id", "laterality")


def list_shards(shards: list[Path], data: Path, names: GradeNames) -> dict[str, list[Xray]]:
    """X-rays of Parquet files whose name or folder tells the split, as train-00000-of-00002.parquet; else train.

    Raises:
        CorpusError: a file that is damaged or too large, a column that is missing or of another type, or a cell.
    """
    splits, rows, characters = {}, 0, 0
    for shard in shards:
        split = split_in_path(shard.relative_to(data).as_posix()) or "train"
        for row, cells in enumerate(_read_cells(shard)):
            place = f"{shard} row {row}"
            file = text_of_cell(cells["file"]) or f"{shard.relative_to(data).as_posix()}#{row}"
            person, laterality = text_of_cell(cells["person_id"]), laterality_of_cell(cells["laterality"], place)
            grade = grade_of_cell(cells["label"], place, names)
            splits.setdefault(split, []).append(Xray(split, grade, file, shard, row, person, laterality))
            rows, characters = rows + 1, characters + len(file) + len(person or "")
            if rows > MAX_ROWS or characters > _MAX_CHARACTERS:
                raise CorpusError(f"{data} names more X-rays than are read from Parquet: {MAX_ROWS:,}.")
    if not splits:
        raise CorpusError(f"{data} names no X-rays: its .parquet files have no rows.")
    return splits


def read_rows(shard: Path, xrays: Iterator[Xray]) -> Iterator[tuple[Xray, bytes]]:
    """The images of rows. In ascending order they are read in one pass, row groups without any are passed over.

    Raises:
        CorpusError: the file is damaged or has changed, a row without an image, or too large a one.
    """
    wanted = next(xrays, None)
    while wanted is not None:
        first = wanted
        with _open_shard(shard) as opened:
            leaf = _image_column(shard, opened.schema_arrow)
            _check_pages(shard, opened, leaf, MAX_PAGE_BYTES)
            for row, image in _images(opened, leaf, first.member):
                content = _bytes_of(image, f"{shard} row {row}") if row == wanted.member else b""
                del image
                while wanted is not None and row == wanted.member:
                    yield wanted, content
                    wanted = next(xrays, None)
                del content
                if wanted is None or wanted.member < row:
                    break
        if wanted is first:
            raise CorpusError(f"{shard} has no row {first.member}: it has changed since it was listed.")


@contextmanager
def _open_shard(shard: Path, **options) -> Iterator[parquet.ParquetFile]:
    """A Parquet file that is read a page at a time; whatever Arrow has against it is a `CorpusError`."""
    try:
        with open(shard, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8))
            length, magic = struct.unpack("<I4s", file.read(8).rjust(8))
        if magic == b"PAR1" and length > _MAX_METADATA:
            raise CorpusError(f"{shard} has {length:,} bytes of metadata, more than {_MAX_METADATA:,}.")
        with parquet.ParquetFile(
            shard,
            pre_buffer=False,
            buffer_size=1 << 20,
            thrift_string_size_limit=_MAX_METADATA,
            thrift_container_size_limit=MAX_ROWS // 10,
            **options,
        ) as opened:
            if opened.metadata.num_rows > MAX_ROWS:
                raise CorpusError(f"{shard} has {opened.metadata.num_rows:,} rows, more than {MAX_ROWS:,}.")
            yield opened
    except CorpusError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise CorpusError(f"{shard} is damaged or no Parquet file: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _check_pages(shard: Path, opened: parquet.ParquetFile, leaf: str, limit: int) -> None:
    try:
        with open(shard, "rb") as file:
            check_pages(file, opened.metadata, leaf, limit)
    except PageError as error:
        raise CorpusError(f"{shard} {error}.") from error


def _read_cells(shard: Path) -> Iterator[dict]:
    """The label and what else is told of each row, but not its image."""
    with _open_shard(shard) as opened:
        schema = opened.schema_arrow
    _image_column(shard, schema)
    present = [name for name in ("label", *_OPTIONAL) if name in schema.names]
    for name in present:
        _check_type(shard, name, schema.field(name).type)
    classes = _class_names(schema)
    # As dictionaries, a long string that many rows share is in memory once.
    texts = [name for name in present if _is_text(schema.field(name).type)]
    with _open_shard(shard, read_dictionary=texts) as opened:
        for name in present:
            _check_pages(shard, opened, name, _MAX_PAGE_OF_NAMES)
        for batch in opened.iter_batches(columns=present, use_threads=False):
            columns = {name: _cells_of(shard, name, batch.column(name)) for name in present}
            for row in range(len(batch)):
                cells = {name: columns[name][row] if name in columns else None for name in ("label", *_OPTIONAL)}
                cells["label"] = _name_of_class(cells["label"], classes)
                yield cells


def _cells_of(shard: Path, name: str, column: pyarrow.Array) -> list:
    if not isinstance(column, pyarrow.DictionaryArray):
        return column.to_pylist()
    values = column.dictionary
    for value in values if _is_text(values.type) else ():
        if value.is_valid and len(value.as_buffer()) > _MAX_NAME:
            raise CorpusError(f"{shard} has a {name} of {len(value.as_buffer()):,} bytes, more than {_MAX_NAME:,}.")
    values = values.to_pylist()
    return [None if index is None else values[index] for index in column.indices.to_pylist()]


def _is_text(kind: pyarrow.DataType) -> bool:
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _check_type(shard: Path, name: str, kind: pyarrow.DataType) -> None:
    is_number = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
    may_be_number = name in ("label", "person_id")
    if not (_is_text(kind) or pyarrow.types.is_null(kind) or (may_be_number and is_number)):
        right = "numbers or strings" if may_be_number else "strings"
        raise CorpusError(f"{shard}: its column {name!r} is of the type {_type_name(kind)}, it must hold {right}.")


def _type_name(kind: pyarrow.DataType) -> str:
    return str(kind)[:80]


def _image_column(shard: Path, schema: pyarrow.Schema) -> str:
    """The path of the column that holds the images' bytes: `image`, or as `datasets` has it `image.bytes`."""
    missing = {"image", "label"} - set(schema.names)
    if missing:
        found = ", ".join(map(short, schema.names[:20]))
        raise CorpusError(f"{shard} has no column {sorted(missing)[0]!r}, but {found}. {EXPECTED}")
    if schema.names.count("image") > 1 or schema.names.count("label") > 1:
        raise CorpusError(f"{shard} has two columns of one name.")
    kind, leaf = schema.field("image").type, "image"
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind, leaf = kind.field("bytes").type, "image.bytes"
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise CorpusError(f"{shard} holds no image bytes: its column image is of the type {_type_name(kind)}.")
    return leaf


def _images(opened: parquet.ParquetFile, leaf: str, first: int) -> Iterator[tuple[int, pyarrow.Array]]:
    """The images from the row group of row `first` on, each with the number of its row.

    A reader of its own for each row group: one for all would keep what it has read in memory. And a batch for each
    row, since a large image may be stored once for many rows. Nothing holds one batch while the next is read.
    """
    row = 0
    for group in range(opened.num_row_groups):
        rows = opened.metadata.row_group(group).num_rows
        if row + rows <= first:
            row += rows
            continue
        batches = opened.iter_batches(batch_size=1, row_groups=[group], columns=[leaf], use_threads=False)
        for _ in range(rows):
            yield row, next(batches).column("image")
            row += 1


def _bytes_of(column: pyarrow.Array, place: str) -> bytes:
    image = (column.field("bytes") if pyarrow.types.is_struct(column.type) else column)[0]
    if not image.is_valid:
        raise CorpusError(f"{place} holds no image bytes.")
    buffer = image.as_buffer()
    if len(buffer) > MAX_MEMBER_BYTES:
        raise CorpusError(f"{place} has an image of {len(buffer):,} bytes, more than {MAX_MEMBER_BYTES:,}.")
    return buffer.to_pybytes()


def _class_names(schema: pyarrow.Schema) -> list[str] | None:
    """The names behind the numbers of `label`, as `datasets` writes them: it sorts them by the alphabet."""
    if not pyarrow.types.is_integer(schema.field("label").type):
        return None
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _name_of_class(label, classes: list[str] | None):
    return classes[label] if classes and label is not None and 0 <= label < len(classes) else label
