"""What is kept of a training as it goes on: checkpoints, the best step, history, pictures; and a bar to watch.

Asked to stop (SIGTERM, Ctrl-C), a training ends the step at hand, and keeps a checkpoint, from which it goes on as if
nothing had been.  A validation is broken off, and made when the training goes on.
"""

import json
import signal
import time
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import Progress, TaskID

from ..progress import console
from .config import Schedule
from .folder import CHECKPOINTS
from .learner import Learner

_KEPT = 2


class _BrokenOff(BaseException):
    """Asked to stop during a validation."""


class Keeper(Callback):
    """Progress for a person, checkpoints, validation, pictures, early stopping."""

    def __init__(self, folder: Path, settings: Schedule, bars: Progress) -> None:
        self._folder = folder
        self._settings = settings
        self._bars = bars
        self._bar: TaskID | None = None
        self._best = float("-inf")
        self._stale = 0
        self._alarmed = False
        self._history: list[dict[str, Any]] = []
        self._looked = 0
        self._asked = self._validating = False
        self.stopped: int | None = None
        """The step after which the training was asked to stop, and stopped."""
        self.seconds = 0.0
        self._began = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "best": self._best,
            "stale": self._stale,
            "alarmed": self._alarmed,
            "history": self._history,
            "looked": self._looked,
            "seconds": self.total,
        }

    @property
    def total(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds + time.monotonic() - self._began

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._best, self._stale, self._history = state["best"], state["stale"], state["history"]
        self._alarmed = state.get("alarmed", False)
        # in checkpoints of earlier versions every step that is kept was looked at
        self._looked = state.get("looked", self._history[-1]["step"] if self._history else 0)
        self.seconds = state["seconds"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the bar; a training that had ended early stays ended."""
        assert isinstance(module, Learner)
        self._began = time.monotonic()
        self._bar = self._bars.add_task("training", total=self._settings.steps, unit="steps", completed=module.step)
        # in place of Lightning's, which ends a training without a checkpoint, and of what raises where it is
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        self._weigh(trainer, module)

    def _ask(self, *_: Any) -> None:
        """Take note of a signal; who asks twice does not want to wait for the step."""
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if self._validating:
            raise _BrokenOff

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Move the bar."""
        assert isinstance(module, Learner) and self._bar is not None
        score = f", {module.measure} {module.score:.3f}" if module.score == module.score else ""
        self._bars.update(self._bar, completed=module.step, description=f"loss {module.last_loss:.3f}{score}")
        # whichever of several devices was asked, all end after the same step
        trainer.should_stop = self._asked = trainer.strategy.reduce_boolean_decision(self._asked, all=False)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Validate, picture, keep; all of it before the next window is drawn."""
        assert isinstance(module, Learner)
        self._weigh(trainer, module)
        self._keep(trainer, module)

    def _weigh(self, trainer: Trainer, module: Learner) -> None:
        """Validate, where that is due, and say whether the training ends here."""
        steps, step = self._settings.steps, module.step
        due = step > self._looked and (step % self._settings.interval == 0 or step >= steps)
        if due and trainer.is_global_zero and not self._asked:
            self._look(trainer, module)
        looked, self._asked = trainer.strategy.broadcast((self._looked, self._asked))
        self._looked = looked
        if self._asked and not (step >= steps and looked == step):
            self.stopped = step
        trainer.should_stop = trainer.strategy.broadcast(self._enough) or self._asked or step >= steps

    @property
    def _enough(self) -> bool:
        patience = self._settings.patience
        return patience is not None and self._stale >= patience

    def _look(self, trainer: Trainer, module: Learner) -> None:
        module.check_weights()
        step = module.step
        try:
            self._validating = True
            score = module.validate_now()
        except _BrokenOff:
            return
        finally:
            self._validating = False
        self._looked = step
        entry = {"step": step, "seconds": round(self.total, 1), "loss": module.last_loss, **module.figures()}
        self._history.append(entry)
        # in MLflow's store, names are paths: f1 cannot stand beside f1/<label>
        figures = {"mean_f1" if k == "f1" else k: v for k, v in entry.items() if v is not None}
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in figures.items() if k not in ("step", "seconds")}, step)
        self._tell(entry)
        module.picture(self._folder / "pictures" / f"step-{step:06d}.png")
        alarm = module.alarm()
        better = alarm is None and (score is None or score > self._best)
        self._best = score if score is not None and better else self._best
        if alarm is None:
            self._stale = 0 if better else self._stale + 1
        if better:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in module.result.state_dict().items()}
            # by way of memory: on a full disk torch.save itself raises what cannot be told from a bug
            content = BytesIO()
            torch.save({"step": step, "weights": weights, **module.kept()}, content)
            part = self._best_file.with_suffix(".part")
            part.write_bytes(content.getvalue())
            part.replace(self._best_file)
        history = "\n".join(json.dumps(row) for row in self._history) + "\n"
        (self._folder / "history.jsonl").write_text(history)
        if alarm is not None and (self._alarmed or step >= self._settings.steps):
            raise alarm
        self._alarmed = alarm is not None

    def _tell(self, entry: dict[str, Any]) -> None:
        """Print a line where no bar is seen, as in a pod."""
        if not console.is_terminal and not self._bars.disable:
            score = f", {name} {entry[name]:.4f}" if (name := _score_of(entry)) else ""
            console.print(
                f"step {entry['step']} of {self._settings.steps}, loss {entry['loss']:.4f}{score}, "
                f"{entry['seconds']:.0f} s",
                soft_wrap=True,
            )

    def _keep(self, trainer: Trainer, module: Learner) -> None:
        path = self._folder / CHECKPOINTS / f"step-{module.step:08d}.ckpt"
        part = path.with_suffix(".part")
        # all processes take part in it, the first one writes
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            part.replace(path)
            for old in sorted(path.parent.glob("step-*.ckpt"))[:-_KEPT]:
                old.unlink()

    def newest(self) -> str | None:
        """Return the newest checkpoint that is whole; None where there is none: a start from step 0."""
        tell = rank_zero_only(console.print)
        paths = sorted((self._folder / CHECKPOINTS).glob("step-*.ckpt"), reverse=True)
        if paths and (damage := _damage(self._best_file)):
            # what was best until then has to be found again
            tell(f"[yellow]{self._best_file}: {damage}[/]", soft_wrap=True)
            paths = []
        for path in paths:
            if (damage := _damage(path)) is None:
                return str(path)
            tell(f"[yellow]{path}: {damage}; the one before it is used[/]", soft_wrap=True)
        tell("no checkpoint that can be used: the training starts from step 0")
        return None

    @property
    def _best_file(self) -> Path:
        return self._folder / "best.pt"

    @property
    def has_best(self) -> bool:
        """Whether anything was learned that can be kept."""
        return self._best_file.exists()

    def best(self, module: Learner) -> dict[str, torch.Tensor]:
        """Return the weights of the best step, and put back into the module what else was kept of it."""
        state = torch.load(self._best_file, map_location="cpu", weights_only=True)
        module.recall(state)
        return cast(dict[str, torch.Tensor], state["weights"])


def _score_of(entry: dict[str, Any]) -> str:
    """Return the name of the figure that counts, "" where there is none."""
    return next((name for name in ("f1", "psnr") if entry.get(name) is not None), "")


def _damage(path: Path) -> str | None:
    """Return why a file of weights cannot be used, None where it can."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return "missing"
    except Exception as error:
        return f"damaged ({type(error).__name__})"
    return None
