"""What runs work on many processes or machines: which engines there are, and what each can be told."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, TypeVar

from iaunet.engines.tasks import EngineError, Task
from iaunet.errors import IaunetError

ENGINES = {
    "ray": "iaunet.engines.ray_cluster:RayEngine",
    "slurm": "iaunet.engines.slurm:SlurmEngine",
}
"""What makes each engine of its options and a folder for its own files. Each needs the extra of its name."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Runs functions in other processes, most often on other machines that share this one's disk."""

    def run(
        self,
        function: Callable[[Item], Result],
        tasks: Sequence[Task[Item]],
        on_gpu: bool,
        begin: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Task[Item], Result | IaunetError]]:
        """Call a function for each task, each in a process that has its share of processors and GPUs.

        A process that is killed is replaced, and its task begun again: functions must go on from their files.

        Args:
            function: A function of a module that can be imported there.
            tasks: What to call it with.
            on_gpu: Whether a task is given a GPU where there are any and the user did not say how many.
            begin: Called here once, when the engine is reached and before the first task is begun.

        Yields:
            Each task as it ends, with its result, or with the fault that the user can mend. Other exceptions of the
            function reach the caller.

        Raises:
            EngineError: The engine cannot be reached, or its package is not installed.
        """


def find_engine(name: str, given: Mapping[str, object], folder: Path) -> Engine:
    """The engine of a name in `ENGINES`.

    Args:
        name: The name.
        given: Its options by name: see `iaunet.engines.ray_cluster.RayOptions`, `iaunet.engines.slurm.SlurmOptions`.
        folder: Where it may keep its own files, on a disk that all machines share.

    Raises:
        EngineError: The name is not known.
        FieldError: An option is not known or cannot be as given.
    """
    if name not in ENGINES:
        raise EngineError(f"there is no engine {name!r}: choose among {', '.join(ENGINES)}")
    module, _, builder = ENGINES[name].partition(":")
    made: Engine = getattr(import_module(module), builder)(given, folder)
    return made
