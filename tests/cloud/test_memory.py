"""Training keeps the memory that it frees, instead of asking the system for it again at every step."""

import subprocess
import sys

import pytest

CHURN = """
import resource, sys
import torch
from samespace.cloud.training.device import open_world

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
with open_world("cpu"):
    faults()
    print(without, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_not_faulted_in_again() -> None:
    printed = subprocess.run([sys.executable, "-c", CHURN], check=True, capture_output=True, text=True).stdout
    without, kept = map(int, printed.split())
    assert kept < without / 10
