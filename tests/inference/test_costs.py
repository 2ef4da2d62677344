import pytest
import torch

from iaunet.inference.costs import Cost, measure_costs
from iaunet.networks.counting import count_multiply_adds, count_parameters
from iaunet.planners.plan import NetworkPlan, build_planned_network


@pytest.fixture
def plans(make_plan):
    """Three plans by name, of different networks, channels, labels and sizes."""
    return {
        "narrow": make_plan(),
        "colour": make_plan(channels=3, network=NetworkPlan(name="unext", width=4, depth=4)),
        "large": make_plan(input_size=(96, 128), network=NetworkPlan(name="unet", width=8, depth=3)),
    }


def test_parameters_and_multiply_adds_are_those_that_are_counted(plans):
    costs = measure_costs(plans, None)

    assert [*costs] == [*plans]
    for name, plan in plans.items():
        network = build_planned_network(plan)
        assert costs[name] == Cost(
            parameters=count_parameters(network),
            multiply_adds=count_multiply_adds(network, plan.channels, plan.input_size),
        )
        assert costs[name].parameters > 0
        assert costs[name].images_per_second == 0


def test_networks_are_timed_on_a_device(plans):
    counted, timed = measure_costs(plans, None), measure_costs(plans, torch.device("cpu"))

    assert [*timed] == [*plans]
    for name, cost in timed.items():
        assert (cost.parameters, cost.multiply_adds) == (counted[name].parameters, counted[name].multiply_adds)
        assert 0 < cost.images_per_second < 1e6


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_no_plans_have_no_costs(device):
    assert measure_costs({}, device) == {}
