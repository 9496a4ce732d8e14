"""Kernels in registers of another width than this processor's, which LLVM then splits; kernels from the disk."""

import subprocess
import sys

import pytest

PROGRAM = """
import llvmlite.binding
found = llvmlite.binding.get_host_cpu_features
llvmlite.binding.get_host_cpu_features = lambda: {{"avx512f": {wide}}}
from pathex.sparse import llvm
llvmlite.binding.get_host_cpu_features = found
import torch
from torch import nn
import pathex
from pathex.sparse import kernels
assert kernels.LANES == {lanes}
model = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1), nn.MaxPool2d(2)).eval()
x = torch.randn({lanes} + 1, 3, 31, 33)
compiled = pathex.compile(model, example_input=x, threads=1, choice="sparse")
torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
torch.testing.assert_close(compiled(x[:1]), model(x[:1]), rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("wide", "lanes"), [(True, 16), (False, 4)])
def test_registers_of_another_width(wide, lanes, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", PROGRAM.format(wide=wide, lanes=lanes)], check=True, timeout=300)


@pytest.mark.slow
def test_kernels_are_compiled_once_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    code = "from pathex.sparse import kernels; print(sum(kernels.run.stats.cache_hits.values()))"
    call = [sys.executable, "-c", code]
    first, second = (subprocess.run(call, check=True, timeout=300, capture_output=True, text=True) for _ in range(2))
    assert "compiles its kernels" in first.stderr and first.stdout.strip() == "0"
    assert not second.stderr and second.stdout.strip() == "1"
