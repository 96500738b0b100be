"""Tuning: what is tried, what is computed for it, and what comes of it."""

import re
from collections import Counter
from math import inf
from pathlib import Path

import pytest
import yaml
from plots import HELD_OUT, TUNED, table

from neurokube.blocks import parse_region
from neurokube.engines import InProcess
from neurokube.errors import DataError, Drained
from neurokube.evaluation import evaluate_instances
from neurokube.stages.fragments import Fragments
from neurokube.stages.multicut import Multicut
from neurokube.tuning import reconstruction, tune, tuned_workflow, write_tuning
from neurokube.volumes import join, open_volume
from neurokube.workflow import Run, execute, load_workflow


@pytest.fixture
def computed(monkeypatch):
    """Count how often each step is computed, and multicuts are planned."""
    counts = Counter()
    run, solve = reconstruction.execute, Multicut.steps

    def counted(*arguments, **options):
        summary = run(*arguments, **options)
        counts.update(re.sub("-[0-9a-f]{8}", "", step) for step, n in summary.computed.items() if n)
        return summary

    def counted_steps(self, sources):
        counts["multicut plans"] += 1
        return solve(self, sources)

    monkeypatch.setattr(reconstruction, "execute", counted)
    monkeypatch.setattr(Multicut, "steps", counted_steps)
    return counts


def scored(file, region, truth):
    """Run a workflow as a user does, and return the scores of its segmentation."""
    run = Run.planned(load_workflow(str(file)), parse_region(region))
    execute(run, InProcess(), quiet=True)
    volume = open_volume(join(run.url, "segmentation", "segmentation"))
    return evaluate_instances(volume, open_volume(str(truth)).crop(parse_region(region)), quiet=True)


# what comes of it


def test_the_best_is_better_than_what_the_workflow_had(tuning):
    assert tuning.best.value < tuning.trials[0].value
    assert tuning.best.number > 0


def test_the_first_trial_is_the_workflow_as_it_is(tuning, plots):
    scores = scored(plots.folder / "workflow.yaml", TUNED, plots.folder / "truth.zarr")
    assert tuning.trials[0].settings["multicut.bias"] == 0.9
    assert tuning.trials[0].scores["voi"] == scores.voi
    assert tuning.trials[0].scores["cremi"] == scores.cremi


def test_the_tuned_workflow_scores_what_the_table_says(tuning, plots):
    file = write_tuning(tuning)
    assert scored(file, TUNED, plots.folder / "truth.zarr").voi == tuning.best.value
    assert scored(file, HELD_OUT, plots.folder / "truth.zarr").voi == tuning.validation[1]["voi"]


def test_the_tuned_workflow_keeps_comments_and_the_users_file(tuning, plots):
    before = (plots.folder / "workflow.yaml").read_text()
    text = Path(write_tuning(tuning)).read_text()
    assert (plots.folder / "workflow.yaml").read_text() == before
    assert "# settings of ours" in text
    assert "# too high" in text
    assert "# of contacts" in text
    document = yaml.safe_load(text)
    for name, value in tuning.changed(tuning.best).items():
        stage, _, field = name.partition(".")
        assert document["stages"][stage][field] == value


def test_the_tuned_workflow_goes_on_in_the_users_run(tuning, plots):
    text = tuned_workflow(tuning)
    (elsewhere := plots.folder / "elsewhere").mkdir(exist_ok=True)
    (elsewhere / "tuned.yaml").write_text(text)
    tuned, own = (load_workflow(str(f)) for f in (elsewhere / "tuned.yaml", plots.folder / "workflow.yaml"))
    assert (tuned.name, tuned.workspace, tuned.inputs) == (own.name, own.workspace, own.inputs)


def test_a_table_and_a_picture_are_left(tuning):
    write_tuning(tuning)
    folder = Path(tuning.request.output)
    lines = (folder / "trials.csv").read_text().splitlines()
    assert len(lines) == 1 + len(tuning.trials)
    assert [line.split(",")[0] for line in lines[1:] if line.split(",")[-2] == "best"] == [str(tuning.best.number)]
    assert (folder / "tuning.png").read_bytes().startswith(b"\x89PNG")


def test_the_hold_out_is_not_looked_at_before_the_end(tuning, plots):
    without = plots.tuned()
    assert without.validation is None
    assert table(without) == table(tuning)


def test_scores_of_cutouts_count_by_their_mean(plots):
    alone = [plots.tuned(regions=[region], trials=2, sets=["multicut.bias=0.3,0.9"]) for region in (TUNED, HELD_OUT)]
    both = plots.tuned(regions=[TUNED, HELD_OUT], trials=2, sets=["multicut.bias=0.3,0.9"])
    for k in range(2):
        assert both.trials[k].value == pytest.approx(sum(t.trials[k].value for t in alone) / 2)


