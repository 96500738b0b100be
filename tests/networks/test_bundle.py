import shutil

import pytest
import torch
import yaml
from safetensors.torch import save_file

from neurokube.errors import ConfigurationError, DataError, UsageError
from neurokube.networks import load_bundle, write_bundle
from neurokube.networks.bundle import known, read_card, write_files


@pytest.fixture
def bundle(tiny, tmp_path):
    return tiny(tmp_path / "tiny")


def recard(bundle, **fields):
    """Change the card on disk, as somebody with an editor would."""
    path = bundle.folder / "card.yaml"
    document = {**yaml.safe_load(path.read_text()), **fields}
    path.write_text(yaml.safe_dump(document))


def refused(error, model):
    """Return the one line by which a bundle is refused, when it is opened or its network made."""
    with pytest.raises(error) as caught:
        load_bundle(str(model)).network()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_bundle_is_read_as_it_was_written(bundle):
    again = load_bundle(str(bundle.folder))
    assert again.card == bundle.card
    image = torch.randn(1, 1, *bundle.card.window)
    with torch.no_grad():
        assert torch.equal(again.network()(image), bundle.network()(image))
        assert (again.network()(image) - again.network(fold=False)(image)).abs().max() < 1e-5


def test_bundle_holds_no_pickle(bundle):
    assert {path.name for path in bundle.folder.iterdir()} == {"card.yaml", "weights.safetensors"}


def test_wrong_checksum_is_refused(bundle):
    data = bytearray(bundle.weights.read_bytes())
    data[-1] ^= 1
    bundle.weights.write_bytes(data)
    assert "checksum" in (message := refused(DataError, bundle.folder)) and "get the bundle again" in message


def test_weights_cut_short_are_refused(bundle):
    bundle.weights.write_bytes(bundle.weights.read_bytes()[:-100])
    assert "get the bundle again" in refused(DataError, bundle.folder)


def test_weights_cut_short_before_the_card_was_written_are_refused(bundle):
    data = bundle.weights.read_bytes()[:-100]
    card = bundle.card.model_dump(exclude={"weights", "sha256"})
    cut = write_files(bundle.folder, card, bundle.card.weights, data)
    assert "cannot be read" in refused(DataError, cut.folder)


def test_missing_weights_are_refused(bundle):
    bundle.weights.unlink()
    assert "weights.safetensors) are missing" in refused(DataError, bundle.folder)


def test_card_with_other_labels_than_the_weights_is_refused(bundle):
    recard(bundle, labels=["membrane", "mitochondria", "synapse"])
    message = refused(DataError, bundle.folder)
    assert "head.weight" in message or "head.bias" in message
    assert "labels" in message


def test_card_with_another_architecture_than_the_weights_is_refused(bundle):
    architecture = bundle.card.model_dump(mode="json")["architecture"]
    architecture["levels"] = architecture["levels"][:2]
    recard(bundle, architecture=architecture)
    assert "hold an unknown" in refused(DataError, bundle.folder)


def test_weights_that_lack_a_tensor_are_refused(bundle):
    tensors = bundle.tensors()
    del tensors["head.bias"]
    partial = write_bundle(bundle.folder, bundle.card.model_dump(exclude={"weights", "sha256"}), tensors)
    assert "lack 'head.bias'" in refused(DataError, partial.folder)


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"colour": "red"}, "colour"),
        ({"axes": "xyz"}, "axes"),
        ({"labels": ["membrane", "membrane"]}, "labels"),
        ({"thresholds": {"nucleus": 0.5}}, "nucleus"),
        ({"window": [16, 24, 25]}, "window"),
        ({"voxel_size": [10, 10, 0]}, "voxel_size"),
        ({"weights": "../weights.safetensors"}, "weights"),
        ({"architecture": {"kind": "pickle"}}, "architecture"),
        ({"format": 2}, "format"),
    ],
)
def test_card_that_says_what_cannot_be_is_refused_by_field(bundle, fields, named):
    recard(bundle, **fields)
    assert named in refused(DataError, bundle.folder)


def test_card_that_is_no_yaml_is_refused(bundle):
    (bundle.folder / "card.yaml").write_text("a: [")
    assert "no YAML" in refused(DataError, bundle.folder)


def test_torchscript_that_is_none_is_refused(bundle):
    card = bundle.card.model_dump(exclude={"weights", "sha256"}) | {"architecture": {"kind": "torchscript"}}
    write_files(bundle.folder, card, "model.pt", b"not a model")
    assert "no TorchScript" in refused(DataError, bundle.folder)


def test_onnx_names_the_backend_that_runs_it(bundle):
    card = bundle.card.model_dump(exclude={"weights", "sha256"}) | {"architecture": {"kind": "onnx"}}
    write_files(bundle.folder, card, "model.onnx", b"anything")
    assert "openvino" in refused(ConfigurationError, bundle.folder)


@pytest.mark.parametrize(
    "factory, message",
    [("no_such_package:Net", "install the package"), ("torch.nn:NoSuchNet", "install the package")],
)
def test_code_that_cannot_be_imported_is_named(bundle, factory, message):
    card = bundle.card.model_dump(exclude={"weights", "sha256"})
    card["architecture"] = {"kind": "python", "factory": factory}
    write_bundle(bundle.folder, card, bundle.tensors())
    assert message in (line := refused(DataError, bundle.folder)) and factory in line


def test_importable_module_is_a_network(bundle):
    layer = torch.nn.Conv3d(1, 2, 3, padding=1)
    card = bundle.card.model_dump(exclude={"weights", "sha256"})
    arguments = {"in_channels": 1, "out_channels": 2, "kernel_size": 3, "padding": 1}
    card["architecture"] = {"kind": "python", "factory": "torch.nn:Conv3d", "arguments": arguments}
    image = torch.randn(1, 1, 4, 5, 6)
    assert torch.equal(write_bundle(bundle.folder, card, layer.state_dict()).network()(image), layer(image))


def test_unknown_name_lists_what_there_is(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROKUBE_MODELS", str(tmp_path))
    assert "tiny" in refused(UsageError, "nothing-of-that-name")


def test_installed_model_is_found_by_its_name_and_damaged_ones_are_left_out(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROKUBE_MODELS", str(tmp_path))
    shutil.copytree(bundle.folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "card.yaml").write_text("name: ''")
    assert load_bundle("tiny").folder == bundle.folder
    assert [card.name for card, kind in known() if kind == "installed"] == ["tiny"]


def test_writing_again_replaces_the_bundle(bundle, tiny):
    tiny(bundle.folder, labels=("nucleus",), thresholds={}, scores={})
    assert read_card(bundle.folder).labels == ("nucleus",)
    assert load_bundle(str(bundle.folder)).network() is not None


def test_tensors_of_another_file_are_refused_where_the_shapes_differ(bundle, tmp_path):
    tensors = bundle.tensors()
    tensors["stem.convolution.weight"] = tensors["stem.convolution.weight"][:, :, :, :3].contiguous()
    save_file(tensors, tmp_path / "other.safetensors")
    card = bundle.card.model_dump(exclude={"weights", "sha256"})
    write_files(bundle.folder, card, bundle.card.weights, (tmp_path / "other.safetensors").read_bytes())
    assert "stem.convolution.weight" in refused(DataError, bundle.folder)
