"""The trainer: one fold of one run, from its first step to its scores."""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from iaunet.console import Stopped, handling_signals, telling_from_handlers
from iaunet.device import casting, random_state, restore_random_state
from iaunet.errors import TrainingError
from iaunet.exhaustion import MEMORY_FAULTS, is_out_of_memory
from iaunet.loss import bce_dice_loss
from iaunet.planners.plan import build_planned_network
from iaunet.preprocessing.arrays import Arrays, open_arrays
from iaunet.storage import remove_leftovers
from iaunet.trainers.augmentation import Augmenter
from iaunet.trainers.averaging import WeightAverage
from iaunet.trainers.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from iaunet.trainers.device_augmentation import DeviceAugmenter
from iaunet.trainers.epoch_validation import EpochValidation
from iaunet.trainers.fold_setup import FoldSetup
from iaunet.trainers.loader import (
    Batch,
    Collator,
    DeviceCollator,
    Row,
    RowDataset,
    StoredBatch,
    collate_stored,
    ending_workers,
    make_loader,
    prepared_ahead,
    start_batches,
)
from iaunet.trainers.memory import leave_as_it_is, micro_batches, remember_state, step_fits
from iaunet.trainers.metrics_log import MetricsLog, closing_logs, find_log
from iaunet.trainers.prior import output_shares, start_at_prior
from iaunet.trainers.progress import Estimate, Metrics, Pace, Picture
from iaunet.trainers.sampling import CaseOrder, EpochSampler
from iaunet.trainers.schedules import learning_rate
from iaunet.weights import load_weights, save_weights

logger = logging.getLogger(__name__)

LOSSES = ("loss", "bce", "dice_loss")

SAVING_SHARE = 0.05
"""Of the time of training that writing checkpoints may take; with short epochs not every one is followed by one."""

VALIDATION_COST = 1 / 3
"""Of the cost of training on a row: forward only."""

FEWEST_OWN_STATISTICS = 8
"""With fewer rows at a time GPUs that train together normalise batches by common statistics."""


