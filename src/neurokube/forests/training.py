"""`neurokube train` of a forest: from annotated fragment graphs to a bundle.

A random forest learns from the statistics of edges whether they are boundaries (Andres et al., MICCAI 2008; Beier et
al., Nature Methods 14:101, 2017).  scikit-learn grows it; what is kept are flat arrays (`networks.forest`).
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import log_loss, precision_recall_curve, roc_auc_score

from ..engines.base import Engine
from ..errors import ConfigurationError, DataError, UsageError
from ..machine import cores
from ..networks.bundle import ForestBundle, write_forest
from ..networks.forest import Forest
from ..networks.proposal import fits
from ..progress import console
from ..stages.features import feature_names
from ..training.config import ForestTraining, GraphVolume
from ..training.folder import MARK, claim
from ..volumes.volume import nanometres
from ..words import counted
from .edges import AnnotatedGraph, check_channels, load

_UNTOLD = {"volumes", "validation", "description", "licence", "workspace", "threads"}
"""Settings that the card tells elsewhere, or that are of no use to others."""


def train_forest(
    settings: ForestTraining,
    engine: Callable[[], Engine],
    *,
    overwrite: bool = False,
    command: str = "",
    quiet: bool = False,
) -> ForestBundle:
    """Train a forest and return its bundle, `<workspace>/<name>/model`; the same settings give the same bytes.

    `engine` makes what computes the graphs of workflows.

    Raises:
        UsageError: where the folder holds another training.
        ConfigurationError: where a run has no graph, or graphs do not fit together.
        DataError: where truth does not fit, or all edges are of one class.
    """
    folder, started = Path(settings.workspace) / settings.name, time.monotonic()
    if (folder / MARK).exists() and not overwrite:
        raise UsageError(f"{folder}: holds a training already; replace it by --overwrite, or choose another name")

    def loaded(entries: Sequence[GraphVolume]) -> list[AnnotatedGraph]:
        smallest, share = settings.smallest, settings.share
        return [load(entry, smallest=smallest, share=share, engine=engine, quiet=quiet) for entry in entries]

    volumes, validation = loaded(settings.volumes), loaded(settings.validation)
    channels = _channels(volumes[0], settings.channels)
    _check([*volumes, *validation], channels)
    features, boundary = _drawn(volumes, channels, settings)
    if not quiet:
        console.print(f"{counted(len(boundary), 'edge')}, {int(boundary.sum())} of them boundaries")
    forest = grown(features, boundary, settings)
    scores = _scores(forest, validation, channels) if validation else {}
    claim(folder, {"training": settings.model_dump(mode="json")})
    card = _card(settings, volumes[0], channels, scores) | {
        "training": {
            "command": command,
            "data": [v.told("training") for v in volumes] + [v.told("validation") for v in validation],
            "edges": len(boundary),
            "boundaries": int(boundary.sum()),
            "settings": settings.model_dump(mode="json", exclude=_UNTOLD),
            "seconds": round(time.monotonic() - started, 1),
            "scikit-learn": sklearn.__version__,
        }
    }
    return write_forest(folder / "model", card, forest.arrays())


def _channels(volume: AnnotatedGraph, chosen: Sequence[str] | None) -> list[str]:
    """Return the channels, then the filters, to learn from, in the order in which the first graph has them."""
    stage = volume.graph.stage
    every = [*stage.channels, *(each.name for each in stage.filters)]
    if unknown := [name for name in chosen or () if name not in every]:
        raise ConfigurationError(
            f"channels: the graph of {volume.entry.path} has not measured edges on {unknown[0]}; it has "
            f"{', '.join(every) or 'none beside the boundary map'}"
        )
    return every if chosen is None else [name for name in every if name in chosen]


def _check(volumes: Sequence[AnnotatedGraph], channels: Sequence[str]) -> None:
    check_channels(volumes, channels)
    first, *others = (volume.graph.spec.voxel_size for volume in volumes)
    for volume, size in zip(volumes[1:], others, strict=True):
        if not fits(first, size):
            raise ConfigurationError(
                f"{volume.entry.path}: its voxels are {nanometres(size)}, those of {volumes[0].entry.path} "
                f"{nanometres(first)}: too far apart for one forest; train two"
            )


def _drawn(
    volumes: Sequence[AnnotatedGraph], channels: Sequence[str], settings: ForestTraining
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return features and truth of the edges to learn from: of each class at most half of what is allowed."""
    boundary = _classes("volumes", volumes)
    random, chosen = np.random.default_rng(settings.seed), np.zeros(len(boundary), bool)
    for which in (False, True):
        found = np.flatnonzero(boundary == which)
        chosen[random.permutation(found)[: settings.edges // 2]] = True
    return _features(volumes, channels, chosen), boundary[chosen]


def _classes(field: str, volumes: Sequence[AnnotatedGraph]) -> NDArray[np.bool_]:
    """Return the truth of all edges, one volume after the other; both classes are there."""
    boundary = np.concatenate([volume.boundary for volume in volumes])
    if boundary.all() or not boundary.any():
        one = "between two bodies" if boundary.all() else "within one body"
        raise DataError(
            f"{field}: all {len(boundary)} edges that the truth tells of lie {one}, so there is nothing to tell apart; "
            "name truth with several bodies, and fragments finer than they are"
        )
    return boundary


def _features(
    volumes: Sequence[AnnotatedGraph], channels: Sequence[str], chosen: NDArray[np.bool_]
) -> NDArray[np.float32]:
    ends = np.cumsum([len(volume.boundary) for volume in volumes])[:-1]
    parts = zip(volumes, np.split(chosen, ends), strict=True)
    return np.concatenate([volume.features(channels, part) for volume, part in parts if part.any()])


def grown(features: NDArray[np.float32], boundary: NDArray[np.bool_], settings: ForestTraining) -> Forest:
    """Return a forest that tells from features (m, f) whether edges (m,) are boundaries; both classes weigh the same.

    The bits depend on the seed, not on threads.
    """
    classifier = RandomForestClassifier(
        settings.trees,
        min_samples_leaf=settings.leaf,
        class_weight="balanced",
        random_state=settings.seed,
        n_jobs=settings.threads or cores(),
    )
    classifier.fit(features, boundary)
    return flattened(classifier)


def flattened(classifier: RandomForestClassifier) -> Forest:
    """Return the trees of scikit-learn as ours: one after the other, children counted from the first node of all."""
    roots, parts, start = [], [], 0
    for tree in (estimator.tree_ for estimator in classifier.estimators_):
        leaf, own = tree.children_left < 0, np.arange(tree.node_count)
        children = np.where(leaf, own, (tree.children_left, tree.children_right)).T + start
        shares = tree.value[:, 0, :]
        parts.append(
            (
                np.where(leaf, 0, tree.feature).astype(np.int32),
                np.where(leaf, np.inf, tree.threshold),
                children.astype(np.int32),
                np.clip(shares[:, 1] / shares.sum(1), 0, 1),
            )
        )
        roots.append(start)
        start += tree.node_count
    return Forest(np.array(roots, np.int32), *(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _scores(forest: Forest, volumes: Sequence[AnnotatedGraph], channels: Sequence[str]) -> dict[str, Any]:
    """Return how well the forest tells the edges of volumes, and beside it the mean of the boundary map."""
    boundary = _classes("validation", volumes)
    features = _features(volumes, channels, np.ones(len(boundary), bool))
    learned = scores(forest.probabilities(features), boundary)
    mean = scores(features[:, feature_names(channels).index("mean")].astype(np.float64), boundary)
    # where a network's card has it too
    f1 = {"boundary": learned.pop("f1")}
    return {
        "validation": {
            "f1": f1,
            **learned,
            "mean": mean,
            "edges": len(boundary),
            "boundaries": int(boundary.sum()),
        }
    }


def scores(probability: NDArray[np.float64], boundary: NDArray[np.bool_]) -> dict[str, float]:
    """Return how well probabilities (m,) tell boundaries (m,).

    F1 at the threshold that is best; the area under the ROC curve; and the log loss, both classes weighing the same, at
    the bias that is best, since a multicut adds one too.
    """
    precision, recall, _ = precision_recall_curve(boundary, probability)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    weights = np.where(boundary, 0.5 / boundary.sum(), 0.5 / (~boundary).sum())
    p = np.clip(probability, 0.001, 0.999)
    odds = np.log(p / (1 - p))
    losses = [log_loss(boundary, 1 / (1 + np.exp(-odds - b)), sample_weight=weights) for b in np.linspace(-4, 4, 81)]
    return {
        "f1": round(float(f1.max()), 4),
        "auc": round(float(roc_auc_score(boundary, probability)), 4),
        "log_loss": round(float(min(losses)), 4),
    }


def _card(
    settings: ForestTraining, volume: AnnotatedGraph, channels: Sequence[str], scores: dict[str, Any]
) -> dict[str, Any]:
    stage = volume.graph.stage
    filters = [{"name": f.name, "filter": f.filter, "width": f.width} for f in stage.filters if f.name in channels]
    return {
        "name": settings.name,
        "description": settings.description,
        "licence": settings.licence,
        "architecture": {"kind": "forest", "trees": settings.trees, "features": feature_names(channels)},
        "channels": [name for name in channels if name in stage.channels],
        "filters": filters,
        "voxel_size": volume.graph.spec.voxel_size,
        "modality": settings.modality,
        "scores": scores,
    }


def said(bundle: ForestBundle) -> list[str]:
    """Return what to tell of a forest that was trained, a line each."""
    training = bundle.card.training
    lines = [
        f"{bundle.folder}: trained on {training['edges']} edges, {training['boundaries']} of them boundaries, in "
        f"{training['seconds']:.0f} seconds"
    ]
    found = bundle.card.scores.get("validation")
    if found is None:
        return [*lines, "note: no validation volumes were named: nothing tells how good it is"]
    for name, row in (("forest", {**found, "f1": found["f1"]["boundary"]}), ("boundary map's mean", found["mean"])):
        lines.append(
            f"  {name:<20} F1 {row['f1']:.3f}, area under the ROC curve {row['auc']:.3f}, log loss "
            f"{row['log_loss']:.3f} on {found['edges']} edges of validation"
        )
    return lines
