import re
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagewise import VOXEL_SIZE, computed, source, stored, voxels

from neurokube.blocks import Box
from neurokube.errors import ConfigurationError
from neurokube.evaluation import Contingency, variation_of_information
from neurokube.stages import Fragments, Graph, Lifted, Multicut, Segmentation, Source
from neurokube.synthesis import Neuropil, synthesize

SHAPE, TILE = (32, 256, 256), (16, 128, 128)
WHAT = ("boundaries", "labels", "classes", "mitochondria_labels")


@lru_cache(maxsize=1)
def tissue():
    return synthesize(Neuropil(seed=4, boundary_gaps=0.15), (40.0, 8.0, 8.0), Box.of(SHAPE), WHAT)


@lru_cache(maxsize=1)
def graph():
    """Fragments, their graph with a channel, and the fragments' volume."""
    boundaries = stored("boundaries", tissue()["boundaries"], TILE)
    fragments, data = computed(Fragments(tile=TILE), {"boundaries": boundaries})
    synapses = stored("synapses", np.roll(tissue()["boundaries"], 40, axis=2), TILE)
    read = {"fragments": fragments, "boundaries": boundaries, "channels.synapses": synapses}
    found, _ = computed(Graph(channels={"synapses": "synapses"}), read)
    return fragments, found, voxels(fragments, data)


def probability(kind):
    """A clear but not a perfect map of a class."""
    noise = np.random.default_rng(kind).normal(0, 40, SHAPE)
    return np.clip(np.where(tissue()["classes"] == kind, 200, 30) + noise, 0, 255).astype(np.uint8)


def shuffled(maps):
    """Give the fragments each other's values."""
    _, where, count = np.unique(graph()[2], return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(count))
    means = [np.bincount(where.ravel(), m.ravel()) / count for m in maps]
    return [np.rint(mean[order])[where].reshape(SHAPE).astype(np.uint8) for mean in means]


CLASSES = {"axon": 1, "dendrite": 2, "glia": 3}
REPEL = {"classes": {"channels": {name: name for name in CLASSES}, "repel": 3}}


def lifted(priors, *, seed=0, maps=None, objects=None, **settings):
    """Return the stage computed, with its tables."""
    fragments, found, _ = graph()
    maps = [probability(kind) for kind in CLASSES.values()] if maps is None else maps
    sources = {"graph": found, "fragments": fragments}
    sources |= {f"classes.channels.{name}": stored(name, m, TILE) for name, m in zip(CLASSES, maps, strict=True)}
    sources["cells.objects"] = stored("cells", tissue()["labels"] if objects is None else objects, TILE)
    return computed(Lifted(priors=priors, **{"bias": 0.7, **settings}), sources, seed=seed)


def pairs(own, data):
    """Return all pairs and their costs."""
    cells = range(len(graph()[0].volume.grid()))
    return tuple(np.concatenate([data.table(name, c) for c in cells]) for name in ("lifted", "costs"))


def voi(own=None, bias=0.6):
    fragments, found, _ = graph()
    sources = {"graph": found, "fragments": fragments}
    if own is not None:
        sources["lifted"] = Source("lifted", "lifted", own.outputs, own.urls)
    cut, _ = computed(Multicut(bias=bias, lifted=None if own is None else "lifted", smallest=100), sources)
    labels = voxels(*computed(Segmentation(), {"fragments": fragments, "multicut": cut}))
    return sum(variation_of_information(Contingency.of(labels.ravel(), tissue()["labels"].ravel())))


def test_classes_help_and_shuffled_ones_do_no_harm():
    plain, helped = voi(), voi(lifted(REPEL)[0])
    assert helped < plain - 0.03
    maps = shuffled([probability(kind) for kind in CLASSES.values()])
    assert voi(lifted(REPEL, maps=maps)[0]) <= 1.01 * plain


