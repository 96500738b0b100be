import fcntl
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import neurokube
from neurokube.cli import main
from neurokube.volumes import VolumeSpec, create
from neurokube.workflow import Run, load_workflow

SHAPE = (16, 64, 64)
WORKFLOW = """\
name: {name}
inputs:
  image: {{path: image.zarr}}
stages:
  boundaries: {{tile: [8, 32, 32]}}
  fragments: {{tile: [8, 32, 32]}}
  graph:
  multicut:
  segmentation:
"""
PROGRAM = Path(sys.executable).with_name("neurokube")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an image, workflows for it, and a finished run."""
    folder = tmp_path_factory.mktemp("cli")
    x = np.arange(SHAPE[2])
    image = np.where(np.minimum(x % 20, 20 - x % 20) < 2, 60, 180) + np.random.default_rng(0).normal(0, 8, SHAPE)
    np.save(folder / "image.npy", np.clip(image, 0, 255).astype(np.uint8))
    volume = create(str(folder / "image.zarr"), VolumeSpec(SHAPE, "uint8", (40.0, 8.0, 8.0)), shard=(8, 32, 32))
    volume.write(volume.spec.box, np.load(folder / "image.npy"))
    for name in ("whole", "shared", "other"):
        (folder / f"{name}.yaml").write_text(WORKFLOW.format(name=name))
    (folder / "lost.yaml").write_text(WORKFLOW.format(name="lost").replace("image.zarr", "lost.zarr"))
    (folder / "mistake.yaml").write_text(WORKFLOW.format(name="mistake").replace("graph:", "graf:"))
    (folder / "output.yaml").write_text(
        WORKFLOW.format(name="output").replace("graph:", "graph: {boundaries: boundaries.map}")
    )
    result = subprocess.run([PROGRAM, "run", "whole.yaml", "-w", "0"], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """Run the command line in this process; return exit code, standard output and standard error."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("NEUROKUBE_DEBUG", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["neurokube", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def refuse(call, code, words, *arguments):
    status, _, errors = call(*arguments)
    assert errors.startswith("neurokube: ")
    assert errors.count("\n") == 1
    assert words in errors
    assert status == code


def test_the_program_answers_with_its_exit_code_and_one_line(folder):
    for arguments, code in [(["--help"], 0), ([], 64), (["plan", "none.yaml"], 78), (["import", "none", "x.zarr"], 65)]:
        result = subprocess.run([PROGRAM, *arguments], cwd=folder, capture_output=True, text=True)
        assert result.returncode == code
        assert "Traceback" not in result.stderr
        assert result.stderr.count("\n") == (code != 0)


def test_help_and_version_end_with_0(call):
    assert call("--help")[::2] == (0, "")
    assert call("run", "--help")[::2] == (0, "")
    assert call("--version") == (0, f"{neurokube.__version__}\n", "")


def test_without_a_command_the_help_is_shown_and_one_is_asked_for(call):
    code, output, errors = call()
    assert (code, errors) == (64, "neurokube: name one of the commands above\n")
    assert "Commands:" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "No such command 'frobnicate'; see 'neurokube --help'"),
        (["run"], "Missing argument 'workflow'; see 'neurokube run --help'"),
        (["run", "whole.yaml", "--wrokers", "2"], "No such option: --wrokers"),
        (["run", "whole.yaml", "--workers", "two"], "'--workers' / '-w': must be a valid integer; see"),
        (["run", "whole.yaml", "--workers", "-1"], "must be greater than or equal to 0; see"),
        (["run", "whole.yaml", "--engine", "abacus"], "--engine abacus: choose local, kubernetes, slurm, lsf, pbs"),
        (["run", "whole.yaml", "--region", "0:5"], "region '0:5': write it as Z0:Z1,Y0:Y1,X0:X1"),
        (["plan", "whole.yaml", "--region", ""], "region '': write it as"),
        (["plan", "whole.yaml", "--region", "5:0,0:5,0:5"], "each axis needs 0 <= start < stop"),
        (["import", "image.npy", "new.zarr"], "give it in nm with --voxel-size"),
        (["import", "image.npy", "new.zarr", "--voxel-size", "0,8,8"], "--voxel-size needs three positive numbers"),
        (
            ["import", "image.npy", "new.zarr", "--voxel-size", "8"],
            "--voxel-size 8: give 3 numbers with commas between, as 40,4,4",
        ),
        (["import", "image.npy", "image.zarr", "--voxel-size", "8,8,8"], "exists; choose another destination"),
        (["init", "image.zarr", "-o", "whole.yaml"], "is there already; choose another name"),
        (["plan", "whole.yaml", "--blocks", "2"], "are only known with --calibrate; add it"),
        (["plan", "whole.yaml", "--compare", "--calibrate"], "leave --calibrate and --profile out"),
        (["plan", "whole.yaml", "--calibrate", "--blocks", "99", "-q"], "--blocks 99: the volume has room for"),
        (["work", "runs/whole", "no/step"], "there is no step 'no/step' in this run; there are boundaries/boundaries"),
        (["work", "runs/whole", "graph/edges", "--batch", "1"], "--batch 1: write it as I/N"),
        (["work", "runs/whole", "graph/edges", "--batch", "2/2"], "I counts from 0 to N - 1"),
        (["status", "ftp://host/run"], "unknown scheme 'ftp'"),
        (["demo", "runs"], "name another folder"),
    ],
)
def test_wrong_usage_ends_with_64(call, arguments, words):
    refuse(call, 64, words, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "lost.yaml"], "neurokube: lost.yaml: "),
        (
            ["run", "lost.yaml"],
            "lost.zarr: no volume there (no zarr.json, .zattrs, attributes.json or info); make one with",
        ),
        (["plan", "whole.yaml", "--region", "0:99,0:9,0:9"], "whole.yaml: inputs.image: region 0:99,0:9,0:9 is not in"),
        (["import", "none", "new.zarr", "--voxel-size", "8,8,8"], "none: no such file or folder"),
        (["init", "none.zarr"], "none.zarr: no volume there"),
        (["evaluate", "image.zarr", "none.zarr"], "none.zarr: no volume there"),
        (["evaluate", "image.zarr", "image.zarr", "--region", "0:99,0:9,0:9"], "is not inside the volume"),
        (["view", "none"], "none: no volume there"),
    ],
)
def test_bad_data_ends_with_65(call, arguments, words):
    refuse(call, 65, words, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "none.yaml"], "none.yaml: No such file or directory; write one with 'neurokube init VOLUME'"),
        (["run", "mistake.yaml"], "mistake.yaml: stages.graf: unknown stage 'graf'; did you mean 'graph'?"),
        (
            ["run", "output.yaml"],
            "output.yaml: stages.graph.boundaries: 'boundaries' has no output 'map'; it has bound",
        ),
        (["status", "none"], "none: no run there (no run.json); start one with 'neurokube run WORKFLOW'"),
        (["work", "none", "graph/edges"], "none: no run there"),
    ],
)
def test_a_wrong_configuration_ends_with_78(call, arguments, words):
    refuse(call, 78, words, *arguments)


