"""Edits of a segmentation: what they change and what they leave, on real runs, with real kills."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SHAPE, STAGES, TILE, planned, records, results, write_image, write_workflow

from neurokube.blocks import Box
from neurokube.cli import main
from neurokube.engines import InProcess
from neurokube.engines.local import Local
from neurokube.errors import ConfigurationError, DataError, TryAgainError, UsageError
from neurokube.volumes import open_volume
from neurokube.volumes.annotations.assignments import read_assignment
from neurokube.volumes.pyramids import downsample
from neurokube.workflow import execute
from neurokube.workflow.assignment import import_assignment
from neurokube.workflow.editor import Editor, default_author
from neurokube.workflow.edits import EditLog
from neurokube.workflow.history import history

CHAIN = {name: STAGES[name] for name in ("boundaries", "fragments", "graph", "segmentation")} | {
    "multicut": {"first_block": TILE}
}
TABLE = {"measurements": {"objects": "segmentation"}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    write_image(folder)
    execute(planned(folder, stages=CHAIN), InProcess(), quiet=True)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def url(folder):
    return str(folder / "runs" / "run")


def run_again(folder, **changes):
    run = planned(folder, **({"stages": CHAIN} | changes))
    return run, execute(run, InProcess(), quiet=True)


def labels(folder, name="segmentation", level=0):
    volume = open_volume(f"{url(folder)}/{name}/{name}")
    return volume.read(Box.of(volume.level_shape(level)), level)


def segmentation_of(run):
    return {name: found for name, found in results(run).items() if name.startswith("segmentation/")}


def from_scratch(folder, **changes):
    """Return what a run writes that never was edited, but has the log of edits from its start."""
    fresh = planned(folder, **({"stages": CHAIN, "name": "fresh"} | changes))
    shutil.rmtree(fresh.url, ignore_errors=True)
    shutil.copytree(f"{url(folder)}/segmentation.edits", f"{fresh.url}/segmentation.edits")
    fresh = planned(folder, **({"stages": CHAIN, "name": "fresh"} | changes))
    execute(fresh, InProcess(), quiet=True)
    return segmentation_of(fresh)


def largest(segmentation, count):
    ids, voxels = np.unique(segmentation[segmentation > 0], return_counts=True)
    return ids[np.argsort(-voxels)][:count].tolist()


def points_in(folder, segment, count=2):
    """Return points in different fragments of a segment, in the order of the fragments' ids."""
    found, fragments = labels(folder), labels(folder, "fragments")
    ids = np.unique(fragments[found == segment])
    chosen = ids[np.linspace(0, len(ids) - 1, count).astype(int)]
    return [tuple(int(n) for n in np.argwhere(fragments == one)[0]) for one in chosen]


# what edits do


def test_a_merge_gives_both_segments_the_id_of_the_larger_one_and_changes_nothing_else(folder):
    before = labels(folder)
    large, small = largest(before, 2)
    with Editor(url(folder), author="Ada") as editor:
        edit = editor.merge([small, large])
    assert np.array_equal(labels(folder), np.where(before == small, large, before))
    assert (edit.segments, edit.became) == (tuple(sorted((small, large))), (large,))
    assert edit.voxels == (before == small).sum()


def test_several_segments_are_merged_at_once_by_ids_and_points(folder):
    before = labels(folder)
    large, *others = largest(before, 4)
    with Editor(url(folder)) as editor:
        editor.merge(others[:2], at=[points_in(folder, large)[0], points_in(folder, others[2])[0]])
    assert np.array_equal(labels(folder), np.where(np.isin(before, others), large, before))


@pytest.mark.parametrize("count", [2, 3])
def test_a_split_parts_its_points_and_leaves_the_old_id_to_the_largest_part(folder, count):
    before = labels(folder)
    segment, top = largest(before, 1)[0], int(before.max())
    points = points_in(folder, segment, count)
    with Editor(url(folder)) as editor:
        edit = editor.split(segment, at=points)
    after = labels(folder)
    assert len({int(after[point]) for point in points}) == count
    assert np.array_equal(after[before != segment], before[before != segment])
    parts = np.unique(after[before == segment]).tolist()
    assert parts == [segment, *range(top + 1, top + count)] == list(edit.became)
    sizes = [int((after == part).sum()) for part in parts]
    assert sizes[0] == max(sizes)
    fragments = labels(folder, "fragments")
    pairs = np.unique(np.stack([fragments.ravel(), after.ravel()], axis=1), axis=0)
    assert len(pairs) == len(np.unique(fragments)), "a fragment was cut"


