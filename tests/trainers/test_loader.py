import contextlib
import multiprocessing
import os
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from iaunet.dataset import IGNORED, MaskCoding
from iaunet.device import CPU
from iaunet.errors import PreprocessingError, TrainingError
from iaunet.loss import bce_dice_loss
from iaunet.planners.plan import Normalisation, load_plan
from iaunet.planners.recipes import RECIPES, Augmentation
from iaunet.trainers import loader as loader_module
from iaunet.trainers.augmentation import Augmenter
from iaunet.trainers.device_augmentation import DeviceAugmenter
from iaunet.trainers.loader import (
    Batch,
    Collator,
    DeviceCollator,
    RowDataset,
    SharingCollator,
    collate_stored,
    ending_workers,
    make_loader,
    prepared_ahead,
    start_batches,
)
from iaunet.trainers.sampling import CaseOrder, EpochSampler, Sample
from iaunet.workspace import DatasetFolder


@pytest.fixture
def folder(toy_workspace):
    return DatasetFolder(toy_workspace / "toy")


def loader_of(folder, workers, augmented=True, made_from=None):
    plan = load_plan(folder.plan_json)
    augmenter = Augmenter(plan.recipe.augmentation, plan.normalisation, plan.input_size) if augmented else None
    rows = RowDataset(folder.preprocessed, made_from or plan.arrays_digest, augmenter)
    arrays = RowDataset(folder.preprocessed, plan.arrays_digest, None).arrays
    order = CaseOrder(
        [case.rows for case in arrays.index.cases],
        arrays.foreground.tolist(),
        batch_size=4,
        most_steps=250,
        foreground_rows=1 / 3,
        seed=0,
    )
    return make_loader(rows, EpochSampler(order), Collator(plan.coding), workers, pin_memory=False)


def epochs_of(loader, epochs=2):
    batches = []
    for epoch in range(epochs):
        loader.batch_sampler.epoch = epoch
        batches += list(start_batches(loader))
    return batches


def test_batches_are_equal_to_the_bit_whatever_the_number_of_workers(folder):
    found = []
    for workers in (0, 1, 2):
        loader = loader_of(folder, workers)
        with ending_workers(loader):
            found.append(epochs_of(loader))

    assert len(found[0]) == 10
    for batches in zip(*found, strict=True):
        assert len({batch.rows for batch in batches}) == 1
        assert all(torch.equal(batches[0].images, batch.images) for batch in batches)
        assert all(torch.equal(batches[0].targets, batch.targets) for batch in batches)
    assert not multiprocessing.active_children()


def test_batches_hold_rows_and_targets_in_float32(folder):
    [batch, *_] = start_batches(loader_of(folder, 0, augmented=False))
    arrays = RowDataset(folder.preprocessed, load_plan(folder.plan_json).arrays_digest, None).arrays

    assert batch.images.dtype == batch.targets.dtype == torch.float32
    np.testing.assert_array_equal(batch.images, arrays.images[list(batch.rows)])
    np.testing.assert_array_equal(batch.targets[:, 0], arrays.masks[list(batch.rows)] == 1)


def test_batches_for_a_device_hold_what_is_stored_and_are_augmented_there_row_by_row(folder):
    plan = load_plan(folder.plan_json)
    augmenter = DeviceAugmenter(RECIPES["best"].augmentation, plan.normalisation)
    rows = RowDataset(folder.preprocessed, plan.arrays_digest, None)
    samples = [Sample(i, (0, 0, i)) for i in range(4)]
    stored = collate_stored([rows[sample] for sample in samples])
    prepare = DeviceCollator(augmenter, plan.coding, CPU)

    [batch] = prepared_ahead([stored], prepare, CPU)
    [last] = prepared_ahead([collate_stored([rows[samples[3]]])], prepare, CPU)

    assert (stored.images.dtype, stored.masks.dtype) == (torch.float16, torch.uint8)
    images, masks = augmenter(stored.images, stored.masks, [sample.seed for sample in samples])
    assert torch.equal(batch.images, images)
    np.testing.assert_array_equal(batch.targets[:, 0], masks == 1)
    assert batch.rows == (0, 1, 2, 3)
    assert batch.valid is None
    torch.testing.assert_close(last.images, batch.images[3:], rtol=0, atol=1e-4)
    assert torch.equal(last.targets, batch.targets[3:])


@pytest.fixture
def gpu(monkeypatch):
    """Stands for a GPU: streams that do nothing."""
    monkeypatch.setattr(loader_module, "_stream_beside", lambda device: SimpleNamespace(record_event=lambda: "event"))
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(loader_module, "_handed_over", lambda batch, ready: batch)
    return torch.device("cuda")


