import threading
import time

import numpy as np
import pytest
import torch

from iaunet.errors import PredictionError
from iaunet.inference.lanes import NotEnoughMemory, in_lanes, lanes_of


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "lanes"), [(1, 1), (2, 2), (8, 8), (9, 4), (12, 6), (16, 8), (64, 8)])
def test_cores_are_shared_out_evenly_between_lanes(cores, lanes):
    assert lanes_of(cores) == lanes


@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 3, 40])
def test_results_come_in_order_though_some_batches_take_longer(lanes, n):
    def square(number):
        time.sleep(0.001 * (number % 3))
        return number**2

    assert list(in_lanes(square, range(n), lanes)) == [number**2 for number in range(n)]


def test_so_many_batches_run_at_once_and_few_wait():
    lanes, taken, running, most = 3, [], 0, [0, 0]
    lock = threading.Lock()

    def run(batch):
        nonlocal running
        with lock:
            running += 1
            most[0] = max(most[0], running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return batch

    for given, _ in enumerate(in_lanes(run, (taken.append(i) or i for i in range(60)), lanes), start=1):
        most[1] = max(most[1], len(taken) - given)

    assert most[0] == lanes
    assert most[1] < 2 * lanes


@pytest.mark.parametrize(("n", "threads"), [(1, 4), (2, 2), (3, 1), (4, 1), (20, 1)])
def test_lanes_share_the_threads_of_torch_which_are_whole_again_afterwards(four_threads, n, threads):
    def count(batch):
        torch.ones(1).sum()  # a thread takes its share with its first work
        return torch.get_num_threads()

    assert list(in_lanes(count, range(n), 4)) == [threads] * n
    assert torch.get_num_threads() == 4


def test_work_that_is_given_up_leaves_no_thread_and_all_threads_of_torch(four_threads):
    before = threading.active_count()
    results = in_lanes(lambda batch: batch, range(1000), 4)
    next(results)

    results.close()

    assert threading.active_count() == before
    assert torch.get_num_threads() == 4


def test_batches_that_do_not_fit_beside_each_other_are_run_alone_and_none_twice_over():
    running, done, most_after = 0, [], 0
    lock = threading.Lock()

    def run(batch):
        nonlocal running, most_after
        with lock:
            running += 1
            at_once = running
        try:
            time.sleep(0.005)
            if at_once > 1:
                raise NotEnoughMemory("memory")
            most_after = max(most_after, running if len(done) > 8 else 0)
            done.append(batch)
            return batch
        finally:
            with lock:
                running -= 1

    assert list(in_lanes(run, range(30), 4)) == list(range(30))
    assert sorted(done) == list(range(30))
    assert most_after == 1


def test_a_batch_that_does_not_fit_alone_ends_all():
    def run(batch):
        if batch == 3:
            raise NotEnoughMemory("not enough memory for one image")
        return batch

    results = in_lanes(run, range(9), 2)

    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(PredictionError, match="not enough memory for one image"):
        next(results)


def test_other_faults_reach_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(in_lanes(lambda batch: 1 // batch, [1, 0, 1], 2))


def test_what_networks_say_does_not_depend_on_lanes(four_threads):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 1, 1)).eval()
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 1, 3, 32, 32)).astype(np.float32))

    def run(row):
        with torch.inference_mode():
            return network(row)

    found = torch.stack(list(in_lanes(run, rows, 4)))

    torch.testing.assert_close(found, torch.stack([run(row) for row in rows]), rtol=0, atol=1e-6)
