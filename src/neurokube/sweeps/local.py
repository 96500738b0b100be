"""Trials as processes of this machine, several at once."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import Drained, TryAgainError
from ..machine import cores
from .remote import ATTEMPTS
from .spec import Sweep
from .trials import Trials, name_of

_INTERVAL = 0.2


class LocalTrials:
    """Makes trials by `workers` processes; each has its own threads, and one GPU where there are several."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers
        self._devices = 0

    def means(self, sweep: Sweep) -> dict[str, Any]:
        """Return what each training may use; the same however many workers there are, as results depend on it."""
        self._devices = _devices()
        return {"threads": sweep.base.threads or max(1, cores() // sweep.round), "devices": sweep.devices(1)}

    def make(
        self, trials: Trials, numbers: Sequence[int], threads: int, stop: Callable[[], bool], look: Callable[[], None]
    ) -> None:
        """Make trials until each has a result.

        Raises:
            Drained: where `stop` asked to; trainings kept checkpoints.
            TryAgainError: where the surroundings failed.
        """
        workers = self._workers or self._devices or max(1, cores() // threads)
        waiting, deaths = list(numbers), Counter[int]()
        slots = list(range(min(workers, len(waiting))))
        going: dict[int, tuple[subprocess.Popen[bytes], int]] = {}
        try:
            while waiting or going:
                if stop():
                    raise Drained(f"{trials.folder}: stopped; run again to go on")
                while waiting and slots:
                    number, slot = waiting.pop(0), slots.pop(0)
                    going[number] = self._begun(trials.folder, number, slot), slot
                for number, (process, slot) in list(going.items()):
                    if (code := process.poll()) is None:
                        continue
                    del going[number]
                    slots.append(slot)
                    if trials.open([number]) and not self._weighed(trials, number, code, deaths):
                        waiting.insert(0, number)
                look()
                time.sleep(_INTERVAL)
        finally:
            for process, _ in going.values():
                process.terminate()
            for process, _ in going.values():
                process.wait()

    def _weighed(self, trials: Trials, number: int, code: int, deaths: "Counter[int]") -> bool:
        """Note what became of a trial whose process left no result; return whether that is its end."""
        if code == Drained.exit_code:
            # somebody else asked it to stop
            return False
        said = _last_line(trials.folder / name_of(number) / "log.txt") or f"exit code {code}"
        if code == TryAgainError.exit_code:
            raise TryAgainError(f"trial {number}: {said}")
        deaths[number] += 1
        if deaths[number] < ATTEMPTS:
            return False
        why = f"killed by signal {-code}" if code < 0 else said
        trials.fail(number, f"its process died {ATTEMPTS} times: {why}")
        return True

    def _begun(self, folder: Path, number: int, slot: int) -> "subprocess.Popen[bytes]":
        environment = dict(os.environ)
        if self._devices > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % self._devices)
        command = [sys.executable, "-m", "neurokube", "trial", str(folder), str(number), "--driver", str(os.getpid())]
        with (folder / name_of(number) / "log.txt").open("ab") as log:
            # in a session of its own, Ctrl-C reaches it by way of its driver only
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )


def _devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1].removeprefix("neurokube: ") if lines else ""
