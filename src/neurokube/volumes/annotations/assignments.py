"""What a person merged and split in Paintera: fragments and the segments that they were put into.

Paintera keeps it in two places.  What was committed is a dataset of the label source in its N5 container,
`fragment-segment-assignment`, uint64, dimensions (n, 2): all fragments, then all segments; a fragment that is not in it
is a segment by itself.  What was not committed yet is in the project's folder, in `attributes.json`: for each source
the actions, in order, each of which counts unless it `isDisabled`:

    paintera.sourceInfo.sources[k].state.backend.data
        uri, dataset                                       the container; where there is no uri, the project's folder
        fragmentSegmentAssignment.actions
            {type: MERGE, data: {fromFragmentId, intoFragmentId, segmentId}}
            {type: DETACH, data: {fragmentId, fragmentFrom}}

MERGE joins the segments of two fragments, DETACH takes a fragment out of the segment of another.  (Paintera's
`N5BackendPainteraDataset`, `FragmentSegmentAssignmentActions`, `FragmentSegmentAssignmentOnlyLocal` and
`N5FragmentSegmentAssignmentPersister`, https://github.com/saalfeldlab/paintera.)
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .arrays import LabelArray, driver_of, listing
from .paintera import is_n5

Ids = NDArray[np.uint64]

_DATASET = "fragment-segment-assignment"


@dataclass(frozen=True)
class Action:
    """One thing that a person did: `fragment` joined the segment of `other`, or was taken out of it."""

    kind: Literal["merge", "detach"]
    fragment: int
    other: int


@dataclass(frozen=True)
class Assignment:
    """The table (n, 2) of fragment, ascending, and segment, as it was committed, and the actions since, in order.

    Where no table was ever committed it is None.
    """

    path: str
    table: Ids | None
    actions: tuple[Action, ...] = ()

    def fragments(self) -> Ids:
        """Return all fragments that it speaks of, ascending."""
        named = [number for action in self.actions for number in (action.fragment, action.other)]
        known = [] if self.table is None else [self.table[:, 0]]
        return np.unique(np.concatenate([*known, np.array(named, np.uint64)]))

    def parts(self, fragments: Ids, segments: Ids) -> NDArray[np.int64]:
        """Return a number for each of some fragments, (n,), equal for those that belong together.

        `fragments` are ascending; all that are named must be there.  `segments` are those that they are in where
        nothing else is known: where no table was committed.
        """
        if self.table is None:
            _, parts = np.unique(segments, return_inverse=True)
        else:
            at = np.minimum(np.searchsorted(self.table[:, 0], fragments), max(0, len(self.table) - 1))
            known = self.table[at, 0] == fragments if len(self.table) else np.zeros(len(fragments), bool)
            keys = np.stack([np.where(known, self.table[at, 1], 0), np.where(known, 0, fragments)], axis=1)
            _, parts = np.unique(keys, axis=0, return_inverse=True)
        parts = parts.ravel().astype(np.int64)
        fresh = int(parts.max(initial=0)) + 1
        for action in self.actions:
            one, other = (int(np.searchsorted(fragments, np.uint64(n))) for n in (action.fragment, action.other))
            if action.kind == "merge":
                parts[parts == parts[one]] = parts[other]
            elif parts[one] == parts[other] and one != other:
                parts[one], fresh = fresh, fresh + 1
        return parts


def read_assignment(path: str, *, dataset: str | None = None, container: str | None = None) -> Assignment:
    """Read what was merged and split, from a project's folder, or from an N5 container alone.

    `dataset` chooses one of several label sources; `container` says where the project's container is now.

    Raises:
        DataError: where there is no such thing, or it is damaged.
    """
    folder = Path(path).expanduser()
    document = _attributes(folder, path)
    if "paintera" in document:
        return _of_project(path, folder, document["paintera"], dataset, container)
    if not is_n5(folder):
        raise DataError(f"{path}: neither a Paintera project nor an N5 container; name one of these")
    groups = [folder / dataset] if dataset else [table.parent for table in _tables(folder)]
    if len(groups) != 1:
        found = f"it holds {listing(folder, groups)}" if groups else f"no '{_DATASET}' is in it: commit it in Paintera"
        raise DataError(f"{path}: choose a label source with --dataset; {found}")
    if (table := _table(groups[0])) is None:
        raise DataError(f"{path}: {groups[0]} has no '{_DATASET}'; commit it in Paintera, or give the project's folder")
    return Assignment(path, table)


def _of_project(path: str, folder: Path, project: Any, dataset: str | None, container: str | None) -> Assignment:
    sources = list(_label_sources(path, project))
    chosen = [source for source in sources if dataset is None or source["dataset"].strip("/") == dataset.strip("/")]
    if len(chosen) != 1:
        names = ", ".join(source["dataset"] for source in sources)
        raise DataError(f"{path}: choose a label source with --dataset; it has {names or 'none that can be edited'}")
    (source,) = chosen
    root = Path(container).expanduser() if container else _container(path, folder, source)
    if not root.is_dir():
        raise DataError(f"{path}: its label source is in {root}, which is not there; give --container where it is now")
    assignment = source.get("fragmentSegmentAssignment") or {}
    try:
        actions = tuple(_action(each) for each in assignment.get("actions", []) if not each.get("isDisabled"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: an action in attributes.json cannot be understood ({error}); save the project again in Paintera"
        ) from None
    return Assignment(path, _table(root / source["dataset"].strip("/")), actions)


def _label_sources(path: str, project: Any) -> Iterator[dict[str, Any]]:
    """Yield the backends of a project's label sources."""
    try:
        for source in project["sourceInfo"]["sources"]:
            backend = source["state"].get("backend", {})
            data = backend.get("data", {}) if isinstance(backend, dict) else {}
            if "fragmentSegmentAssignment" in data and isinstance(data.get("dataset"), str):
                yield data
    except (AttributeError, KeyError, TypeError):
        raise DataError(f"{path}: attributes.json has no sources of Paintera; save the project again") from None


