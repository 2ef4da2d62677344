import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.inference.calibration import (
    HOTTEST,
    N_BINS,
    Calibration,
    LogitTable,
    Reliability,
    ReliabilityCounter,
    nested_temperatures,
    output_truth,
    temperatures_of,
)
from iaunet.inference.out_of_fold import sigmoid
from iaunet.records import FieldError, from_json, to_json


def overconfident(temperature, seed=0, n=200_000):
    """Logits that are ``temperature`` times what they should be, and draws of the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.5, n)
    truth = rng.random(n) < 1 / (1 + np.exp(-logits))
    return (temperature * logits).astype(np.float16), truth


def table_of(temperature, seed=0):
    table = LogitTable()
    table.add(*overconfident(temperature, seed))
    return table


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_logits_were_scaled_by_is_found(temperature):
    assert table_of(temperature).fit_temperature() == pytest.approx(temperature, rel=0.03)


def test_tables_add_up_to_that_of_all_pixels():
    logits, truth = overconfident(1.7)
    parts, whole = [LogitTable(), LogitTable()], LogitTable()
    whole.add(logits, truth)
    for part, pixels in zip(parts, (slice(0, 90_000), slice(90_000, None)), strict=True):
        part.add(logits[pixels], truth[pixels])

    assert (parts[0] + parts[1]).fit_temperature() == whole.fit_temperature()


def test_without_truth_of_both_kinds_there_is_no_temperature():
    table = LogitTable()
    table.add(np.array([-3, -2], np.float16), np.array([False, False]))

    assert table.fit_temperature() == 1
    assert LogitTable().fit_temperature() == 1


def test_logits_that_say_nothing_become_as_soft_as_may_be():
    table = LogitTable()
    table.add(np.array([-4, 4, -4, 4], np.float16), np.array([True, False, False, True]))

    assert table.fit_temperature() == pytest.approx(HOTTEST, rel=1e-3)


def test_a_fold_is_judged_by_the_temperature_that_the_others_ask_for():
    tables = {0: table_of(1.0, 1), 1: table_of(2.0, 2), 2: table_of(2.0, 3)}

    assert temperatures_of(tables) == pytest.approx({0: 1.0, 1: 2.0, 2: 2.0}, rel=0.05)
    nested = nested_temperatures(tables)
    assert nested[0] == (tables[1] + tables[2]).fit_temperature() == pytest.approx(2.0, rel=0.03)
    assert nested[1] < 1.7
    assert nested_temperatures({0: tables[0]}) == {0: 1.0}


def test_reliability_tells_what_was_said_beside_what_was_so():
    counter = ReliabilityCounter()
    counter.add(np.array([[0.1, 0.1, 0.1, 0.1], [1.0, 0.95, 0.95, 0.95]], np.float32), np.array([[1, 0, 0, 0]] * 2) > 0)

    found = counter.reliability
    assert len(found.pixels) == N_BINS
    assert (found.pixels[1], found.pixels[-1], sum(found.pixels)) == (4, 4, 8)
    assert (found.probability[1], found.frequency[1]) == (pytest.approx(0.1), 0.25)
    assert (found.probability[-1], found.frequency[-1]) == (pytest.approx(0.9625), 0.25)
    assert found.probability[5] is found.frequency[5] is None
    assert found.ece == pytest.approx((0.15 * 4 + 0.7125 * 4) / 8)
    assert found.brier == pytest.approx((0.81 + 3 * 0.01 + 0 + 3 * 0.9025) / 8)
    assert found.log_loss == pytest.approx(-(np.log(0.1) + 3 * np.log(0.9) + 3 * np.log(0.05)) / 8, rel=1e-5)
    with pytest.raises(ValueError, match="no pixels were added"):
        _ = ReliabilityCounter().reliability


def test_tempering_brings_the_error_of_calibration_down():
    logits, truth = overconfident(3.0)
    temperature = table_of(3.0, seed=5).fit_temperature()

    errors = []
    for scale in (1.0, temperature):
        counter = ReliabilityCounter()
        counter.add(sigmoid(logits / scale), truth)
        errors.append((counter.reliability.ece, counter.reliability.brier))

    assert errors[0][0] > 0.05
    assert errors[1][0] < 0.01
    assert errors[1][1] < errors[0][1]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_each_output_is_true_where_one_of_its_labels_is(values):
    mask = np.array(values, np.uint8)

    found = output_truth(mask, [(1,), (2, 3)])

    np.testing.assert_array_equal(found, [mask == 1, (mask == 2) | (mask == 3)])


def test_a_calibration_survives_its_file_and_refuses_temperatures_that_cannot_be():
    reliability = Reliability(pixels=(1, 0), probability=(0.2, None), frequency=(0.0, None), ece=0, brier=0, log_loss=0)
    calibration = Calibration(temperatures={"run": {"0": 1.5}}, before=reliability, after=reliability)

    assert from_json(Calibration, to_json(calibration)) == calibration
    assert (calibration.of("run", "0"), calibration.of("run", "all"), calibration.of("other", "0")) == (1.5, 1, 1)
    with pytest.raises(FieldError, match=r"temperatures is \[0\.0\]: give numbers from 0\.1 to 10"):
        Calibration(temperatures={"run": {"0": 0.0}}, before=reliability, after=reliability)
