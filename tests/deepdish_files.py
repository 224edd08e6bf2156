"""Writes HDF5 files as deepdish 0.3 does through PyTables, for tests.

Its files were looked at: a dictionary's entries lie in the root; an array is a data set of the class ARRAY, or CARRAY
with zlib from 301 values on; a number or text is an attribute of its group, text as bytes of a fixed length; a list,
tuple or dictionary of N is a group with the title `list:N`, `tuple:N` or `dict:N`, whose entries are i0, i1 and so on.
"""

import io

import numpy as np


def deepdish_file(data: dict) -> bytes:
    """The bytes of a file that holds some values by name."""
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        _describe(file, "GROUP", "1.0")
        file.attrs["PYTABLES_FORMAT_VERSION"] = np.bytes_("2.1")
        file.attrs["DEEPDISH_IO_VERSION"] = np.int64(12)
        for name, value in data.items():
            _save(file, name, value)
    return content.getvalue()


def _describe(node, kind: str, version: str, title: str = "") -> None:
    import h5py

    node.attrs["CLASS"], node.attrs["VERSION"] = np.bytes_(kind), np.bytes_(version)
    node.attrs["TITLE"] = np.bytes_(title) if title else h5py.Empty("S1")


def _save(group, name: str, value) -> None:
    if isinstance(value, np.ndarray):
        packed = {"compression": "gzip", "compression_opts": 9, "shuffle": True} if value.size > 300 else {}
        node = group.create_dataset(name, data=value, **packed)
        _describe(node, *(("CARRAY", "1.1") if packed else ("ARRAY", "2.4")))
    elif isinstance(value, (list, tuple, dict)):
        node = group.create_group(name)
        _describe(node, "GROUP", "1.0", f"{type(value).__name__}:{len(value)}")
        entries = value.items() if isinstance(value, dict) else ((f"i{place}", one) for place, one in enumerate(value))
        for key, entry in entries:
            _save(node, key, entry)
    else:
        group.attrs[name] = np.bytes_(value) if isinstance(value, str) else np.int64(value)
