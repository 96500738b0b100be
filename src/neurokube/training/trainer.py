"""`neurokube train`: from volumes to a model bundle, whatever the task."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import Progress

from ..allocator import keep_freed
from ..errors import ConfigurationError, Drained, NeuroKubeError, surroundings
from ..networks import Bundle, load_bundle, write_bundle
from ..networks.precision import fast_bfloat16
from ..progress import progress
from ..words import counted
from . import semantics
from .config import AnyTraining, Superresolution, Training
from .folder import MARK, check_folder, claim, identity_of
from .images import superresolution, translation
from .keeper import Keeper
from .learner import Diverged, Learner

_UNTOLD = {
    *("volumes", "validation", "targets", "fine", "segmentation", "labels", "description"),
    *("workspace", "scratch", "cache", "loaders", "loggers"),
}
"""Settings that the card tells elsewhere, or that are of no use to others."""


def train(
    settings: AnyTraining,
    *,
    resume: bool | None = False,
    start: str | None = None,
    overwrite: bool = False,
    command: str = "",
    quiet: bool = False,
) -> Bundle:
    """Train a network and return its bundle, `<workspace>/<name>/model`.

    `resume` goes on from the newest whole checkpoint; what comes out is the same, on one kind of processor,
    as if nothing had happened; None: where there is something to go on with.  `start` names a model to fine-tune:
    labels of the same name keep what they have learned, others start afresh.

    Raises:
        UsageError: where the folder holds another training, or `start` is no network of ours for the task.
        ConfigurationError: where settings do not fit the data, or the training to go on with.
        DataError: where volumes and truth do not fit.
        NeuroKubeError: where the loss is no number any more, or a GAN collapsed; what was learned until then is kept.
        TryAgainError: where the disk is full.
        Drained: where it was asked to stop.
    """
    folder = Path(settings.workspace) / settings.name
    origin = None if start is None else load_bundle(start)
    # on several devices the same command runs once for each
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    identity = identity_of(settings, origin)
    if resume is None:
        resume = (folder / MARK).exists()
    if first:
        check_folder(folder, identity, resume=resume, overwrite=overwrite)
    keep_freed()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    seed_everything(settings.seed, workers=True, verbose=False)
    with progress(quiet=quiet or not first) as bars:
        module = _prepare(settings, origin, bars)
        keeper = Keeper(folder, settings, bars)
        if first and not resume:
            # only here, where the data is known to fit, an earlier training is given up
            claim(folder, identity)
        trainer = _trainer(settings, folder, keeper, module)

        def finish() -> Bundle:
            weights = keeper.best(module)
            card = _card(settings, origin, module, command, keeper.total)
            return write_bundle(folder / "model", card, weights)

        try:
            _fit(trainer, module, keeper.newest() if resume else None)
            if not trainer.is_global_zero:
                sys.exit()
            if keeper.stopped is not None:
                raise Drained(
                    f"{folder}: stopped after step {keeper.stopped}; the same command with --resume goes on from there"
                )
            return finish()
        except Diverged as error:
            remedy = error.remedy or f"lower learning_rate (now {module.learning_rate:g})"
            if not keeper.has_best:
                raise NeuroKubeError(f"{folder}: {error}; {remedy} and start again with --overwrite") from None
            raise NeuroKubeError(
                f"{folder}: {error}; what it had learned until then is kept as {finish().folder}: "
                f"{remedy} and go on from that by --from under another name, or start again with --overwrite"
            ) from None
        except OSError as error:
            raise surroundings(error, str(folder)) or error from None


def _fit(trainer: Trainer, module: Learner, checkpoint: str | None) -> None:
    try:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        # Lightning makes an exit of the one
        raise Drained(
            f"{trainer.default_root_dir}: stopped; the same command with --resume goes on from the last checkpoint"
        ) from None
    except BaseException:
        if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
            # the other devices would wait for this one
            launcher.kill(signal.SIGKILL)
        raise


def _prepare(settings: AnyTraining, origin: Bundle | None, bars: Progress) -> Learner:
    if isinstance(settings, Training):
        return semantics.prepare(settings, origin, bars)
    if isinstance(settings, Superresolution):
        return superresolution.prepare(settings, origin, bars)
    return translation.prepare(settings, origin, bars)


def _trainer(settings: AnyTraining, folder: Path, keeper: Keeper, module: Learner) -> Trainer:
    import logging
    import warnings

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    # of several devices: a remark on speed, for kernels of one voxel
    warnings.filterwarnings("ignore", message="Grad strides do not match")
    graphics = torch.cuda.is_available()
    half = settings.precision == "bfloat16" or (settings.precision == "auto" and fast_bfloat16())
    devices: Any = settings.devices if settings.devices != "auto" else (-1 if graphics else 1)
    if not module.automatic_optimization:
        # each device would have an image buffer of its own
        devices = 1
    several = torch.cuda.device_count() if devices == -1 else int(devices)
    if graphics:
        if several > torch.cuda.device_count():
            raise ConfigurationError(
                f"devices: {several}, but here {'is' if torch.cuda.device_count() == 1 else 'are'} "
                f"{counted(torch.cuda.device_count(), 'GPU')}; leave it out to use all there are"
            )
        # whatever a prediction in the same process has set, as it is by default
        torch.backends.cudnn.allow_tf32 = True
        # of a maximum the gradient has no deterministic implementation; where windows do not overlap it needs none
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
    return Trainer(
        accelerator="gpu" if graphics else "cpu",
        devices=devices,
        strategy="ddp" if several > 1 else "auto",
        precision="bf16-mixed" if half else "32-true",
        # the keeper says when to stop: how many epochs there are depends on how often it was stopped
        max_epochs=-1,
        reload_dataloaders_every_n_epochs=1,
        deterministic="warn" if graphics else True,
        logger=_loggers(settings, folder),
        callbacks=[keeper],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        gradient_clip_val=1.0 if module.automatic_optimization else None,
        default_root_dir=folder,
    )


def _loggers(settings: AnyTraining, folder: Path) -> list[Any]:
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger

    # plain files need no database, but mlflow wants to be told that they are meant; nor need others hear of a training
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    makers: dict[str, Any] = {
        "tensorboard": lambda: TensorBoardLogger(folder, name="tensorboard", version=""),
        "mlflow": lambda: MLFlowLogger(
            settings.name,
            run_name=settings.name,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", f"file:{folder}/mlflow"),
        ),
    }
    try:
        return [makers[name]() for name in settings.loggers]
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"loggers: {error.name} is not installed; pip install 'neurokube[train]'") from None


def _card(
    settings: AnyTraining, origin: Bundle | None, module: Learner, command: str, seconds: float
) -> dict[str, Any]:
    return {
        "name": settings.name,
        "description": settings.description,
        "licence": settings.licence,
        "voxel_size": module.voxel_size,
        "modality": settings.modality or (origin.card.modality if origin else None),
        **module.card(),
        "training": {
            "command": command,
            "from": {"name": origin.card.name, "sha256": origin.card.sha256} if origin else None,
            "data": module.data(),
            "settings": settings.model_dump(mode="json", exclude=_UNTOLD),
            "seconds": round(seconds, 1),
            "torch": torch.__version__,
        },
    }
