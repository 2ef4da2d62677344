import copy

import torch
from torch import nn

from iaunet.trainers.averaging import WeightAverage


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))


def disturb(network, seed):
    """Weights and buffers as if a step had been done."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


def test_the_average_is_that_of_a_plain_loop():
    network = make_network()
    average = WeightAverage(network, decay=0.8)
    expected = {name: tensor.double().clone() for name, tensor in network.state_dict().items()}

    for t in range(1, 60):
        disturb(network, seed=t)
        average.update(network)
        decay = min(0.8, (1 + t) / (10 + t))
        for name, tensor in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()

    for name, tensor in average.network.state_dict().items():
        if name == "1.num_batches_tracked":
            assert tensor == network.state_dict()[name] == 59
        else:
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_the_networks_own_weights_stay_as_they_are():
    network = make_network()
    average = WeightAverage(network, decay=0.999)
    disturb(network, seed=1)
    before = copy.deepcopy(network.state_dict())

    average.update(network)

    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_average_is_ready_to_predict_and_learns_nothing_by_itself():
    average = WeightAverage(make_network(), decay=0.999)

    assert not any(module.training for module in average.network.modules())
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_early_weights_are_soon_forgotten():
    network = make_network()
    average = WeightAverage(network, decay=0.999)
    with torch.no_grad():
        network[2].weight.fill_(1.0)
        average.network[2].weight.fill_(100.0)

    for _ in range(60):
        average.update(network)

    torch.testing.assert_close(average.network[2].weight, network[2].weight, rtol=1e-3, atol=1e-3)


def test_a_weight_that_two_layers_share_is_averaged_once():
    network = make_network()
    network[1].bias = network[1].weight
    average = WeightAverage(network, decay=0.5)
    with torch.no_grad():
        network[1].weight.fill_(3.0)

    average.update(network)

    decay = 2 / 11
    torch.testing.assert_close(average.network[1].weight, torch.full((4,), decay * 1 + (1 - decay) * 3))