def test_on_a_gpu_a_thread_prepares_the_next_batch_while_this_one_is_used(gpu):
    began = [threading.Event() for _ in range(4)]
    threads = set()

    def prepare(number):
        threads.add(threading.current_thread().name)
        began[number].set()
        return number

    used = []
    for number in prepared_ahead(range(4), prepare, gpu):
        if number < 3:
            assert began[number + 1].wait(60)
        used.append(number)

    assert used == [0, 1, 2, 3]
    assert threads == {"prepare_0"}


def test_what_goes_wrong_when_a_batch_is_prepared_ends_the_epoch_where_that_batch_was_due(gpu):
    def prepare(number):
        if number == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return number

    used = []
    with pytest.raises(torch.OutOfMemoryError):
        used.extend(prepared_ahead(range(4), prepare, gpu))

    assert used == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_a_batch_that_memory_does_not_suffice_for_beside_a_step_is_prepared_after_it_which_is_told(gpu, caplog):
    tried = []

    def prepare(number):
        tried.append((number, threading.current_thread().name))
        if number == 2 and threading.current_thread() is not threading.main_thread():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return number

    assert [*prepared_ahead(range(4), prepare, gpu)] == [0, 1, 2, 3]
    assert [name for number, name in tried if number == 2] == ["prepare_0", threading.current_thread().name]
    assert [name for number, name in tried if number != 2] == ["prepare_0"] * 3
    assert caplog.messages == ["memory ran out while a batch was prepared beside a step: it is prepared after it"]


def test_a_device_makes_the_targets_that_the_collator_makes():
    masks = np.random.default_rng(0).choice(np.array([0, 1, 2, 3, IGNORED], np.uint8), (3, 8, 8))
    rows = [(np.zeros((1, 8, 8), np.float16), mask, Sample(i, (0, 0, i))) for i, mask in enumerate(masks)]
    coding = values_coding(3, regions=((1, 2, 3), (2, 3)), regions_class_order=(1, 2), ignore=9)
    nothing = DeviceAugmenter(Augmentation(mirror_probability=0), Normalisation(kind="case"))

    usual, ours = Collator(coding)(rows), DeviceCollator(nothing, coding, CPU)(collate_stored(rows))

    for name in ("images", "targets", "valid"):
        assert torch.equal(getattr(ours, name), getattr(usual, name))
    assert ours.rows == usual.rows == (0, 1, 2)


def values_coding(n, **fields):
    values = tuple(range(1, n + 1))
    return MaskCoding(kind="values", values=values, written=values, **fields)


def test_each_label_has_a_target_map_of_its_own():
    mask = np.array([[0, 1], [2, 3]], np.uint8)

    batch = Collator(values_coding(3))([(np.zeros((3, 2, 2), np.float32), mask, Sample(7, (0, 0, 0)))])

    np.testing.assert_array_equal(batch.targets[0], [mask == 1, mask == 2, mask == 3])
    assert batch.rows == (7,)
    assert batch.valid is None


def test_each_region_has_a_target_map_of_all_its_labels():
    mask = np.array([[0, 1], [2, 3]], np.uint8)
    coding = values_coding(3, regions=((1, 2, 3), (2, 3), (3,)), regions_class_order=(1, 2, 3))

    batch = Collator(coding)([(np.zeros((1, 2, 2), np.float32), mask, Sample(0, (0, 0, 0)))])

    np.testing.assert_array_equal(batch.targets[0], [mask >= 1, mask >= 2, mask == 3])


def ignoring_batch():
    """Three rows of noise with two labels and ignored pixels, of the third all."""
    rng = np.random.default_rng(0)
    masks = rng.choice(np.array([0, 1, 2, IGNORED], np.uint8), (3, 32, 32))
    masks[2] = IGNORED
    rows = [
        (rng.normal(size=(1, 32, 32)).astype(np.float32), mask, Sample(i, (0, 0, i))) for i, mask in enumerate(masks)
    ]
    return Collator(values_coding(2, ignore=9))(rows), masks


def test_ignored_pixels_are_not_valid_and_of_no_label():
    batch, masks = ignoring_batch()

    np.testing.assert_array_equal(batch.valid[:, 0], masks != IGNORED)
    np.testing.assert_array_equal(batch.targets, np.stack([masks == 1, masks == 2], axis=1))


def test_loss_and_gradients_do_not_depend_on_what_is_predicted_where_pixels_are_ignored():
    batch, _ = ignoring_batch()
    found = []
    for elsewhere in (0.0, 50.0, -50.0):
        logits = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 2, 32, 32))).float()
        logits = torch.where(batch.valid > 0, logits, elsewhere).requires_grad_()
        losses = bce_dice_loss(logits, batch.targets, batch.valid)
        losses.loss.backward()
        found.append((losses, logits.grad))

    for losses, gradient in found:
        assert all(torch.equal(mine, first) for mine, first in zip(losses, found[0][0], strict=True))
        assert torch.equal(gradient, found[0][1])
        assert not gradient[(batch.valid == 0).expand_as(gradient)].any()
        assert not gradient[2].any()
        assert gradient[:2].any()


