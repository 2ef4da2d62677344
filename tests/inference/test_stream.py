import itertools
import threading
import time
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iaunet.errors import FileError, PredictionError
from iaunet.inference import stream as streams
from iaunet.inference.mosaic import RowPrediction
from iaunet.inference.predictor import Predictor
from iaunet.inference.stream import BATCHES_BEHIND, ROWS_AHEAD, predict_stream
from iaunet.planners.plan import Plan, load_plan
from iaunet.preprocessing.cases import CaseInput, Place
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
    return case_of([1.0 if number % 2 else -1.0])


def case_of(values, made=None):
    """A case with a slice of 4 x 4 px for each value, whose row is filled with it; tells ``made`` of each row."""

    def make(row):
        if made is not None:
            made.append(row)
        return np.full((3, 64, 64), values[row], np.float32)

    places = tuple(Place(slice=i, geometry=GEOMETRY) for i in range(len(values)))
    return CaseInput((len(values), 4, 4), places, make)


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
    assert all(size <= predictor.batch_size for size in predictor.ensemble.networks[0].batches)


@pytest.mark.parametrize("part", [0, 1, 3])
def test_an_image_that_memory_does_not_suffice_for_fails_alone(predictor, part):
    seen = []

    def watch(number, row):
        seen.append(number)
        if number == 1 and seen.count(1) == part + 1:
            raise MemoryError

    found = dict(predict_stream(predictor, range(5), lambda i: case_of([1.0] * 4), lambda i, _: i, watch=watch))

    assert "memory ran out for this image: close other programs and run" in str(found.pop(1))
    assert found == {i: i for i in (0, 2, 3, 4)}
    assert seen.count(1) == part + 1


def test_another_fault_of_what_is_done_with_an_image_reaches_the_caller(predictor):
    with pytest.raises(ZeroDivisionError):
        dict(predict_stream(predictor, range(3), lambda i: case_of([1.0]), lambda i, _: 1 // (1 - i)))


def test_no_more_than_a_few_batches_are_under_way_however_many_items_there_are(predictor):
    taken, done, most = [], [], 0
    for number in predict_stream(predictor, (taken.append(i) or i for i in range(400)), lambda i: load(0), finish):
        done.append(number)
        most = max(most, len(taken) - len(done))

    assert len(done) == 400
    assert most <= 8 * predictor.batch_size


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 30), max_size=12), st.integers(1, 9), st.sets(st.integers(0, 11)), st.booleans())
def test_cases_of_many_rows_among_cases_of_one_get_their_own_rows_in_order(predictor, n_rows, batch_size, bad, keep):
    predictor.batch_size = batch_size
    patterns = [np.random.default_rng(i).choice([-1.0, 1.0], n) for i, n in enumerate(n_rows)]

    def load(number):
        if number in bad and number % 2:
            raise FileError("is damaged", "copy it again")
        return case_of(patterns[number])

    def finish(number, prediction):
        if number in bad:
            raise PredictionError("cannot be kept")
        return prediction

    found = list(predict_stream(predictor, range(len(n_rows)), load, finish, keep))

    assert sorted(number for number, _ in found) == list(range(len(n_rows)))
    for number, result in found:
        if number in bad:
            assert isinstance(result, FileError if number % 2 else PredictionError)
            continue
        np.testing.assert_array_equal(result.labels[:, 0, 0], patterns[number] > 0)
        assert (result.labels == result.labels[:, :1, :1]).all()
        assert (result.probabilities is None) is not keep
        if keep:
            np.testing.assert_allclose(result.probabilities[0, :, 3, 3], patterns[number] > 0, atol=1e-6)


def test_a_large_case_behind_small_ones_is_made_no_faster_than_it_is_encoded(predictor):
    made, encoded, most = [], 0, 0

    class SlowToDecide(Plan):
        def decide(self, probabilities):
            nonlocal encoded, most
            time.sleep(0.002)
            encoded += 1
            most = max(most, len(made) - encoded)
            return super().decide(probabilities)

    predictor.plan = SlowToDecide(**vars(predictor.plan))
    cases = {0: [1.0], 1: [1.0], 2: [1.0] * 200}

    found = dict(predict_stream(predictor, cases, lambda i: case_of(cases[i], made), lambda _, prediction: prediction))

    assert found[2].labels.all()
    assert len(made) == encoded == 202
    assert most <= (BATCHES_BEHIND + 3) * predictor.batch_size


def test_of_large_cases_only_the_next_is_loaded_ahead_and_each_is_told_once_it_is_done(predictor):
    loaded, told, most = [], [], 0

    def load(number):
        loaded.append(number)
        return case_of([1.0] * (ROWS_AHEAD + 1))

    for number, _ in predict_stream(predictor, range(8), load, lambda number, _: number):
        told.append(number)
        most = max(most, len(loaded) - len(told))

    assert told == list(range(8))
    assert most <= 4  # predicted, encoded, loaded and waiting, being loaded


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


