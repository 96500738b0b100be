"""Predictors: the same bits for the same window, whatever is beside it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from neurokube.errors import ConfigurationError, NeuroKubeError
from neurokube.networks.permutations import permutations
from neurokube.networks.predictor import Numerics, Predictor, fastest, open_predictor, software
from neurokube.networks.probe import Candidate, choose

WINDOW = (8, 16, 16)
BACKENDS = ["openvino", "torch"]


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("predictor") / "model")


def opened(bundle, **settings):
    return open_predictor(str(bundle.folder), bundle.card.sha256, Numerics(window=WINDOW, **settings))


def windows(n):
    return np.random.default_rng(n).standard_normal((n, *WINDOW)).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_are_those_of_the_network_in_double_precision(bundle, backend):
    images = windows(2)
    with torch.no_grad():
        logits = bundle.network(fold=False).double()(torch.from_numpy(images[:, None]).double())
    found = opened(bundle, backend=backend, batch=2)(images)
    assert found.dtype == np.float32
    assert np.abs(found - torch.sigmoid(logits).numpy()).max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_has_the_same_bits_alone_and_anywhere_in_a_batch(bundle, backend):
    images = windows(3)
    predictor = opened(bundle, backend=backend, batch=3)
    together = predictor(images)
    assert np.array_equal(predictor(images[::-1].copy())[::-1], together)
    for k in range(3):
        assert np.array_equal(predictor(images[k : k + 1])[0], together[k])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_result_is_not_touched_by_the_next(bundle, backend):
    predictor = opened(bundle, backend=backend, batch=1)
    first = predictor(windows(1))
    kept = first.copy()
    predictor(-windows(1))
    assert np.array_equal(first, kept)


def test_a_signal_is_handled_after_another_thread_let_go_of_a_predictor(bundle):
    code = f"""
import signal, threading
from neurokube.networks.predictor import Numerics, open_predictor
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
open_predictor({str(bundle.folder)!r}, {bundle.card.sha256!r}, Numerics(window={WINDOW}, backend="openvino"))
thread = threading.Thread(target=open_predictor.cache_clear)
thread.start()
thread.join()
kept = [bytearray(20_000) for _ in range(1000)]
signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_network_whose_shape_is_another_than_the_cards_is_named(bundle, monkeypatch):
    predictor = opened(bundle, backend="torch", batch=2)
    monkeypatch.setattr(predictor, "_run", lambda images: np.zeros((2, 5, *WINDOW), np.float32), raising=True)
    with pytest.raises(NeuroKubeError, match=r"^model tiny: predicts .* its card is wrong$"):
        predictor(windows(2))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_set(bundle, monkeypatch, error):
    class Full(Predictor):
        def _run(self, images):
            raise error

    predictor = Full(bundle, Numerics(backend="torch", window=WINDOW, batch=2))
    with pytest.raises(NeuroKubeError, match=r"^out of memory with windows of \(8, 16, 16\) in batches of 2: set a"):
        predictor(windows(2))


def test_other_errors_of_a_network_are_left_as_they_are(bundle):
    class Broken(Predictor):
        def _run(self, images):
            raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        Broken(bundle, Numerics(backend="torch", window=WINDOW))(windows(1))


def test_weights_that_changed_are_refused(bundle):
    with pytest.raises(ConfigurationError, match="changed since the run was planned; run again"):
        open_predictor(str(bundle.folder), "0" * 64, Numerics(backend="torch", window=WINDOW))


def test_what_is_usual_here_can_be_opened(bundle):
    usual = Numerics.usual(bundle, WINDOW)
    assert (usual.backend, usual.dtype) == fastest(bundle)
    found = open_predictor(str(bundle.folder), bundle.card.sha256, usual)(windows(1))
    assert found.shape == (1, 2, *WINDOW)
    assert {"torch", "instructions"} <= software("openvino").keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match="backend cuda: no GPU can be used here"):
        software("cuda")


def candidates(*sides):
    numerics = [Numerics(backend="torch", window=(8, side, side), batch=2) for side in sides]
    return [Candidate(n, n.window) for n in numerics]


def test_of_windows_that_fit_into_memory_one_is_chosen_with_its_peak(bundle):
    tried = candidates(16, 32)
    chosen, peak = choose(str(bundle.folder), bundle.card.sha256, tried, 4 * 2**30)
    assert chosen in tried
    assert 2**26 < peak < 4 * 2**30
    with pytest.raises(ConfigurationError, match=r"^memory: the smallest window \(8, 16, 16\) already takes"):
        choose(str(bundle.folder), bundle.card.sha256, tried, 2**26)


def test_a_network_that_does_not_run_is_named_when_windows_are_tried(bundle):
    with pytest.raises(ConfigurationError, match=r"^model: it does not run here: "):
        choose(str(bundle.folder), bundle.card.sha256, candidates(17), 4 * 2**30)


def test_permutations_of_a_prediction_are_16_where_pixels_are_square():
    assert len(permutations((40.0, 8.0, 8.0), (8, 16, 16))) == 16
    assert len(permutations((40.0, 8.0, 8.0), (8, 16, 24))) == 8
    assert len(permutations((40.0, 8.0, 9.0), (8, 16, 16))) == 8
