"""Sweeps: what is tried, what comes of it, and that no interruption changes it."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from neurokube.errors import Drained, NeuroKubeError, UsageError
from neurokube.networks import load_bundle
from neurokube.sweeps import load_sweep, make_trial, print_sweep, sweep, write_sweep
from neurokube.sweeps.local import LocalTrials
from neurokube.sweeps.trials import note_result


class InProcess:
    """Makes trials one after the other, in an order of its own; stops before one of them where it is told to."""

    def __init__(self, order=None, stop_at=None):
        self.order, self.stop_at, self.made = order or sorted, stop_at, []

    def means(self, request):
        return {"threads": 1, "devices": 1}

    def make(self, trials, numbers, threads, stop, look):
        for number in self.order(numbers):
            if number == self.stop_at:
                raise Drained("stopped")
            make_trial(str(trials.folder), number, quiet=True)
            self.made.append(number)
            look()


class Counting(InProcess):
    """Makes no training, but a score by the settings alone."""

    def make(self, trials, numbers, threads, stop, look):
        for number in self.order(numbers):
            told = yaml.safe_load((trials.folder / f"trial-{number:04d}" / "training.yaml").read_text())
            score = 1 - abs(told["learning_rate"] - 0.01) - 0.1 * abs(told.get("dice", 1) - 2)
            note_result(trials.folder, number, score=score, scores={"f1": score}, seconds=1.0)
            self.made.append(number)


def table(swept):
    return [(t.number, t.settings, t.value, t.scores, t.error) for t in swept.trials]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def undisturbed(tissue, tmp_path_factory):
    """A sweep that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return sweep(load_sweep(str(written(tissue, folder))), InProcess(), quiet=True)


def written(tissue, folder, **fields):
    from blobs import document

    (folder / "base.yaml").write_text(yaml.safe_dump(document(tissue, folder, validated=True, steps=8)))
    content = {
        "base": "base.yaml",
        "ranges": {"learning_rate": "0.001:0.1:log", "dice": "0,1,2"},
        "trials": 5,
        "round": 2,
        **fields,
    }
    (folder / "lr.yaml").write_text(yaml.safe_dump(content))
    return folder / "lr.yaml"


def test_the_first_trial_is_the_base_and_the_best_is_named_with_how_to_use_it(undisturbed, capsys):
    assert len(undisturbed.trials) == 5
    assert undisturbed.trials[0].settings == {"learning_rate": 0.02, "dice": 1.0}
    best = max(undisturbed.trials, key=lambda t: t.scores["f1"])
    assert undisturbed.best == best
    assert load_bundle(undisturbed.model).card.scores["validation"]["f1"]["blob"] == best.scores["f1.blob"]
    write_sweep(undisturbed)
    print_sweep(undisturbed)
    said = capsys.readouterr().out
    assert f"best: trial {best.number}, f1 {best.scores['f1']:.4f}" in said
    assert f"use it in a workflow as 'model: {undisturbed.model}'" in said
    folder = undisturbed.sweep.folder
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["trial"] for row in rows if row["best"]] == [str(best.number)]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_trial_is_what_its_training_file_makes(undisturbed, tmp_path, command):
    trial = undisturbed.trials[3]
    told = yaml.safe_load((undisturbed.sweep.folder / "trial-0003" / "training.yaml").read_text())
    assert told["learning_rate"] == trial.settings["learning_rate"]
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump({**told, "workspace": str(tmp_path)}))
    assert command("train", file, "--quiet")[0] == 0
    made = [load_bundle(str(place / "trial-0003" / "model")).card for place in (tmp_path, undisturbed.sweep.folder)]
    assert made[0].sha256 == made[1].sha256


def test_neither_order_nor_interruption_changes_the_table(undisturbed, tissue, tmp_path):
    request = load_sweep(str(written(tissue, tmp_path)))
    with pytest.raises(Drained):
        sweep(request, InProcess(lambda n: sorted(n, reverse=True), stop_at=2), quiet=True)
    # fewer trials first, then more
    sweep(load_sweep(str(tmp_path / "lr.yaml"), 3), InProcess(), quiet=True)
    maker = InProcess(lambda n: random.Random(1).sample(n, len(n)))
    again = sweep(request, maker, quiet=True)
    assert table(again) == table(undisturbed)
    assert 0 not in maker.made and 3 not in maker.made


def test_what_is_tried_gets_better_and_the_same_seed_tries_the_same(tissue, tmp_path):
    found = []
    for k, seed in enumerate((0, 0, 1)):
        (folder := tmp_path / str(k)).mkdir()
        request = load_sweep(str(written(tissue, folder, trials=40, round=4, seed=seed)))
        found.append(sweep(request, Counting(), quiet=True))
    assert table(found[0]) == table(found[1]) != table(found[2])
    assert found[0].best.value < found[0].trials[0].value
    assert found[0].importances


