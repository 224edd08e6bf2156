"""Threads that wait soon sleep: against what libgomp says that it was told."""

import re
import sys

import pytest

from clip_koa.threads import SPINS

_PROGRAM = "from clip_koa.commands import main; main(['audit', '--help']); import torch; torch.ones(1)"


@pytest.mark.skipif(sys.platform != "linux", reason="torch computes with another library")
@pytest.mark.parametrize(
    "chosen, spins", [({}, SPINS), ({"GOMP_SPINCOUNT": "77"}, 77), ({"OMP_WAIT_POLICY": "passive"}, 0)]
)
def test_the_library_that_computes_has_it(run_python, chosen, spins):
    before = dict.fromkeys(("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"), "")
    told = run_python("-c", _PROGRAM, **{**before, **chosen}, OMP_DISPLAY_ENV="VERBOSE").stderr
    assert {int(found) for found in re.findall(r"GOMP_SPINCOUNT = '(\d+)'", told)} == {spins}
