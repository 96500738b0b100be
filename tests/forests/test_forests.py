"""Forests trained on synthetic tissue, whose boundary maps miss membranes and see some where there are none."""

import numpy as np
import pytest
import yaml

from neurokube.blocks import Box
from neurokube.engines import InProcess
from neurokube.forests.edges import load
from neurokube.forests.training import said, train_forest
from neurokube.networks.forest import load_forest
from neurokube.training import parse_training
from neurokube.training.config import GraphVolume
from neurokube.volumes import Store, VolumeSpec, create, open_volume
from neurokube.workflow import Run, execute, load_workflow, parse_workflow

SHAPE = (8, 160, 160)
VOXEL_SIZE = (40.0, 8.0, 8.0)
LEARNED, SCORED = "0:8,0:96,0:160", "0:8,96:160,0:160"
STAGES = {
    "fragments": {"boundaries": "map", "tile": [4, 64, 64]},
    "graph": {"boundaries": "map", "image": "map", "filters": [{"filter": "gaussian", "width": 24}]},
}


@pytest.fixture(scope="session")
def tissue(tmp_path_factory):
    """Return the folder of a boundary map, its truth, and a workflow whose run is done."""
    folder = tmp_path_factory.mktemp("forests")
    neuropil = {"seed": 3, "boundary_gaps": 0.2, "boundary_noise": 0.2}
    stages = {"synthesis": {"shape": SHAPE, "tissue": neuropil, "write": ["labels", "boundaries"]}}
    document = {"name": "tissue", "workspace": str(folder), "stages": stages}
    made = Run.planned(parse_workflow(document))
    execute(made, InProcess(), quiet=True)
    for name, kind in (("labels", "labels"), ("boundaries", "image")):
        voxels = open_volume(f"{made.url}/synthesis/{name}").read(Box.of(SHAPE))
        write(folder / f"{name}.zarr", voxels, kind)
    execute(Run.planned(load_workflow(workflow(folder, "done"))), InProcess(), quiet=True)
    return folder


def write(path, data, kind="labels", **fields):
    """Write a volume and return its path."""
    spec = VolumeSpec(data.shape, data.dtype.name, **{"voxel_size": VOXEL_SIZE, "kind": kind, **fields})
    create(str(path), spec).write(spec.box, data)
    return str(path)


def workflow(folder, name, tissue=None, **stages):
    """Write a workflow over the boundary map and return its path."""
    inputs = {"map": {"path": str((tissue or folder) / "boundaries.zarr")}}
    document = {"name": name, "inputs": inputs, "stages": {**STAGES, **stages}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(document))
    return str(folder / f"{name}.yaml")


@pytest.fixture
def settings(tissue, tmp_path):
    """Return what makes settings; fields as keywords."""
    return lambda **fields: parse_training(document(tissue, tmp_path, **fields), where="test")


def document(tissue, folder, **fields):
    run = {"run": str(tissue / "runs" / "done"), "truth": str(tissue / "labels.zarr")}
    common = {"name": "edges", "task": "forest", "workspace": str(folder / "models"), "trees": 20, "threads": 1}
    volumes = {"volumes": [{**run, "region": LEARNED}], "validation": [{**run, "region": SCORED}]}
    return {**common, **volumes, **fields}


def trained(settings, **options):
    return train_forest(settings, InProcess, quiet=True, **options)


@pytest.fixture(scope="session")
def bundle(tissue, tmp_path_factory):
    return trained(parse_training(document(tissue, tmp_path_factory.mktemp("trained")), where="test"))


def edges_of(tissue, smallest=0, share=0.75, **fields):
    entry = {"run": str(tissue / "runs" / "done"), "truth": str(tissue / "labels.zarr"), **fields}
    return load(GraphVolume.model_validate(entry), smallest=smallest, share=share, engine=InProcess)


