import dataclasses
import os
import pickle
import random
import zipfile

import pytest
import torch

from iaunet.errors import TrainingError
from iaunet.trainers.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture
def checkpoint():
    network = torch.nn.Conv2d(3, 4, 3)
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3, 8, 8)).sum().backward()
    optimiser.step()
    return Checkpoint(
        run="abc",
        epochs=12,
        hours_to_fix=None,
        epoch=3,
        step=2,
        losses={"loss": 1.5, "bce": 1.0, "dice_loss": 0.5},
        seconds=1.25,
        network=network.state_dict(),
        optimiser=optimiser.state_dict(),
        average=None,
        average_updates=0,
        scaler={},
        random_state=[torch.get_rng_state()],
        threads=1,
        micro_batch=4,
    )


def assert_same(left, right):
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
        assert left.stride() == right.stride()
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right


def test_a_checkpoint_is_read_back_as_it_was(tmp_path, checkpoint):
    save_checkpoint(checkpoint, tmp_path / "checkpoint.pt")

    assert_same(vars(load_checkpoint(tmp_path / "checkpoint.pt")), vars(checkpoint))
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint.pt"]


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_checkpoint_from_elsewhere_runs_no_code(tmp_path, checkpoint, save):
    fields = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    save({**fields, "scaler": Malicious(tmp_path / "marker")}, tmp_path / "checkpoint.pt")

    with pytest.raises(TrainingError, match=r"checkpoint\.pt is no checkpoint of this version or damaged"):
        load_checkpoint(tmp_path / "checkpoint.pt")

    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [b"", b"checkpoint", b"PK\x03\x04", bytes(1000), pickle.dumps([1, 2])])
def test_a_file_that_is_no_checkpoint_is_named_with_its_mend(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)

    with pytest.raises(TrainingError, match=r"checkpoint\.pt is no checkpoint .*: start the fold anew with --restart"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_missing_or_further_field_is_another_version(tmp_path, checkpoint):
    fields = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    path = tmp_path / "checkpoint.pt"

    for wrong in ({**fields, "colour": 1}, {name: fields[name] for name in fields if name != "epoch"}):
        torch.save(wrong, path)
        with pytest.raises(TrainingError, match="is no checkpoint of this version"):
            load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_truncated_or_changed_checkpoint_is_refused_in_one_line(tmp_path, checkpoint):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(checkpoint, path)
    whole = path.read_bytes()
    rng = random.Random(0)

    for _ in range(60):
        path.write_bytes(whole[: rng.randrange(len(whole))])
        with pytest.raises(TrainingError, match="or damaged") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
    for _ in range(1000):
        changed = bytearray(whole)
        place = rng.randrange(1200)  # the structure, before the numbers
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            load_checkpoint(path)
        except TrainingError as fault:
            assert "\n" not in str(fault)


def test_a_flipped_bit_anywhere_in_the_numbers_is_found(tmp_path, checkpoint):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(checkpoint, path)
    data = bytearray(path.read_bytes())
    weights = checkpoint.network["weight"].numpy().tobytes()
    data[data.find(weights) + len(weights) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(TrainingError, match="differs from its checksum"):
        load_checkpoint(path)


def test_a_compressed_checkpoint_is_refused_unread(tmp_path, checkpoint):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(checkpoint, path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)

    with pytest.raises(TrainingError, match="it was packed by another program"):
        load_checkpoint(path)


@pytest.mark.parametrize("value", ["3", 1.5, None, -1, True])
def test_a_place_that_is_no_number_is_refused(tmp_path, checkpoint, value):
    fields = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    torch.save({**fields, "epoch": value}, tmp_path / "checkpoint.pt")

    with pytest.raises(TrainingError, match=f"damaged \\(epoch is {value!r}\\)"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_pickle_of_another_protocol_is_read_without_a_remark(tmp_path, checkpoint):
    save_checkpoint(checkpoint, tmp_path / "checkpoint.pt")
    path = tmp_path / "other.pt"
    torch.save(torch.load(tmp_path / "checkpoint.pt", weights_only=True), path, pickle_protocol=3)

    assert load_checkpoint(path).run == checkpoint.run
