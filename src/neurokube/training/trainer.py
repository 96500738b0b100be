"""`neurokube train`: from annotated volumes to a model bundle."""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import Progress, TaskID

from ..allocator import keep_freed
from ..blocks import Vector
from ..errors import ConfigurationError, DataError, Drained, NeuroKubeError, UsageError, surroundings
from ..networks import Bundle, load_bundle, write_bundle
from ..networks.bundle import OwnArchitecture
from ..networks.networks import CONFIGS, config_of, fill, network_of
from ..networks.precision import fast_bfloat16
from ..networks.unet import Network, NetworkConfig
from ..progress import console, progress
from ..volumes import open_volume
from ..volumes.volume import COARSE, Nanometres
from .config import AnnotatedVolume, Training
from .module import Diverged, SemanticsModule
from .pictures import save_picture
from .sampling import Windows
from .truth import Annotated, described, load

CHECKPOINTS = "checkpoints"
_MARK = "training.json"
_KEPT = 2
_UNTOLD = {"volumes", "validation", "labels", "description", "workspace", "scratch", "cache", "loaders", "loggers"}
"""Settings that the card tells elsewhere, or that are of no use to others."""
_CONTEXT = (3, 32, 32)
"""Voxels of the image around a validation volume that the network may look at."""


def train(
    settings: Training,
    *,
    resume: bool = False,
    start: str | None = None,
    overwrite: bool = False,
    command: str = "",
    quiet: bool = False,
) -> Bundle:
    """Train a network and return its bundle, `<workspace>/<name>/model`.

    `resume` goes on from the newest whole checkpoint; what comes out is the same, on one kind of processor,
    as if nothing had happened.  `start` names a model to fine-tune: labels of the same name keep what they
    have learned, others start afresh.

    Raises:
        UsageError: where the folder holds another training, or `start` is no network of ours.
        ConfigurationError: where settings do not fit the data, or the training to go on with.
        DataError: where volumes and truth do not fit.
        NeuroKubeError: where the loss is no number any more; what was learned until then is kept.
        TryAgainError: where the disk is full.
        Drained: where it was asked to stop.
    """
    folder = Path(settings.workspace) / settings.name
    origin = None if start is None else load_bundle(start)
    # on several devices the same command runs once for each
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    identity = _identity(settings, origin)
    if first:
        _check_folder(folder, identity, resume=resume, overwrite=overwrite)
    keep_freed()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    seed_everything(settings.seed, workers=True, verbose=False)
    labels, voxel_size, config = _architecture(settings, origin)
    window = _window(settings, config, voxel_size, origin)
    scratch = settings.scratch if settings.cache == "scratch" else None
    with progress(quiet=quiet or not first) as bars:
        volumes = _loaded(settings.volumes, labels, voxel_size, scratch, window, bars)
        validation = [
            load(entry, labels, voxel_size, scratch=scratch, context=_CONTEXT) for entry in settings.validation
        ]
        windows = Windows(
            volumes,
            len(labels),
            window,
            seed=settings.seed,
            balance=settings.balance,
            augmentation=settings.augmentation,
        )
        network = _network(config, labels, origin)
        rare = _positive_weights(volumes, labels, settings.positive_weight)
        rate = 3e-3 if origin is None else 1e-3
        module = SemanticsModule(settings, network, labels, windows, validation, rare, rate)
        keeper = _Keeper(folder, settings, bars)
        if first and not resume:
            # only here, where the data is known to fit, an earlier training is given up
            _claim(folder, identity)
        trainer = _trainer(settings, folder, keeper)

        def finish() -> Bundle:
            weights = keeper.best(module)
            card = _card(settings, origin, module, voxel_size, volumes, command, keeper.total)
            return write_bundle(folder / "model", card, weights)

        try:
            _fit(trainer, module, keeper.newest() if resume else None)
            if not trainer.is_global_zero:
                sys.exit()
            return finish()
        except Diverged as error:
            remedy = f"lower learning_rate (now {module.learning_rate:g})"
            if not keeper.has_best:
                raise NeuroKubeError(f"{folder}: {error}; {remedy} and start again with --overwrite") from None
            raise NeuroKubeError(
                f"{folder}: {error}; what it had learned until then is kept as {finish().folder}: "
                f"{remedy} and go on from that by --from under another name, or start again with --overwrite"
            ) from None
        except OSError as error:
            raise surroundings(error, str(folder)) or error from None


