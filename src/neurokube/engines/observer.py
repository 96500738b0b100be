"""What a driver and its engine tell, while a run goes on, to whoever watches; they know nothing of who does."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Mishap = Literal["eviction", "death", "memory", "storage", "cpu"]
"""A pod that had to go, a pod or process that died, a batch that runs again with more memory, storage or CPU."""


@dataclass(frozen=True)
class Pod:
    """A pod that has not ended: its node, "" while it has none, and what it asks for: cores, bytes, devices."""

    name: str
    node: str = ""
    running: bool = False
    cpu: float = 0.0
    memory: int = 0
    gpus: int = 0


class Observer:
    """Is told what happens; this one does not listen.  Steps are named `stage/step`.

    Several threads may call the methods, for several steps at once.
    """

    watches_pods = False
    """Whether `pods` and what becomes of them are worth requests to a cluster."""

    @contextmanager
    def at_work(self, step: str) -> Iterator[None]:
        """Surround the work on a step."""
        yield

    def working(self, step: str, running: int, waiting: int = 0) -> None:
        """Note how many pods or processes of a step run, and how many batches or pods wait for a place."""

    def pods(self, step: str, pods: Sequence[Pod]) -> None:
        """Note the pods of a step: all that have not ended."""

    def happened(self, step: str, what: Mishap, number: int = 1) -> None:
        """Note mishaps of a step."""
