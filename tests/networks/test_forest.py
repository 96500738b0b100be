"""Our evaluator beside scikit-learn's, and forests among the models."""

import json

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier

from neurokube.errors import ConfigurationError, DataError, UsageError
from neurokube.forests.training import flattened
from neurokube.networks import forest as module
from neurokube.networks import load_bundle
from neurokube.networks.bundle import write_forest
from neurokube.networks.forest import Forest, load_forest, trees
from neurokube.networks.proposal import propose

FEATURES = 5
CARD = {
    "name": "edges",
    "architecture": {"kind": "forest", "trees": 7, "features": [f"f{k}" for k in range(FEATURES)]},
    "voxel_size": [40.0, 8.0, 8.0],
    "scores": {"validation": {"f1": {"boundary": 0.9}, "auc": 0.95}},
}


def data(seed, count=400):
    random = np.random.default_rng(seed)
    # few different values, so that many lie on a threshold's side by a hair, or on it
    features = np.round(random.standard_normal((count, FEATURES)), 1).astype(np.float32)
    return features, features[:, 0] + 0.5 * features[:, 1] + random.normal(0, 0.5, count) > 0


def grown(seed=0, **options):
    classifier = RandomForestClassifier(7, random_state=seed, class_weight="balanced", **options)
    return classifier.fit(*data(seed))


@pytest.fixture
def bundle(tmp_path):
    return write_forest(tmp_path / "edges", CARD, flattened(grown()).arrays())


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(1, 20))
def test_probabilities_are_those_of_scikit_learn(seed, leaf):
    classifier = grown(seed, min_samples_leaf=leaf)
    seen = np.concatenate([data(seed)[0], data(seed + 1)[0]])
    ours = flattened(classifier).probabilities(seen)
    np.testing.assert_allclose(ours, classifier.predict_proba(seen)[:, 1], rtol=0, atol=1e-14)


def test_bits_do_not_depend_on_how_many_edges_are_seen_at_once(monkeypatch):
    forest, (features, _) = flattened(grown()), data(3)
    whole = forest.probabilities(features)
    monkeypatch.setattr(module, "_AT_ONCE", 20)
    assert np.array_equal(forest.probabilities(features), whole)
    assert np.array_equal(forest.probabilities(features[::-1])[::-1], whole)


def test_no_edges_have_no_probabilities():
    assert flattened(grown()).probabilities(np.zeros((0, FEATURES), np.float32)).shape == (0,)


def test_forest_comes_back_from_its_bundle_bit_for_bit(bundle):
    features, _ = data(1)
    again = trees(load_forest(str(bundle.folder)))
    assert np.array_equal(again.probabilities(features), flattened(grown()).probabilities(features))


def test_the_same_forest_is_the_same_file(bundle, tmp_path):
    again = write_forest(tmp_path / "again", CARD, flattened(grown()).arrays())
    assert again.weights.read_bytes() == bundle.weights.read_bytes()


@pytest.mark.parametrize(
    "name, damage",
    [
        ("children", lambda a: np.zeros_like(a)),  # a circle: a walk would never end
        ("children", lambda a: a + 10_000),
        ("children", lambda a: a[:-1]),
        ("feature", lambda a: a + FEATURES),
        ("feature", lambda a: a.astype(np.int64)),
        ("roots", lambda a: a[:0]),
        ("roots", lambda a: a - 1),
        ("probability", lambda a: a + 1),
        ("probability", lambda a: a * np.nan),
    ],
)
def test_arrays_that_are_no_forest_are_refused(name, damage):
    arrays = flattened(grown()).arrays()
    with pytest.raises(DataError, match="get the bundle again"):
        Forest.of({**arrays, name: damage(arrays[name])}, FEATURES)


def test_forest_whose_file_was_exchanged_is_refused(bundle):
    bundle.weights.write_bytes(bundle.weights.read_bytes()[:-8])
    with pytest.raises(DataError, match="its checksum is"):
        load_forest(str(bundle.folder))


def test_network_in_place_of_a_forest_is_refused():
    with pytest.raises(ConfigurationError, match=r"forest: synthetic-40-8-8 is a network \(unet\)"):
        load_forest("synthetic-40-8-8")


def test_forest_in_place_of_a_network_is_refused(bundle):
    with pytest.raises(UsageError, match="a forest, which tells boundaries between fragments, where a network"):
        load_bundle(str(bundle.folder))


def test_forest_is_imported_listed_and_shown(bundle, command, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROKUBE_MODELS", str(tmp_path / "installed"))
    code, said, _ = command("models", "import", bundle.folder, "--name", "mine", "--licence", "CC-BY-4.0")
    assert code == 0 and "mine: boundary" in said
    code, said, _ = command("models", "list", "--json")
    row = next(row for row in json.loads(said) if row["name"] == "mine")
    assert code == 0 and (row["kind"], row["where"], row["scores"]) == ("forest", "installed", "boundary 0.90")
    assert "forest" in command("models", "list")[1]
    code, said, _ = command("models", "show", "mine")
    shown = yaml.safe_load(said)
    assert code == 0 and shown["architecture"]["trees"] == 7 and shown["licence"] == "CC-BY-4.0"
    assert load_forest("mine").weights.read_bytes() == bundle.weights.read_bytes()
    # it is no model for an image
    proposal = propose((40.0, 8.0, 8.0))
    assert proposal.model == "synthetic-40-8-8" and not proposal.also


def test_damaged_forest_is_not_imported(bundle, command, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROKUBE_MODELS", str(tmp_path / "installed"))
    arrays = bundle.arrays()
    write_forest(bundle.folder, CARD, {**arrays, "children": arrays["children"] * 0})
    code, _, said = command("models", "import", bundle.folder)
    assert code == 65 and "they are no trees" in said and said.count("\n") == 1
    assert not list((tmp_path / "installed").glob("*"))


def test_what_does_not_apply_to_a_forest_is_said(bundle, command, tmp_path):
    code, _, said = command("models", "export", bundle.folder, tmp_path / "a.zip")
    assert code == 64 and "a forest, which no other program reads; copy its folder" in said
    code, _, said = command("models", "import", bundle.folder, "--window", "16,64,64", "--folder", tmp_path / "x")
    assert code == 64 and "--window" in said and "sees no image; leave it out" in said
