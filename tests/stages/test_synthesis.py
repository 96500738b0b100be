"""The synthesis stage: which outputs it writes, and that they are those of its version."""

import json
from pathlib import Path

import numpy as np
import pytest

from neurokube.blocks import Box
from neurokube.engines import InProcess
from neurokube.errors import ConfigurationError
from neurokube.stages import Synthesis
from neurokube.synthesis import ARRAYS, BASIC, synthesize
from neurokube.volumes import join, open_volume
from neurokube.workflow import Run, execute, parse_workflow

SHAPE, TILE, VOXEL_SIZE = (8, 40, 40), (8, 32, 32), (20.0, 20.0, 20.0)
GOLDEN = Path(__file__).with_name("synthesis.json")


def planned(folder, **settings):
    stage = {"shape": SHAPE, "tile": TILE, "voxel_size": VOXEL_SIZE, **settings}
    return Run.planned(parse_workflow({"name": "run", "workspace": str(folder), "stages": {"synthesis": stage}}))


def made(folder, **settings):
    run = planned(folder, **settings)
    execute(run, InProcess(), quiet=True)
    return run


def checksums(run):
    """Return the sum of each output, and of its voxels weighted by their place, which a shuffle would change."""
    found = {}
    for name in ARRAYS:
        voxels = open_volume(join(run.url, "synthesis", name)).read(Box.of(SHAPE)).ravel().astype(np.uint64)
        places = np.arange(1, voxels.size + 1, dtype=np.uint64)
        found[name] = [int(voxels.sum()), int((voxels * places).sum())]
    return found


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return made(tmp_path_factory.mktemp("everything"), write=list(reversed(ARRAYS)))


def test_the_outputs_are_the_image_and_basic_truth_unless_others_are_asked_for():
    assert tuple(Synthesis(shape=SHAPE).outputs({})) == BASIC
    assert tuple(Synthesis(shape=SHAPE, write=("classes", "image", "classes")).outputs({})) == ("image", "classes")


def test_every_output_is_written_as_synthesized_over_blocks(everything):
    truth = synthesize(everything.plan.stages[0].stage.tissue, VOXEL_SIZE, Box.of(SHAPE), ARRAYS)
    for name in ARRAYS:
        volume = open_volume(join(everything.url, "synthesis", name))
        assert np.array_equal(volume.read(Box.of(SHAPE)), truth[name]), name
        assert volume.spec.kind == ("image" if name in ("image", "boundaries") else "labels")


def test_outputs_are_those_of_this_stage_version(everything):
    """A changed output under an unchanged version would leave stale results in users' runs.

    After a wanted change raise the stage's `version`, then `python tests/stages/test_synthesis.py` writes
    the new sums.
    """
    golden = json.loads(GOLDEN.read_text())
    assert golden["version"] == Synthesis.version
    if golden["numerics"] != everything.document["numerics"]:
        pytest.skip(f"the sums were written with {golden['numerics']}")
    assert checksums(everything) == golden["outputs"]


@pytest.mark.parametrize("write", [["axons"], []])
def test_unknown_outputs_and_none_at_all_are_refused_in_one_line(tmp_path, write):
    with pytest.raises(ConfigurationError, match=r"stages\.synthesis\.write") as caught:
        planned(tmp_path, write=write)
    assert "\n" not in str(caught.value)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = made(folder, write=ARRAYS)
        text = {"version": Synthesis.version, "numerics": run.document["numerics"], "outputs": checksums(run)}
        GOLDEN.write_text(json.dumps(text, indent=2) + "\n")
