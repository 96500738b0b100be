"""Trainings that are killed, stopped, damaged and gone on with; and one on two devices."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from blobs import document, write_file

from neurokube.errors import Drained
from neurokube.networks import load_bundle
from neurokube.training import parse_training
from neurokube.training.module import SemanticsModule
from neurokube.training.trainer import train

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SIGNALLED = """
import signal, sys
from neurokube.cli import main
from neurokube.training.sampling import Windows

number, get = int(sys.argv.pop(1)), Windows.__getitem__

def signalled(self, index):
    if self.first + index == 21:
        signal.raise_signal(number)
    return get(self, index)

Windows.__getitem__ = signalled
# what a shell gives a program in the foreground
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
LONG = {"validated": True, "steps": 40, "patience": 8}


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, **options
    )


def checkpoints(folder):
    return sorted((folder / "checkpoints").glob("step-*.ckpt"))


def sha(folder):
    return load_bundle(str(folder / "model")).card.sha256


@pytest.fixture(scope="module")
def undisturbed(tissue, tmp_path_factory):
    """The weights of a training that nothing happened to."""
    content = document(tissue, tmp_path_factory.mktemp("undisturbed"), **LONG)
    return train(parse_training(content, where="test"), quiet=True).card.sha256


@pytest.fixture
def finished(tissue, tmp_path, neurokube):
    """The folder of a short training, its file, and its weights."""
    file = write_file(tmp_path / "blobs.yaml", document(tissue, tmp_path, validated=True))
    assert neurokube("train", file, "--quiet") == (0, "")
    folder = tmp_path / "models" / "blobs"
    return folder, file, sha(folder)


def test_killed_training_that_goes_on_ends_with_the_same_weights(tissue, tmp_path, undisturbed, neurokube):
    file = write_file(tmp_path / "blobs.yaml", document(tissue, tmp_path, **LONG))
    folder = tmp_path / "models" / "blobs"
    process = start("-m", "neurokube", "train", file, "--quiet")
    while not checkpoints(folder):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (folder / "model").exists()
    assert neurokube("train", file, "--resume", "--quiet") == (0, "")
    assert sha(folder) == undisturbed
    steps = [json.loads(line)["step"] for line in (folder / "history.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_checkpoint_cut_short_gives_way_to_the_one_before(finished, neurokube):
    folder, file, weights = finished
    *_, newest = checkpoints(folder)
    newest.write_bytes(newest.read_bytes()[:1000])
    code, said = neurokube("train", file, "--resume", "--quiet")
    assert code == 0 and f"{newest}: damaged" in said and said.count("\n") == 1
    assert sha(folder) == weights


@pytest.mark.parametrize("which", ["checkpoints/*.ckpt", "best.pt"])
def test_without_anything_whole_it_starts_from_step_0(finished, neurokube, which):
    folder, file, weights = finished
    for path in folder.glob(which):
        path.write_bytes(path.read_bytes()[:1000])
    code, said = neurokube("train", file, "--resume", "--quiet")
    assert code == 0 and "damaged" in said and "the training starts from step 0" in said
    assert sha(folder) == weights


def test_stopped_training_says_how_to_go_on_and_goes_on(tissue, tmp_path, undisturbed, neurokube):
    file = write_file(tmp_path / "blobs.yaml", document(tissue, tmp_path, **LONG))
    folder = tmp_path / "models" / "blobs"
    process = start("-c", SIGNALLED, signal.SIGINT.value, "train", file, "--quiet")
    _, said = process.communicate()
    assert process.returncode == 85
    assert said == f"neurokube: {folder}: stopped after step 11; the same command with --resume goes on from there\n"
    assert [path.name for path in checkpoints(folder)] == ["step-00000008.ckpt", "step-00000011.ckpt"]
    assert neurokube("train", file, "--resume", "--quiet") == (0, "")
    assert sha(folder) == undisturbed


def test_validation_that_is_broken_off_is_made_when_the_training_goes_on(tissue, tmp_path, undisturbed, monkeypatch):
    settings = parse_training(document(tissue, tmp_path, **LONG), where="test")
    predict, asked = SemanticsModule.predict, []

    def stopped(self, volume):
        if self.step in (8, 40) and self.step not in asked:
            asked.append(self.step)
            signal.raise_signal(signal.SIGTERM)
        return predict(self, volume)

    monkeypatch.setattr(SemanticsModule, "predict", stopped)
    for step in (8, 40):
        with pytest.raises(Drained, match=f"stopped after step {step};"):
            train(settings, resume=None, quiet=True)
    assert train(settings, resume=None, quiet=True).card.sha256 == undisturbed
    rows = (tmp_path / "models" / "blobs" / "history.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(4, 41, 4))


def test_resuming_with_other_settings_is_refused(finished, tissue, neurokube):
    folder, file, weights = finished
    write_file(file, document(tissue, folder.parents[1], validated=True, learning_rate=0.5))
    code, said = neurokube("train", file, "--resume", "--quiet")
    assert code == 78 and "was trained with other settings or another --from (changed: learning_rate); put them" in said
    assert sha(folder) == weights


def test_folder_of_a_training_is_kept_until_the_data_of_another_fits(finished, tissue, neurokube):
    folder, file, weights = finished
    code, said = neurokube("train", file, "--quiet")
    assert code == 64 and "holds a training already" in said
    write_file(file, document(tissue, folder.parents[1], window=[16, 16, 16]))
    code, said = neurokube("train", file, "--overwrite", "--quiet")
    assert code == 65 and "too few for a window" in said
    assert sha(folder) == weights
    write_file(file, document(tissue, folder.parents[1], steps=4, seed=9))
    assert neurokube("train", file, "--overwrite", "--quiet") == (0, "")
    assert sha(folder) != weights and len(checkpoints(folder)) == 1


def test_nothing_to_resume_is_said(tissue, tmp_path, neurokube):
    file = write_file(tmp_path / "blobs.yaml", document(tissue, tmp_path))
    code, said = neurokube("train", file, "--resume", "--quiet")
    assert code == 64 and "nothing to resume there" in said


SPYING = """
import os, sys
from neurokube.cli import main
from neurokube.training.sampling import Windows

get = Windows.__getitem__

def spied(self, index):
    with open(sys.argv[2] + ".windows-" + os.environ.get("LOCAL_RANK", "0"), "a") as file:
        print(self.first + index, file=file)
    return get(self, index)

Windows.__getitem__ = spied
main()
"""
"""The command line, which also writes down which process asks for which windows."""


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="one GPU is here: two devices are none, or two of them")
def test_two_devices_share_the_windows_and_write_one_bundle(tissue, tmp_path):
    content = document(tissue, tmp_path, validated=True, steps=8, devices=2, patience=5)
    file = write_file(tmp_path / "blobs.yaml", content)
    program = tmp_path / "spying.py"
    program.write_text(SPYING)
    process = start(program, "train", file, "--quiet", stdout=subprocess.PIPE)
    said, complaints = process.communicate(timeout=240)
    assert process.returncode == 0, complaints
    # one process tells
    assert said.count("trained in") == 1
    seen = [[int(line) for line in Path(f"{file}.windows-{rank}").read_text().split()] for rank in (0, 1)]
    assert len(seen[0]) == len(seen[1]) == 16
    assert sorted(seen[0] + seen[1]) == list(range(32))
    folder = tmp_path / "models" / "blobs"
    assert load_bundle(str(folder) + "/model").card.scores["validation"]["f1"]["blob"] > 0
    assert [path.name for path in checkpoints(folder)] == ["step-00000004.ckpt", "step-00000008.ckpt"]
