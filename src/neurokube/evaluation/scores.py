"""Scores as tables for a person to read."""

from collections.abc import Sequence

from .instances import Agreement, InstanceScores
from .masks import MaskScores

Row = tuple[str, str]


def score_rows(scores: InstanceScores | MaskScores) -> list[Row]:
    """Return name and value of each score."""
    if isinstance(scores, MaskScores):
        return [
            ("F1", f"{scores.f1:.3f}"),
            ("precision", f"{scores.precision:.3f}"),
            ("recall", f"{scores.recall:.3f}"),
            ("intersection over union", f"{scores.iou:.3f}"),
            ("threshold", f"{scores.threshold:g}"),
        ]
    rows = _agreement_rows(scores)
    rows += [
        ("segments", f"{scores.prediction_segments:,}"),
        ("truth: components of bodies", f"{scores.truth_segments:,} of {scores.truth_bodies:,}"),
        ("voxels scored", f"{scores.voxels:,}"),
    ]
    if scores.left_out_bodies:
        rows.append((f"bodies left out, under {scores.min_size} voxels", f"{scores.left_out_bodies:,}"))
    if scores.floor is not None:
        rows.append(
            ("floor: VOI, adapted Rand error", f"{scores.floor.voi:.3f}, {scores.floor.adapted_rand_error:.3f}")
        )
    return rows


def _agreement_rows(scores: Agreement) -> list[Row]:
    return [
        ("VOI split (bits)", f"{scores.voi_split:.3f}"),
        ("VOI merge (bits)", f"{scores.voi_merge:.3f}"),
        ("VOI (bits)", f"{scores.voi:.3f}"),
        ("adapted Rand error", f"{scores.adapted_rand_error:.3f}"),
        ("CREMI score", f"{scores.cremi:.3f}"),
    ]


FLOOR = (
    "Truth is relabelled by connected components within the volume, since a cell can leave it and come back. "
    "The floor is what those components themselves score against the truth as it was given. 0 is perfect."
)


def print_scores(scores: InstanceScores | MaskScores) -> None:
    """Print scores as a table, with a note on the floor."""
    print_rows(score_rows(scores))
    if isinstance(scores, InstanceScores) and scores.floor is not None:
        print(FLOOR)


def print_rows(rows: Sequence[Row]) -> None:
    """Print names and values as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)