def known(annotated):
    """Return {(first, second): whether it parts} of the edges whose truth is known."""
    rows = zip(annotated.tiles.tolist(), annotated.rows.tolist(), annotated.boundary.tolist(), strict=True)
    return {tuple(annotated.graph.data.table("graph.edges", t)[r].tolist()): flag for t, r, flag in rows}


def counted(tissue, region, smallest, share):
    """Return the same by looking at the whole volume at once."""
    box = Box.of(SHAPE) if region is None else region
    fragments = open_volume(str(tissue / "runs" / "done" / "fragments" / "fragments")).read(Box.of(SHAPE))
    truth = open_volume(str(tissue / "labels.zarr")).read(Box.of(SHAPE))
    names, sizes = np.unique(truth[box.slices], return_counts=True)
    large = set(names[sizes >= smallest].tolist()) - {0}
    body = {}
    for fragment in np.unique(fragments[box.slices]).tolist():
        inside = fragments[box.slices] == fragment
        found, counts = np.unique(truth[box.slices][inside], return_counts=True)
        most = max(((c, -b) for b, c in zip(found.tolist(), counts.tolist(), strict=True) if b in large), default=None)
        if fragment and most and most[0] >= share * (fragments == fragment).sum():
            body[fragment] = -most[1]
    graph = edges_of(tissue).graph
    edges = np.concatenate([graph.data.table("graph.edges", cell) for cell in range(len(graph.tiles))]).tolist()
    return {(a, b): body[a] != body[b] for a, b in edges if a in body and b in body}


@pytest.mark.parametrize("smallest, share", [(0, 0.75), (0, 0.5), (2000, 0.9)])
@pytest.mark.parametrize("region", [None, "1:7,10:90,40:160"])
def test_truth_counted_by_tiles_is_that_of_the_whole_volume(tissue, region, smallest, share):
    box = None if region is None else Box((1, 10, 40), (7, 90, 160))
    expected = counted(tissue, box, smallest, share)
    assert known(edges_of(tissue, smallest, share, region=region)) == expected
    assert 0 < sum(expected.values()) < len(expected)


def test_truth_of_a_part_lies_where_its_offset_says(tissue, tmp_path):
    part = Box((2, 20, 30), (8, 120, 150))
    voxels = open_volume(str(tissue / "labels.zarr")).read(part)
    offset = tuple(a * v for a, v in zip(part.start, VOXEL_SIZE, strict=True))
    truth = write(tmp_path / "part.zarr", voxels, offset=offset)
    assert known(edges_of(tissue, truth=truth)) == known(edges_of(tissue, region=str(part)))


def test_forest_tells_edges_better_than_the_mean_of_the_boundary_map(bundle):
    found = bundle.card.scores["validation"]
    assert found["auc"] > found["mean"]["auc"]
    assert found["log_loss"] < found["mean"]["log_loss"]
    assert found["mean"]["auc"] > 0.8


def test_card_says_what_was_learned_from(bundle):
    card = bundle.card
    assert [f.name for f in card.filters] == ["gaussian-24"] and card.channels == ()
    assert "gaussian-24.median" in card.architecture.features and card.voxel_size == VOXEL_SIZE
    one, other = card.training["data"]
    assert (one["role"], one["region"], other["role"]) == ("training", LEARNED, "validation")
    assert one["run"] == "runs/done" and one["edges"] > one["boundaries"] > 0
    assert "better" not in "".join(said(bundle)) and "on" in said(bundle)[0]


def test_the_same_file_gives_the_same_bytes_on_any_number_of_threads(bundle, settings):
    again = trained(settings(threads=2))
    assert again.weights.read_bytes() == bundle.weights.read_bytes()
    assert again.card.scores == bundle.card.scores


def test_another_seed_gives_another_forest(bundle, settings):
    assert trained(settings(seed=1)).card.sha256 != bundle.card.sha256


def test_few_edges_are_drawn_from_both_classes_alike(settings):
    training = trained(settings(edges=200)).card.training
    assert (training["edges"], training["boundaries"]) == (200, 100)


