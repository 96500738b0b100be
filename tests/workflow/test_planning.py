"""What a plan says of a run, before it and after."""

import json
import re
import tempfile
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import SHAPE, STAGES, TILE, document, planned, tissue, write_image, write_workflow

from neurokube.blocks import Box, Grid
from neurokube.cli import app
from neurokube.engines import Batch, InProcess
from neurokube.engines.cluster.profile import Prices, Profile
from neurokube.errors import ConfigurationError, NeuroKubeError, UsageError
from neurokube.stages import VolumeOutput
from neurokube.stages.base import looked_at
from neurokube.words import human_time
from neurokube.workflow import Run, execute, parse_workflow, work
from neurokube.workflow.calibration import calibrate, sample_shape, spread
from neurokube.workflow.comparison import compare
from neurokube.workflow.estimate import FILE, Target, effort, estimate, kept, target_bytes
from neurokube.workflow.plan_text import print_comparison, print_plan
from neurokube.workflow.status import distinct
from neurokube.workflow.stored import stored

NETWORK = {
    "synthesis": {"shape": [16, 128, 192], "tile": [8, 64, 64], "write": ["image"]},
    "semantics": {
        "image": "synthesis.image",
        "model": "synthetic-40-8-8",
        "labels": ["membranes"],
        "window": [8, 64, 64],
        "tile": [8, 64, 64],
        "permutations": 2,
    },
}


