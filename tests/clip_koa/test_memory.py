"""Freed memory stays with the process, so that large tensors fault in no new pages."""

import platform

import pytest

COUNT_FAULTS = """
import resource, sys
import torch
from clip_koa.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def tensor():
    torch.ones(12 << 20)  # 48 MiB, 12,288 pages
tensor()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    tensor()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 12_288)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_tensors_rarely_fault_in_new_pages(run_python):
    faulted = {
        mode: int(run_python("-c", COUNT_FAULTS, mode, THP_MEM_ALLOC_ENABLE="0").stdout) for mode in ("system", "keep")
    }
    assert faulted["system"] == 60 and faulted["keep"] < 15, faulted
