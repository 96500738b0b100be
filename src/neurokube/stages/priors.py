"""Priors: what biology knows about which fragments belong together, besides the boundaries between them.

A prior looks at one of four things, and says by how much fragments attract or repel each other for it:

    channels   probabilities of classes, as axon and dendrite, or of one, as glia or vessel: what is clearly of one
               class is not of the same cell as what is clearly of another
    objects    instances, as mitochondria and nuclei: what shares one belongs together (attract), since no cell's
               border runs through it; what holds different ones does not (repel), as two nuclei
    contacts   a channel of the graph, as synapses: what touches across one is two cells
    pairs      a file of pairs of points, from whatever source: skeletons, tracts, another program

`repel` and `attract` are times the log-odds that are found, which `lifted` says; a cost of 1 counts like a contact of
100 voxel pairs whose boundary has log-odds of 1.  Two different objects that repel, pairs of a file, and what is
`trusted` count as they are given.
"""

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import ConfigurationError, DataError
from .fusion import ChannelName
from .graph import STATISTICS

Ids = NDArray[np.uint64]
Rows = NDArray[np.int64]

_SUREST = 4.0
"""Log-odds that are as good as certain."""

_NOISE = 0.25
"""Log-odds that are no better than none."""

_ERRORS = 4.0
"""Standard errors that odds must be above 0: contacts of one fragment are not independent of each other."""

_FEW = 20.0
"""Contacts of each two kinds that are added."""


_OF = {
    "repel": ("channels", "objects", "contacts"),
    "least": ("channels", "contacts"),
    "distance": ("channels",),
    "overlap": ("objects",),
    "within": ("objects",),
}
"""What settings are of."""


class Prior(BaseModel):
    """One thing that is known, and how much it counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: dict[ChannelName, str] | None = Field(
        None, min_length=1, description="probabilities of classes, by name: an output of a semantics stage each"
    )
    objects: str | None = Field(None, description="a volume of labels: an objects stage, or an input")
    contacts: str | None = Field(None, description="a channel of the graph")
    pairs: str | None = Field(
        None, description="a CSV file with the columns z1, y1, x1, z2, y2, x2 in nm, and cost: below 0 is apart"
    )
    repel: float = Field(
        0.0, ge=0, le=1000, description="how much what differs repels, times the log-odds found; of objects as given"
    )
    attract: float = Field(
        0.0, ge=0, le=1000, description="objects: how much fragments that share one attract, times the log-odds found"
    )
    trusted: bool = Field(False, description="repel and attract count as given, whatever boundaries say of it")
    least: float = Field(
        0.7, ge=0.5, lt=1, description="probability, or share of a class, that is clear enough to count"
    )
    distance: int = Field(3, ge=1, le=20, description="channels: contacts between what repels, at most")
    overlap: int = Field(50, ge=1, description="objects: voxels of one in a fragment that are no accident")
    within: float = Field(100_000.0, gt=0, description="objects: nm between two that repel, at most")

    @property
    def measured(self) -> bool:
        """Whether what it is worth is read off the data."""
        return not self.trusted and (self.channels is not None or self.contacts is not None or self.attract > 0)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("channels", "objects", "contacts", "pairs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give one of channels, objects, contacts and pairs")
        if given[0] in ("channels", "contacts") and not self.repel:
            raise ValueError(f"{given[0]}: give 'repel', by how much what differs repels")
        if given[0] == "objects" and not (self.repel or self.attract):
            raise ValueError("objects: give 'attract' or 'repel', or both")
        if given[0] != "objects" and self.attract:
            raise ValueError("attract: goes with objects")
        if given[0] == "pairs" and self.trusted:
            raise ValueError("trusted: pairs always are; leave it out")
        for name, kinds in _OF.items():
            # a run keeps all settings, those left out too
            if given[0] not in kinds and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: goes with {' and '.join(kinds)}; leave it out of {given[0]}")
        return self


def class_sums(fragments: NDArray[np.uint32], channels: list[NDArray[np.uint8]], count: int) -> Rows:
    """Return the sum of each channel (z, y, x) over fragments 1 to `count`, (count, channels)."""
    flat = fragments.ravel()
    # within a tile the sums are so small that floating point keeps them exact
    sums = [np.bincount(flat, channel.ravel(), count + 1)[1:] for channel in channels]
    return np.stack(sums, axis=1).astype(np.int64)


def clear_classes(sums: Rows, sizes: Rows, least: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the class, from 1, that each group of voxels is clearly of, 0 for none, and the log-odds of it.

    `sums` (n, c) are those of probabilities of 0 to 255 over `sizes` (n,) voxels.  With one channel class 1 is what
    is in it, and 2 what is not.
    """
    means = sums / np.maximum(sizes, 1)[:, None] / 255
    if sums.shape[1] == 1:
        shares = np.concatenate([means, 1 - means], axis=1)
    else:
        shares = means / np.maximum(means.sum(1, keepdims=True), 1e-6)
    best = shares.argmax(1)
    share = np.take_along_axis(shares, best[:, None], 1)[:, 0]
    clear = share >= least
    odds = np.log(np.maximum(share, 1e-9) / np.maximum(1 - share, 1e-9))
    return np.where(clear, best + 1, 0), np.where(clear, np.clip(odds, 0, _SUREST), 0.0)