def test_a_segment_is_split_into_given_fragments_and_the_rest(folder):
    before, fragments = labels(folder), labels(folder, "fragments")
    segment = largest(before, 1)[0]
    ids, voxels = np.unique(fragments[before == segment], return_counts=True)
    few = ids[np.argsort(voxels)][:2].tolist()
    with Editor(url(folder)) as editor:
        editor.split_fragments(segment, [few])
    assert np.array_equal(labels(folder), np.where(np.isin(fragments, few), before.max() + 1, before))


def test_ids_of_parts_are_never_given_again(folder):
    before = labels(folder)
    one, other = largest(before, 2)
    points = {segment: points_in(folder, segment) for segment in (one, other)}
    with Editor(url(folder)) as editor:
        first = editor.split(one, at=points[one])
        editor.undo()
        second = editor.split(other, at=points[other])
    assert set(first.became) - {one} == {before.max() + 1}
    assert set(second.became) - {other} == {before.max() + 2}


def test_only_the_blocks_that_change_are_written_again(folder):
    before, run = labels(folder), planned(folder, stages=CHAIN)
    fragments = labels(folder, "fragments")
    ids = np.unique(fragments)[1:]
    sizes = {int(s): len(np.unique(fragments[before == s])) for s in np.unique(before)[1:]}
    small = next(s for s in sizes if sizes[s] == 1)
    tile = int(ids[np.isin(ids, fragments[before == small])][0] - 1) // (16 * 32 * 32)
    known = records(run)
    with Editor(url(folder)) as editor:
        editor.merge([small, largest(before, 1)[0]])
    after = records(planned(folder, stages=CHAIN))
    changed = {key for key in known if after[key] != known[key]}
    step = run.plan.step("segmentation/segmentation")
    above = run.plan.step("segmentation/pyramid-1").step.grid
    z, y, x = (a // (2 * c) for a, c in zip(step.step.grid.box(tile).start, above.cell, strict=True))
    assert changed == {
        ("segmentation/segmentation", "1x1x1", tile),
        ("segmentation/pyramid-1", "1x1x1", above.index((z, y, x))),
    }
    assert editor.summary.computed == {"segmentation/segmentation": 1, "segmentation/pyramid-1": 1}


@pytest.mark.parametrize("block", [None, [16, 64, 96]])
def test_an_edited_run_is_bit_for_bit_one_that_had_its_edits_from_the_start(folder, block):
    run_again(folder, block=block)
    before = labels(folder)
    one, other, third = largest(before, 3)
    points = points_in(folder, one)
    with Editor(url(folder)) as editor:
        editor.split(one, at=points)
        editor.write()
        editor.merge([other, third])
        editor.merge(at=[points[1], points_in(folder, third)[0]])
    run = planned(folder, stages=CHAIN)
    assert segmentation_of(run) == from_scratch(folder)
    for key, record in records(run).items():
        checksums = {k: r["checksums"] for k, r in records(planned(folder, stages=CHAIN, name="fresh")).items()}
        if block is None and key[0].startswith("segmentation/"):
            assert record["checksums"] == checksums[key]


def test_edits_written_by_worker_processes_are_those_of_one_process(folder):
    one, other = largest(labels(folder), 2)
    with Editor(url(folder), engine=Local(2)) as editor:
        editor.merge([one, other])
    assert segmentation_of(planned(folder, stages=CHAIN)) == from_scratch(folder)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 6))
