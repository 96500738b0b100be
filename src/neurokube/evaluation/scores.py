"""Scores as tables for a person to read."""

from collections.abc import Sequence

from ..words import counted
from .instances import Agreement, InstanceScores
from .masks import MaskScores
from .mistakes import Mistake
from .run_length import RunLengths

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


def run_length_rows(lengths: RunLengths) -> list[Row]:
    """Return name and value of each score of skeletons."""
    rows = [
        ("ERL, expected run length (um)", f"{lengths.erl / 1e3:.3f}"),
        ("ERL of a perfect segmentation (um)", f"{lengths.max_erl / 1e3:.3f}"),
        ("NERL, their quotient", f"{lengths.nerl:.3f}"),
        ("edges split, merged, omitted", f"{lengths.split:,}, {lengths.merged:,}, {lengths.omitted:,}"),
        ("edges", f"{lengths.edges:,}"),
        (f"segments that merge skeletons, by {counted(lengths.merge_nodes, 'node')} of each", f"{lengths.mergers:,}"),
        ("skeletons, their length (um)", f"{lengths.skeletons:,}, {lengths.length / 1e3:,.1f}"),
    ]
    if lengths.left_out:
        rows.append(("nodes left out, outside", f"{lengths.left_out:,}"))
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


MISTAKE_COLUMNS = ("", "kind", "segment", "bits", "voxels", "parts: label (voxels)", "look at z, y, x", "in nm")


def mistake_rows(mistakes: Sequence[Mistake]) -> list[tuple[str, ...]]:
    """Return the rows of a table of mistakes, with the columns `MISTAKE_COLUMNS`."""
    return [
        (
            str(number),
            mistake.kind,
            str(mistake.label),
            f"{mistake.bits:.4f}",
            f"{mistake.voxels:,}",
            _parts(mistake),
            ", ".join(map(str, mistake.voxel)),
            ", ".join(f"{v:.0f}" for v in mistake.position),
        )
        for number, mistake in enumerate(mistakes, 1)
    ]


def meeting(mistake: Mistake) -> str:
    """Return what is to be seen at the place of a mistake, in words."""
    one, other = mistake.between
    words = {"touch": f"{one} and {other} touch", "near": f"{one} and {other} come close"}
    return words.get(mistake.meeting, f"{other}, which is nowhere close to {one}")


def _parts(mistake: Mistake) -> str:
    parts = [f"{part.label} ({part.voxels:,})" for part in mistake.parts[:3]]
    if mistake.part_count > len(parts):
        parts.append(f"{mistake.part_count - len(parts):,} more")
    return ", ".join(parts)


MISTAKES = (
    "A split is a truth body in several predicted segments, a merge a predicted segment in several truth bodies; "
    "bits are its share of VOI, not counting what the prediction leaves 0. The place is where the largest part "
    "meets the next largest that it meets."
)


def print_mistakes(mistakes: Sequence[Mistake], links: Sequence[str] = ()) -> None:
    """Print mistakes, each in a few lines that are never broken, as ids and links have to be copied."""
    for number, kind, label, bits, voxels, parts, voxel, position in mistake_rows(mistakes):
        print(f"{number:>3} {kind} of {label}, {voxels} voxels, {bits} bits")
        print(f"    in {parts}")
        print(f"    look at {voxel} (z, y, x), {position} nm: {meeting(mistakes[int(number) - 1])}")
        if links:
            print(f"    {links[int(number) - 1]}")
    print(MISTAKES)


def print_rows(rows: Sequence[Row]) -> None:
    """Print names and values as a table."""
    from rich.table import Table

    from ..progress import page

    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, value)
    page().print(table)