def test_channels_can_be_chosen(settings):
    card = trained(settings(channels=[])).card
    assert card.filters == () and "gaussian-24.mean" not in card.architecture.features


def test_workflow_that_names_the_forest_to_be_trained(tissue, settings, tmp_path):
    """Its graph is computed for the training; then it runs, from there, with what was trained."""
    multicut = {"forest": "models/edges/model", "bias": 0.5}
    path = workflow(tmp_path, "whole", tissue, multicut=multicut, segmentation={})
    entry = {"workflow": path, "truth": str(tissue / "labels.zarr"), "region": LEARNED}
    bundle = trained(settings(volumes=[entry]))
    run = Run.planned(load_workflow(path), Box((0, 0, 0), (8, 96, 160)))
    summary = execute(run, InProcess(), quiet=True)
    assert summary.computed["graph/edges"] == 0 and summary.computed["multicut/costs"] > 0
    # a run that has all is left with the stages that it has beyond the graph
    trained(settings(volumes=[entry]), overwrite=True)
    assert "segmentation" in Store(run.url).read_json("run.json")["keys"]
    # other weights under the same name are another key
    key = Run.planned(load_workflow(path)).document["keys"]["multicut"]
    assert Run.planned(load_workflow(path)).document["keys"]["multicut"] == key
    trained(settings(volumes=[entry], seed=5), overwrite=True)
    assert load_forest(str(bundle.folder)).card.sha256 != bundle.card.sha256
    assert Run.planned(load_workflow(path)).document["keys"]["multicut"] != key


# what can be wrong


@pytest.fixture
def refused(tissue, tmp_path, command):
    """Return what trains with changed settings by the command line, and returns the exit code and the one line."""

    def run(*options, volume=None, **fields):
        content = document(tissue, tmp_path, **fields)
        if volume is not None:
            content["volumes"] = [{**content["volumes"][0], **volume}]
        (tmp_path / "edges.yaml").write_text(yaml.safe_dump(content))
        code, _, said = command("train", tmp_path / "edges.yaml", "-q", *options)
        assert said.startswith("neurokube: ") and said.count("\n") == 1 and "a bug" not in said
        assert not list(tmp_path.rglob("training.json"))
        return code, said

    return run


def test_unknown_field(refused):
    code, said = refused(tree=5)
    assert code == 78 and "tree: unknown field; did you mean 'trees'?" in said
    code, said = refused(steps=5)
    assert code == 78 and "steps: unknown field" in said


def test_neither_run_nor_workflow_or_both(refused, tissue):
    code, said = refused(volume={"workflow": str(tissue / "done.yaml")})
    assert code == 78 and "give either 'run'" in said
    code, said = refused(volumes=[{"truth": "labels.zarr"}])
    assert code == 78 and "give either 'run'" in said


def test_region_without_quotes(refused):
    code, said = refused(volume={"region": "0:4"})
    assert code == 78 and "within braces, in quotes" in said


def test_no_run(refused, tmp_path):
    code, said = refused(volume={"run": str(tmp_path / "nowhere")})
    assert code == 78 and "no run there" in said


def test_no_workflow(refused, tmp_path):
    code, said = refused(volumes=[{"workflow": str(tmp_path / "nowhere.yaml"), "truth": "labels.zarr"}])
    assert code == 78 and "nowhere.yaml" in said


def test_run_without_a_graph(refused, tissue):
    code, said = refused(volume={"run": str(tissue / "tissue")})
    assert code == 78 and "it has no graph stage; add fragments and graph" in said


def test_run_whose_graph_is_not_done(refused, tissue, tmp_path):
    run = Run.planned(load_workflow(workflow(tmp_path, "begun", tissue)))
    run.prepare()
    code, said = refused(volume={"run": run.url})
    assert code == 78 and "its graph is not done (fragments/fragments has blocks left)" in said