def test_any_edits_are_as_from_the_start_and_when_all_are_undone_the_bits_are_as_before(
    finished, tmp_path_factory, seed, count
):
    folder = tmp_path_factory.mktemp("edited")
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    choice, run = random.Random(seed), planned(folder, stages=CHAIN)
    before, digests = labels(folder), segmentation_of(run)
    fragments = labels(folder, "fragments")
    with Editor(url(folder)) as editor:
        for _ in range(count):
            here = np.unique(labels(folder))[1:].tolist()
            segment = choice.choice(here)
            own = np.unique(fragments[labels(folder) == segment]).tolist()
            if len(own) > 1 and choice.random() < 0.6:
                seeds = choice.sample(own, choice.randint(2, min(3, len(own))))
                editor.split(segment, at=[tuple(map(int, np.argwhere(fragments == seed)[0])) for seed in seeds])
            else:
                editor.merge(choice.sample(here, choice.randint(2, 3)))
            if choice.random() < 0.3:
                with suppress(UsageError):
                    editor.undo(choice.randint(1, len(editor.corrections.log.entries)))
            editor.write()
    edits = history(url(folder))
    if any(edit["counts"] and edit["action"] != "undo" for edit in edits):
        assert segmentation_of(planned(folder, stages=CHAIN)) == from_scratch(folder)
    with Editor(url(folder)) as editor:
        while editor.corrections.log.counting(editor.corrections.on):
            editor.undo()
    assert np.array_equal(labels(folder), before)
    assert segmentation_of(planned(folder, stages=CHAIN)) == digests


def test_the_pyramid_follows(folder):
    large, small = largest(labels(folder), 2)
    before = labels(folder, level=1)
    with Editor(url(folder)) as editor:
        editor.merge([small, large])
    coarse = labels(folder, level=1)
    assert np.array_equal(coarse, downsample(labels(folder), (2, 2, 2), "labels"))
    assert not np.array_equal(coarse, before)


# undo, and the log


def test_an_edit_is_undone_by_its_number_and_brought_back_by_undoing_that(folder):
    before = labels(folder)
    a, b, c, d = largest(before, 4)
    with Editor(url(folder)) as editor:
        editor.merge([a, b])
        editor.merge([c, d])
        editor.undo(1)
    assert np.array_equal(labels(folder), np.where(before == d, c, before))
    with Editor(url(folder)) as editor:
        editor.undo(3)
    assert np.array_equal(labels(folder), np.where(before == d, c, np.where(before == b, a, before)))
    assert [row["state"] for row in history(url(folder))] == ["", "", "undone by 4", ""]


def test_undoing_an_edit_that_a_later_one_built_on_applies_the_later_one_to_what_is_there(folder):
    before = labels(folder)
    one, other = largest(before, 2)
    points = points_in(folder, one)
    with Editor(url(folder)) as editor:
        editor.split(one, at=points)
        editor.merge([other], at=[points[0]])
        editor.undo(1)
    assert np.array_equal(labels(folder), np.where(before == other, one, before))
    assert segmentation_of(planned(folder, stages=CHAIN)) == from_scratch(folder)


def test_the_log_says_who_did_what_and_when(folder):
    large, small = largest(labels(folder), 2)
    with Editor(url(folder), author="Ada Lovelace") as editor:
        editor.merge([small, large])
        editor.undo()
    merge, undo = history(url(folder))
    assert (merge["number"], merge["author"], merge["action"]) == (1, "Ada Lovelace", "merge")
    assert merge["time"].endswith("+00:00")
    assert merge["segments"] == sorted([small, large])
    assert (merge["state"], merge["counts"]) == ("undone by 2", False)
    assert (undo["action"], undo["undoes"], undo["voxels"]) == ("undo", 1, merge["voxels"])


def test_the_author_is_the_environments_unless_one_is_named(monkeypatch):
    monkeypatch.setenv("NEUROKUBE_AUTHOR", "Grace")
    assert default_author() == "Grace"
    monkeypatch.delenv("NEUROKUBE_AUTHOR")
    monkeypatch.delenv("GIT_AUTHOR_NAME", raising=False)
    assert default_author()


def test_the_log_is_of_objects_that_are_never_changed(folder):
    large, small, third = largest(labels(folder), 3)
    kept = {}
    with Editor(url(folder)) as editor:
        for act in (lambda: editor.merge([small, large]), lambda: editor.undo(), lambda: editor.merge([third, large])):
            act()
            found = {path.name: path.read_bytes() for path in Path(url(folder), "segmentation.edits").iterdir()}
            assert kept.items() <= found.items()
            kept = found
    assert len(kept) == 3


