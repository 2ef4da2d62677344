import contextlib
import logging
import os
from pathlib import Path

import pytest
import torch

from iaunet.device import (
    DeviceError,
    _first_gpu_or_cpu,
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


class WithoutKernels:
    """What a card that torch was not built for gives: memory can be set, and the first kernel fails."""

    def __add__(self, other):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")


class Full:
    def __add__(self, other):
        raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def card(monkeypatch):
    """Makes a card appear, whose numbers are as given."""

    def appear(numbers):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch, "zeros", lambda n, device: numbers)

    _first_gpu_or_cpu.cache_clear()
    yield appear
    _first_gpu_or_cpu.cache_clear()


def test_a_card_that_torch_has_no_kernels_for_is_left_out_which_is_told_once(card, caplog):
    caplog.set_level(logging.INFO, "iaunet")
    card(WithoutKernels())

    assert choose_device("auto") == choose_device("auto") == CPU
    [line] = caplog.messages
    assert line.startswith(f"warning    torch {torch.__version__}, built for CUDA ")
    assert line.endswith(" has no kernels for this GPU: install a build for its generation; computing on the CPU")


def test_a_card_that_torch_has_no_kernels_for_is_refused_where_it_is_asked_for(card):
    card(WithoutKernels())

    with pytest.raises(
        DeviceError, match=r"device 'cuda' cannot be used \(torch .* has no kernels for this GPU: .*\): give auto, cpu"
    ):
        choose_device("cuda")


@pytest.mark.parametrize("numbers", [torch.ones(1), Full()], ids=["free", "full"])
def test_a_card_with_kernels_is_used_even_if_it_is_full(card, numbers):
    card(numbers)

    assert choose_device("auto") == torch.device("cuda")


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


@pytest.fixture
def new_and_old_card(monkeypatch):
    """cuda:0 has units for bfloat16, cuda:1 has none."""
    capabilities = {torch.device("cuda:0"): (8, 0), torch.device("cuda:1"): (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    return [*capabilities]


def test_each_card_takes_products_in_the_type_that_it_has_units_for(new_and_old_card):
    assert [mixed_precision(card) for card in new_and_old_card] == [torch.bfloat16, torch.float16]


def test_a_training_begun_in_bfloat16_goes_on_in_float16_on_a_card_that_would_emulate_it(new_and_old_card):
    assert [begun_precision("bfloat16", card) for card in new_and_old_card] == [torch.bfloat16, torch.float16]
    assert [begun_precision("float16", card) for card in new_and_old_card] == [torch.float16, torch.float16]
    assert [begun_precision("float32", card) for card in new_and_old_card] == [None, None]


@pytest.fixture
def switches(monkeypatch):
    """What allows TF32, switched on."""
    switches = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = True
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # without a GPU it would warn
    yield switches
    for switch, allowed in zip(switches, before, strict=True):
        switch.allow_tf32 = allowed


@pytest.mark.parametrize(("precision", "allowed"), [(None, False), (torch.bfloat16, True)])
def test_plain_float32_on_a_gpu_means_no_tf32_either(switches, precision, allowed):
    with casting(torch.device("cuda"), precision):
        pass

    assert [switch.allow_tf32 for switch in switches] == [allowed, allowed]  # gradients are computed after the block


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