def test_a_truth_lies_where_its_offset_says(plots):
    whole = plots.tuned("truth.zarr", regions=["20:32,8:72,0:72"], trials=2)
    placed = plots.tuned("upper.zarr", regions=[], trials=2)
    assert str(placed.cutouts[0]) == "20:32,8:72,0:72"
    assert table(placed) == table(whole)


def test_scores_are_those_that_were_asked_for(plots):
    tuning = plots.tuned(score="adapted-rand", min_size=500, components=False, trials=2)
    assert tuning.best.value == min(t.scores["adapted_rand_error"] for t in tuning.trials)


# what is tried


def test_the_same_seed_tries_the_same(tuning, plots):
    assert table(plots.tuned(validation=[HELD_OUT])) == table(tuning)
    assert table(plots.tuned(seed=1)) != table(tuning)


def test_more_trials_go_on_from_those_that_are_there(tuning, plots):
    for trials in (3, 5, 8):
        going_on = plots.tuned(output="parts", trials=trials)
        assert table(going_on) == table(tuning)[:trials]


def test_settings_stay_within_their_ranges(tuning):
    for trial in tuning.trials:
        assert all(trial.settings[r.name] in r for r in tuning.ranges)


def test_only_what_is_named_is_tuned(plots):
    tuning = plots.tuned(sets=["multicut.bias=0.2:0.4", "fragments.depth=0.01:0.1:log"], trials=6, multicuts=2)
    assert [r.name for r in tuning.ranges] == ["fragments.depth", "multicut.bias"]
    assert all(0.2 <= t.settings["multicut.bias"] <= 0.4 for t in tuning.trials[1:])


def test_choices_are_tried_one_by_one_and_then_it_ends(plots):
    tuning = plots.tuned(sets=["multicut.bias=0.2,0.5,0.9", "multicut.statistic=mean,median"], trials=50)
    tried = [(t.settings["multicut.bias"], t.settings["multicut.statistic"]) for t in tuning.trials]
    assert len(tried) == len(set(tried)) == 6


def test_coarse_sections_have_settings_of_their_own(plots, tmp_path):
    from neurokube.tuning.ranges import usual_ranges
    from neurokube.volumes import VolumeSpec

    stages = {"fragments": Fragments(), "multicut": Multicut()}
    names = {
        size: {r.name for r in usual_ranges("fragments", "multicut", stages, VolumeSpec((9, 9, 9), "uint8", size))}
        for size in ((40.0, 8.0, 8.0), (8.0, 8.0, 8.0))
    }
    assert names[40.0, 8.0, 8.0] - names[8.0, 8.0, 8.0] == {"multicut.z_bias", "multicut.z_weight"}


# what is computed


@pytest.mark.parametrize(
    "prior", ["{channels: {dark: map, bright: image}, repel: 2}", "{objects: cells, attract: 1}", "{pairs: pairs.csv}"]
)
def test_a_workflow_with_priors_is_tuned_and_runs(plots, tmp_path, prior):
    text = (plots.folder / "workflow.yaml").read_text()
    text = text.replace("  image: {path: image.zarr}", "  image: {path: image.zarr}\n  cells: {path: truth.zarr}")
    text = text.replace("  multicut:\n", f"  lifted: {{priors: {{known: {prior}}}}}\n  multicut:\n    lifted: lifted\n")
    (plots.folder / "pairs.csv").write_text("z1,y1,x1,z2,y2,x2,cost\n15,105,105,145,605,605,-2\n")
    (plots.folder / "priors.yaml").write_text(text)
    found = plots.tuned(workflow=str(plots.folder / "priors.yaml"), trials=3, output=str(tmp_path / "tuned"))
    assert scored(write_tuning(found), TUNED, plots.folder / "truth.zarr").voi == found.best.value


def test_fragments_are_computed_once_a_watershed_setting(plots, computed):
    tuning = plots.tuned(trials=9, multicuts=3)
    watersheds = {tuple(v for n, v in t.settings.items() if "fragments" in n) for t in tuning.trials}
    assert len(watersheds) == 3
    assert computed["map/boundaries"] == 1
    assert computed["fragments/fragments"] == computed["graph/edges"] == 3


def test_a_watershed_setting_that_comes_again_is_found(plots, computed):
    sets = ["fragments.depth=0.03,0.1", "multicut.bias=0.3,0.9"]
    plots.tuned(output="again", sets=sets)
    before = dict(computed)
    request = plots.request(output="again", sets=sets)
    tune(request, InProcess(), overwrite=True, quiet=True)
    assert computed["fragments/fragments"] == before["fragments/fragments"] == 2
    assert computed["multicut plans"] > before["multicut plans"]