class Trainer:
    """Trains one fold. Every step of `fit` is a method of its own, to be overridden by name.

    Of several ranks each takes its part of every batch and validation, and all hold the same weights and averages;
    rank 0 writes the files.

    Args:
        setup: Everything that decides the training. A checkpoint in its folder is resumed from.
    """

    def __init__(self, setup: FoldSetup) -> None:
        self.setup = setup
        self.recipe = setup.plan.recipe
        self.ranks = setup.ranks
        self.device = setup.device
        self.folder = setup.folder
        self.epochs = setup.epochs
        self.micro_batch = setup.micro_batch
        self.epoch = 0
        self.step = 0
        self.losses = dict.fromkeys(LOSSES, 0.0)
        self.seconds = 0.0
        self._hours_to_fix = setup.hours
        self._saving = Pace(SAVING_SHARE)
        self._stop_signal: int | None = None
        self._tell: Callable[[str], None] = logger.info

    # The whole training ---------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train from the last checkpoint (or from scratch) to the end and write the weights.

        Raises:
            Stopped: A signal asked to stop; the running step was finished and saved.
            TrainingError: The loss is no number any more, or memory does not suffice.
            SystemExit: The same on other ranks than the first, which alone tells it.
        """
        if self.ranks.is_first:
            remove_leftovers(self.folder.root)
        self.ranks.first(self._prepare)
        self.join_ranks()
        with (
            telling_from_handlers(logger) as self._tell,
            handling_signals((signal.SIGINT, signal.SIGTERM), self._ask_to_stop),
            ending_workers(self.loader),
            closing_logs(self.logs),
        ):
            while self.epoch < self.epochs:
                self.train_epoch()
                validation = self.validate()
                self.log_epoch(validation)
                is_to_stop = self._asked_to_stop()
                if is_to_stop or self.epoch == self.epochs or self._saving.is_due():
                    self._save()
                if is_to_stop:
                    self._stop()
        self.finish()

    def build(self) -> None:
        """Make network, optimiser, average and loaders."""
        plan, recipe, setup = self.setup.plan, self.recipe, self.setup
        torch.manual_seed(setup.seed)
        self.arrays: Arrays = open_arrays(setup.preprocessed, plan.arrays_digest)
        network = build_planned_network(plan)
        if setup.weights is not None:
            load_weights(setup.weights, network)
        elif recipe.start_at_prior:
            rows = [row for name in setup.train for row in self.arrays.cases[name].rows]
            start_at_prior(network, output_shares(self.arrays, plan.coding, rows))
        self.network: nn.Module = network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parallel = self.network
        self.average = WeightAverage(self.network, recipe.average_decay) if recipe.average_weights else None
        self.optimiser = self.make_optimiser()
        self.scaler = torch.amp.GradScaler(enabled=setup.precision is torch.float16)
        order = CaseOrder(
            [self.arrays.cases[name].rows for name in setup.train],
            self.arrays.foreground.tolist(),
            batch_size=recipe.batch_size,
            draws=recipe.draws_a_case,
            most_steps=recipe.most_steps_an_epoch,
            foreground_rows=recipe.foreground_rows,
            seed=setup.seed,
        )
        self.sampler = EpochSampler(order, self.ranks.share(recipe.batch_size))
        self.loader, self.prepare_batch = self.make_loading()
        self.validation = EpochValidation(setup, self.arrays)

    def make_loading(self) -> tuple[DataLoader[Any], Callable[[Any], Batch]]:
        """The loader of augmented rows, and what brings its batches to the device."""
        setup, plan, augmentation = self.setup, self.setup.plan, self.recipe.augmentation
        collate: Callable[[list[Row]], Batch | StoredBatch] = Collator(plan.coding)
        prepare: Callable[[Any], Batch] = self._bring
        augmenter: Augmenter | None = Augmenter(augmentation, plan.normalisation, plan.input_size)
        if setup.augments_on_device:
            collate, augmenter = collate_stored, None
            prepare = DeviceCollator(DeviceAugmenter(augmentation, plan.normalisation), plan.coding, self.device)
        rows = RowDataset(setup.preprocessed, plan.arrays_digest, augmenter)
        return make_loader(rows, self.sampler, collate, setup.workers, self.device.type == "cuda"), prepare

    def make_optimiser(self) -> torch.optim.Optimizer:
        """Adam or AdamW as the recipe says, nothing left to defaults."""
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        return kinds[self.recipe.optimiser](
            self.network.parameters(),
            lr=self.recipe.lr,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=self.recipe.weight_decay,
        )

    # An epoch -------------------------------------------------------------------------------------------------------

    def train_epoch(self) -> None:
        """Do the steps of the running epoch that are still to do."""
        self.network.train()
        self.sampler.epoch, self.sampler.first_step = self.epoch, self.step
        for batch in self._timed_batches():
            losses = self.train_step(batch)
            for name, value in losses.items():
                self.losses[name] += value
            self.step += 1
            if self._asked_to_stop():
                self._save()
                self._stop()

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One step of the optimiser on one batch; with less memory than it needs, in smaller parts.

        Returns:
            The losses of the batch.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        if self.ranks.size > 1:
            self._seed_step()
        sums = self._make_gradients(batch)
        try:
            return self.update_weights(sums)
        except MEMORY_FAULTS as fault:
            if not is_out_of_memory(fault):
                raise
            raise TrainingError(
                f"memory ran out on {self.device} while the weights were changed, which smaller parts of a batch do "
                "not help: close other programs and run the same command again to go on from the last checkpoint, or "
                "begin anew with --restart and a smaller --width"
            ) from fault

    def update_weights(self, sums: torch.Tensor) -> dict[str, float]:
        """Change the weights by the gradients, and the average by the weights.

        Args:
            sums: This rank's part of the losses, see `accumulate_gradients`.

        Returns:
            The losses of the whole batch. They and the gradient's norm are waited for together, and must be numbers.
        """
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_gradient_norm or math.inf)
        *sums_here, norm_here = torch.cat([sums, norm[None]]).tolist()
        losses = dict(zip(LOSSES, self.ranks.sum(sums_here), strict=True))
        self._require_finite("loss", losses["loss"])
        if not self.scaler.is_enabled():  # it skips steps whose gradients are too large for half precision
            self._require_finite("gradient's norm", norm_here)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.ranks.average([buffer for buffer in self.network.buffers() if buffer.is_floating_point()])
        if self.average is not None:
            self.average.update(self.network)
        return losses

    def learning_rate(self) -> float:
        """The learning rate of the running step; at the end of an epoch that of its last."""
        steps = self.sampler.order.steps
        step = self.epoch * steps + min(self.step, steps - 1)
        return learning_rate(self.recipe, step, steps, self.epochs)

    def accumulate_gradients(self, batch: Batch) -> torch.Tensor:
        """Forward and backward over the batch, a micro-batch at a time, each weighed by its rows.

        Args:
            batch: This rank's part of it; gradients are those of the whole.

        Returns:
            This rank's part of the losses, by `LOSSES`, on the device.
        """
        self.optimiser.zero_grad(set_to_none=True)
        sums = torch.zeros(3, device=self.device)
        n_rows = self.recipe.batch_size if self.ranks.size > 1 else len(batch.rows)
        n_parts = -(-self.ranks.largest_share(n_rows) // self.micro_batch)
        parts = list(batch.split(n_parts))  # as many on each rank
        for i, part in enumerate(parts):
            images = part.images.contiguous(memory_format=torch.channels_last)
            share = len(images) / n_rows
            with self.ranks.exchanging(self.parallel, now=i + 1 == len(parts)):
                with casting(self.device, self.setup.precision):
                    logits = self.parallel(images)
                losses = bce_dice_loss(logits, part.targets, part.valid)
                # gradients are averaged over the ranks, and are to be added up
                self.scaler.scale(losses.loss * share * self.ranks.size).backward()  # type: ignore[no-untyped-call]
            sums += torch.stack([part.detach() * share for part in losses])
        return sums

    def validate(self) -> dict[str, float]:
        """Loss and mean Dice per image of the held-out rows at the input's size; nan when none is held out."""
        measured = self.validation.measure(self.result_network(), self.micro_batch)
        self.network.train()
        return measured

    def log_epoch(self, validation: dict[str, float]) -> None:
        """Tell the epoch's numbers, on the screen, in metrics.csv and in the log that was asked for; begin the next."""
        steps = self.sampler.order.steps
        row = {
            "epoch": self.epoch + 1,
            **{name: value / steps for name, value in self.losses.items()},
            **validation,
            "lr": self.learning_rate(),
            "seconds": self.seconds,
        }
        for log in self.logs:
            log.add(row)
        logger.info(
            "epoch %d/%d  loss %.3f  dice %.3f  lr %.1e  %.0f s",
            row["epoch"],
            self.epochs,
            row["loss"],
            row["validation_dice"],
            row["lr"],
            row["seconds"],
        )
        if self.ranks.is_first:
            self.picture.update(self.metrics, now=self.epoch + 1 == self.epochs)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.losses = dict.fromkeys(self.losses, 0.0)

    # Stopping and going on ------------------------------------------------------------------------------------------

    def resume_or_start(self) -> None:
        """Take up the checkpoint if there is one."""
        if self.folder.checkpoint.exists():
            self.load(load_checkpoint(self.folder.checkpoint))
        self.logs: list[MetricsLog] = []
        if self.ranks.is_first:
            self.metrics = Metrics(self.folder.metrics_csv, self.epoch)
            self.logs = [self.metrics, *self.further_logs()]
            self.picture = Picture(self.folder.progress_png)
        steps = (self.epochs - self.epoch) * self.sampler.order.steps - self.step
        later = (self.setup.commands_folds - 1) * self.epochs * self.sampler.order.steps
        self.estimate = Estimate(steps + later, self.device.type == "cpu")

    def join_ranks(self) -> None:
        """Make the network one of several ranks' once a micro-batch is known to fit on each: later none can wait."""
        if self.ranks.size == 1:
            return
        while self.ranks.any(not self._fits()):
            self._halve_micro_batch(None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what NCCL takes is not of torch's own
        some_unused = any(p.grad is None for p in self.network.parameters() if p.requires_grad)
        self.optimiser.zero_grad(set_to_none=True)
        if self.device.type == "cuda" and self._rows_at_a_time() < FEWEST_OWN_STATISTICS:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.network)  # type: ignore[no-untyped-call]  # in place
        self.parallel = self.ranks.parallel(self.network, self.device, some_unused)

    def further_logs(self) -> list[MetricsLog]:
        """The logs beside metrics.csv, each in a folder or file of its name."""
        name = self.setup.log
        return [] if name == "csv" else [find_log(name)(self.folder.root / name, self.epoch)]

    def load(self, checkpoint: Checkpoint) -> None:
        """Go back to the state of a checkpoint.

        Raises:
            TrainingError: It is of a run with other settings, or does not fit this training.
        """
        if checkpoint.run != self.setup.run:
            raise TrainingError(
                f"{self.folder.checkpoint} belongs to a run with other settings: use --restart, or --name for a new run"
            )
        try:
            self._restore(checkpoint)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as fault:
            if is_out_of_memory(fault):
                raise
            raise TrainingError(
                f"{self.folder.checkpoint} does not fit this training ({str(fault).partition(chr(10))[0]}): "
                "start the fold anew with --restart"
            ) from fault
        logger.info("going on from epoch %d, step %d", self.epoch + 1, self.step)
        if self.device.type == "cpu" and checkpoint.threads != torch.get_num_threads():
            logger.info(
                "this CPU training began with %d threads and goes on with %d: the last digits may differ",
                checkpoint.threads,
                torch.get_num_threads(),
            )
        if checkpoint.ranks != self.ranks.size:
            logger.info(
                "this training began with %d ranks and goes on with %d: the last digits may differ",
                checkpoint.ranks,
                self.ranks.size,
            )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.network.load_state_dict(checkpoint.network)
        self.optimiser.load_state_dict(checkpoint.optimiser)
        if self.average is not None and checkpoint.average is not None:
            self.average.network.load_state_dict(checkpoint.average)
            self.average.updates = checkpoint.average_updates
        if checkpoint.scaler:  # empty where the products were not taken in half precision
            self.scaler.load_state_dict(checkpoint.scaler)
        restore_random_state(checkpoint.random_state, self.device)
        self.epoch, self.step, self.epochs = checkpoint.epoch, checkpoint.step, checkpoint.epochs
        self._hours_to_fix = checkpoint.hours_to_fix
        self.losses, self.seconds = dict(checkpoint.losses), checkpoint.seconds
        self.micro_batch = min(self.micro_batch, checkpoint.micro_batch)

    def save_checkpoint(self) -> None:
        """Write the state after the last step done."""
        if not self.ranks.is_first:
            return
        average = self.average
        checkpoint = Checkpoint(
            run=self.setup.run,
            epochs=self.epochs,
            hours_to_fix=self._hours_to_fix,
            epoch=self.epoch,
            step=self.step,
            losses=self.losses,
            seconds=self.seconds,
            network=self.network.state_dict(),
            optimiser=self.optimiser.state_dict(),
            average=average.network.state_dict() if average else None,
            average_updates=average.updates if average else 0,
            scaler=self.scaler.state_dict(),
            random_state=random_state(self.device),
            threads=torch.get_num_threads(),
            micro_batch=self.micro_batch,
            ranks=self.ranks.size,
        )
        save_checkpoint(checkpoint, self.folder.checkpoint)

    def finish(self) -> None:
        """Write the weights that inference reads: the averaged ones where the recipe averages."""
        if self.ranks.is_first:
            save_weights(self.folder.weights, self.result_network().state_dict())

    def result_network(self) -> nn.Module:
        """The network that is the result of the training so far, in evaluation mode."""
        return self.average.network if self.average is not None else self.network.eval()

    def _prepare(self) -> None:
        self.build()
        self.resume_or_start()

    # Details --------------------------------------------------------------------------------------------------------

    def _timed_batches(self) -> Iterator[Batch]:
        """The batches, with the time from one to the next taken, loading included."""
        start = time.perf_counter()
        for batch in prepared_ahead(start_batches(self.loader), self.prepare_batch, self.device):
            yield batch
            now = time.perf_counter()
            self.seconds += now - start
            if self.estimate.add(now - start):
                self._fix_epochs()
                self.estimate.tell()
            start = now

    def _make_gradients(self, batch: Batch) -> torch.Tensor:
        """As `accumulate_gradients`; in smaller parts where memory does not suffice."""
        while True:
            restore = leave_as_it_is
            try:
                restore = remember_state(self.network, self.device)
                return self.accumulate_gradients(batch)
            except MEMORY_FAULTS as fault:
                if not is_out_of_memory(fault):
                    raise
                self._require_no_other_ranks(fault)
                restore()
                self._halve_micro_batch(fault)

    def _save(self) -> None:
        with self._saving:
            self.save_checkpoint()

    def _bring(self, batch: Batch) -> Batch:
        return batch.to(self.device)

    def _fix_epochs(self) -> None:
        """Once, after the first steps: as many epochs as the hours allow."""
        if self._hours_to_fix is None:
            return
        seconds = self._hours_to_fix * 3600 / self.setup.commands_folds
        steps = self.sampler.order.steps
        an_epoch = self.estimate.seconds_a_step * steps * (1 + SAVING_SHARE + VALIDATION_COST * self._held_out_share())
        self.epochs = int(self.ranks.from_first(min(self.epochs, max(self.epoch + 1, int(seconds / an_epoch)))))
        self._hours_to_fix = None
        self.estimate.steps = self.setup.commands_folds * self.epochs * steps
        logger.info("%g hours allow %d epochs", self.setup.hours, self.epochs)

    def _held_out_share(self) -> float:
        return len(self.setup.validation) / len(self.setup.train)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop_signal is not None:
            if self.ranks.size > 1:
                return  # a rank that left its step would leave the others waiting in it
            raise KeyboardInterrupt
        self._stop_signal = number
        self._tell("stopping after this step ...")

    def _asked_to_stop(self) -> bool:
        """Whether a signal has reached any of the ranks, or none can any more: all stop after the same step."""
        return self.ranks.any(self._stop_signal is not None or self.ranks.is_orphan)

    def _stop(self) -> None:
        place = f"epoch {self.epoch}, step {self.step}" if self.step else f"epoch {self.epoch}"
        raise self.ranks.told_once(Stopped(f"saved after {place}: run the same command again to go on"))

    def _require_finite(self, name: str, value: float) -> None:
        if math.isfinite(value):
            return
        rows = [sample.row for sample in self.sampler.order.batch(self.epoch, self.step)]  # of every rank
        cases = sorted({self.arrays.index.rows[row].case for row in rows})
        fault = TrainingError(
            f"the {name} is {value} in epoch {self.epoch + 1}, step {self.step + 1}, with the cases "
            f"{', '.join(cases)}: look at these, or begin another run with --name and a lower --lr; the last "
            "checkpoint is kept"
        )
        raise self.ranks.told_once(fault)

    def _seed_step(self) -> None:
        """Give the network of each of several ranks its own random numbers: a function of seed, place and rank."""
        numbers = np.random.SeedSequence([self.setup.seed, self.epoch, self.step, self.ranks.rank])
        torch.manual_seed(int(numbers.generate_state(1)[0]))

    def _fits(self) -> bool:
        """Whether memory suffices for a micro-batch forward and backward; gradients are left, all else as before."""
        plan = self.setup.plan
        shape = self._rows_at_a_time(), plan.channels, *plan.input_size
        return step_fits(self.network, shape, self.device, self.setup.precision)

    def _rows_at_a_time(self) -> int:
        """The most rows that go through the network at once on any rank."""
        return min(self.micro_batch, self.ranks.largest_share(self.recipe.batch_size))

    def _require_no_other_ranks(self, fault: BaseException) -> None:
        """Alone a step is repeated in smaller parts; the other ranks are in the middle of theirs."""
        if self.ranks.size > 1:
            raise TrainingError(
                f"memory ran out on rank {self.ranks.rank} with {self._rows_at_a_time()} rows at a time on "
                f"{self.device}: run the same command again to go on, or begin anew with --restart and less --memory"
            ) from fault

    def _halve_micro_batch(self, fault: BaseException | None) -> None:
        rows_now = self._rows_at_a_time()
        smaller = [rows for rows in micro_batches(self.recipe.batch_size) if rows < rows_now]
        if not smaller:
            told = TrainingError(
                f"memory does not suffice for {rows_now} rows on {self.device}: use a smaller --width, "
                "or close other programs"
            )
            raise self.ranks.told_once(told) from fault
        self.micro_batch = smaller[0]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("memory ran out: going on with %d rows at a time", self.micro_batch)