def overlaps(fragments: NDArray[np.uint32], objects: NDArray[np.uint64]) -> tuple[Rows, NDArray[np.float64]]:
    """Return which fragments hold which objects, rows of (fragment, object, voxels); 0 is neither.

    With them the mean place (z, y, x) of these voxels, in voxels.
    """
    inside = np.flatnonzero((objects.ravel() > 0) & (fragments.ravel() > 0))
    if not len(inside):
        return np.zeros((0, 3), np.int64), np.zeros((0, 3))
    if objects.max() > np.iinfo(np.int64).max:
        raise DataError(
            f"a label of {objects.max()} is too large: relabel the objects below 2^63, and import them again"
        )
    pairs = np.stack([fragments.ravel()[inside].astype(np.uint64), objects.ravel()[inside]], axis=1)
    found, which, count = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    places = [np.bincount(which.ravel(), index) / count for index in np.unravel_index(inside, objects.shape)]
    return np.concatenate([found.astype(np.int64), count[:, None]], axis=1), np.stack(places, axis=1)


def clear_contacts(stats: Rows, least: float) -> NDArray[np.bool_]:
    """Return which edges are across what a channel shows, (m,), from its statistics (m, 12).

    The highest quarter of the values counts, as it is seldom all of a contact.
    """
    clear: NDArray[np.bool_] = stats[:, STATISTICS.index("q75")] >= least * 510
    return clear


def classes(prior: Prior) -> int:
    """Return how many classes a prior of channels tells apart."""
    return max(2, len(prior.channels or ()))


def met(ends: Rows, count: int) -> Rows:
    """Return how often each two of `count` kinds meet, (count, count), symmetric; `ends` (n, 2) are their contacts."""
    found = np.bincount(ends[:, 0] * count + ends[:, 1], minlength=count * count).reshape(count, count)
    together: Rows = found + found.T
    return together


def log_odds(counts: Rows) -> NDArray[np.float64]:
    """Return the log-odds that two kinds that meet are two cells, (c, c), above what any two are.

    `counts` (2, c, c) are of contacts that are surely joined, and surely cut.  Without any the odds are even.
    """
    joined, cut = counts
    total = counts.sum()
    if not joined.sum() or not cut.sum():
        return np.zeros(joined.shape)
    # what is expected of any two, and a few of these added, so that a few contacts do not make odds
    of_cut, of_joined = cut.sum() / total, joined.sum() / total
    cut, joined = cut + _FEW * of_cut, joined + _FEW * of_joined
    odds: NDArray[np.float64] = np.log(cut / joined * (of_joined / of_cut))
    doubt = np.maximum(_NOISE, _ERRORS * np.sqrt(1 / cut + 1 / joined))
    return np.where(np.abs(odds) < doubt, 0.0, odds)


def among(edges: Ids, pairs: Ids) -> NDArray[np.bool_]:
    """Return which edges (m, 2), sorted, are among pairs (k, 2), each with its lower id first."""
    if not len(pairs):
        return np.zeros(len(edges), bool)
    both, where = np.unique(np.concatenate([pairs, edges]), axis=0, return_inverse=True)
    known = np.zeros(len(both), bool)
    known[where[: len(pairs)]] = True
    found: NDArray[np.bool_] = known[where[len(pairs) :]]
    return found


def by_object(rows: Rows, overlap: int = 0) -> tuple[Rows, NDArray[np.intp], NDArray[np.intp]]:
    """Return rows of (fragment, object, voxels, ...) of at least `overlap` voxels by object, what holds most first.

    With them where each object's rows begin, and the number of the object of each row.  A fragment that holds more than
    twice as much of another object is of that one, and only touches this: such rows are left out.
    """
    rows = rows[rows[:, 2] >= overlap]
    _, which = np.unique(rows[:, 0], return_inverse=True)
    most = np.zeros(which.max(initial=-1) + 1, np.int64)
    np.maximum.at(most, which, rows[:, 2])
    rows = rows[2 * rows[:, 2] >= most[which]]
    rows = rows[np.lexsort((rows[:, 0], -rows[:, 2], rows[:, 1]))]
    _, first, which = np.unique(rows[:, 1], return_index=True, return_inverse=True)
    return rows, first, which


