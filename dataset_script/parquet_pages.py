"""What the pages of a Parquet file inflate to, as their headers say, before Arrow inflates them.

Arrow gives a page as much memory as its header asks for, and the file's own metadata need not agree with it. Page
headers are Thrift structures in the compact protocol (parquet.thrift in https://github.com/apache/parquet-format,
doc/specs/thrift-compact-protocol.md in https://github.com/apache/thrift).
"""

from collections.abc import Iterator
from typing import BinaryIO

from pyarrow.parquet import ColumnChunkMetaData, FileMetaData

# A page is in memory up to three times while it is read. Writers fill pages of 1 MB, or of 1,024 rows, however large.
MAX_PAGE_BYTES = 192 * 1024**2
MAX_ROWS = 1_000_000
# Nearly all headers are short; some hold whole values as statistics, and Arrow reads them up to the second size.
_HEADER_BYTES = (1 << 16, 16 << 20)
# Fields of a page header, and what a page header has of pages of data, dictionaries, and data of version 2.
_INFLATED, _STORED, _KINDS = 2, 3, (5, 7, 8)
_VALUES, _ENCODING = 1, {5: 2, 7: 2, 8: 4}
# Encodings whose streams state counts of their own, which Arrow gives memory to before it reads them.
_DELTA_OF_BYTES = (6, 7)


class PageError(ValueError):
    """A page that is not read; the message says why, without the file's name."""


def check_pages(file: BinaryIO, metadata: FileMetaData, column: str, limit: int = MAX_PAGE_BYTES) -> None:
    """Reads the headers of all pages of a column.

    Args:
        file: the Parquet file, open.
        metadata: its metadata.
        column: the path of a leaf column, such as `image.bytes`.
        limit: bytes of a page.

    Raises:
        PageError: a page with too many bytes or values, one in an encoding that is not read, or damage.
    """
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            chunk = row_group.column(number)
            if chunk.path_in_schema == column:
                for size in page_sizes(file, chunk):
                    if size > limit:
                        raise PageError(
                            f"has a page of {size:,} bytes, more than {limit:,}: "
                            "write it with fewer rows in a row group, such as 100"
                        )


def page_sizes(file: BinaryIO, chunk: ColumnChunkMetaData) -> Iterator[int]:
    """The bytes of each page of a column chunk, as stored or inflated, whichever is more.

    Raises:
        PageError: a page with too many values, one in an encoding that is not read, or damage.
    """
    place = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < place:
        place = chunk.dictionary_page_offset
    end = place + chunk.total_compressed_size
    while place < end:
        try:
            header, length = _read_header(file, place)
            stored, size = header[_STORED], max(header[_STORED], header[_INFLATED])
            if min(header[_STORED], header[_INFLATED]) < 0:
                raise IndexError("less than no bytes")
            _check_values(header)
        except (IndexError, KeyError, TypeError, ValueError, OSError) as error:
            if isinstance(error, PageError):
                raise
            raise PageError(
                f"is damaged: a page of its column {chunk.path_in_schema} has no header that can be read"
            ) from error
        yield size
        place += length + stored


def _read_header(file: BinaryIO, place: int) -> tuple[dict, int]:
    for size in _HEADER_BYTES:
        file.seek(place)
        data = file.read(size)
        try:
            return _read_struct(data, 0)
        except IndexError:
            if len(data) < size:
                raise
    raise IndexError("a header without end")


def _check_values(header: dict) -> None:
    for kind in _KINDS:
        page = header.get(kind)
        if page and page[_VALUES] > MAX_ROWS:
            raise PageError(f"has a page of {page[_VALUES]:,} values, more than {MAX_ROWS:,}")
        if page and page.get(_ENCODING[kind]) in _DELTA_OF_BYTES:
            raise PageError("has a column of bytes in a DELTA encoding: write it plain or with a dictionary")


def _read_struct(data: bytes, place: int, depth: int = 0) -> tuple[dict, int]:
    """The fields of a structure by number, and where it ends."""
    fields, number = {}, 0
    while data[place]:
        step, kind = data[place] >> 4, data[place] & 15
        place += 1
        if step:
            number += step
        else:
            number, place = _read_integer(data, place)
        if kind in (1, 2):  # a boolean is its own type
            fields[number] = kind == 1
        else:
            fields[number], place = _read_value(data, place, kind, depth + 1)
    return fields, place + 1


def _read_value(data: bytes, place: int, kind: int, depth: int):
    if depth > 8:
        raise IndexError("nested too deeply")
    if kind in (1, 2, 3):
        return data[place], place + 1
    if kind in (4, 5, 6):
        return _read_integer(data, place)
    if kind == 7:
        return None, place + 8
    if kind == 8:
        length, place = _read_varint(data, place)
        return None, place + length
    if kind in (9, 10):
        size, element = data[place] >> 4, data[place] & 15
        place += 1
        if size == 15:
            size, place = _read_varint(data, place)
        for _ in range(size):
            _, place = _read_value(data, place, element, depth + 1)
        return None, place
    if kind == 12:
        return _read_struct(data, place, depth)
    raise IndexError(f"no type {kind}")


def _read_integer(data: bytes, place: int) -> tuple[int, int]:
    value, place = _read_varint(data, place)
    return (value >> 1) ^ -(value & 1), place


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise IndexError("a number without end")