@pytest.mark.parametrize(("cores", "at_once"), [(1, 2), (6, 6), (64, 8)])
def test_beside_a_gpu_as_many_images_are_decoded_and_encoded_at_once_as_there_are_cores_but_eight_at_most(
    predictor, monkeypatch, cores, at_once
):
    n, together = 2 + 3 * at_once, threading.Barrier(at_once)
    working, most, lock = {"load": 0, "finish": 0}, {"load": 0, "finish": 0}, threading.Lock()

    def work(what, number, result):
        """Those of the third image and after end so many at a time, for which they wait 60 s at most."""
        with lock:
            working[what] += 1
            most[what] = max(most[what], working[what])
        if number >= 2:  # more are begun once the size of the first is known
            together.wait(60)
        with lock:
            working[what] -= 1
        return result

    def predict_batches(batches, *_):
        for batch in batches:
            yield [RowPrediction(row[:1] > 0, None, None) for row in batch]

    monkeypatch.setattr(streams, "default_workers", lambda: cores)
    monkeypatch.setattr(predictor, "predict_batches", predict_batches)
    predictor.device, predictor.batch_size = torch.device("cuda"), n

    found = dict(
        predict_stream(
            predictor,
            range(n),
            lambda i: work("load", i, case_of([1.0])),
            lambda i, prediction: work("finish", i, int(prediction.labels.sum())),
        )
    )

    assert found == dict.fromkeys(range(n), 16)
    assert most == {"load": at_once, "finish": at_once}


def threads_of(predictor, cases, monkeypatch, lanes=2, cores=2):
    """The threads that load each case, once or more, and finish it, with so many lanes on so many cores."""
    loaded, finished = defaultdict(list), {}

    def load(number):
        loaded[number].append(threading.get_ident())
        if cases[number] is None:
            raise FileError("is damaged", "copy it again")
        return case_of([1.0] * cases[number])

    def finish(number, prediction):
        finished[number] = threading.get_ident()
        return int(prediction.labels.sum())

    monkeypatch.setattr(streams, "default_workers", lambda: cores)
    monkeypatch.setattr(Predictor, "lanes", lanes)
    found = dict(predict_stream(predictor, range(len(cases)), load, finish))
    assert all(found[i] == 16 * n for i, n in enumerate(cases) if n)
    assert [i for i, result in found.items() if isinstance(result, FileError)] == [
        i for i, n in enumerate(cases) if n is None
    ]
    return loaded, finished


def test_where_the_lanes_have_all_cores_a_picture_stays_in_its_lane_from_file_to_mask(predictor, monkeypatch):
    loaded, finished = threads_of(predictor, [None, 1, 1, None, 1, 3, 1, 1], monkeypatch)

    here = threading.get_ident()
    assert all(len(threads) == 1 for threads in loaded.values())
    assert {i for i, threads in loaded.items() if threads == [here]} == {0, 1}  # up to the first that can be read
    assert {i: [thread] for i, thread in finished.items() if i > 1} == {i: loaded[i] for i in (2, 4, 5, 6, 7)}
    assert here not in finished.values()


def test_a_lane_does_a_few_pictures_at_a_time_step_by_step_unless_they_take_long(predictor, monkeypatch):
    told, lock = defaultdict(list), threading.Lock()

    def tell(step, number):
        with lock:
            told[threading.get_ident()].append((step, number))

    def load(number):
        if number == 20:
            raise FileError("is damaged", "copy it again")
        tell("load", number)
        return case_of([1.0])

    def watch(number, row):
        tell("add", number)

    def finish(number, prediction):
        tell("finish", number)
        return number

    def lots(within):
        told.clear()
        monkeypatch.setattr(streams, "LOT_WITHIN", within)
        found = dict(predict_stream(predictor, range(40), load, finish, watch=watch))
        assert isinstance(found.pop(20), FileError)
        assert found == {i: i for i in range(40) if i != 20}
        runs = [run for steps in told.values() for run in runs_of(steps)]
        return [[number for _, number in run] for kind, run in runs if kind == "load"]

    def runs_of(steps):
        return [(kind, [*run]) for kind, run in itertools.groupby(steps, lambda each: each[0])]

    monkeypatch.setattr(streams, "default_workers", lambda: 2)
    monkeypatch.setattr(Predictor, "lanes", 2)
    together = lots(1e6)
    assert max(map(len, together)) == streams.MOST_IN_LOT
    assert [0] in together  # the first, before it is known how long one takes
    assert max(map(len, lots(0.0))) == 1


def test_a_case_of_several_rows_is_done_in_its_lane_before_the_next_is_loaded(predictor, monkeypatch):
    rows, told = [1, 1, 1, 1, 1, 3, 1, 2, 1, 1, 1, 1], []

    def load(number):
        told.append(("load", number))
        return case_of([1.0] * rows[number])

    def finish(number, prediction):
        told.append(("finish", number))
        return int(prediction.labels.sum())

    monkeypatch.setattr(streams, "default_workers", lambda: 1)
    monkeypatch.setattr(streams, "LOT_WITHIN", 1e9)
    monkeypatch.setattr(Predictor, "lanes", 1)

    assert dict(predict_stream(predictor, range(12), load, finish)) == {i: 16 * n for i, n in enumerate(rows)}
    for number in (5, 7):
        assert told.index(("finish", number)) == told.index(("load", number)) + 1
    assert ["load", "load"] in [[before, after] for (before, _), (after, _) in itertools.pairwise(told)]  # pictures