def test_of_two_who_make_an_edit_at_once_one_is_told_to_try_again(folder):
    large, small = largest(labels(folder), 2)
    with Editor(url(folder)) as editor:
        stale = EditLog.read(editor.corrections.log.store, "segmentation")
        edit = editor.merge([small, large])
        with pytest.raises(TryAgainError, match="try again"):
            stale.with_entry(edit)


# no stale result


def test_what_reads_the_segmentation_is_computed_anew_and_nothing_else(folder):
    run_again(folder, stages=CHAIN | TABLE)
    large, small = largest(labels(folder), 2)
    table = Path(url(folder), "measurements", "table.csv")
    assert table.is_file()
    with Editor(url(folder)) as editor:
        editor.merge([small, large])
    assert editor.summary.dropped == ["measurements"]
    assert not table.exists(), "the old table is still there"
    edited = labels(folder)
    _, summary = run_again(folder, stages=CHAIN | TABLE)
    assert {name.split("/")[0] for name, count in summary.computed.items() if count} == {"measurements"}
    assert np.array_equal(labels(folder), edited)
    assert f"\n{small}," not in table.read_text()
    _, summary = run_again(folder, stages=CHAIN | TABLE)
    assert sum(summary.computed.values()) == 0


def test_a_run_without_edits_has_the_keys_it_always_had(folder):
    before = planned(folder, stages=CHAIN | TABLE).document["keys"]
    large, small = largest(labels(folder), 2)
    with Editor(url(folder)) as editor:
        editor.merge([small, large])
    edited = planned(folder, stages=CHAIN | TABLE).document["keys"]
    assert {name for name in before if edited[name] != before[name]} == {"measurements"}
    with Editor(url(folder)) as editor:
        editor.undo()
    assert planned(folder, stages=CHAIN | TABLE).document["keys"] == before


def test_edits_hold_for_another_multicut_of_the_same_fragments(folder):
    one, other = largest(labels(folder), 2)
    apart = points_in(folder, one)
    together = [points_in(folder, one)[0], points_in(folder, other)[0]]
    with Editor(url(folder)) as editor:
        editor.split(one, at=apart)
        editor.merge(at=together)
    for bias in (0.3, 0.97):
        stages = CHAIN | {"multicut": {"bias": bias}}
        run, summary = run_again(folder, stages=stages)
        assert summary.computed["segmentation/segmentation"] > 0
        found = labels(folder)
        assert found[apart[0]] != found[apart[1]]
        assert found[together[0]] == found[together[1]]
        assert segmentation_of(run) == from_scratch(folder, stages=stages)
        assert sum(run_again(folder, stages=stages)[1].computed.values()) == 0


def test_an_edit_that_has_nothing_to_do_any_more_is_named_and_kept(folder, capsys):
    large, small = largest(labels(folder), 2)
    with Editor(url(folder)) as editor:
        editor.merge([small, large])
    stages = CHAIN | {"multicut": {"bias": 0.001}}
    run_again(folder, stages=stages)
    said = " ".join(capsys.readouterr().err.split())
    assert "edit 1 (merge" in said and "nothing to do" in said and "it is kept" in said
    assert segmentation_of(run_again(folder)[0]) == from_scratch(folder)


def test_edits_are_not_applied_to_other_fragments_but_kept_and_named(folder, capsys):
    before = labels(folder)
    large, small = largest(before, 2)
    with Editor(url(folder)) as editor:
        editor.merge([small, large])
    edited = labels(folder)
    others = CHAIN | {"fragments": CHAIN["fragments"] | {"smoothing": 12.0}}
    run, _ = run_again(folder, stages=others)
    said = " ".join(capsys.readouterr().err.split())
    assert "left out, as made on other fragments: edit 1; kept in" in said
    plain = planned(folder, stages=others, name="plain")
    execute(plain, InProcess(), quiet=True)
    assert segmentation_of(run) == segmentation_of(plain)
    assert history(url(folder))[0]["state"] == "on other fragments"
    with Editor(url(folder)) as editor, pytest.raises(UsageError, match="nothing to undo"):
        editor.undo()
    run_again(folder)
    assert np.array_equal(labels(folder), edited)