def network(folder, **changes):
    return Run.planned(parse_workflow(document(folder, inputs={}, stages=NETWORK, **changes)))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run, and what was estimated before it."""
    folder = tmp_path_factory.mktemp("done")
    write_image(folder)
    run = planned(folder)
    before = estimate(run, Target(1))
    calibration = calibrate(run, InProcess, places=2, quiet=True)
    execute(run, InProcess(), quiet=True)
    return Run.open(run.url), before, calibration


# what is counted


def test_bytes_before_compression_are_exactly_what_blocks_write(done):
    run, before, _ = done
    for row in before.steps:
        step = run.plan.steps[row.step]
        tables = [t.prefix for t in step.step.targets if not isinstance(t.output, VolumeOutput)]
        beside = stored(run.store, [f"{step.planned.name}/{prefix}" for prefix in tables]).bytes
        assert row.uncompressed == sum(r.bytes for r in distinct(run, step)) - beside


def test_objects_are_at_most_as_many_as_planned_and_metadata_and_records_exactly(done):
    run, before, _ = done
    rows = compare(run)["steps"]
    for row, expected in zip(rows, before.steps, strict=True):
        assert row["objects"]["fact"] <= expected.objects
        assert row["objects"]["fact"] == expected.objects - sum(
            checksum is None for r in distinct(run, run.plan.steps[row["step"]]) for checksum in r.checksums
        )
    beside = compare(run)["totals"]["metadata and ledger"]
    assert beside["fact"] == beside["estimate"] == before.metadata + before.ledger


@given(
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    cell=st.tuples(*[st.integers(1, 40)] * 3),
    halo=st.tuples(*[st.integers(0, 20)] * 3),
)
def test_voxels_looked_at_are_those_of_the_cells_with_their_halo(shape, cell, halo):
    grid = Grid(shape, cell)
    found = looked_at(grid, halo)
    whole = prod(found(axis, 0, n) for axis, n in enumerate(shape))
    assert whole == sum(grid.box(k).grow(halo).clip(Box.of(shape)).size for k in range(len(grid)))


def test_windows_of_all_blocks_are_counted(tmp_path):
    run = network(tmp_path, block=[8, 64, 64])
    step = run.plan.steps["semantics/semantics"]
    grid = step.planned.stage.grid(step.planned.sources["image"].spec)
    computed = sum(len(list(grid.touching(step.blocks.box(block)))) for block in range(len(step.blocks)))
    (told,) = estimate(run, Target()).networks
    assert effort(step) == told.computed == computed > told.windows == len(grid)


def test_intermediate_data_is_the_product_of_the_paper(tmp_path):
    (told,) = estimate(network(tmp_path), Target()).networks
    windows = len({(y, x) for y in (0, 64) for x in (0, 64, 128)})
    factors = told.factors
    assert (factors["x"], factors["y"], factors["z"]) == (192, 128, 16)
    assert (factors["z_upscaling"], factors["window_depth"], factors["permutations"]) == (1, 8, 2)
    # windows overlap, so there are more than would cover the plane
    assert factors["overlap"] > windows * 64 * 64 / (128 * 192)
    assert told.intermediate == round(16 * 128 * 192 * 8 * 2 * factors["overlap"] * 4)
    assert told.stored == 16 * 128 * 192


def test_no_step_that_writes_tables_or_a_pyramid_comes_to_nothing(done):
    _, before, _ = done
    assert all(step.stored.likely > 0 and step.memory > 2**26 for step in before.steps)


# what is scaled up


def test_what_is_stored_lies_in_the_calibrated_range(done):
    run, _, calibration = done
    fact = sum(
        stored(run.store, [f"{s.planned.name}/{t.prefix}" for t in s.step.targets]).bytes
        for s in run.plan.steps.values()
    )
    assert calibration.stored.low <= fact <= calibration.stored.high


def test_every_step_is_timed_with_networks_and_without(done, tmp_path):
    run, _, calibration = done
    assert calibration.steps.keys() == run.plan.steps.keys()
    assert all(timing.seconds.high > 0 for timing in calibration.steps.values())
    made = network(tmp_path)
    found = calibrate(made, InProcess, places=1, quiet=True)
    assert found.steps["semantics/semantics"].seconds.likely > 0
    assert found.remarks == ()
    assert not Path(made.url).exists()


def test_calibration_leaves_nothing_behind(tmp_path, monkeypatch):
    write_image(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    run = planned(tmp_path)
    calibrate(run, InProcess, places=1, quiet=True)
    assert list(scratch.iterdir()) == []
    assert not Path(run.url).exists()


def test_a_network_is_timed_with_the_window_it_was_planned_with(tmp_path, monkeypatch):
    run = network(tmp_path)
    seen = []
    open_ = Run.planned

    def spy(*arguments, **options):
        seen.append(open_(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(Run, "planned", spy)
    calibrate(run, InProcess, places=1, quiet=True)
    whole = run.plan.stage("semantics").stage.settled
    assert [r.plan.stage("semantics").stage.settled for r in seen] == [whole] * len(seen)
    # what a worker remembers of the warm-up's tissue must not make the place's cheaper
    assert [r.workflow.stages["synthesis"].tissue.seed for r in seen] == [1, 0]


def test_a_place_at_which_a_step_fails_is_left_out_and_told(tmp_path):
    voxels = tissue().copy()
    voxels[:, :, 40:] = 0
    write_image(tmp_path, voxels)
    stages = {name: STAGES[name] for name in ("boundaries", "fragments", "graph")}
    run = planned(tmp_path, stages=stages)
    places = spread(SHAPE, sample_shape(run.plan, SHAPE), 4)
    found = calibrate(run, InProcess, places=len(places), quiet=True)
    assert 0 < len(found.remarks) < len(places)
    assert "is left out: graph/totals: boundaries: 'boundaries' is 0 everywhere" in found.remarks[0]


def test_where_every_place_fails_that_is_said(tmp_path):
    write_image(tmp_path, np.zeros(SHAPE, np.uint8))
    with pytest.raises(NeuroKubeError, match=r"^calibration: the place .* is 0 everywhere.*run it, or plan without$"):
        calibrate(planned(tmp_path), InProcess, places=1, quiet=True)


@given(
    shape=st.tuples(*[st.integers(20, 300)] * 3),
    size=st.tuples(*[st.integers(1, 20)] * 3),
    most=st.integers(1, 12),
)
def test_places_lie_within_the_volume_and_apart(shape, size, most):
    places = spread(shape, size, most)
    assert 1 <= len(places) <= most
    assert all(Box.of(shape).contains(place) and place.shape == size for place in places)
    assert all(2 * a.clip(b).size < a.size for k, a in enumerate(places) for b in places[:k])


def test_the_first_places_are_the_middle_and_two_opposite_corners():
    assert spread((100, 100, 100), (10, 10, 10), 3) == [
        Box((45, 45, 45), (55, 55, 55)),
        Box((0, 0, 0), (10, 10, 10)),
        Box((90, 90, 90), (100, 100, 100)),
    ]


# prices and profiles


def test_cost_is_time_at_the_prices_given(done):
    run, _, calibration = done
    told = estimate(run, Target(1, None, price_cpu=3600.0), calibration)
    opening = sum(t.opening for t in calibration.steps.values())
    assert told.cost.likely == pytest.approx(
        sum(t.seconds.likely + t.start for t in calibration.steps.values()) + opening
    )
    assert estimate(run, Target(1), calibration).cost is None


def test_a_profile_says_how_many_indexes_and_whether_memory_is_enough(done):
    run, _, calibration = done
    profile = Profile(image="i", indexes=5, resources={"cpu": "2", "memory": "16Mi"}, prices=Prices(cpu=1.0), stages={})
    told = estimate(run, Target(profile.parallelism, profile, profile.prices.cpu), calibration)
    assert max(step.indexes for step in told.steps) == 5
    assert told.ledger == sum(step.indexes for step in told.steps)
    assert {step.cpus for step in told.steps} == {2.0}
    (graph,) = (remark for remark in told.remarks if "raise stages.graph.resources.memory" in remark)
    assert re.match(r"graph/\w+: needs \S+ [MG]B of memory a pod \(\d others? less\), the profile gives 16.8 MB", graph)


def test_gpu_hours_are_those_of_the_stages_that_get_gpus(tmp_path):
    # whatever this machine has: planned on a processor
    stages = NETWORK | {"semantics": {**NETWORK["semantics"], "backend": "torch"}}
    run = Run.planned(parse_workflow(document(tmp_path, inputs={}, stages=stages)))
    calibration = calibrate(run, InProcess, places=1, quiet=True)
    gpu = {"semantics": {"resources": {"gpu": 2}}}
    profile = Profile(image="i", stages=gpu, parallelism=3, resources={"memory": "8Gi"})
    told = estimate(run, Target(3, profile, price_gpu=3600.0), calibration)
    main = calibration.steps["semantics/semantics"].seconds
    stage = [s.seconds.likely for s in told.steps if s.step.startswith("semantics/")]
    assert told.gpu_hours.likely == pytest.approx(2 * sum(stage) / 3600) and sum(stage) > main.likely
    assert told.cost.likely >= 2 * sum(stage)
    assert [r for r in told.remarks if "the profile gives it a GPU, but it was planned with" in r]
    assert estimate(run, Target(), calibration).gpu_hours.likely == 0
    assert estimate(run, Target(3, profile)).gpu_hours is None


def test_workers_share_the_blocks_of_a_step(done):
    run, _, calibration = done
    alone, many = (estimate(run, Target(n), calibration) for n in (1, 10**6))
    assert {s.workers for s in alone.steps} == {1}
    assert [s.workers for s in many.steps] == [s.blocks for s in many.steps]
    assert many.elapsed.likely < alone.elapsed.likely


# what is kept


def test_a_run_keeps_the_estimate_that_was_made_of_it(tmp_path):
    write_image(tmp_path)
    run = planned(tmp_path, stages={"boundaries": {"tile": TILE}})
    told = estimate(run, Target(), calibrate(run, InProcess, places=1, quiet=True)).as_dict()
    run.store.write_json(FILE, told)
    execute(run, InProcess(), quiet=True)
    assert kept(run) == json.loads(json.dumps(told))
    assert compare(Run.open(run.url))["basis"] == "calibration"
    changed = planned(tmp_path, stages={"boundaries": {"tile": TILE, "contrast": 2.0}})
    assert kept(changed) is None
    execute(changed, InProcess(), quiet=True)
    assert kept(changed)["basis"] == "figures measured elsewhere"


def test_a_run_without_an_estimate_is_compared_with_one_made_now(done):
    run, before, _ = done
    content = run.store.read(FILE)
    run.store.delete(FILE)
    found = compare(run)
    run.store.write(FILE, content)
    assert found["made"] is None
    assert [row["stored"]["estimate"] for row in found["steps"]] == [s["stored"] for s in before.as_dict()["steps"]]


def test_of_an_unfinished_run_the_steps_that_are_done_are_compared(tmp_path):
    write_image(tmp_path)
    run = planned(tmp_path, stages={name: STAGES[name] for name in ("boundaries", "fragments")})
    run.prepare()
    with pytest.raises(UsageError, match=r"nothing to compare, no block is done yet; run it first$"):
        compare(run)
    for name in ("boundaries/boundaries", "boundaries/pyramid-1"):
        work(run.url, name, Batch(0, len(run.plan.steps[name].blocks)))
    found = compare(run)
    assert [row["finished"] for row in found["steps"]] == [True, True, False]
    assert found["totals"]["stored"]["fact"] == sum(row["stored"]["fact"] for row in found["steps"][:2]) > 0


# what is refused


def test_more_places_than_there_is_room_for_are_refused(tmp_path):
    write_image(tmp_path)
    with pytest.raises(UsageError, match=r"^--blocks 500: the volume has room for \d+ places of 16 x .*at most that$"):
        calibrate(planned(tmp_path), InProcess, places=500, quiet=True)


def test_a_volume_as_small_as_a_place_is_to_be_run(tmp_path):
    write_image(tmp_path, tissue()[:16, :32, :32])
    with pytest.raises(UsageError, match=r"^--calibrate: a place is 16 x 32 x 32 voxels, more than half of the vol"):
        calibrate(planned(tmp_path), InProcess, quiet=True)


def test_a_workflow_that_never_ran_has_nothing_to_compare(tmp_path):
    write_image(tmp_path)
    with pytest.raises(ConfigurationError, match=r"no run there \(no run.json\); start one"):
        Run.open(planned(tmp_path).url)


# what people see


def test_all_of_a_name_is_shown(done, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run, before, calibration = done
    for shown in (before.as_dict(), estimate(run, Target(4), calibration).as_dict()):
        print_plan(shown)
        assert _names(capsys.readouterr().out) >= set(run.plan.steps)
    print_comparison(compare(run))
    assert _names(capsys.readouterr().out) >= set(run.plan.steps)


def _names(printed):
    """Return the first column of a printed table, names that were wrapped put together."""
    rows = [re.match(r" (\S*)( +\S+)?", line) for line in printed.splitlines()]
    found = []
    for row in rows:
        if row is None or not row[1]:
            continue
        if row[2] or not found:
            found.append(row[1])
        else:
            found[-1] += row[1]
    return set(found)


def test_times_read_well():
    assert [human_time(s) for s in (0.5, 90, 600, 90_000)] == ["0.5 s", "90 s", "10 min", "25 h"]


def test_plan_calibrates_and_compares_from_the_command_line(tmp_path, monkeypatch, capsys):
    write_image(tmp_path)
    path = write_workflow(tmp_path, stages={"boundaries": {"tile": TILE}})

    def call(*arguments):
        app(["plan", str(path), *arguments], standalone_mode=False)
        return capsys.readouterr().out

    told = json.loads(call("--calibrate", "--blocks", "1", "-w", "0", "-q", "--json", "--price-cpu", "0.05"))
    assert told["calibration"]["places"]
    assert told["totals"]["cost"][1] > 0
    assert [p.name for p in Path(told["run"]).iterdir()] == [FILE]
    execute(planned(tmp_path, stages={"boundaries": {"tile": TILE}}), InProcess(), quiet=True)
    assert "work:" in call("--compare")
    assert json.loads(call("--compare", "--json"))["finished"]
    for wrong in (["--blocks", "2"], ["--compare", "--calibrate"], ["--price-gpu", "1"]):
        with pytest.raises(UsageError):
            call(*wrong)


def test_volumes_of_a_step_are_told_by_name(done):
    run, _, _ = done
    assert target_bytes(run.plan.steps["boundaries/boundaries"]) == {"boundaries": prod(SHAPE)}