def test_several_graphs_and_none_of_that_name(refused, tissue, tmp_path):
    second = {"stage": "graph", "boundaries": "map"}
    entry = {"workflow": workflow(tmp_path, "two", tissue, second=second), "truth": str(tissue / "labels.zarr")}
    code, said = refused(volumes=[entry])
    assert code == 78 and "it has the graphs graph, second; say which by 'graph'" in said
    code, said = refused(volume={"graph": "third"})
    assert code == 78 and "graph 'third' is none of its graph stages, graph" in said


def test_region_outside(refused):
    code, said = refused(volume={"region": "0:9,0:8,0:8"})
    assert code == 65 and "is not inside" in said


def test_truth_that_does_not_overlap(refused, tissue, tmp_path):
    voxels = np.ones((2, 8, 8), np.uint64)
    truth = write(tmp_path / "far.zarr", voxels, offset=(0.0, 9000.0, 0.0))
    code, said = refused(volume={"truth": truth})
    assert code == 65 and f"{truth}: lies at" in said and "check its offset and the region" in said


def test_truth_of_another_voxel_size(refused, tmp_path):
    truth = write(tmp_path / "fine.zarr", np.ones(SHAPE, np.uint64), voxel_size=(10.0, 8.0, 8.0))
    code, said = refused(volume={"truth": truth})
    assert code == 65 and "its voxels are 10 x 8 x 8 nm, the fragments" in said


def test_truth_that_is_an_image_or_missing(refused, tissue, tmp_path):
    code, said = refused(volume={"truth": str(tissue / "boundaries.zarr")})
    assert code == 65 and "holds uint8 image, no bodies; import it with --labels" in said
    code, said = refused(volume={"truth": str(tmp_path / "nowhere")})
    assert code == 65 and "no volume there" in said


def test_truth_without_bodies(refused, tmp_path):
    code, said = refused(smallest=10**9)
    assert code == 65 and "of no edge of" in said and "'smallest' (1000000000)" in said
    code, said = refused(volume={"truth": write(tmp_path / "0.zarr", np.zeros(SHAPE, np.uint64))})
    assert code == 65 and "of no edge of" in said


def test_edges_of_one_class(refused, tmp_path):
    truth = write(tmp_path / "one.zarr", np.ones(SHAPE, np.uint64))
    code, said = refused(volume={"truth": truth})
    assert code == 65 and "volumes: all" in said and "lie within one body" in said


def test_validation_of_one_class(refused, tissue, tmp_path):
    truth = write(tmp_path / "one.zarr", np.ones(SHAPE, np.uint64))
    code, said = refused(validation=[{"run": str(tissue / "runs" / "done"), "truth": truth}])
    assert code == 65 and "validation: all" in said


def test_channel_that_the_graph_lacks(refused, tissue, tmp_path):
    code, said = refused(channels=["hessian-24"])
    assert code == 78 and "has not measured edges on hessian-24; it has gaussian-24" in said
    plain = Run.planned(load_workflow(workflow(tmp_path, "plain", tissue, graph={"boundaries": "map"})))
    execute(plain, InProcess(), quiet=True)
    code, said = refused(validation=[{"run": plain.url, "truth": str(tissue / "labels.zarr")}])
    assert code == 78 and "its graph has not measured edges on gaussian-24; add it" in said


def test_from_and_resume(refused):
    for option in (["--from", "synthetic-40-8-8"], ["--resume"]):
        code, said = refused(*option)
        assert code == 64 and "grown at one go and from nothing" in said


def test_earlier_training_is_kept(settings, command, tissue, tmp_path):
    trained(settings())
    (tmp_path / "edges.yaml").write_text(yaml.safe_dump(document(tissue, tmp_path)))
    code, _, said = command("train", tmp_path / "edges.yaml", "-q")
    assert code == 64 and "holds a training already; replace it by --overwrite" in said
    assert command("train", tmp_path / "edges.yaml", "-q", "--overwrite")[0] == 0