def test_edits_on_old_and_on_new_fragments_live_side_by_side(folder):
    with Editor(url(folder)) as editor:
        editor.merge(largest(labels(folder), 2))
    edited = labels(folder)
    others = CHAIN | {"fragments": CHAIN["fragments"] | {"smoothing": 12.0}}
    run_again(folder, stages=others)
    with Editor(url(folder)) as editor:
        editor.merge(largest(labels(folder), 2))
    run, _ = run_again(folder, stages=others)
    assert segmentation_of(run) == from_scratch(folder, stages=others)
    run_again(folder)
    assert np.array_equal(labels(folder), edited)


def test_a_log_that_lost_an_entry_is_not_taken_for_what_was_applied(folder):
    before = labels(folder)
    a, b, c = largest(before, 3)
    with Editor(url(folder)) as editor:
        editor.merge([a, b])
        editor.merge([a, c])
    Path(url(folder), "segmentation.edits", "00000001.json").unlink()
    run_again(folder)
    assert np.array_equal(labels(folder), np.where(before == c, a, before))
    shutil.rmtree(Path(url(folder), "segmentation.edits"))
    run_again(folder)
    assert np.array_equal(labels(folder), before)


def test_a_lost_shard_of_an_edited_segmentation_is_computed_again_as_edited(folder):
    with Editor(url(folder)) as editor:
        editor.merge(largest(labels(folder), 2))
    edited = labels(folder)
    for shard in Path(url(folder), "segmentation", "segmentation", "0", "c").rglob("0"):
        if shard.is_file():
            shard.unlink()
    run_again(folder)
    assert np.array_equal(labels(folder), edited)


# kill -9


@pytest.mark.parametrize("finisher", ["run", "edit"])
def test_a_kill_in_the_middle_of_an_edit_loses_nothing(folder, finisher):
    """kill -9 at random moments after the edit is in the log; what is left is finished by a run or the next edit."""
    workflow = write_workflow(folder, stages=CHAIN)
    choice, kills, interrupted = random.Random(finisher), 0, 0
    program = [sys.executable, "-m", "neurokube"]
    before = labels(folder)
    a, b = largest(before, 2)
    merged = np.where(before == b, a, before)
    while kills < 3:
        logged = len(history(url(folder)))
        expected = merged if logged % 2 == 0 else before
        command = ["merge", str(a), str(b)] if logged % 2 == 0 else ["undo"]
        process = subprocess.Popen(
            [*program, "edit", url(folder), *command, "-q"], start_new_session=True, stdout=subprocess.DEVNULL
        )
        entry = Path(url(folder), "segmentation.edits", f"{logged + 1:08d}.json")
        while process.poll() is None and not entry.exists():
            time.sleep(0.0005)
        time.sleep(choice.random() * 0.06)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        mark = Path(url(folder), "segmentation", "corrections.json")
        interrupted += not mark.exists() or json.loads(mark.read_text())["finished"] <= logged
        if finisher == "run":
            subprocess.run([*program, "run", str(workflow), "-q", "-w", "0"], check=True, stdout=subprocess.DEVNULL)
        else:
            with Editor(url(folder)):
                pass
        assert np.array_equal(labels(folder), expected)
        if logged % 2 == 0:
            assert segmentation_of(planned(folder, stages=CHAIN)) == from_scratch(folder)
        assert sum(run_again(folder)[1].computed.values()) == 0
    assert interrupted, "no kill came before the blocks were written"


