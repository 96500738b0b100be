import json
import shutil
import socket
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from neurokube.cli_models import app
from neurokube.errors import DataError, NeuroKubeError, UsageError
from neurokube.networks import Normalization, write_bundle
from neurokube.networks.exchange import running
from neurokube.networks.exchange.exporting import export_model
from neurokube.networks.exchange.importing import import_model
from neurokube.networks.exchange.running import predict, probabilities
from neurokube.networks.exchange.tables import describe, models_table
from neurokube.networks.exchange.zoo_reading import DESCRIPTIONS

SAID = {"labels": ("membrane", "mitochondria"), "voxel_size": (10.0, 10.0, 10.0), "window": (16, 24, 24)}


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def package(bundle, tmp_path_factory):
    pytest.importorskip("bioimageio.spec")
    return export_model(bundle, tmp_path_factory.mktemp("zoo") / "tiny.zip", format="bioimageio")


@pytest.fixture
def unpacked(package, tmp_path):
    """Return a copy of the package as a folder, for a test to change."""
    with zipfile.ZipFile(package) as archive:
        archive.extractall(tmp_path / "package")
    return tmp_path / "package"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise OSError("a test must not need the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def grey(shape, seed=1):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def normal(bundle, seed=1):
    return np.random.default_rng(seed).standard_normal((2, 1, *bundle.card.window)).astype(np.float32)


def apart(one, other, image):
    return np.abs(predict(one, image) - predict(other, image)).max()


def change(folder, edit):
    """Change the description of an unpacked package."""
    path = next(folder / name for name in DESCRIPTIONS if (folder / name).exists())
    document = yaml.safe_load(path.read_text())
    edit(document)
    path.write_text(yaml.safe_dump(document))


def refused(error, *args, **kwargs):
    with pytest.raises(error) as caught:
        import_model(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_validator_of_the_model_zoo_passes(package):
    from bioimageio.spec import load_description

    description = load_description(package, perform_io_checks=True)
    assert description.validation_summary.status in ("passed", "valid-format"), description.validation_summary
    assert not [error for detail in description.validation_summary.details for error in detail.errors]
    assert description.format_version.startswith("0.5")
    assert set(description.weights.available_formats) == {"torchscript", "onnx"}


@pytest.mark.parametrize("weights", ["torchscript", "onnx"])
def test_other_program_runs_the_exported_model_to_the_same_output(bundle, package, weights):
    core = pytest.importorskip("bioimageio.core")
    if weights == "onnx":
        pytest.importorskip("onnxruntime")
    from bioimageio.core.digest_spec import create_sample_for_model
    from bioimageio.spec import load_description

    description = load_description(package)
    with core.create_prediction_pipeline(description, weight_format=weights) as pipeline:
        image = grey((1, 1, 20, 28, 32))
        sample = create_sample_for_model(description, inputs={"image": image})
        bare = pipeline.predict_sample_without_blocking(sample, skip_input_padding=True, skip_output_cropping=True)
        theirs = np.asarray(bare.members["labels"].data.data)
        normalized = bundle.card.trained_normalization.apply(image)
        assert np.abs(theirs - probabilities(bundle.card, predict(bundle, normalized))).max() < 1e-5
        # left to itself it pads by the halo and crops it again, which must still be a window that fits
        sample = create_sample_for_model(description, inputs={"image": image})
        theirs = np.asarray(pipeline.predict_sample_without_blocking(sample).members["labels"].data.data)
        wider = np.pad(normalized, [(0, 0), (0, 0), (6, 6), (6, 6), (6, 6)], mode="symmetric")
        ours = probabilities(bundle.card, predict(bundle, wider))[:, :, 6:-6, 6:-6, 6:-6]
        assert np.abs(theirs - ours).max() < 1e-5


def test_exported_package_passes_the_test_of_the_other_program(package):
    core = pytest.importorskip("bioimageio.core")
    summary = core.test_model(package, weight_format="torchscript")
    assert summary.status == "passed", summary.format()


def test_package_holds_no_pickle(package):
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
    assert {"weights.pt", "weights.onnx", "README.md", "cover.png", "test_input.npy", "test_output.npy"} < set(names)
    assert not [name for name in names if name.endswith((".pth", ".pkl", ".bin"))]


def test_package_comes_back_with_the_same_output_and_card(bundle, package, tmp_path):
    back = import_model(package, destination_folder=tmp_path)
    assert apart(back, bundle, normal(bundle)) < 1e-5
    same = ("name", "labels", "voxel_size", "window", "multiple", "halo", "thresholds", "scores", "licence", "output")
    assert back.card.model_dump(include=set(same)) == bundle.card.model_dump(include=set(same))
    assert back.card.trained_normalization == bundle.card.trained_normalization
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("format, suffix", [("torchscript", ".pt"), ("onnx", ".onnx")])
def test_single_file_comes_back_with_the_same_output(bundle, tmp_path, format, suffix):
    pytest.importorskip("openvino" if format == "onnx" else "torch")
    path = export_model(bundle, tmp_path / f"a model{suffix}", format=format)
    back = import_model(path, destination_folder=tmp_path / "in", output="logits", **SAID)
    assert back.card.name == "a-model"
    assert apart(back, bundle, normal(bundle)) < 1e-5


def test_files_take_windows_of_other_sizes_than_they_were_traced_with(bundle, tmp_path):
    path = export_model(bundle, tmp_path / "other.pt", format="torchscript")
    back = import_model(path, destination_folder=tmp_path / "in", output="logits", **SAID)
    assert apart(back, bundle, normal(bundle)[:1, :, :12, :20, :16]) < 1e-5


def test_bundle_is_imported_from_a_folder_and_from_a_zip(bundle, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "tiny"), "zip", bundle.folder.parent, bundle.folder.name)
    for source, name in ((bundle.folder, "folder"), (archive, "zipped")):
        back = import_model(source, name, tmp_path / "in")
        assert back.card.name == name
        assert back.card.sha256 == bundle.card.sha256
        assert apart(back, bundle, normal(bundle)) == 0


def test_importable_code_with_safetensors_is_a_model(tmp_path):
    layer = torch.nn.Conv3d(1, 2, 3, padding=1)
    save_file(layer.state_dict(), tmp_path / "w.safetensors")
    back = import_model(
        "torch.nn:Conv3d",
        "layer",
        tmp_path / "in",
        weights=tmp_path / "w.safetensors",
        arguments={"in_channels": 1, "out_channels": 2, "kernel_size": 3, "padding": 1},
        output="logits",
        **SAID,
    )
    image = normal(back)
    with torch.no_grad():
        assert np.array_equal(predict(back, image), layer(torch.from_numpy(image)).numpy())
    # but not where only a card from elsewhere names that code
    assert "if you trust it" in refused(UsageError, back.folder, "again", tmp_path / "in")


def test_model_that_ends_in_a_sigmoid_gives_probabilities(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.Sigmoid())
    torch.jit.trace(network, torch.zeros(1, 1, 16, 24, 24)).save(str(tmp_path / "m.pt"))
    assert import_model(tmp_path / "m.pt", destination_folder=tmp_path / "in", **SAID).card.output == "probabilities"


def test_outputs_that_are_no_probabilities_have_to_be_explained(bundle, tmp_path):
    path = export_model(bundle, tmp_path / "m.pt", format="torchscript")
    assert "--output logits" in refused(DataError, path, destination_folder=tmp_path / "in", **SAID)
    assert list((tmp_path / "in").iterdir()) == []


def test_package_of_version_4_is_imported(bundle, unpacked, tmp_path):
    def to_v04(document):
        fixed = {"name": "zero_mean_unit_variance", "kwargs": {"mode": "fixed", "mean": 120.0, "std": 30.0}}
        fixed["kwargs"]["axes"] = "czyx"
        shape = {"min": [1, 1, 16, 24, 24], "step": [0, 0, 4, 4, 4]}
        out = {"reference_tensor": "image", "scale": [1, 0, 1, 1, 1], "offset": [0, 1, 0, 0, 0]}
        common = {"axes": "bczyx"}
        weights = {"source": "weights.pt", "pytorch_version": "1.10.0"}
        document.clear()
        document.update(
            format_version="0.4.10",
            type="model",
            name="old model",
            description="of the older format",
            authors=[{"name": "A"}],
            cite=[{"text": "A", "doi": "10.1000/182"}],
            documentation="README.md",
            license="MIT",
            tags=["3d"],
            timestamp="2022-01-01T00:00:00",
            covers=["cover.png"],
            inputs=[{**common, "name": "image", "data_type": "uint8", "shape": shape, "preprocessing": [fixed]}],
            outputs=[
                {
                    **common,
                    "name": "labels",
                    "data_type": "float32",
                    "shape": out,
                    "halo": [0, 0, 4, 4, 4],
                    "postprocessing": [{"name": "sigmoid"}],
                }
            ],
            test_inputs=["test_input.npy"],
            test_outputs=["test_output.npy"],
            weights={"torchscript": weights},
        )

    change(unpacked, to_v04)
    assert "--voxel-size" in refused(UsageError, unpacked, destination_folder=tmp_path / "in")
    back = import_model(unpacked, destination_folder=tmp_path / "in", voxel_size=(10.0, 10.0, 10.0))
    assert back.card.name == "old-model"
    assert back.card.normalization == Normalization(mean=120, deviation=30)
    assert (back.card.multiple, back.card.halo, back.card.licence) == ((4, 4, 4), (4, 4, 4), "MIT")
    assert apart(back, bundle, normal(bundle)) < 1e-5


def _first(document):
    return document["inputs"][0]


def _reorder(document):
    axes = _first(document)["axes"]
    axes[2], axes[4] = axes[4], axes[2]


def _channels_last(document):
    axes = document["outputs"][0]["axes"]
    axes.append(axes.pop(1))


@pytest.mark.parametrize(
    "edit, says",
    [
        (_reorder, "b, c, x, y, z"),
        (_channels_last, "b, z, y, x, c"),
        (lambda d: _first(d)["axes"].pop(2), "2D"),
        (lambda d: _first(d)["axes"][1].update(channel_names=["a", "b"]), "2 image channels"),
        (lambda d: d["inputs"].append(dict(d["inputs"][0], id="second")), "one image in"),
        (lambda d: d.update(weights={"pytorch_state_dict": {"source": "w.pth"}}), "bioimageio add-weights"),
        (lambda d: d["weights"]["torchscript"].update(sha256="0" * 64), "checksum"),
        (lambda d: d["weights"]["torchscript"].update(source="gone.pt", sha256=None), "gone.pt is missing"),
        (lambda d: d["weights"]["torchscript"].update(source="https://example.com/w.pt"), "download the whole"),
        (lambda d: d["weights"]["torchscript"].update(source="../../w.pt"), "outside the package"),
        (
            lambda d: d["outputs"][0].update(postprocessing=[{"id": "softmax", "kwargs": {"axis": "channel"}}]),
            "softmax",
        ),
        (lambda d: d.update(format_version="0.3.0"), "0.4 and 0.5"),
        (lambda d: d.update(type="dataset"), "no model"),
        (lambda d: d.update(name="x"), "name"),
        (lambda d: d["outputs"][0]["axes"][1].update(channel_names=["membrane"]), "labels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_package_that_is_no_model_of_ours_is_refused(unpacked, tmp_path, edit, says):
    change(unpacked, edit)
    message = refused(DataError, unpacked, destination_folder=tmp_path / "in")
    assert says in message and str(unpacked) in message
    assert not (tmp_path / "in").exists() or list((tmp_path / "in").iterdir()) == []


def test_package_whose_grey_values_are_not_ours_has_to_be_explained(unpacked, tmp_path):
    def scaled(document):
        document.pop("config")
        percentiles = {"axes": ["z", "y", "x"], "min_percentile": 1.0, "max_percentile": 99.0}
        _first(document)["preprocessing"] = [{"id": "scale_range", "kwargs": percentiles}]

    change(unpacked, scaled)
    assert "--normalization" in refused(UsageError, unpacked, destination_folder=tmp_path / "in")
    back = import_model(unpacked, destination_folder=tmp_path / "in", normalization="volume")
    assert back.card.normalization == "volume"


def test_package_that_does_not_repeat_its_own_test_is_refused(unpacked, tmp_path):
    expected = np.load(unpacked / "test_output.npy")
    np.save(unpacked / "test_output.npy", 1 - expected)
    change(unpacked, lambda d: d["outputs"][0]["test_tensor"].pop("sha256", None))
    assert "the package's own test" in refused(DataError, unpacked, destination_folder=tmp_path / "in")


def test_array_with_a_pickle_inside_is_refused(unpacked, tmp_path):
    np.save(unpacked / "test_input.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    change(unpacked, lambda d: d["inputs"][0]["test_tensor"].pop("sha256", None))
    assert "no array" in refused(DataError, unpacked, destination_folder=tmp_path / "in")


@pytest.mark.parametrize(
    "name", ["../card.yaml", "/tmp/card.yaml", "a/../../card.yaml", "..\\card.yaml", "C:/card.yaml"]
)
def test_zip_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(name, "name: evil")
    assert "leads out" in refused(DataError, tmp_path / "evil.zip", destination_folder=tmp_path / "in")
    assert not (tmp_path / "card.yaml").exists()


def test_zip_with_a_link_is_refused(tmp_path):
    entry = zipfile.ZipInfo("card.yaml")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    assert "leads out" in refused(DataError, tmp_path / "link.zip", destination_folder=tmp_path / "in")


def test_zip_cut_short_is_refused(package, tmp_path):
    (tmp_path / "cut.zip").write_bytes(package.read_bytes()[:-200])
    assert "get it again" in refused(DataError, tmp_path / "cut.zip", destination_folder=tmp_path / "in")


def test_checkpoint_is_not_opened(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "checkpoint.pt")
    assert "no TorchScript" in refused(DataError, tmp_path / "checkpoint.pt", destination_folder=tmp_path, **SAID)


def test_onnx_that_is_none_is_refused(tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    assert "model.onnx" in refused(DataError, tmp_path / "broken.onnx", destination_folder=tmp_path, **SAID)


@pytest.mark.parametrize(
    "said, says",
    [
        ({"labels": ("a",)}, "labels"),
        ({"window": (15, 24, 24)}, "window"),
        ({"labels": ("a", "a")}, "labels"),
        ({"output": "guesses"}, "output"),
    ],
)
def test_what_is_said_of_a_file_must_fit_it(bundle, tmp_path, said, says):
    path = export_model(bundle, tmp_path / "m.pt", format="torchscript")
    message = refused(DataError, path, destination_folder=tmp_path / "in", **{**SAID, "output": "logits", **said})
    assert says in message


def test_file_that_nothing_is_said_of_names_what_is_needed(bundle, tmp_path):
    path = export_model(bundle, tmp_path / "m.pt", format="torchscript")
    assert "--labels, --voxel-size, --window" in refused(UsageError, path)


def test_model_that_is_there_is_kept_unless_asked(bundle, tmp_path):
    import_model(bundle.folder, destination_folder=tmp_path)
    assert "--overwrite" in refused(UsageError, bundle.folder, destination_folder=tmp_path)
    import_model(bundle.folder, destination_folder=tmp_path, overwrite=True, modality="SBF-SEM")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_file_that_is_there_is_kept_unless_asked(bundle, tmp_path):
    path = tmp_path / "m.pt"
    path.write_text("mine")
    with pytest.raises(UsageError, match="--overwrite"):
        export_model(bundle, path, format="torchscript")
    assert path.read_text() == "mine"
    export_model(bundle, path, format="torchscript", overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.pt"]


def test_model_from_elsewhere_is_exported_as_it_came(bundle, tmp_path):
    path = export_model(bundle, tmp_path / "m.pt", format="torchscript")
    theirs = import_model(path, destination_folder=tmp_path / "in", output="logits", multiple=(4, 4, 4), **SAID)
    assert export_model(theirs, tmp_path / "n.pt", format="torchscript").read_bytes() == path.read_bytes()
    with pytest.raises(UsageError, match="can be exported as torchscript"):
        export_model(theirs, tmp_path / "n.onnx", format="onnx")
    again = import_model(export_model(theirs, tmp_path / "n.zip", format="bioimageio"), "again", tmp_path / "in")
    assert apart(again, bundle, normal(bundle)) < 1e-5


def test_sample_becomes_the_test_image_and_must_hold_a_window(bundle, tmp_path):
    sample = grey((20, 30, 30))
    path = export_model(bundle, tmp_path / "m.zip", format="bioimageio", sample=sample)
    with zipfile.ZipFile(path) as archive, archive.open("test_input.npy") as file:
        assert np.array_equal(np.load(file)[0, 0], sample[2:18, 3:27, 3:27])
    with pytest.raises(DataError, match="--sample"):
        export_model(bundle, tmp_path / "n.zip", format="bioimageio", sample=sample[:4])


def test_licence_that_the_zoo_does_not_know_is_refused_by_field(tiny, tmp_path):
    bundle = tiny(tmp_path / "tiny", licence="do what you like")
    with pytest.raises(DataError, match="license"):
        export_model(bundle, tmp_path / "n.zip", format="bioimageio")


def test_missing_package_names_the_extra(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(NeuroKubeError, match=r"pip install 'neurokube\[exchange\]'"):
        export_model(bundle, tmp_path / "m.onnx", format="onnx")
    assert running.require("json", "anything") is json


def test_network_that_gives_no_numbers_is_refused(bundle):
    tensors = {name: tensor / 0 if tensor.is_floating_point() else tensor for name, tensor in bundle.tensors().items()}
    broken = bundle.folder.parent / "broken"
    card = bundle.card.model_dump(exclude={"weights", "sha256"})
    with pytest.raises(DataError, match="no numbers"):
        predict(write_bundle(broken, card, tensors), normal(bundle))
    shutil.rmtree(broken)


def test_tables_say_what_there_is(bundle, monkeypatch):
    monkeypatch.setenv("NEUROKUBE_MODELS", str(bundle.folder.parent))
    row = next(row for row in models_table() if row["name"] == "tiny")
    assert row["where"] == "installed" and row["scores"] == "membrane 0.90, mitochondria 0.80"
    assert describe(bundle)["labels"] == ["membrane", "mitochondria"]
    json.dumps([row, describe(bundle)])


def test_commands_import_list_show_and_export(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROKUBE_MODELS", str(tmp_path / "installed"))
    monkeypatch.setattr("neurokube.networks.bundle.SHIPPED", tmp_path / "shipped")

    def run(*words):
        result = CliRunner().invoke(app, list(words), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "models import" in run("list")
    path = str(tmp_path / "m.pt")
    assert "MB" in run("export", str(bundle.folder), path, "--format", "torchscript")
    said = ["--labels", "a,b", "--voxel-size", "10,10,10", "--window", "16,24,24", "--output", "logits"]
    imported = json.loads(run("import", path, "--name", "mine", "--normalization", "120,30", "--json", *said))
    assert imported["normalization"] == {"mean": 120.0, "deviation": 30.0}
    assert [row["name"] for row in json.loads(run("list", "--json"))] == ["mine"]
    assert "mine" in run("list") and "voxel_size" in run("show", "mine")
    with pytest.raises(UsageError, match="--voxel-size"):
        run("import", path, "--voxel-size", "10,10")


def test_commands_are_known_without_loading_what_they_use():
    heavy = "{'torch', 'bioimageio', 'openvino', 'onnx', 'safetensors'} & set(sys.modules)"
    code = f"import sys, neurokube.cli_models; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
