"""Translation: an image on the same voxels, with other grey values, before whatever reads it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches import texture
from generators import SHAPE, Bench, normalization_of, write_generator

from neurokube.volumes import open_volume
from neurokube.workflow import Run, parse_workflow


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    def make(image: Any = None, **model: Any) -> Bench:
        bundle = write_generator(tmp_path / "model", **model)
        return Bench(tmp_path, "translation", bundle.folder, image, offset=(30.0, 0.0, 50.0))

    return make


def test_an_untrained_network_returns_the_image_on_its_voxels(bench):
    image = texture(SHAPE)
    image[2, 5:9] = 0
    here = bench(image, seed=None)
    assert np.array_equal(here.image_of(), image)
    run = here.plan()
    assert open_volume(f"{run.url}/translation/translation").spec == open_volume(here.inputs["image"]["path"]).spec
    assert run.plan.remarks == []


def test_grey_values_become_those_of_the_target(bench):
    here = bench(seed=None, target={"mean": 80.0, "deviation": 12.0})
    own = normalization_of(here.image)
    expected = np.rint((here.image - own.mean) / own.deviation * 12 + 80)
    assert np.abs(here.image_of() - expected).max() <= 1
    assert here.plan().plan.remarks == ["translation: grey values are given a mean of 80 and a deviation of 12"]


def test_a_network_of_sections_sees_each_alone(bench):
    one = bench(plane="yx", normalization={"mean": 120.0, "deviation": 30.0})
    before = one.image_of()
    other = texture(SHAPE)
    other[5] = 255 - other[5]
    (one.folder / "other").mkdir()
    after = Bench(one.folder / "other", "translation", one.model, other).image_of()
    changed = (before != after).any(axis=(1, 2))
    assert np.flatnonzero(changed).tolist() == [5]


def test_semantics_reads_what_translation_made(bench, tmp_path):
    here = bench(target={"mean": 80.0, "deviation": 12.0})
    document = here.document("chain", {})
    document["stages"]["semantics"] = {
        "image": "translation",
        "model": "fib25-10-10-10",
        "window": [16, 48, 48],
        "backend": "torch",
    }
    planned = Run.planned(parse_workflow(document)).plan
    first, second = planned.stages
    assert second.sources["image"].volume == first.own.volume
    write_generator(Path(here.model), seed=1, target={"mean": 80.0, "deviation": 12.0})
    again = Run.planned(parse_workflow(document)).plan
    assert [a.key == b.key for a, b in zip(planned.stages, again.stages, strict=True)] == [False, False]