def test_few_choices_are_tried_one_by_one(tissue, tmp_path):
    file = written(tissue, tmp_path, ranges={"learning_rate": "0.01,0.02", "dice": "1,2"}, trials=9)
    swept = sweep(load_sweep(str(file)), Counting(), quiet=True)
    assert len(swept.trials) == 4
    assert len({tuple(t.settings.values()) for t in swept.trials}) == 4


def test_a_trial_that_fails_is_a_row(tissue, tmp_path, capsys):
    file = written(tissue, tmp_path, ranges={"learning_rate": "0.02,1e20"}, trials=2)
    swept = sweep(load_sweep(str(file)), InProcess(), quiet=True)
    assert [bool(t.error) for t in swept.trials] == [False, True]
    assert swept.best.number == 0 and "the loss is" in swept.trials[1].error
    write_sweep(swept)
    print_sweep(swept)
    assert "1 trial failed; trial 1:" in capsys.readouterr().out
    # and is not made again
    maker = InProcess()
    assert table(sweep(load_sweep(str(file)), maker, quiet=True)) == table(swept)
    assert maker.made == []


def test_where_no_trial_succeeds_the_sweep_ends_with_the_reason_and_tries_again(tissue, tmp_path):
    file = written(tissue, tmp_path, ranges={"learning_rate": "1e19,1e21"})
    with pytest.raises(NeuroKubeError, match=r"no trial succeeded; trial 0: .*the loss is"):
        sweep(load_sweep(str(base_of(file, learning_rate=1e20))), InProcess(), quiet=True)
    assert not list(tmp_path.glob("sweeps/lr/trial-*/result.json"))


def base_of(file, **fields):
    base = file.parent / "base.yaml"
    base.write_text(yaml.safe_dump({**yaml.safe_load(base.read_text()), **fields}))
    return file


def test_another_sweep_of_the_name_is_refused(tissue, tmp_path):
    sweep(load_sweep(str(written(tissue, tmp_path, trials=2))), Counting(), quiet=True)
    request = load_sweep(str(written(tissue, tmp_path, trials=2, seed=7)))
    with pytest.raises(UsageError, match="holds a sweep that differs in seed; name another by 'name'"):
        sweep(request, Counting(), quiet=True)
    assert len(sweep(request, Counting(), quiet=True, overwrite=True).trials) == 2


# real processes


def start(file, *arguments):
    command = [sys.executable, "-m", "neurokube", "sweep", str(file), "--quiet", *arguments]
    return subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def trainings(folder):
    """Return the processes that make trials of a sweep, by trial."""
    import psutil

    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "trial" in words and str(folder) in words:
            found[int(words[words.index(str(folder)) + 1])] = process
    return found