def _fit(trainer: Trainer, module: SemanticsModule, checkpoint: str | None) -> None:
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


def _identity(settings: Training, origin: Bundle | None) -> dict[str, Any]:
    """Return what must be the same for a training to be gone on with."""
    document = {
        "training": settings.model_dump(mode="json", exclude={"patience", "loggers", "loaders", "scratch", "cache"}),
        "from": origin.card.sha256 if origin else None,
    }
    return {"key": hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16], **document}


def _check_folder(folder: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds what must not be replaced, or nothing or another training to go on with."""
    mark = folder / _MARK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume and not overwrite and mark.exists():
            raise UsageError(
                f"{folder}: holds a training already; go on with it by --resume, replace it by --overwrite, "
                "or choose another name"
            )
        if resume and not mark.exists():
            raise UsageError(f"{folder}: nothing to resume there; start without --resume")
        if resume and json.loads(mark.read_text()).get("key") != identity["key"]:
            raise ConfigurationError(
                f"{folder}: was trained with other settings or another --from; put them back, "
                "or start anew with --overwrite"
            )
    except OSError as error:
        raise surroundings(error, str(folder)) or UsageError(f"{folder}: {error.strerror}") from None
    except json.JSONDecodeError:
        raise DataError(f"{mark}: damaged; start anew with --overwrite") from None


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Say in a folder what is trained there; an earlier training goes."""
    try:
        if (folder / _MARK).exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).write_text(json.dumps(identity, indent=2))
    except OSError as error:
        raise surroundings(error, str(folder)) or UsageError(f"{folder}: {error.strerror}") from None


def _architecture(settings: Training, origin: Bundle | None) -> tuple[tuple[str, ...], Nanometres, NetworkConfig]:
    labels = settings.all_labels
    first = open_volume(settings.volumes[0].image).spec.voxel_size
    if origin is None:
        voxel_size = settings.voxel_size or first
        made = CONFIGS[settings.network or "unet"]
        features = made.sizes[settings.size] if isinstance(settings.size, str) else settings.size
        return labels, voxel_size, made.fitting(voxel_size, len(labels), features)
    if not isinstance(origin.card.architecture, OwnArchitecture) or origin.card.channels != 1:
        raise UsageError(f"{origin.folder}: a model from elsewhere; only this program's own networks can be trained on")
    if settings.network not in (None, kind := origin.card.architecture.kind):
        raise ConfigurationError(f"network: {settings.network}, but {origin.folder} is of kind {kind}; leave it out")
    voxel_size = settings.voxel_size or origin.card.voxel_size
    config = config_of(origin.card).model_copy(update={"labels": len(labels)})
    return labels, voxel_size, config