@pytest.mark.parametrize("at", ["put together", "a row"])
def test_memory_that_runs_out_before_the_network_costs_that_image_alone(predictor, monkeypatch, at):
    assemble = streams.Assembly

    def put_together(case, *arguments):
        if case.shape[0] == 5 and at == "put together":
            raise MemoryError
        return assemble(case, *arguments)

    def load(number):
        case = case_of([1.0] * (5 if number == 2 else 3))

        def make(row):
            if number == 2 and row == 3 and at == "a row":
                raise MemoryError
            return case.make(row)

        return CaseInput(case.shape, case.places, make)

    monkeypatch.setattr(streams, "Assembly", put_together)
    found = dict(predict_stream(predictor, range(6), load, lambda i, prediction: int(prediction.labels.sum())))

    assert "memory ran out for this image" in str(found.pop(2))
    assert found == dict.fromkeys((0, 1, 3, 4, 5), 48)


@pytest.mark.parametrize(("first", "cores"), [(2, 2), (1, 3)])
def test_volumes_and_where_cores_are_left_are_loaded_and_finished_beside_the_networks(
    predictor, monkeypatch, first, cores
):
    loaded, finished = threads_of(predictor, [first, 1, 1, 2, 1, 1], monkeypatch, cores=cores)

    assert all(len(threads) == 1 for threads in loaded.values())
    assert {thread for threads in loaded.values() for thread in threads}.isdisjoint(finished.values())


def test_a_picture_that_memory_does_not_suffice_for_beside_others_is_predicted_once_more_alone(predictor, monkeypatch):
    network, given = predictor.ensemble.networks[0], []

    def run_out_of_memory_once(module, inputs):
        given.append(len(inputs))
        if len(given) == 1:
            raise MemoryError

    network.register_forward_pre_hook(run_out_of_memory_once)
    loaded, finished = threads_of(predictor, [1] * 6, monkeypatch)

    assert len(given) == 7
    assert all(len(threads) == 1 for threads in loaded.values())
    assert len(finished) == 6


@pytest.mark.parametrize("at", [1, 3, 5, 8])
def test_where_memory_ran_out_a_lane_goes_on_and_does_nothing_twice(predictor, monkeypatch, at):
    """Whichever row of whichever case it is."""
    rows, given, seen = [1, 3, 1, 2, 1, 4], [], []
    network = predictor.ensemble.networks[0]

    def run_out_of_memory_once(module, inputs):
        given.append(len(inputs))
        if len(given) == at:
            raise MemoryError

    network.register_forward_pre_hook(run_out_of_memory_once)
    monkeypatch.setattr(streams, "default_workers", lambda: 1)
    monkeypatch.setattr(streams, "LOT_WITHIN", 1e9)
    monkeypatch.setattr(Predictor, "lanes", 1)
    stream = predict_stream(
        predictor,
        range(len(rows)),
        lambda i: case_of([1.0 + i] * rows[i]),
        lambda i, prediction: int(prediction.labels.sum()),
        watch=lambda i, row: seen.append(i),
    )

    assert dict(stream) == {i: 16 * n for i, n in enumerate(rows)}
    assert len(given) == sum(rows) + 1
    assert sorted(seen) == sorted(i for i, n in enumerate(rows) for _ in range(n))


def test_a_fault_that_the_user_cannot_mend_stops_all_with_its_traceback(predictor):
    def fail(number):
        return 1 // 0

    with pytest.raises(ZeroDivisionError):
        list(predict_stream(predictor, range(9), fail, finish))
    with pytest.raises(ZeroDivisionError):
        list(predict_stream(predictor, range(9), load, lambda number, prediction: fail(number)))


def test_a_large_case_that_cannot_be_put_together_stops_at_once(predictor):
    made = []
    case = case_of([1.0] * 400, made)
    wrong = Place(slice=400, geometry=GEOMETRY)  # beyond the case
    case = CaseInput(case.shape, (*case.places[:3], wrong, *case.places[4:]), case.make)

    with pytest.raises(IndexError):
        list(predict_stream(predictor, [0], lambda _: case, finish))

    assert len(made) < 50


def test_work_that_is_given_up_leaves_no_thread(predictor):
    before = threading.active_count()
    stream = predict_stream(predictor, range(100), lambda i: load(0), finish)
    next(stream)

    stream.close()

    assert threading.active_count() == before


def test_rows_of_a_large_case_are_made_beside_the_network(predictor):
    threads = set()
    case = case_of([1.0] * 20)

    def make(row):
        threads.add(threading.current_thread())
        return case.make(row)

    large = CaseInput(case.shape, case.places, make)
    [(_, result)] = predict_stream(predictor, [0], lambda number: large, finish)

    assert result == (0, 20 * 16)
    assert threading.current_thread() not in threads
