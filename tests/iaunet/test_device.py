import os
from pathlib import Path

import pytest
import torch

from iaunet.device import (
    DeviceError,
    autocasting,
    begun_precision,
    casting,
    choose_device,
    describe_device,
    free_memory,
    mixed_precision,
    random_state,
    restore_random_state,
    training_precision,
    unused_gpu,
)

CPU = torch.device("cpu")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that torch can use")


def test_the_fastest_device_there_is_is_the_default():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"

    assert choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("wish", ["gpu", "", "cuda:99", "cpu:x", pytest.param("cuda", marks=needs_no_gpu)])
def test_a_device_that_is_not_there_is_refused_in_one_line(wish):
    with pytest.raises(
        DeviceError, match=rf"device '{wish}' cannot be used \(.*\): give auto, cpu, cuda or mps"
    ) as caught:
        choose_device(wish)

    assert "\n" not in str(caught.value)


@needs_no_gpu
def test_a_card_that_torch_cannot_use_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    without_card = unused_gpu(CPU)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)

    with_card = unused_gpu(CPU)

    assert without_card is None or Path("/proc/driver/nvidia/version").exists()
    assert "this machine has an NVIDIA GPU that torch" in with_card
    assert "cannot use: install torch's CUDA build or a newer driver" in with_card
    assert unused_gpu(torch.device("cuda")) is None


def test_a_cpu_is_described_by_its_threads():
    assert describe_device(CPU) == f"cpu ({torch.get_num_threads()} threads)"


def test_a_cpu_predicts_in_plain_float32():
    assert mixed_precision(CPU) is None
    with autocasting(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)

    assert product.dtype == torch.float32


def test_training_uses_the_units_for_products_of_matrices_that_a_cpu_has():
    info = Path("/proc/cpuinfo")
    has_units = info.exists() and "amx_tile" in info.read_text()

    assert training_precision(CPU) is (torch.bfloat16 if has_units else None)
    assert training_precision(torch.device("mps")) is None


@pytest.mark.parametrize(
    ("name", "precision"), [(None, None), ("float32", None), ("bfloat16", torch.bfloat16), ("float16", None)]
)
def test_a_cpu_goes_on_in_the_precision_of_before_if_it_has_that(name, precision):
    assert begun_precision(name, CPU) is precision


def test_products_are_taken_in_the_type_asked_for():
    matrix = torch.ones(2, 2)

    for precision, dtype in ((torch.bfloat16, torch.bfloat16), (None, torch.float32)):
        with casting(CPU, precision):
            assert (matrix @ matrix).dtype == dtype


def test_free_memory_is_less_than_the_machine_has():
    free = free_memory(CPU)

    assert free is not None
    assert 0 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_random_numbers_are_drawn_again_after_going_back():
    device = torch.device("cpu")
    torch.manual_seed(3)
    before = random_state(device)
    drawn = torch.rand(4)

    restore_random_state(before, device)

    assert torch.equal(torch.rand(4), drawn)
    restore_random_state([*before, torch.zeros(8, dtype=torch.uint8)], device)  # saved on a card
    assert torch.equal(torch.rand(4), drawn)
