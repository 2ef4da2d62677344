import csv
import logging
import math

import numpy as np
import pytest
from PIL import Image

from iaunet.errors import TrainingError
from iaunet.trainers import progress
from iaunet.trainers.progress import COLUMNS, Estimate, Metrics, Pace, Picture, draw_progress, duration


def row(epoch, **changes):
    return dict.fromkeys(COLUMNS, 0.123456789012) | {"epoch": epoch} | changes


def written(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def metrics_of(path, n):
    metrics = Metrics(path, 0)
    for epoch in range(1, n + 1):
        metrics.add(row(epoch))
    return metrics


def test_every_epoch_is_a_row_on_disk_at_once(tmp_path):
    metrics = metrics_of(tmp_path / "metrics.csv", 2)

    rows = written(tmp_path / "metrics.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert [r["epoch"] for r in rows] == ["1", "2"]
    assert rows[0]["loss"] == "0.123456789"
    assert metrics.column("epoch") == [1, 2]


def test_rows_after_the_checkpoint_are_cut_off(tmp_path):
    metrics_of(tmp_path / "metrics.csv", 5)

    metrics = Metrics(tmp_path / "metrics.csv", 3)

    assert metrics.column("epoch") == [1, 2, 3]
    assert [r["epoch"] for r in written(tmp_path / "metrics.csv")] == ["1", "2", "3"]


def test_a_training_from_scratch_begins_an_empty_table(tmp_path):
    metrics_of(tmp_path / "metrics.csv", 5)

    assert Metrics(tmp_path / "metrics.csv", 0).rows == []
    assert written(tmp_path / "metrics.csv") == []


def test_a_resumed_table_is_the_same_bytes_as_an_undisturbed_one(tmp_path):
    values = np.random.default_rng(0).random(5)
    whole, resumed = Metrics(tmp_path / "whole.csv", 0), Metrics(tmp_path / "resumed.csv", 0)
    for epoch, value in enumerate(values, start=1):
        whole.add(row(epoch, loss=value, validation_dice=math.nan))
        resumed.add(row(epoch, loss=value, validation_dice=math.nan))
        resumed = Metrics(tmp_path / "resumed.csv", epoch)

    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "resumed.csv").read_bytes()


@pytest.mark.parametrize("text", ["epoch,loss\n1,lots\n", "epoch,loss\n1\n", "nothing\n1\n"])
def test_a_damaged_table_is_named(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)

    with pytest.raises(TrainingError, match=r"metrics\.csv holds no metrics in line 2: remove it"):
        Metrics(tmp_path / "metrics.csv", 3)


@pytest.mark.parametrize("dice", [0.8, math.nan])
@pytest.mark.parametrize("n", [1, 40])
def test_the_curves_are_drawn_with_and_without_held_out_cases(tmp_path, n, dice):
    metrics = Metrics(tmp_path / "metrics.csv", 0)
    metrics.rows += [row(epoch, validation_dice=dice, validation_loss=dice) for epoch in range(1, n + 1)]

    draw_progress(metrics, tmp_path / "progress.png")

    with Image.open(tmp_path / "progress.png") as picture:
        assert picture.size == (900, 600)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    green = (44, 160, 44)
    assert (green in colours) == (dice == 0.8)


def test_the_picture_is_drawn_at_most_once_a_minute_and_when_told(tmp_path):
    metrics = metrics_of(tmp_path / "metrics.csv", 1)
    path = tmp_path / "progress.png"
    picture = Picture(path)
    picture.update(metrics)
    path.unlink()

    picture.update(metrics)
    assert not path.exists()

    picture.update(metrics, now=True)
    assert path.exists()


def test_the_estimate_is_ready_once_after_ten_steps_and_leaves_out_the_first_two():
    estimate = Estimate(steps=1000, on_cpu=True)

    ready = [estimate.add(seconds) for seconds in (100, 100, 1, 2, 3, 4, 1, 2, 3, 4, 50, 50)]

    assert ready == [False] * 9 + [True, False, False]
    assert estimate.seconds_a_step == 2.5


@pytest.mark.parametrize(
    ("steps", "on_cpu", "lines"),
    [
        (100, True, ["estimate   2 s a step, about 3 min for the whole command"]),
        (1_000_000, False, ["estimate   2 s a step, about 23.1 days for the whole command"]),
        (
            1_000_000,
            True,
            [
                "estimate   2 s a step, about 23.1 days for the whole command",
                "warning    that is 23.1 days on this CPU: use a GPU, or a smaller --width, fewer --epochs, or --hours",
            ],
        ),
    ],
)
def test_the_estimate_is_told_with_a_warning_of_days_on_a_cpu(steps, on_cpu, lines, caplog):
    caplog.set_level(logging.INFO)
    estimate = Estimate(steps, on_cpu)
    for _ in range(10):
        estimate.add(2.0)

    estimate.tell()

    assert [record.message for record in caplog.records] == lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h"), (172_800, "2.0 days")],
)
def test_durations_are_told_in_the_unit_a_person_would_use(seconds, text):
    assert duration(seconds) == text


def test_what_is_done_again_and_again_takes_its_share_of_the_time(monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    pace = Pace(share=0.05)
    assert pace.is_due()
    with pace:
        now += 2
    found = []
    for second in range(40):
        now = 102.0 + second
        found.append(pace.is_due())

    assert found == [False] * 38 + [True] * 2  # 2 of 40 seconds
    with pace:
        now += 0.5
    assert not pace.is_due()
    now += 9.6
    assert pace.is_due()