def test_a_batch_is_split_with_its_ignored_pixels():
    batch, masks = ignoring_batch()

    first, second = batch.split(2)

    assert (first.rows, second.rows) == ((0,), (1, 2))
    assert torch.equal(torch.cat([first.images, second.images]), batch.images)
    assert torch.equal(torch.cat([first.targets, second.targets]), batch.targets)
    np.testing.assert_array_equal(second.valid[:, 0], masks[1:] != IGNORED)
    plain = Batch(batch.images, batch.targets, batch.rows)
    assert [part.valid for part in plain.split(3)] == [None, None, None]


def test_augmentation_keeps_ignored_pixels_and_makes_no_other_values(folder):
    plan = load_plan(folder.plan_json)
    augmenter = Augmenter(plan.recipe.augmentation, plan.normalisation, plan.input_size)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:40, 10:40], mask[20:30, 20:30] = 1, IGNORED

    kept = [augmenter(np.zeros((3, 64, 64), np.float32), mask, (0, 0, i))[1] for i in range(30)]

    for changed in kept:
        assert {*np.unique(changed)} <= {0, 1, IGNORED}
    assert 0.3 < np.mean([(changed == IGNORED).sum() for changed in kept]) / 100 < 3


def test_an_epoch_begins_at_the_step_asked_for(folder):
    loader = loader_of(folder, 0)
    whole = list(start_batches(loader))
    loader.batch_sampler.first_step = 3

    rest = list(start_batches(loader))

    assert [batch.rows for batch in rest] == [batch.rows for batch in whole[3:]]
    assert torch.equal(rest[0].images, whole[3].images)


def test_loading_draws_nothing_from_the_generator_that_the_network_draws_from(folder):
    before = torch.get_rng_state()

    epochs_of(loader_of(folder, 0))

    assert torch.equal(torch.get_rng_state(), before)


def test_the_mapped_arrays_do_not_travel_to_workers(folder):
    rows = RowDataset(folder.preprocessed, load_plan(folder.plan_json).arrays_digest, None)
    rows[Sample(0, (0, 0, 0))]

    assert "arrays" in vars(rows)
    assert "arrays" not in rows.__getstate__()


def test_a_killed_worker_is_reported_with_a_mend(folder):
    loader = loader_of(folder, 1)
    told = r"a loading process was killed, .*: run the same command again to go on, with fewer --workers"

    with pytest.raises(TrainingError, match=told), ending_workers(loader):
        list(start_batches(loader))
        [worker] = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.2)
        list(start_batches(loader))

    assert not multiprocessing.active_children()


def test_batches_of_workers_lie_in_shared_memory_before_they_are_handed_over(folder):
    rows = loader_of(folder, 0).dataset
    plan = load_plan(folder.plan_json)

    batch = SharingCollator(Collator(plan.coding))([rows[Sample(row=row, seed=(0, 0, row))] for row in range(2)])

    assert batch.images.is_shared()
    assert batch.targets.is_shared()


def test_a_full_shared_memory_is_told_with_what_helps(folder):
    told = r"no space left for /dev/shm, .*docker run --shm-size 4g.*, or use fewer --workers, 0 needs none; then run"
    with pytest.raises(TrainingError, match=told), ending_workers(loader_of(folder, 0)):
        raise RuntimeError("Caught RuntimeError in a worker.\nunable to allocate shared memory(shm) for file </torch>")


def test_workers_leave_stopping_to_their_parent_and_end_though_a_traceback_holds_the_loader(folder):
    loader = loader_of(folder, 1)

    with pytest.raises(ZeroDivisionError) as caught, ending_workers(loader):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        list(start_batches(loader))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
        [worker] = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
        assert len(list(start_batches(loader))) == 5
        raise ZeroDivisionError

    assert caught.traceback
    assert not multiprocessing.active_children()


def test_a_worker_shows_its_own_traceback(folder):
    loader = loader_of(folder, 1, made_from="other data")

    told = "was made from other data or another plan"
    with pytest.raises(PreprocessingError, match=told) as caught, ending_workers(loader):
        list(start_batches(loader))

    assert "in open_arrays" in str(caught.value)


def test_other_faults_pass_unchanged(folder):
    with pytest.raises(RuntimeError, match="shapes"), ending_workers(loader_of(folder, 0)):
        raise RuntimeError("shapes do not match")