def test_nothing_refused_leaves_anything_behind(folder):
    assert not [path for path in folder.rglob("*") if path.name in ("new.zarr", "x.zarr", "lost", "mistake", "output")]


@pytest.fixture
def document(folder):
    """The run's document, to be changed; put back afterwards."""
    file = folder / "runs" / "whole" / "run.json"
    before = file.read_text()
    yield file
    file.write_text(before)


@pytest.mark.parametrize("arguments", [("status", "runs/whole"), ("run", "whole.yaml"), ("work", "runs/whole", "a/b")])
def test_a_run_of_another_format_ends_with_78_and_is_kept(call, document, arguments):
    changed = json.loads(document.read_text()) | {"format": 99, "neurokube": "9.0"}
    document.write_text(json.dumps(changed))
    refuse(call, 78, "made by NeuroKube 9.0, whose folders (format 99)", *arguments)
    assert json.loads(document.read_text()) == changed


def test_a_worker_of_other_software_ends_with_78(call, document):
    run = json.loads(document.read_text())
    document.write_text(json.dumps(run | {"numerics": run["numerics"] | {"numpy": "0.1"}}))
    refuse(call, 78, "use the same software, or run again", "work", "runs/whole", "graph/edges")


def test_a_foreign_folder_ends_with_78_and_is_kept(call, folder):
    foreign = folder / "runs" / "other" / "thesis.txt"
    foreign.parent.mkdir()
    foreign.write_text("do not lose me")
    refuse(call, 78, "a folder that is no run; choose another name or workspace, or empty it", "run", "other.yaml")
    assert [path.name for path in foreign.parent.iterdir()] == ["thesis.txt"]