# what is refused


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """Call `neurokube edit RUN ...` in this process; return exit code, standard output and standard error."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments, at=None):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["neurokube", "edit", at or url(folder), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def refused(call):
    """Call it, check that it refuses in one line, and return that."""

    def run(*arguments, code=64, at=None):
        status, _, errors = call(*arguments, at=at)
        assert status == code, errors
        assert errors.startswith("neurokube: ") and errors.count("\n") == 1, errors
        return errors

    return run


def test_bad_input_is_refused_in_one_line_and_changes_nothing(folder, refused):
    before, fragments = labels(folder), labels(folder, "fragments")
    large, small = largest(before, 2)
    alone = next(int(s) for s in np.unique(before)[1:] if len(np.unique(fragments[before == s])) == 1)
    inside = points_in(folder, large)
    close = next(
        (int(p[0]), int(p[1]), int(p[2]))
        for p in np.argwhere(fragments == fragments[inside[0]])
        if tuple(p) != inside[0]
    )
    other = points_in(folder, small)[0]

    def at(*points):
        return [word for point in points for word in ("--at", ",".join(str(n) for n in point))]

    known = records(planned(folder, stages=CHAIN))
    for words, arguments in {
        "there is no segment 999": ["merge", 999, large],
        "cannot be merged with itself": ["merge", large, large],
        "at least two different": ["merge", large],
        "is in segment": ["split", large, *at(inside[0], other)],
        "outside of the segmentation, which has 32 x 96 x 96": ["split", large, *at(inside[0], (99, 0, 0))],
        "is one fragment": ["split", alone, *at(inside[0], other)],
        "are in one fragment": ["split", large, *at(inside[0], close)],
        "at least two points": ["split", large, *at(inside[0])],
        "give two or more points": ["split", large],
        "order z,y,x": ["split", large, "--at", "1,2", "--at", "3,4,5"],
        f"not in segment {large}: fragment {fragments[other]}; name": ["split", large, "--fragments", fragments[other]],
        "nothing to undo": ["undo"],
        "there is no edit 7": ["undo", 7],
        "no segmentation stage of that name": ["merge", large, small, "--stage", "graph"],
    }.items():
        assert words in refused(*arguments)
    assert "no run there" in refused("log", code=78, at="none")
    assert not Path(url(folder), "segmentation.edits").exists()
    assert records(planned(folder, stages=CHAIN)) == known
    assert np.array_equal(labels(folder), before)


def test_a_point_in_the_background_is_refused(tmp_path):
    mask = np.ones(SHAPE, np.uint8)
    mask[:, :, :40] = 0
    write_image(tmp_path)
    (tmp_path / "inside").mkdir()
    where = write_image(tmp_path / "inside", mask)
    stages = CHAIN | {"fragments": CHAIN["fragments"] | {"mask": "mask"}}
    inputs = {"image": {"path": str(tmp_path / "image.zarr")}, "mask": {"path": str(where)}}
    run_again(tmp_path, stages=stages, inputs=inputs)
    with Editor(url(tmp_path)) as editor, pytest.raises(UsageError, match="background"):
        editor.merge(at=[(0, 0, 0), (0, 90, 90)])


def test_an_unfinished_run_is_refused(folder):
    Path(url(folder), "multicut", "segments", "0.0.0.npy").unlink()
    run = planned(folder, stages=CHAIN)
    run.prepare()
    run.forget_lost(run.plan.step("multicut/segments"))
    with pytest.raises(
        ConfigurationError, match=r"multicut/segments is not finished, it lacks 1 of 18 blocks.*neurokube run"
    ):
        Editor(url(folder)).__enter__()


def test_a_run_that_is_computed_at_the_moment_is_refused(folder, refused):
    one, other = largest(labels(folder), 2)
    with planned(folder, stages=CHAIN).lock():
        assert "in use by another process" in refused("merge", one, other, code=75)
    assert not Path(url(folder), "segmentation.edits").exists()


def test_of_several_segmentations_one_must_be_named(folder):
    stages = CHAIN | {
        "coarse": {"stage": "multicut", "bias": 0.3},
        "cells": {"stage": "segmentation", "multicut": "coarse"},
    }
    run_again(folder, stages=stages)
    with pytest.raises(UsageError, match=r"choose one of .* with --stage"):
        Editor(url(folder))
    before = open_volume(f"{url(folder)}/cells/segmentation").read(Box.of(SHAPE))
    untouched = labels(folder)
    large, small = largest(before, 2)
    with Editor(url(folder), stage="cells") as editor:
        editor.merge([large, small])
    after = open_volume(f"{url(folder)}/cells/segmentation").read(Box.of(SHAPE))
    assert np.array_equal(after, np.where(before == small, large, before))
    assert np.array_equal(labels(folder), untouched)


def test_a_damaged_entry_is_named(folder):
    with Editor(url(folder)) as editor:
        editor.merge(largest(labels(folder), 2))
    entry = Path(url(folder), "segmentation.edits", "00000001.json")
    entry.write_text('{"number": 1}')
    with pytest.raises(DataError, match=r"00000001\.json.*restore the file"):
        planned(folder, stages=CHAIN)


def test_an_edit_made_after_planning_ends_the_run_before_it_mixes_them(folder):
    run = planned(folder, stages=CHAIN | TABLE)
    with Editor(url(folder)) as editor:
        editor.merge(largest(labels(folder), 2))
    with pytest.raises(TryAgainError, match="edited meanwhile; run again"):
        execute(run, InProcess(), quiet=True)
    assert sum(run_again(folder, stages=CHAIN | TABLE)[1].computed.values()) > 0


def test_the_command_line_edits_and_says_what_it_did(folder, call):
    run_again(folder, stages=CHAIN | TABLE)
    before = labels(folder)
    large, small = largest(before, 2)

    def say(*arguments):
        code, said, errors = call(*arguments)
        assert code == 0, errors
        return said

    said = say("merge", small, large, "--author", "Ada", "-q")
    assert "edit 1: merge" in said and "blocks of segmentation/segmentation" in said and "neurokube run" in said
    z, y, x = points_in(folder, large)[0]
    # voxels are 10 nm long
    second = points_in(folder, large)[1]
    found = json.loads(
        say("split", large, "--at", f"{10 * z},{10 * y},{10 * x}nm", "--at", ",".join(map(str, second)), "--json")
    )
    assert found["edits"][0]["action"] == "split" and found["written"]["segmentation/segmentation"] > 0
    say("undo", "--last", 2)
    assert np.array_equal(labels(folder), before)
    rows = json.loads(say("log", "--json"))
    assert [row["action"] for row in rows] == ["merge", "split", "undo", "undo"]
    assert rows[0]["author"] == "Ada"
    assert "merge" in say("log")


# what was edited in Paintera


def table_of(folder):
    data = planned(folder, stages=CHAIN).plan.stage("segmentation").data()
    return np.concatenate([data.table("fragment-segment", tile) for tile in range(18)])


def write_container(folder, table):
    """Write a label source of Paintera with its table, as Paintera commits it."""
    group = folder / "labels.n5" / "volumes" / "labels"
    assignment = group / "fragment-segment-assignment"
    metadata = {"dimensions": [len(table), 2], "blockSize": [max(1, len(table)), 1], "dataType": "uint64"}
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{assignment}/"}}
    array = ts.open(spec | {"metadata": metadata | {"compression": {"type": "gzip"}}}, create=True).result()
    array.write(table).result()
    (folder / "labels.n5" / "attributes.json").write_text('{"n5": "2.5.1"}')
    (group / "attributes.json").write_text('{"painteraData": {"type": "label"}, "maxId": 1}')
    return folder / "labels.n5"


def write_project(folder, actions, container=None, dataset="volumes/labels"):
    """Write a project as Paintera saves it."""
    data = {"dataset": dataset, "fragmentSegmentAssignment": {"actions": actions}}
    if container:
        data["uri"] = container.as_uri()
    backend = {"type": "org.janelia.saalfeldlab.paintera.state.label.n5.N5BackendPainteraDataset", "data": data}
    label = {"type": "org.janelia.saalfeldlab.paintera.state.label.ConnectomicsLabelState", "state": {}}
    label["state"] = {"backend": backend, "name": "labels"}
    raw = {"type": "org.janelia.saalfeldlab.paintera.state.raw.ConnectomicsRawState", "state": {"backend": {}}}
    project = folder / "project"
    project.mkdir(exist_ok=True)
    document = {"paintera": {"sourceInfo": {"numSources": 2, "currentSourceIndex": 0, "sources": [raw, label]}}}
    (project / "attributes.json").write_text(json.dumps(document))
    return project


def merge(one, other, segment=10**9, **more):
    data = {"fromFragmentId": int(one), "intoFragmentId": int(other), "segmentId": segment}
    return {"type": "MERGE", "data": data, **more}


def detach(one, other):
    return {"type": "DETACH", "data": {"fragmentId": int(one), "fragmentFrom": int(other)}}


def as_partition(table):
    return {frozenset(table[table[:, 1] == s, 0].tolist()) for s in np.unique(table[:, 1])}


def test_what_was_committed_in_paintera_comes_back(folder):
    table = table_of(folder)
    one, other = largest(labels(folder), 2)
    painted = table.copy()
    # segments of Paintera have ids of their own
    painted[:, 1] += np.uint64(10**8)
    alone = painted[painted[:, 1] == one + 10**8][0, 0]
    painted[painted[:, 1] == other + 10**8, 1] = one + 10**8
    painted = painted[painted[:, 0] != alone]
    expected = [*painted.tolist(), [int(alone), int(alone)]]
    with Editor(url(folder), author="Ada") as editor:
        edits, remarks = import_assignment(editor, read_assignment(str(write_container(folder, painted))))
    assert as_partition(table_of(folder)) == as_partition(np.array(expected, np.uint64))
    assert sorted(edit.action for edit in edits) == ["merge", "split"] and remarks == ()
    assert {(row["author"], row["note"][:4]) for row in history(url(folder))} == {("Ada", "from")}
    with Editor(url(folder)) as editor:
        assert import_assignment(editor, read_assignment(str(folder / "labels.n5"))) == ([], ())


def test_actions_that_were_not_committed_come_back_but_for_those_that_were_disabled(folder):
    table = table_of(folder)
    one, other, third = (table[table[:, 1] == s, 0] for s in largest(labels(folder), 3))
    actions = [merge(one[0], other[0]), merge(other[1], third[0], isDisabled=True), detach(one[1], one[0])]
    container = write_container(folder, table + np.array([0, 10**8], np.uint64))
    project = write_project(folder, actions, container)
    with Editor(url(folder)) as editor:
        import_assignment(editor, read_assignment(str(project)))
    parts = as_partition(table)
    parts -= {frozenset(one.tolist()), frozenset(other.tolist())}
    joined = {*one.tolist(), *other.tolist()} - {int(one[1])}
    assert as_partition(table_of(folder)) == parts | {frozenset(joined), frozenset([int(one[1])])}


def test_a_project_without_a_table_says_only_what_its_actions_say(folder):
    table = table_of(folder)
    one, other = (table[table[:, 1] == s, 0] for s in largest(labels(folder), 2))
    (folder / "labels.n5" / "volumes" / "labels").mkdir(parents=True)
    project = write_project(folder, [merge(one[0], other[0])], folder / "labels.n5")
    with Editor(url(folder)) as editor:
        import_assignment(editor, read_assignment(str(project)))
    parts = as_partition(table) - {frozenset(one.tolist()), frozenset(other.tolist())}
    assert as_partition(table_of(folder)) == parts | {frozenset([*one.tolist(), *other.tolist()])}


def test_ids_that_paintera_gave_to_paintings_are_left_out_and_said(folder):
    table = table_of(folder)
    painted = np.concatenate([table + np.array([0, 10**8], np.uint64), np.array([[10**7, 10**9]], np.uint64)])
    with Editor(url(folder)) as editor:
        edits, remarks = import_assignment(editor, read_assignment(str(write_container(folder, painted))))
    assert edits == [] and remarks[0].endswith("painted in Paintera and no fragments: 1 id")


def test_what_is_no_edit_of_these_fragments_is_refused(folder, refused):
    table = table_of(folder)
    free = next(k for k in range(1, 10**6) if k not in set(table[:, 0].tolist()))
    wrong = np.concatenate([table, np.array([[free, 5]], np.uint64)])
    container = write_container(folder, wrong)
    assert f"not of this run: fragment {free}; import" in refused("import", container, code=65)
    project = write_project(folder, [], folder / "moved.n5")
    assert "give --container" in refused("import", project, code=65)
    assert "cannot be understood" in refused(
        "import", write_project(folder, [{"type": "SHRINK", "data": {}}], container), code=65
    )
    assert "choose a label source" in refused("import", project, "--dataset", "other", code=65)
    (project / "attributes.json").write_text("{")
    assert "damaged JSON" in refused("import", project, code=65)
    assert "no attributes.json" in refused("import", folder / "none", code=65)
    assert not Path(url(folder), "segmentation.edits").exists()