def test_pairs_of_different_classes_repel_and_each_is_there_once():
    found, costs = pairs(*lifted(REPEL))
    assert len(found) and (costs < 0).all()
    assert (found[:, 0] < found[:, 1]).all()
    assert len(np.unique(found, axis=0)) == len(found)


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 1000))
def test_pairs_do_not_depend_on_the_order_of_tiles(seed):
    for one, other in zip(pairs(*lifted(REPEL, seed=seed)), pairs(*lifted(REPEL)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_odds_are_read_off_where_boundaries_leave_no_doubt():
    _, data = lifted(REPEL)
    odds = data.table("odds-classes", 0)
    assert odds.shape == (4, 4)
    assert odds[1, 2] == odds[2, 1] > 0.5
    assert odds[1, 1] < 0.5


def test_what_priors_are_worth_is_said():
    _, data = lifted(REPEL)
    stage = Lifted(priors=REPEL, bias=0.7)
    (told,) = stage.findings(sources(), data)
    assert re.match(
        r"classes: axon and dendrite part with log-odds of \d\.\d.*, by [\d,]+ contacts that are surely", told
    )
    _, data = lifted(REPEL, maps=shuffled([probability(kind) for kind in CLASSES.values()]))
    assert "classes: worth nothing, as it says no more than chance" in stage.findings(sources(), data)[0]
    _, data = lifted(REPEL, bias=0.001)
    (told,) = Lifted(priors=REPEL, bias=0.001).findings(sources(), data)
    assert "and 0 that are surely cut at a bias of 0.001: set 'bias' or 'margin'" in told


def test_what_is_trusted_counts_as_given():
    # nothing is surely cut at this bias, so that nothing could be read off
    found, _ = pairs(*lifted({"cells": {"objects": "cells", "attract": 2}}, bias=0.001))
    assert len(found) == 0
    found, costs = pairs(*lifted({"cells": {"objects": "cells", "attract": 2, "trusted": True}}, bias=0.001))
    assert len(found) and (costs > 0).all() and costs.max() <= 2
    parted, costs = pairs(*lifted({"classes": {**REPEL["classes"], "trusted": True}}))
    assert len(parted) and (costs < 0).all()


def test_the_bias_is_that_of_the_multicut_that_reads_it():
    stage = Lifted(priors=REPEL)
    assert stage.following([Multicut(bias=0.1)]).bias == 0.1
    assert stage.following([]).bias == stage.following([Multicut(bias=0.1, forest="edges")]).bias == Multicut().bias
    assert Lifted(priors=REPEL, bias=0.4).following([Multicut(bias=0.1), Multicut(bias=0.2)]).bias == 0.4
    with pytest.raises(ConfigurationError, match=r"bias: multicuts of the biases 0\.1, 0\.2 read it; say which"):
        stage.following([Multicut(bias=0.2), Multicut(bias=0.1)])


def test_fragments_that_share_an_object_attract_each_other():
    found, costs = pairs(*lifted({"cells": {"objects": "cells", "attract": 2}}))
    assert len(found) and (costs > 0).all()
    fragments, labels = graph()[2], tissue()["labels"]
    for one, other in found[:: max(1, len(found) // 20)]:
        assert np.intersect1d(labels[fragments == one], labels[fragments == other]).size


def test_objects_that_differ_repel_across_tiles():
    nuclei = np.zeros(SHAPE, np.uint64)
    nuclei[4:8, 10:20, 10:20], nuclei[20:24, 200:210, 200:210] = 5, 9
    own, data = lifted({"cells": {"objects": "cells", "repel": 20}}, objects=nuclei)
    found, costs = pairs(own, data)
    assert costs.tolist() == [-20]
    fragments = graph()[2]
    assert {int(f) for f in found[0]} <= set(np.unique(fragments[nuclei > 0]).tolist())
    none, _ = pairs(*lifted({"cells": {"objects": "cells", "repel": 20, "within": 500}}, objects=nuclei))
    assert len(none) == 0


def test_contacts_across_a_channel_repel_where_it_parts_cells():
    own, data = lifted({"synapses": {"contacts": "synapses", "repel": 2, "least": 0.5}})
    found, costs = pairs(own, data)
    odds = data.table("odds-synapses", 0)[1, 1]
    assert (costs == costs[0]).all() if odds > 0 else len(found) == 0


def test_pairs_of_points_count_as_given(tmp_path):
    path = tmp_path / "pairs.csv"
    # two points in different tiles, in nm; then one pair outside the volume
    path.write_text("z1,y1,x1,z2,y2,x2,cost\n40,80,80,1000,1400,1400,-7.5\n40,80,80,99999,0,0,-1\n")
    stage = Lifted(priors={"mine": {"pairs": str(path)}}).settle({}, None)
    fragments, found, ids = graph()
    own, data = computed(stage, {"graph": found, "fragments": fragments})
    edges, costs = pairs(own, data)
    assert costs.tolist() == [-7.5]
    assert edges.tolist() == [sorted([int(ids[1, 10, 10]), int(ids[25, 175, 175])])]
    assert stage.priors["mine"].pairs == "pairs.csv"


def test_pairs_that_part_nothing_are_told(tmp_path):
    path = tmp_path / "pairs.csv"
    outside = "40,80,80,99999,0,0,-1\n"
    fragments, found, _ = graph()
    read = {"graph": found, "fragments": fragments}
    within = "40,80,80,1000,1400,1400,-7.5\n40,80,80,40,80,80,-1\n40,80,80,80,80,80,-1\n"
    path.write_text("z1,y1,x1,z2,y2,x2,cost\n" + within + outside)
    stage = Lifted(priors={"mine": {"pairs": str(path)}}).settle({}, None)
    assert stage.remarks(read) == ["mine: of 4 pairs of points 1 has an end outside of the volume, and is left out"]
    _, data = computed(stage, read)
    rows = data.table("points-mine", 0)
    # as under a mask
    rows[rows[:, 0] == 2, 2] = 0
    data.put("points-mine", 0, rows)
    assert stage.findings(read, data) == [
        "mine: of 3 pairs of points are left out: 1 with both ends in one fragment, 1 with an end in no fragment"
    ]
    path.write_text("z1,y1,x1,z2,y2,x2,cost\n" + outside * 2)
    message = r"priors\.mine\.pairs: no pair of pairs\.csv lies in the volume, which reaches from 0, 0, 0 to 1280, 2048"
    with pytest.raises(ConfigurationError, match=message):
        Lifted(priors={"mine": {"pairs": str(path)}}).settle({}, None).steps(read)


def sources(**others):
    fragments, found, _ = graph()
    return {"graph": found, "fragments": fragments} | others


def test_a_channel_must_be_probabilities_that_cover_the_fragments():
    stage = Lifted(priors={"c": {"channels": {"axon": "axon"}, "repel": 1}})
    with pytest.raises(ConfigurationError, match=r"must cover the same voxels"):
        stage.steps(sources(**{"c.channels.axon": source("axon")}))
    with pytest.raises(ConfigurationError, match="probabilities from 0 to 255 are needed"):
        stage.steps(sources(**{"c.channels.axon": source("axon", dtype="uint64", shape=SHAPE)}))


def test_objects_may_be_a_cut_out_that_lies_at_its_own_place():
    cut = tuple(slice(n // 4, n // 4 + n // 2) for n in SHAPE)
    whole = np.zeros(SHAPE, np.uint64)
    whole[cut] = tissue()["labels"][cut]
    offset = tuple(s.start * v for s, v in zip(cut, VOXEL_SIZE, strict=True))
    prior = {"cells": {"objects": "cells", "repel": 3}}
    read = sources(**{"cells.objects": stored("cells", tissue()["labels"][cut], TILE, offset=offset)})
    one, other = lifted(prior, objects=whole), computed(Lifted(priors=prior, bias=0.7), read)
    assert len(pairs(*one)[0]) and all(np.array_equal(a, b) for a, b in zip(pairs(*one), pairs(*other), strict=True))


def test_objects_that_lie_elsewhere_are_refused():
    stage = Lifted(priors={"m": {"objects": "m", "attract": 1}})
    there = stored("m", np.ones((4, 8, 8), np.uint64), TILE, offset=(1e6, 0.0, 0.0))
    with pytest.raises(
        ConfigurationError, match=r"'m' begins at 1e\+06, 0, 0 nm and shares no voxel with the fragments"
    ):
        stage.steps(sources(**{"m.objects": there}))
    moved = stored("m", np.ones(SHAPE, np.uint64), TILE, offset=(40.0, 0.0, 0.0))
    with pytest.raises(ConfigurationError, match="must cover the same voxels"):
        stage.steps(sources(**{"m.objects": moved}))


def test_objects_must_be_labels():
    stage = Lifted(priors={"m": {"objects": "m", "attract": 1}})
    with pytest.raises(ConfigurationError, match=r"priors\.m\.objects: 'm' holds uint8 image; labels are needed"):
        stage.steps(sources(**{"m.objects": source("m", shape=SHAPE)}))


def test_contacts_must_be_a_channel_of_the_graph():
    with pytest.raises(ConfigurationError, match="has no table 'stats-glia'"):
        Lifted(priors={"g": {"contacts": "glia", "repel": 1}}).steps(sources())