def test_a_run_in_use_by_another_process_ends_with_75(call, folder):
    with (folder / "runs" / "whole" / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refuse(call, 75, "in use by another process (pid ", "run", "whole.yaml", "-w", "0")
    assert call("run", "whole.yaml", "-w", "0", "-q")[0] == 0


def test_a_second_run_finds_all_done(call):
    code, output, errors = call("run", "whole.yaml", "-w", "0", "-q")
    assert (code, errors) == (0, "")
    assert "done; 0 blocks computed, " in output


def test_status_as_json_is_valid_and_complete(call):
    code, output, errors = call("status", "runs/whole", "--json")
    state = json.loads(output)
    assert (code, errors, state["state"], state["quarantined"]) == (0, "", "done", [])
    assert state["done"] == state["blocks"] == sum(step["blocks"] for step in state["steps"].values())
    assert state["steps"]["boundaries/boundaries"]["blocks"] == 8


def test_a_plan_as_json_agrees_with_the_run(call):
    rows = json.loads(call("plan", "whole.yaml", "--json")[1])["steps"]
    state = json.loads(call("status", "runs/whole", "--json")[1])
    assert {row["step"]: row["blocks"] for row in rows} == {
        name: step["blocks"] for name, step in state["steps"].items()
    }


def test_a_plan_of_a_run_that_is_not_there_is_compared_with_nothing(call):
    refuse(call, 78, "runs/other: no run there (no run.json); start one", "plan", "other.yaml", "--compare")
    refuse(call, 78, "image.zarr: no run there", "plan", "image.zarr", "--compare")


def outputs(run):
    """Everything that a run computed: path -> bytes; not what tells when and where it did."""
    files = {path.relative_to(run): path for path in run.rglob("*") if path.is_file()}
    told = ("ledger", "run.json", "plan.json", "stage.json", ".lock")
    return {str(name): path.read_bytes() for name, path in files.items() if not set(told) & set(name.parts)}


def test_working_share_by_share_computes_the_same_as_a_run(call, folder):
    run = Run.planned(load_workflow(str(folder / "shared.yaml")))
    run.prepare()
    done = 0
    for step in run.plan.steps:
        for share in (2, 0, 1):
            code, output, errors = call("work", "runs/shared", step, "--batch", f"{share}/3")
            assert (code, errors) == (0, "")
            done += json.loads(output)["done"]
    assert done == sum(len(step.blocks) for step in run.plan.steps.values())
    assert json.loads(call("status", "runs/shared", "--json")[1])["state"] == "done"
    assert outputs(folder / "runs" / "shared") == outputs(folder / "runs" / "whole")


def test_a_block_that_fails_ends_work_with_1_and_is_named(call, folder, tmp_path):
    (tmp_path / "w.yaml").write_text(WORKFLOW.format(name="r").replace("image.zarr", str(folder / "image.zarr")))
    run = Run.planned(load_workflow(str(tmp_path / "w.yaml")))
    run.prepare()
    assert call("work", run.url, "boundaries/boundaries")[0] == 0
    refuse(call, 1, "graph/edges: 8 blocks failed", "work", run.url, "graph/edges")
    code, output, _ = call("status", run.url)
    assert code == 1
    assert "failed: graph/edges block 0" in output


def test_what_a_run_has_not_finished_is_not_scored(call, folder, tmp_path):
    (tmp_path / "w.yaml").write_text(WORKFLOW.format(name="r").replace("image.zarr", str(folder / "image.zarr")))
    run = Run.planned(load_workflow(str(tmp_path / "w.yaml")))
    run.prepare()
    begun = [step for step in run.plan.steps if step.startswith(("boundaries", "fragments"))]
    for step in begun[:-1]:
        assert call("work", run.url, step)[0] == 0
    assert call("work", run.url, begun[-1], "--batch", "0/2")[0] == 0
    cells = f"{folder}/runs/whole/segmentation/segmentation"
    missing = f"lacks 8 of 8 blocks; not finished yet: {begun[-1]}, graph/"
    for arguments in ([f"{run.url}/segmentation/segmentation", cells], [cells, f"{run.url}/segmentation/segmentation"]):
        refuse(call, 65, missing, "evaluate", *arguments)
    refuse(call, 65, "go on with 'neurokube run WORKFLOW'", "evaluate", *arguments)
    assert call("evaluate", cells, cells)[0] == 0
    fragments = f"{run.url}/fragments/fragments"
    refuse(call, 65, "lacks 4 of 8 blocks", "evaluate", fragments, cells)
    code, _, errors = call("evaluate", fragments, cells, "--region", "0:8,0:64,0:64", "-q")
    assert (code, errors) == (0, "")


def test_what_a_run_left_is_scored_where_the_run_cannot_be_opened_any_more(call, folder, document):
    document.write_text(json.dumps(json.loads(document.read_text()) | {"format": 99}))
    cells = "runs/whole/segmentation/segmentation"
    code, _, errors = call("evaluate", cells, cells, "-q")
    assert code == 0
    assert "cannot be checked for missing blocks" in errors and "made by NeuroKube" in errors


def test_a_bug_is_one_line_and_ends_with_1(call, monkeypatch):
    def broken():
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("neurokube.doctor.examine", broken)
    refuse(call, 1, "a bug: RuntimeError: two lines; set NEUROKUBE_DEBUG=1 to see where, and report it", "doctor")


def test_init_writes_a_workflow_that_runs(call, tmp_path):
    file = str(tmp_path / "workflow.yaml")
    assert call("init", "image.zarr", "-o", file)[0] == 0
    assert call("run", file, "-w", "0", "-q", "--region", "0:8,0:32,0:40")[0] == 0
    assert [run.name for run in (tmp_path / "runs").iterdir()] == ["image@0-8_0-32_0-40"]


def test_an_imported_stack_is_a_volume_that_can_be_planned(call, folder, tmp_path):
    url = str(tmp_path / "image.zarr")
    code, output, _ = call("import", "image.npy", url, "--voxel-size", "40,8,8", "-q", "--json")
    assert code == 0
    assert json.loads(output)["shape"] == list(SHAPE)
    (tmp_path / "w.yaml").write_text(WORKFLOW.format(name="r"))
    assert call("plan", str(tmp_path / "w.yaml"))[0] == 0
