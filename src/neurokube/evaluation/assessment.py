"""All that can be said of one segmentation: scores against a truth, run lengths of skeletons, where it is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..blocks import Box
from ..errors import UsageError
from ..volumes import Volume
from .instances import InstanceScores, evaluate_instances
from .mistakes import Mistake
from .run_length import RunLengths, evaluate_skeletons
from .scores import Row, print_mistakes, print_rows, print_scores, run_length_rows, score_rows
from .skeletonization import MERGE_NODES, skeletonize
from .skeletons import Skeletons


@dataclass(frozen=True)
class Assessment:
    """Scores of a segmentation: `instances` against a truth volume, `run_lengths` on skeletons, or both."""

    instances: InstanceScores | None
    run_lengths: RunLengths | None

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """The worst splits and merges."""
        return () if self.instances is None else self.instances.mistakes

    def as_dict(self, links: Sequence[str] = ()) -> dict[str, Any]:
        """Return all scores as plain values for JSON, each mistake with its link where there are some."""
        values = {} if self.instances is None else self.instances.as_dict()
        for mistake, link in zip(values.get("mistakes", ()), links, strict=False):
            mistake["link"] = link
        if self.run_lengths is not None:
            values["skeletons"] = self.run_lengths.as_dict()
        return values

    def tables(self) -> list[tuple[str, list[Row]]]:
        """Return the scores as rows, with a title for each table."""
        tables = []
        if self.instances is not None:
            tables.append(("Segments against the truth", score_rows(self.instances)))
        if self.run_lengths is not None:
            tables.append(("Run lengths on skeletons", run_length_rows(self.run_lengths)))
        return tables

    def print(self, links: Sequence[str] = ()) -> None:
        """Print the scores as tables, and the mistakes with their links."""
        if self.instances is not None:
            print_scores(self.instances)
        if self.run_lengths is not None:
            print_rows(run_length_rows(self.run_lengths))
        if self.mistakes:
            print_mistakes(self.mistakes, links)


def assess(
    prediction: Volume,
    truth: Volume | None,
    skeletons: Skeletons | None = None,
    *,
    skeletonized: bool = False,
    min_size: int = 0,
    components: bool = True,
    worst: int = 0,
    merge_nodes: int | None = None,
    region: Box | None = None,
    quiet: bool = False,
) -> Assessment:
    """Score a segmentation against a truth, on skeletons, or on skeletons of the truth, if `skeletonized`.

    All is as `evaluate_instances`, `evaluate_skeletons` and `skeletonize` have it, within a `region`, which also
    lets skeletons reach out of it.  `merge_nodes` is 1 of skeletons that people traced, and more of those that are
    made, as `MERGE_NODES` says, where nothing else is given.

    Raises:
        UsageError: where there is nothing to score against.
        DataError: where the data cannot be scored.
    """
    if truth is None and (skeletons is None or skeletonized):
        raise UsageError("evaluate: name a prediction and its ground truth, or a prediction and --skeletons")
    if skeletons is not None and skeletonized:
        raise UsageError("evaluate: choose either --skeletons or --skeletonize")
    if region is not None:
        prediction, truth = prediction.crop(region), truth and truth.crop(region)
    run_lengths = None
    if merge_nodes is None:
        merge_nodes = MERGE_NODES if skeletonized else 1
    if skeletons is not None:
        clip = region is not None
        run_lengths = evaluate_skeletons(prediction, skeletons, merge_nodes=merge_nodes, clip=clip, quiet=quiet)
    instances = None
    if truth is not None:
        start = (0, 0, 0) if region is None else region.start
        instances = evaluate_instances(
            prediction, truth, min_size=min_size, components=components, worst=worst, start=start, quiet=quiet
        )
        if skeletonized:
            made = skeletonize(truth, min_size=min_size, quiet=quiet)
            run_lengths = evaluate_skeletons(prediction, made, merge_nodes=merge_nodes, clip=components, quiet=quiet)
    return Assessment(instances, run_lengths)