def _container(path: str, folder: Path, source: dict[str, Any]) -> Path:
    """Return the folder of a source's container: older projects name it as `container`, newer ones as `uri`."""
    older = source.get("container")
    data = older.get("data", {}) if isinstance(older, dict) else {}
    place = data.get("basePath") or data.get("file") or source.get("uri")
    if place is None:
        return folder
    address = urlparse(str(place).removeprefix("n5://").removeprefix("n5:"))
    if address.scheme not in ("", "file"):
        raise DataError(f"{path}: its label source is at {place}; copy it here and give --container")
    return folder / unquote(address.path)


def _action(each: dict[str, Any]) -> Action:
    data = each["data"]
    if each["type"] == "MERGE":
        return Action("merge", int(data["fromFragmentId"]), int(data["intoFragmentId"]))
    if each["type"] == "DETACH":
        return Action("detach", int(data["fragmentId"]), int(data["fragmentFrom"]))
    raise ValueError(f"of type {each['type']}")


def _tables(folder: Path) -> Iterator[Path]:
    """Yield the tables in a container, without looking into arrays."""
    if driver_of(folder):
        if folder.name == _DATASET:
            yield folder
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir():
            yield from _tables(child)


def _table(group: Path) -> Ids | None:
    """Return the table of a label source, None where nothing was ever committed."""
    folder = group / _DATASET
    if driver_of(folder) is None:
        return None
    dimensions = _attributes(folder, str(folder)).get("dimensions")
    if dimensions == [0, 2]:
        return np.zeros((0, 2), np.uint64)
    if not isinstance(dimensions, list) or len(dimensions) != 2 or dimensions[1] != 2:
        raise DataError(f"{folder}: has dimensions {dimensions}, not (n, 2); commit it again in Paintera")
    array = LabelArray(folder, (1, 0))
    table: Ids = array.read(array.box)[0].astype(np.uint64).T
    table = table[table[:, 0] > 0]
    table = table[np.argsort(table[:, 0], kind="stable")]
    if (twice := table[1:][table[1:, 0] == table[:-1, 0], 0]).size:
        raise DataError(f"{folder}: fragment {twice[0]} is there twice; commit it again in Paintera")
    return table


def _attributes(folder: Path, path: str) -> dict[str, Any]:
    file = folder / "attributes.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("it is no object")
    except OSError as error:
        raise DataError(f"{path}: no attributes.json there ({error.strerror}); name a Paintera project") from None
    except ValueError as error:
        raise DataError(f"{file}: damaged JSON ({error}); save the project again in Paintera") from None
    return document


def without(assignment: Assignment, fragments: Ids) -> Assignment:
    """Return an assignment that does not speak of some fragments."""
    table = assignment.table
    kept = None if table is None else table[~np.isin(table[:, 0], fragments)]
    gone = set(fragments.tolist())
    actions = tuple(a for a in assignment.actions if a.fragment not in gone and a.other not in gone)
    return replace(assignment, table=kept, actions=actions)
