"""What each rank of `test_distributed.py` does: ``rank_program.py FOLDER``, with the work in ``FOLDER/work.pickle``."""

import os
import pickle
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from iaunet.console import Stopped
from iaunet.errors import IaunetError
from iaunet.trainers.distributed import Ranks, joined
from iaunet.trainers.fold_setup import FoldSetup
from iaunet.trainers.loader import start_batches
from iaunet.trainers.trainer import Trainer
from iaunet.trainers.training import TrainingOptions, train
from iaunet.workspace import DatasetFolder


def step_by_step(setup: FoldSetup, ranks: Ranks) -> dict[str, object]:
    """What the first epoch gives, step by step."""
    trainer = Trainer(replace(setup, ranks=ranks))
    trainer.build()
    trainer.resume_or_start()
    trainer.join_ranks()
    trainer.network.train()
    steps = []
    for batch in start_batches(trainer.loader):
        losses = trainer.train_step(batch)
        gradients = [p.grad.clone() for p in trainer.network.parameters() if p.grad is not None]
        means = [buffer.clone() for name, buffer in trainer.network.named_buffers() if name.endswith("running_mean")]
        steps.append({"rows": batch.rows, "losses": losses, "gradients": gradients, "means": means})
        trainer.step += 1
    return {
        "steps": steps,
        "micro_batch": trainer.micro_batch,
        "state": trainer.network.state_dict(),
        "average": trainer.average and trainer.average.network.state_dict(),
        "validation": trainer.validate(),
        "drawn next": torch.rand(3).tolist(),
    }


def ended(action) -> str:
    """How an action ends: the message of what it raises, or the exit code of a silent end."""
    try:
        action()
    except (IaunetError, Stopped) as fault:
        return str(fault)
    except SystemExit as end:
        return f"exit {end.code}"
    return "well"


class Signalled(Trainer):
    """Rank 1 is told to stop during the second step."""

    def train_step(self, batch):
        if (self.ranks.rank, self.epoch, self.step) == (1, 0, 1):
            signal.raise_signal(signal.SIGTERM)
        return super().train_step(batch)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    work = pickle.loads((folder / "work.pickle").read_bytes())
    with joined(os.environ, "cpu") as ranks:
        results: dict[str, object] = {
            f"steps {name}": step_by_step(setup, ranks) for name, setup in work["steps"].items()
        }
        for name, setup in work["fits"].items():
            trainer = Signalled if name.startswith("stopped") else Trainer
            results[name] = ended(trainer(replace(setup, ranks=ranks)).fit)
        toy = DatasetFolder(work["toy"])
        results["too many"] = ended(lambda: train(toy, "0", TrainingOptions(batch_size=1, device="cpu"), ranks))
        results["led"] = ranks.lead(lambda: "by rank 0"), ranks.from_first(ranks.rank + 5), ranks.any(ranks.rank == 1)
    torch.save(results, folder / f"rank {ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
