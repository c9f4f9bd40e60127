"""The state in which a run leaves the process."""

import sys

import pytest
from fresh_interpreter import printed_by

BEGIN = "from recbole_llara import run_recbole_llara\ntry: run_recbole_llara('no model', 'ml-100k')\nexcept ValueError: pass\n"
# Tensors of 48 MB come and go, as those of a batch; then as many again are counted.
FAULTS = """
import resource, torch
a, b = torch.ones(12_000_000), torch.ones(12_000_000)
def rounds(n):
    for _ in range(n):
        c = a + b
        d = c * a
rounds(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_numbers_below_the_normal_ones_are_zero_in_a_run():
    """A product that is denormal: kept by default, zero once a run has begun."""
    code = "import torch\nprint(float(torch.tensor([1e-30]) * torch.tensor([1e-9])))"
    assert 0 < float(printed_by(code).split()[-1]) < 1.2e-38
    assert float(printed_by(BEGIN + code).split()[-1]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_used_again_in_a_run():
    """Pages that the system had to hand out: thousands a tensor by default, few once a run has begun."""
    by_default, in_a_run = (int(printed_by(begin + FAULTS).split()[-1]) for begin in ("", BEGIN))
    assert in_a_run < by_default / 10, (in_a_run, by_default)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_malloc_that_the_user_set_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert int(printed_by(BEGIN + FAULTS).split()[-1]) > 10_000