def _window(settings: Training, config: NetworkConfig, voxel_size: Nanometres, origin: Bundle | None) -> Vector:
    window = settings.window
    if window is None and origin is not None:
        window = origin.card.window
    if window is None:
        window = (8, 160, 160) if voxel_size[0] / min(voxel_size[1:]) >= COARSE else (64, 64, 64)
        window = cast(Vector, tuple(-(-w // f) * f for w, f in zip(window, config.factor, strict=True)))
    if odd := [f for w, f in zip(window, config.factor, strict=True) if w % f]:
        raise ConfigurationError(f"window: {window} must be multiples of {config.factor}; {odd[0]} does not fit")
    return window


def _loaded(
    entries: Sequence[AnnotatedVolume],
    labels: Sequence[str],
    voxel_size: Nanometres,
    scratch: str | None,
    window: Vector,
    bars: Progress,
) -> list[Annotated]:
    bar = bars.add_task("reading", total=len(entries), unit="volumes")
    volumes = []
    for entry in entries:
        volumes.append(load(entry, labels, voxel_size, scratch=scratch, at_least=window))
        bars.advance(bar)
    return volumes


def _network(config: NetworkConfig, labels: Sequence[str], origin: Bundle | None) -> Network:
    network = network_of(config)
    with torch.no_grad():
        # rare labels start as rare
        cast(torch.Tensor, network.head.bias).fill_(-2.0)
    if origin is None:
        return network
    known = network_of(config_of(origin.card))
    fill(known, origin)
    state = network.state_dict()
    for name, tensor in known.state_dict().items():
        if not name.startswith("head."):
            state[name] = tensor
            continue
        for k, label in enumerate(labels):
            if label in origin.card.labels:
                state[name][k] = tensor[origin.card.labels.index(label)]
    network.load_state_dict(state)
    return network


def _positive_weights(volumes: Sequence[Annotated], labels: Sequence[str], largest: float) -> torch.Tensor:
    counts = np.sum([volume.counts(len(labels)) for volume in volumes], axis=0).astype(float)
    if empty := [label for label, (_, positive) in zip(labels, counts, strict=True) if not positive]:
        raise DataError(
            f"labels: no voxel of any volume is '{empty[0]}'; check its 'values' and 'region', or leave it out"
        )
    ratio = np.sqrt(counts[:, 0] / np.maximum(1, counts[:, 1]))
    return torch.tensor(np.clip(ratio, 1, largest), dtype=torch.float32)


def _trainer(settings: Training, folder: Path, keeper: "_Keeper") -> Trainer:
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
    several = torch.cuda.device_count() if devices == -1 else int(devices)
    return Trainer(
        accelerator="gpu" if graphics else "cpu",
        devices=devices,
        strategy="ddp" if several > 1 else "auto",
        precision="bf16-mixed" if half else "32-true",
        max_epochs=-(-settings.steps // settings.interval),
        reload_dataloaders_every_n_epochs=1,
        deterministic=not graphics,
        logger=_loggers(settings, folder),
        callbacks=[keeper],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        gradient_clip_val=1.0,
        default_root_dir=folder,
    )


def _loggers(settings: Training, folder: Path) -> list[Any]:
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


class _Keeper(Callback):
    """Progress for a person, checkpoints, validation, pictures, early stopping."""

    def __init__(self, folder: Path, settings: Training, bars: Progress) -> None:
        self._folder = folder
        self._settings = settings
        self._bars = bars
        self._bar: TaskID | None = None
        self._best = -1.0
        self._stale = 0
        self._history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._began = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "best": self._best,
            "stale": self._stale,
            "history": self._history,
            "seconds": self.total,
        }

    @property
    def total(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds + time.monotonic() - self._began

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._best, self._stale, self._history = state["best"], state["stale"], state["history"]
        self.seconds = state["seconds"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the bar; a training that had ended early stays ended."""
        trainer.should_stop = self._enough
        self._began = time.monotonic()
        self._bar = self._bars.add_task(
            "training", total=self._settings.steps, unit="steps", completed=trainer.global_step
        )

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Move the bar."""
        assert isinstance(module, SemanticsModule) and self._bar is not None
        score = f", F1 {module.score:.3f}" if module.score == module.score else ""
        self._bars.update(self._bar, completed=trainer.global_step, description=f"loss {module.last_loss:.3f}{score}")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Validate, picture, keep; all of it before the next window is drawn."""
        assert isinstance(module, SemanticsModule)
        if trainer.is_global_zero:
            self._look(trainer, module)
        trainer.should_stop = trainer.strategy.broadcast(self._enough)
        self._keep(trainer)

    @property
    def _enough(self) -> bool:
        patience = self._settings.patience
        return patience is not None and self._stale >= patience

    def _look(self, trainer: Trainer, module: SemanticsModule) -> None:
        module.check_weights()
        step = trainer.global_step
        score = module.validate_now()
        entry = {"step": step, "seconds": round(self.total, 1), "loss": module.last_loss, "f1": score}
        if score is not None:
            entry |= {
                f"f1/{n}": round(float(c.f1[c.best]), 4)
                for n, c in zip(module.labels, module.curves, strict=True)
                if c.known
            }
        self._history.append(entry)
        # in MLflow's store, names are paths: f1 cannot stand beside f1/<label>
        figures = {"mean_f1" if k == "f1" else k: v for k, v in entry.items() if v is not None}
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in figures.items() if k not in ("step", "seconds")}, step)
        self._picture(module, step)
        better = score is None or score > self._best
        self._best = score if score is not None and better else self._best
        self._stale = 0 if better else self._stale + 1
        if better:
            # by way of memory: on a full disk torch.save itself raises what cannot be told from a bug
            content = BytesIO()
            torch.save(_best_state(module, step), content)
            part = self._best_file.with_suffix(".part")
            part.write_bytes(content.getvalue())
            part.replace(self._best_file)
        history = "\n".join(json.dumps(row) for row in self._history) + "\n"
        (self._folder / "history.jsonl").write_text(history)

    def _picture(self, module: SemanticsModule, step: int) -> None:
        if not module.annotated:
            return
        volume = module.annotated[0]
        bits = np.arange(len(module.labels), dtype=np.uint32)[:, None, None]
        truth = (volume.positive[volume.middle] >> bits) & 1 == 1
        thresholds = [curve.best if curve.known else 128 for curve in module.curves]
        path = self._folder / "pictures" / f"step-{step:06d}.png"
        save_picture(path, volume.image[volume.middle], module.section, truth, thresholds)

    def _keep(self, trainer: Trainer) -> None:
        path = self._folder / CHECKPOINTS / f"step-{trainer.global_step:08d}.ckpt"
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

    def best(self, module: SemanticsModule) -> dict[str, torch.Tensor]:
        """Return the weights of the best step, and leave its curves in the module."""
        from ..evaluation.curves import Curve

        state = torch.load(self._best_file, map_location="cpu", weights_only=True)
        module.curves = [Curve(counts.numpy()) for counts in state["curves"]]
        return cast(dict[str, torch.Tensor], state["weights"])


def _best_state(module: SemanticsModule, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "weights": {name: tensor.detach().cpu().clone() for name, tensor in module.result.state_dict().items()},
        "curves": [torch.from_numpy(curve.counts) for curve in module.curves],
    }


def _damage(path: Path) -> str | None:
    """Return why a file of weights cannot be used, None where it can."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return "missing"
    except Exception as error:
        return f"damaged ({type(error).__name__})"
    return None


def _card(
    settings: Training,
    origin: Bundle | None,
    module: SemanticsModule,
    voxel_size: Nanometres,
    volumes: Sequence[Annotated],
    command: str,
    seconds: float,
) -> dict[str, Any]:
    network, window = module.result, module.windows.window
    known = [(label, curve) for label, curve in zip(module.labels, module.curves, strict=True) if curve.known]
    f1 = {label: round(float(curve.f1[curve.best]), 4) for label, curve in known}
    normal = [volume.normalization for volume in volumes]
    return {
        "name": settings.name,
        "description": settings.description,
        "licence": settings.licence,
        "architecture": network.config.architecture,
        "labels": module.labels,
        "voxel_size": voxel_size,
        "modality": settings.modality or (origin.card.modality if origin else None),
        "trained_normalization": {
            "mean": round(float(np.mean([n.mean for n in normal])), 3),
            "deviation": round(float(np.mean([n.deviation for n in normal])), 3),
        },
        "window": window,
        "multiple": network.config.factor,
        "halo": halo_of(network.config, window),
        "thresholds": {label: round(curve.best / 255, 4) for label, curve in known},
        "scores": {"validation": {"f1": f1}} if f1 else {},
        "training": {
            "command": command,
            "from": {"name": origin.card.name, "sha256": origin.card.sha256} if origin else None,
            "data": described(volumes, module.labels),
            "settings": settings.model_dump(mode="json", exclude=_UNTOLD),
            "seconds": round(seconds, 1),
            "torch": torch.__version__,
        },
    }


def halo_of(config: NetworkConfig, window: Vector) -> Vector:
    """Return the faces of a window to leave to its neighbours: a quarter of the receptive field, but not too much.

    What a voxel depends on falls off quickly from it (Luo et al., NeurIPS 2016: the effective receptive field):
    the theoretical field, several times as wide, would leave little of a window.
    """
    z, y, x = (min(-(-r // 4), (w - 1) // 2) for r, w in zip(config.receptive_field, window, strict=True))
    return z, y, x
