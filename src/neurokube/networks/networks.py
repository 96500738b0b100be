"""From a card to a network that can be called."""

from importlib import import_module
from typing import cast

import torch
from pydantic import ValidationError
from torch import nn

from ..errors import ConfigurationError, DataError
from .bundle import Bundle, Card, GeneratorArchitecture, OwnArchitecture, PythonArchitecture, first_mistake
from .generator import Generator
from .inception import Inception, InceptionConfig
from .unet import Network, NetworkConfig, UNet, UNetConfig, folded

CONFIGS: dict[str, type[NetworkConfig]] = {config.kind: config for config in (UNetConfig, InceptionConfig)}
"""What our networks that label are made from, by the kind that a card and a training file name."""


def network_of(config: NetworkConfig) -> Network:
    """Return the untrained network of a configuration."""
    if isinstance(config, InceptionConfig):
        return Inception(config)
    assert isinstance(config, UNetConfig)
    return UNet(config)


def config_of(card: Card) -> NetworkConfig:
    """Return the configuration of a card's network, one of ours.

    Raises:
        DataError: where the card says what cannot be.
    """
    assert isinstance(card.architecture, OwnArchitecture)
    fields = card.architecture.model_dump()
    config = CONFIGS[fields.pop("kind")]
    try:
        return config(channels=card.channels, labels=len(card.labels), **fields)
    except ValidationError as error:
        raise DataError(f"{card.name}: architecture: {first_mistake(error)}; get the bundle again") from None


def build(bundle: Bundle, *, fold: bool) -> nn.Module:
    """Return a bundle's network in evaluation mode, see `Bundle.network`."""
    architecture = bundle.card.architecture
    if isinstance(architecture, OwnArchitecture):
        own = network_of(config_of(bundle.card))
        fill(own, bundle)
        return folded(own) if fold else own.eval()
    if isinstance(architecture, GeneratorArchitecture):
        generator = Generator(architecture)
        fill(generator, bundle)
        return generator.eval()
    if isinstance(architecture, PythonArchitecture):
        network = _imported(architecture, bundle)
        fill(network, bundle)
        return network.eval()
    if architecture.kind == "torchscript":
        try:
            return cast(nn.Module, torch.jit.load(bundle.weights, map_location="cpu").eval())  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{bundle.weights}: no TorchScript ({_brief(error)}); get the bundle again") from None
    raise ConfigurationError(f"{bundle.folder}: an ONNX model, which runs by OpenVINO only; use backend: openvino")


def fill(network: nn.Module, bundle: Bundle) -> None:
    """Load a bundle's tensors into a network.

    Raises:
        DataError: where names or shapes differ.
    """
    tensors, wanted = bundle.tensors(), network.state_dict()
    if odd := sorted(tensors.keys() ^ wanted.keys()):
        verb = "lack" if odd[0] in wanted else "hold an unknown"
        raise DataError(f"{bundle.weights}: the weights {verb} '{odd[0]}'; card and weights are not of one model")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise DataError(
                f"{bundle.weights}: '{name}' has shape {tuple(tensor.shape)}, the card's architecture needs "
                f"{tuple(wanted[name].shape)} (other labels, channels or features); "
                "card and weights are not of one model"
            )
    network.load_state_dict(tensors)


def _imported(architecture: PythonArchitecture, bundle: Bundle) -> nn.Module:
    module, _, name = architecture.factory.partition(":")
    try:
        factory = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"{bundle.folder}: needs {architecture.factory}, which cannot be imported ({error}); "
            "install the package that has it"
        ) from None
    # a card is data from anywhere: nothing but a network's own class may be called in its name
    if not (isinstance(factory, type) and issubclass(factory, nn.Module)):
        raise DataError(f"{bundle.folder}: {architecture.factory} is not the class of a torch module; name one")
    try:
        return factory(**architecture.arguments)
    except Exception as error:
        raise DataError(
            f"{bundle.folder}: {architecture.factory} does not take the card's arguments ({error})"
        ) from None


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0][:120]