def holding_most(rows: Rows, overlap: int = 0) -> Rows:
    """Return, of each object, the row of the fragment that holds most of it, of at least `overlap` voxels."""
    rows, first, _ = by_object(rows, overlap)
    return rows[first]


def sharing(rows: Rows, overlap: int) -> tuple[Ids, NDArray[np.float64]]:
    """Return pairs of fragments (k, 2) that share an object, and how clearly, from 0 to 1.

    `rows` are (fragment, object, voxels).  Of each object the fragment that holds most is paired with the others, as
    clearly as their part is large, beside the whole of the object.
    """
    rows, first, which = by_object(rows, overlap)
    if not len(rows):
        return np.zeros((0, 2), np.uint64), np.zeros(0)
    total = np.bincount(which, rows[:, 2])
    others = np.ones(len(rows), bool)
    others[first] = False
    most = rows[first[which], 0]
    share = np.sqrt(np.minimum(1.0, 2 * rows[:, 2] / total[which]))
    return np.stack([most, rows[:, 0]], axis=1)[others].astype(np.uint64), share[others]


def parted(edges: Ids, rows: Rows, overlap: int) -> NDArray[np.bool_]:
    """Return which edges (m, 2) are between fragments that hold different objects, and none that both hold.

    `rows` are (fragment, object, voxels).
    """
    rows, _, _ = by_object(rows, overlap)
    if not len(rows) or not len(edges):
        return np.zeros(len(edges), bool)
    fragments, which, count = np.unique(rows[:, 0], return_inverse=True, return_counts=True)
    ends = np.searchsorted(fragments, edges.astype(np.int64)).clip(0, len(fragments) - 1)
    known = (fragments[ends] == edges.astype(np.int64)).all(1)
    # the objects of each fragment, one after the other
    objects = rows[np.argsort(which, kind="stable"), 1]
    begin = np.concatenate([[0], np.cumsum(count)])
    found = np.zeros(len(edges), bool)
    for edge in np.flatnonzero(known):
        one, other = (objects[begin[k] : begin[k + 1]] for k in ends[edge])
        found[edge] = not np.isin(one, other).any()
    return found


def apart(rows: Rows, within: float) -> Ids:
    """Return pairs of fragments (k, 2) that hold most of two different objects no farther than `within` nm.

    `rows` are (fragment, object, voxels, z, y, x): where in nm the middle of those voxels is.
    """
    from scipy.spatial import cKDTree

    best = holding_most(rows)
    if len(best) < 2:
        return np.zeros((0, 2), np.uint64)
    near = cKDTree(best[:, 3:].astype(float)).query_pairs(within, output_type="ndarray")
    pairs = best[:, 0][near].astype(np.uint64)
    different: Ids = pairs[pairs[:, 0] != pairs[:, 1]]
    return different


def read_pairs(path: str) -> NDArray[np.float64]:
    """Return the rows of a file of pairs, (n, 7): z1, y1, x1, z2, y2, x2 in nm, and the cost of parting.

    Raises:
        ConfigurationError: where it is no such file.
    """
    import csv

    columns = ["z1", "y1", "x1", "z2", "y2", "x2", "cost"]
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file, skipinitialspace=True)
            if missing := [name for name in columns if name not in (lines.fieldnames or ())]:
                raise ConfigurationError(
                    f"pairs: {path} has no column '{missing[0]}'; it needs {', '.join(columns)}, with commas between"
                )
            rows = []
            for line in lines:
                try:
                    rows.append([float(line[name]) for name in columns])
                except (ValueError, TypeError):
                    raise ConfigurationError(
                        f"pairs: {path}, line {lines.line_num}: a field is missing or no number; mend or leave it out"
                    ) from None
    except OSError as error:
        raise ConfigurationError(f"pairs: {path}: {error.strerror}; name a CSV file of pairs of points") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"pairs: {path} is no text file; save it as CSV") from None
    found = np.array(rows, np.float64).reshape(-1, len(columns))
    if not np.isfinite(found).all():
        raise ConfigurationError(f"pairs: {path} holds what is not finite; mend or leave out the line")
    return found