def awaited(found, process):
    """Wait until something is found, while a process is at work."""
    while not (value := found()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return value


def test_killed_trials_and_a_killed_driver_cost_nothing_of_the_table(tissue, tmp_path):
    base = {"ranges": {"learning_rate": "0.01,0.02"}, "trials": 2, "round": 2}
    (calm := tmp_path / "calm").mkdir()
    (wild := tmp_path / "wild").mkdir()
    expected = sweep(load_sweep(str(base_of(written(tissue, calm, **base), steps=24))), InProcess(), quiet=True)
    file = base_of(written(tissue, wild, **base), steps=24)
    folder = wild / "sweeps" / "lr"
    driver = start(file, "--workers", "2")
    awaited(lambda: list(folder.glob("trial-*/checkpoints/*.ckpt")), driver)
    number, victim = awaited(lambda: next(iter(trainings(folder).items()), None), driver)
    victim.kill()
    # its driver starts it again
    awaited(lambda: (p := trainings(folder).get(number)) and p.pid != victim.pid, driver)
    driver.kill()
    driver.communicate()
    again = start(file, "--workers", "1")
    said, complaints = again.communicate(timeout=500)
    assert again.returncode == 0, complaints
    assert not trainings(folder)
    swept = sweep(load_sweep(str(file)), InProcess(), quiet=True)
    assert table(swept) == table(expected)
    for trial in swept.trials:
        made = [load_bundle(str(f / f"trial-{trial.number:04d}/model")) for f in (folder, expected.sweep.folder)]
        assert made[0].card.sha256 == made[1].card.sha256
    assert "use it in a workflow as 'model:" in said


def test_ctrl_c_ends_trials_with_a_checkpoint(tissue, tmp_path):
    file = base_of(written(tissue, tmp_path, trials=1), steps=100, interval=50)
    folder = tmp_path / "sweeps" / "lr"
    driver = start(file)
    log = folder / "trial-0000" / "log.txt"
    awaited(lambda: (folder / "trial-0000" / "training.json").exists(), driver)
    # Lightning has begun once there is a bar
    awaited(lambda: list(trainings(folder).values()), driver)
    while driver.poll() is None and not list(folder.glob("trial-0000/checkpoints/*")):
        driver.send_signal(signal.SIGTERM)
        _, complaints = driver.communicate(timeout=500)
    assert driver.returncode == 85, (complaints, log.read_text())
    assert complaints == f"neurokube: {folder}: stopped; run again to go on\n"
    assert not trainings(folder)


def test_a_trial_that_keeps_dying_is_a_row(tissue, tmp_path, monkeypatch):
    # a process that dies before it can say anything
    (broken := tmp_path / "broken").mkdir()
    (broken / "sitecustomize.py").write_text(
        "import os, sys\nif sys.argv[0] == '-m' and 'trial' in sys.orig_argv and '1' in sys.orig_argv: os._exit(9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{broken}:{os.environ.get('PYTHONPATH', '')}")
    request = load_sweep(str(written(tissue, tmp_path, trials=2)))
    swept = sweep(request, LocalTrials(1), quiet=True)
    assert swept.trials[0].scores and "its process died 3 times" in swept.trials[1].error


# what is refused


@pytest.mark.parametrize(
    "fields, base, code, said",
    [
        ({"ranges": {"learning_rat": "0.1:0.2"}}, {}, 64, "ranges.learning_rat: a training has no such setting"),
        ({"ranges": {"augmentation.nois": "0:1"}}, {}, 64, "ranges.augmentation.nois: a training has no such"),
        ({"ranges": {"volumes": "1,2"}}, {}, 64, "ranges.volumes: must be the same for all trials"),
        ({"ranges": {"learning_rate": "-1:0.2"}}, {}, 64, "greater than 0"),
        ({"ranges": {"learning_rate": "0.2:0.1"}}, {}, 64, "LOW must be below HIGH"),
        ({"ranges": {"size": "small:large"}}, {}, 64, "write choices as size: A,B,C"),
        ({"ranges": {"size": "small,huge"}}, {}, 64, "size"),
        ({"ranges": {}}, {}, 78, "ranges"),
        ({"scor": "f1"}, {}, 78, "scor: unknown field; did you mean 'score'?"),
        ({"score": "f1.blobs"}, {}, 78, "score: there will be no 'f1.blobs'; did you mean 'f1.blob'?"),
        ({"score": "psnr"}, {}, 78, "score: there will be no 'psnr'"),
        ({"base": "nothing.yaml"}, {}, 64, "name a training file"),
        ({}, {"steps": -1}, 78, "base.yaml: steps"),
        ({}, {"validation": []}, 78, "names no 'validation' volumes"),
        ({"from": "nothing"}, {}, 64, "nothing"),
        ({"trials": "many"}, {}, 78, "trials"),
    ],
)
def test_bad_input_is_one_line_before_work_starts(tissue, tmp_path, command, fields, base, code, said):
    file = base_of(written(tissue, tmp_path, **fields), **base)
    ended, out, complaint = command("sweep", file)
    assert (ended, out, complaint.count("\n")) == (code, "", 1), complaint
    assert said in complaint
    assert not (tmp_path / "sweeps").exists()


def test_ranges_of_whole_numbers_are_no_minutes(tissue, tmp_path):
    file = tmp_path / "lr.yaml"
    written(tissue, tmp_path)
    file.write_text("base: base.yaml\nranges:\n  interval: 10:30\n  augmentation.noise: [0, 0.5]\n")
    first, second = load_sweep(str(file)).ranges
    assert (first.low, first.high, first.whole) == (10, 30, True)
    assert second.choices == (0.0, 0.5)


def test_a_card_without_the_score_is_said(tissue, tmp_path, monkeypatch):
    from neurokube.sweeps import trial

    monkeypatch.setattr(trial, "flat_scores", lambda card: {})
    with pytest.raises(NeuroKubeError, match="the model's card has no 'f1' of validation; it has: none"):
        sweep(load_sweep(str(written(tissue, tmp_path, trials=1))), InProcess(), quiet=True)


def test_paths_count_from_the_sweep_file(tissue, tmp_path):
    file = written(tissue, tmp_path)
    assert load_sweep(str(file)).folder == Path(tmp_path / "sweeps" / "lr")
