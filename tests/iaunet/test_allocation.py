import os
import subprocess
import sys

import pytest

from iaunet.allocation import keep_freed_memory

PAGES_ASKED_FOR = """
import resource
import numpy as np
from iaunet.allocation import keep_freed_memory

told = {told}
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(2**20) for _ in range(8)]  # 8 MB each
    asked = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del blocks
print(asked)
"""


def pages_asked_for(told):
    run = [sys.executable, "-c", PAGES_ASKED_FOR.format(told=told)]
    small_pages = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
    return int(subprocess.run(run, check=True, capture_output=True, text=True, env=small_pages).stdout)


def test_memory_that_was_freed_is_used_again():
    if not keep_freed_memory():
        pytest.skip("needs glibc")

    assert pages_asked_for("None") > 10 * pages_asked_for("keep_freed_memory()")


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_stay_as_they_are(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)

    assert keep_freed_memory() is False
