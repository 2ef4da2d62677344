import threading

import numpy as np
import pytest
import torch

from iaunet.errors import FileError, PredictionError
from iaunet.inference.predictor import Predictor
from iaunet.inference.stream import predict_stream
from iaunet.planners.plan import load_plan
from iaunet.preprocessing.geometry import Geometry
from iaunet.workspace import DatasetFolder

GEOMETRY = Geometry.of("resize", (4, 4), (64, 64))


class Sign(torch.nn.Module):
    """Foreground wherever the first channel is above 0; remembers the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, rows):
        self.batches.append(len(rows))
        return rows[:, :1] * 100


@pytest.fixture
def predictor(toy_workspace):
    plan = load_plan(DatasetFolder(toy_workspace / "toy").plan_json)
    return Predictor(plan, [Sign()], torch.device("cpu"), mirroring=False)


def load(number):
    if number % 10 == 3:
        raise FileError("is damaged", "copy it again")
    return np.full((3, 64, 64), 1.0 if number % 2 else -1.0, np.float32), GEOMETRY


def finish(number, prediction):
    if number % 10 == 5:
        raise PredictionError(f"{number} cannot be kept")
    return number, int(prediction.labels.sum())


@pytest.mark.parametrize("n", [0, 1, 4, 57])
def test_every_item_comes_once_with_its_own_result_or_fault(predictor, n):
    found = dict(predict_stream(predictor, range(n), load, finish))

    assert sorted(found) == list(range(n))
    for number, result in found.items():
        if number % 10 == 3:
            assert isinstance(result, FileError)
        elif number % 10 == 5:
            assert isinstance(result, PredictionError)
        else:
            assert result == (number, 16 if number % 2 else 0)
    assert all(size <= predictor.batch_size for size in predictor.networks[0].batches)


def test_no_more_than_a_few_batches_are_under_way_however_many_items_there_are(predictor):
    taken, done, most = [], [], 0
    for number in predict_stream(predictor, (taken.append(i) or i for i in range(400)), lambda i: load(0), finish):
        done.append(number)
        most = max(most, len(taken) - len(done))

    assert len(done) == 400
    assert most <= 8 * predictor.batch_size


def test_loading_and_finishing_happen_beside_the_network(predictor):
    threads = {"load": set(), "finish": set()}

    def remember(what, result):
        threads[what].add(threading.get_ident())
        return result

    list(
        predict_stream(
            predictor, range(40), lambda i: remember("load", load(0)), lambda i, _: remember("finish", finish(0, _))
        )
    )

    assert threading.get_ident() not in threads["load"] | threads["finish"]
    assert not threads["load"] & threads["finish"]


def test_a_fault_that_the_user_cannot_mend_stops_all_with_its_traceback(predictor):
    def fail(number):
        return 1 // 0

    with pytest.raises(ZeroDivisionError):
        list(predict_stream(predictor, range(9), fail, finish))
    with pytest.raises(ZeroDivisionError):
        list(predict_stream(predictor, range(9), load, lambda number, prediction: fail(number)))


def test_work_that_is_given_up_leaves_no_thread(predictor):
    before = threading.active_count()
    stream = predict_stream(predictor, range(100), lambda i: load(0), finish)
    next(stream)

    stream.close()

    assert threading.active_count() == before
