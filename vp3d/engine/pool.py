"""What runs independent items: this process, others of this machine, or Ray.

`batch`, the suites of `evaluate` and the claims take one `Pool` each and differ only in what is
done with an item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vp3d.engine.local import in_processes
from vp3d.engine.ray_tasks import LOCAL, check_ray, in_ray
from vp3d.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pool:
    """Processes that take items.

    Attributes:
        workers: how many; 1 of the engine "local" is this process.
        engine: "local" for processes of this machine, or "ray".
        address: the Ray cluster; "local" starts Ray on this machine.
        gpus: the share of a GPU that a Ray task takes.
        restarts: local: how often in a row a killed process is replaced; None for no limit.
            Ray has none.
    """

    workers: int = 1
    engine: str = "local"
    address: str = LOCAL
    gpus: float = 0.0
    restarts: int | None = 0

    def check(self, memory_gb: float) -> None:
        """Refuse what cannot work.

        Args:
            memory_gb: `cuda.memory_gb` of what is run.

        Raises:
            UserError: Ray is missing, or a share of a GPU has no share of its memory.
        """
        if self.engine != "ray":
            return
        check_ray()
        if 0.0 < self.gpus < 1.0 and not memory_gb:
            raise UserError(
                f"--gpus {self.gpus:g} puts several runs on a GPU, but Ray does not divide its "
                "memory: say how much each may take, as cuda.memory_gb=8"
            )

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], logs: Path
    ) -> Iterable[Result]:
        """`map(work, items)`, in the order in which they finish.

        Args:
            work: what is done with an item; it and the items are pickled unless this process does
                it.
            items: the items.
            logs: the folder of the output of local processes.
        """
        if not items:
            return ()
        if self.engine == "ray":
            return in_ray(work, items, self.workers, self.address, self.gpus)
        if self.workers == 1:
            return map(work, items)
        return in_processes(work, items, logs, self.workers, self.restarts)


ALONE = Pool()  # this process
