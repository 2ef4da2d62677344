import pickle

import pytest
import torch
from torch import nn

from iaunet.errors import NetworkError, WorkspaceError
from iaunet.weights import load_weights, save_weights


def make_network(width=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 1, 1))


def same(left, right):
    return all(torch.equal(tensor, right.state_dict()[name]) for name, tensor in left.state_dict().items())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights ü.safetensors"


def test_weights_and_buffers_are_read_back_to_the_bit(path):
    network, other = make_network(), make_network(seed=1)
    network(torch.randn(2, 3, 8, 8))
    save_weights(path, network.to(memory_format=torch.channels_last).state_dict())

    load_weights(path, other)

    assert same(network, other)
    assert other[1].num_batches_tracked == 1
    assert list(path.parent.iterdir()) == [path]


def test_weights_that_two_layers_share_are_kept_for_both(path):
    network, other = make_network(), make_network(seed=1)
    network[1].bias = network[1].weight
    other[1].bias = other[1].weight

    save_weights(path, network.state_dict())
    load_weights(path, other)

    assert same(network, other)


def test_writing_leaves_the_networks_own_tensors_alone(path):
    network = make_network()
    save_weights(path, network.state_dict())

    assert all(parameter.requires_grad for parameter in network.parameters())


def refused(path, message, network=None):
    network = network or make_network(seed=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(NetworkError, match=message):
        load_weights(path, network)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in before.items())


def test_a_missing_file_is_named(path):
    refused(path, r"weights ü\.safetensors is missing: check the path, or train again")


@pytest.mark.parametrize(
    "content",
    [b"", b"no weights", b"\xff" * 100, (100).to_bytes(8, "little") + b"{" * 100, pickle.dumps({"0.weight": 1})],
)
def test_a_file_that_holds_no_weights_is_named(path, content):
    path.write_bytes(content)

    refused(path, r"is no safetensors file or damaged .*: copy it again")


def test_a_folder_or_a_truncated_file_is_named(path, tmp_path):
    refused(tmp_path, "is no safetensors file or damaged")
    save_weights(path, make_network().state_dict())
    path.write_bytes(path.read_bytes()[:-10])
    refused(path, "is no safetensors file or damaged")


def test_weights_of_another_network_change_nothing(path):
    save_weights(path, make_network(width=8).state_dict())
    refused(path, r"holds weights of another network \(7 tensors differ, the first is 0\.bias\): give the weights of")

    save_weights(path, make_network()[:2].state_dict())
    refused(path, r"\(2 tensors differ, the first is 2\.bias\)")

    save_weights(path, {**make_network().state_dict(), "more": torch.zeros(1)})
    refused(path, r"\(1 tensors differ, the first is more\)")


def test_a_full_disk_is_named_and_the_old_weights_stay(path):
    resource = pytest.importorskip("resource", reason="no limits on file sizes on this system")
    network = make_network()
    save_weights(path, network.state_dict())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(WorkspaceError, match=r"no space left for .*weights ü\.safetensors: free some space"):
            save_weights(path, make_network(width=32).state_dict())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    other = make_network(seed=1)
    load_weights(path, other)
    assert same(network, other)
    assert list(path.parent.iterdir()) == [path]