def test_a_multicut_in_memory_leaves_nothing(tuning):
    from neurokube.volumes import Store

    assert Store("memory://tuning").keys() == []


# interruptions and failures


@pytest.mark.parametrize("after", [1, 4, 5])
def test_an_interrupted_tuning_goes_on_as_if_nothing_had_been(tuning, plots, monkeypatch, after):
    real, calls = reconstruction.Fragmented.scores, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(self, *arguments)

    request = plots.request(output=f"interrupted-{after}")
    with monkeypatch.context() as patch:
        patch.setattr(reconstruction.Fragmented, "scores", interrupted)
        stopped = tune(request, InProcess(), quiet=True)
    assert stopped.stopped
    assert table(stopped) == table(tuning)[:after]
    assert table(tune(request, InProcess(), quiet=True)) == table(tuning)


def test_an_interruption_before_the_first_trial_says_so(plots, monkeypatch):
    def interrupted(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(reconstruction.Fragmented, "scores", interrupted)
    with pytest.raises(Drained, match="before the first trial ended"):
        plots.tuned()


def test_a_torn_line_of_the_journal_costs_one_trial(tuning, plots):
    plots.tuned(output="torn", trials=5)
    journal = plots.folder / "torn" / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert table(plots.tuned(output="torn")) == table(tuning)


def test_a_trial_that_fails_is_kept_and_the_others_go_on(plots, monkeypatch):
    real = reconstruction.Fragmented.scores

    def fails(self, settings, min_size):
        if settings["bias"] == 0.5:
            raise DataError("too many fragments")
        return real(self, settings, min_size)

    monkeypatch.setattr(reconstruction.Fragmented, "scores", fails)
    sets = ["multicut.bias=0.3,0.5,0.7"]
    tuning = plots.tuned(output="fails", sets=sets)
    assert [t.error for t in tuning.trials] == ["", "", "too many fragments", ""]
    assert tuning.trials[2].value == inf
    write_tuning(tuning)
    assert table(plots.tuned(output="fails", sets=sets)) == table(tuning)


def test_settings_as_they_are_must_work(plots, monkeypatch):
    def fails(self, settings, min_size):
        raise DataError("too many fragments")

    monkeypatch.setattr(reconstruction.Fragmented, "scores", fails)
    with pytest.raises(DataError, match="too many"):
        plots.tuned()


def test_other_programs_of_optunas_open_the_study(tuning):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal = str(Path(tuning.request.output) / "study.journal")
    study = optuna.load_study(study_name="tuning", storage=JournalStorage(JournalFileBackend(journal)))
    assert study.best_value == tuning.best.value
    assert study.best_params == {n: v for n, v in tuning.best.settings.items() if v is not None}


# workflows of other kinds


def test_a_boundary_map_may_be_an_input(plots):
    text = """\
name: ready
inputs: {image: {path: boundaries.zarr}}
stages:
  fragments: {boundaries: image, tile: [16, 36, 36], mask: image}
  graph: {boundaries: image, channels: {again: image}}
  multicut:
"""
    (plots.folder / "ready.yaml").write_text(text)
    tuning = plots.tuned(workflow="ready.yaml", trials=3, multicuts=1)
    assert tuning.best.value <= tuning.trials[0].value


def test_a_workflow_that_makes_its_own_image_needs_no_region(plots):
    text = """\
name: made
stages:
  synthesis: {shape: [8, 40, 40], voxel_size: [10, 10, 10], tissue: {seed: 3}}
  boundaries: {image: synthesis.image}
  fragments:
  graph:
  multicut: {bias: 0.9}
"""
    (plots.folder / "made.yaml").write_text(text)
    tuning = plots.tuned(workflow="made.yaml", regions=[], trials=3, sets=["multicut.bias=0.1:0.9"])
    assert tuning.best.value <= tuning.trials[0].value
    assert str(tuning.cutouts[0]) == "all"


def test_one_of_several_multicuts_is_tuned_by_its_name(plots):
    text = (plots.folder / "workflow.yaml").read_text() + "  other: {stage: multicut, bias: 0.8}\n"
    (plots.folder / "several.yaml").write_text(text)
    tuning = plots.tuned(workflow="several.yaml", stage="other", trials=2)
    assert tuning.trials[0].settings["other.bias"] == 0.8
    assert yaml.safe_load(tuned_workflow(tuning))["stages"]["multicut"] == {"bias": 0.9}
