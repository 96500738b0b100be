"""`neurokube tune`: what is printed and left, what is refused, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from plots import HELD_OUT, TUNED, WORKFLOW

from neurokube.cli import main

QUICK = ("--region", TUNED, "--trials", "3", "--workers", "0", "--quiet")


@pytest.fixture
def call(plots, monkeypatch, capsys):
    """Run the command line in this process; return exit code, standard output and standard error."""
    monkeypatch.chdir(plots.folder)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.delenv("NEUROKUBE_DEBUG", raising=False)
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["neurokube", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            signal.signal(signal.SIGTERM, handler)
        return code, *capsys.readouterr()

    return run


def test_it_says_what_was_best_and_what_to_do_next(call, plots):
    code, out, err = call("tune", "workflow.yaml", "truth.zarr", *QUICK, "--validate", HELD_OUT, "-o", "said")
    assert (code, err) == (0, "")
    assert "best 1" in out or "best 2" in out
    for words in ("(as it was)", "tuned on before", "held out after", "multicut.bias", "neurokube run said/tuned.yaml"):
        assert words in out
    assert yaml.safe_load((plots.folder / "said" / "tuned.yaml").read_text())["name"] == "tissue"


def test_it_says_what_was_not_varied(call):
    few = ("tune", "workflow.yaml", "truth.zarr", *QUICK, "--set", "fragments.threshold=90:200")
    few += ("--set", "multicut.bias=0.2:0.95", "-o", "few")
    out = call(*few)[1]
    assert re.search(r"fragments\.threshold │ +not varied │", out)
    assert re.search(r"multicut\.bias +│ +0\.2:0\.95 │", out)
    said = "note: fragments: settings were not varied, as the first 10 trials share them; give more --trials, or fewer"
    assert said in out
    assert json.loads(call(*few, "--json")[1])["varied"] == ["multicut.bias"]
    out = call(*few, "--multicuts", "1", "--overwrite")[1]
    assert "90:200" in out and "note: fragments" not in out


def test_json_tells_all_of_it(call):
    code, out, _ = call("tune", "workflow.yaml", "truth.zarr", *QUICK, "--json", "-o", "json")
    told = json.loads(out)
    assert code == 0
    assert told["after"]["voi"] == min(t["voi"] for t in told["trials"])
    assert told["trials"][0]["multicut.bias"] == 0.9
    assert [len(told["trials"]), told["stopped"], told["validation"]] == [3, False, None]


def test_it_says_where_nothing_is_better(call, plots):
    arguments = ("--set", "multicut.bias=0.9", "-o", "same")
    code, out, _ = call("tune", "workflow.yaml", "truth.zarr", *QUICK, *arguments)
    assert code == 0
    assert "no settings were better" in out
    assert "# too high" in (plots.folder / "same" / "tuned.yaml").read_text()


REFUSED = {
    "score": (["--score", "vio"], 64, "--score vio: there is no such score; did you mean 'voi'?"),
    "trials": (["--trials", "0"], 64, "--trials 0: give a whole number from 1 on"),
    "multicuts": (["--multicuts", "0"], 64, "--multicuts 0"),
    "region": (["--region", "5"], 64, "write it as Z0:Z1,Y0:Y1,X0:X1"),
    "no truth in the region": (["--region", "0:2,0:2,70:72"], 64, "there is no truth in it"),
    "hold-out": (["--validate", TUNED], 64, "is also tuned on"),
    "form": (["--set", "bias=0.1:0.2"], 64, "write it as stage.field=LOW:HIGH or stage.field=A,B,C"),
    "stage": (["--set", "multicat.bias=0.1:0.2"], 64, "no stage 'multicat'; did you mean 'multicut'?"),
    "before": (["--set", "map.width=1:2"], 64, "'map' comes before the fragments"),
    "after": (["--set", "segmentation.multicut=a"], 64, "the multicut 'multicut' does not read 'segmentation'"),
    "field": (["--set", "multicut.bais=0.1:0.2"], 64, "has no setting 'bais' to tune; did you mean 'bias'?"),
    "role": (["--set", "multicut.graph=a,b"], 64, "has no setting 'graph' to tune"),
    "order": (["--set", "multicut.bias=0.9:0.1"], 64, "LOW must be below HIGH"),
    "too high": (["--set", "multicut.bias=0.1:1.5"], 64, "bias: must be less than 1 (it is 1.5)"),
    "whole": (["--set", "fragments.threshold=0.5:9"], 64, "threshold: must be a whole number"),
    "choice": (["--set", "multicut.statistic=mean,mode"], 64, "statistic: must be 'mean', 'q10'"),
    "words": (["--set", "multicut.statistic=mean:median"], 64, "write choices as multicut.statistic=A,B,C"),
    "log": (["--set", "fragments.depth=0:0.1:log"], 64, "begins above 0"),
    "form of log": (["--set", "fragments.depth=0:0.1:lin"], 64, "write a range as LOW:HIGH, or LOW:HIGH:log"),
    "list": (["--set", "multicut.solver=[mutex-watershed]"], 64, "only numbers and words can be tuned"),
    "output": (["--output", "s3://bucket/tuning"], 64, "must be a folder on this machine"),
    "twice": (["--set", "multicut.bias=0.1", "--set", "multicut.bias=0.2"], 64, "given twice"),
    "no such stage": (["--stage", "cut"], 64, "is no multicut stage of workflow.yaml; known are multicut"),
    "min size": (["--min-size", "999999"], 65, "no body has 999999 voxels or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_cannot_be_are_refused(call, plots, case):
    options, expected, words = REFUSED[case]
    region = () if "--region" in options else ("--region", "0:16,0:72,0:60")
    truth = "upper.zarr" if case == "no truth in the region" else "truth.zarr"
    code, out, err = call("tune", "workflow.yaml", truth, *region, "-o", "refused", *options, "-q", "-w", "0")
    assert (code, out) == (expected, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (plots.folder / "refused").exists()


TRUTHS = {
    "far.zarr": "is nowhere in the image",
    "between.zarr": "which is not on the voxels of what is segmented",
    "empty.zarr": "every voxel is 0",
    "image.zarr": "an image, not labels",
    "lost.zarr": "no volume there",
}


@pytest.mark.parametrize("truth", TRUTHS)
def test_truths_that_tell_nothing_are_refused(call, plots, truth):
    code, _, err = call("tune", "workflow.yaml", "truth.zarr", truth, "-q", "-w", "0", "-o", "refused")
    assert code == 65
    assert TRUTHS[truth] in err
    assert err.count("\n") == 1
    assert not (plots.folder / "refused").exists()


def test_a_workflow_needs_one_multicut(call, plots):
    none, _, _ = WORKFLOW.partition("  multicut:")
    several = WORKFLOW + "  other: {stage: multicut}\n"
    for text, expected, words in (
        (none, 78, "has no multicut stage"),
        (several, 64, "has several multicut stages; name one by --stage: multicut, other"),
    ):
        (plots.folder / "odd.yaml").write_text(text)
        code, _, err = call("tune", "odd.yaml", "truth.zarr", *QUICK, "-o", "refused")
        assert (code, err.count("\n")) == (expected, 1)
        assert words in err


def test_without_optuna_it_says_how_to_install_it(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = call("tune", "workflow.yaml", "truth.zarr", *QUICK)
    assert code == 78
    assert "optuna is not installed; pip install 'neurokube[train]'" in err


def test_a_folder_of_another_tuning_is_not_taken(call, plots):
    first = ("tune", "workflow.yaml", "truth.zarr", *QUICK, "-o", "taken", "--set", "multicut.bias=0.2:0.9")
    assert call(*first)[0] == 0
    code, _, err = call(*first, "--score", "cremi", "--seed", "3")
    assert code == 64
    assert "holds a tuning that differs in score, seed; name another folder by --output, or give --overwrite" in err
    assert call(*first, "--score", "cremi", "--seed", "3", "--overwrite")[0] == 0
    assert '"score": "cremi"' in (plots.folder / "taken" / "tuning.json").read_text()
    (plots.folder / "things").mkdir(exist_ok=True)
    (plots.folder / "things" / "thing").touch()
    for folder in ("things", "workflow.yaml"):
        assert call("tune", "workflow.yaml", "truth.zarr", *QUICK, "-o", folder)[0] == 64


PROGRAM = (sys.executable, "-m", "neurokube", "tune", "workflow.yaml", "truth.zarr", "--region", TUNED, "-w", "0", "-q")


def started(plots, output):
    """Start a tuning that would take long, and wait until it has made some trials."""
    process = subprocess.Popen(
        [*PROGRAM, "--trials", "5000", "-o", output],
        cwd=plots.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "150"},
    )
    journal = plots.folder / output / "study.journal"
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 6):
        time.sleep(0.02)
    return process


def test_ctrl_c_ends_with_what_is_there_and_a_kill_costs_one_trial(plots, call):
    process = started(plots, "ended")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 85, err
    assert re.search(r"stopped with \d+ of 5000 trials made; run again to go on", err)
    assert "(as it was)" in out
    assert (plots.folder / "ended" / "tuned.yaml").exists()
    made = len((plots.folder / "ended" / "trials.csv").read_text().splitlines()) - 1
    killed = started(plots, "killed")
    killed.kill()
    killed.communicate()
    tables = []
    for output in ("ended", "killed"):
        code, out, _ = call(*PROGRAM[3:], "--trials", made + 3, "-o", output, "--json")
        assert code == 0
        trials = [{k: v for k, v in t.items() if k != "seconds"} for t in json.loads(out)["trials"]]
        tables.append(trials[: made + 3])
    assert tables[0] == tables[1]
