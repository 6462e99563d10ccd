"""Weights of timm's models: local files, the hub's cache, and no network."""

from __future__ import annotations

import logging
import socket
import urllib.request

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm_configs import build, use_timm

# A feature extractor that renames, one that does not, one that wraps, one that leaves parts out.
NAMES = ["convnext_atto", "efficientnet_b0", "twins_svt_small", "test_resnet"]


def save(model: torch.nn.Module, path) -> str:
    save_file(model.state_dict(), path) if path.suffix == ".safetensors" else torch.save(model.state_dict(), path)
    return str(path)


def messages(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


@pytest.mark.parametrize(("name", "suffix"), [*((name, ".safetensors") for name in NAMES), (NAMES[0], ".pth")])
def test_a_state_dict_of_timm_loads_back_exactly(tiny_cfg, tmp_path, name, suffix):
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) * 0.1 + 0.01)
    path = save(model, tmp_path / f"weights{suffix}")
    backbone = build(use_timm(tiny_cfg, name, CHECKPOINT=path)).bottom_up.eval()
    weights = {key.replace(".", "_"): value for key, value in model.state_dict().items()}
    loaded = backbone.model.state_dict()
    assert loaded
    for key, value in loaded.items():
        assert torch.equal(value, weights[key.removeprefix("model.").replace(".", "_")]), key


def test_the_maps_are_those_of_the_model_in_the_file(tiny_cfg, tmp_path):
    model = timm.create_model("convnext_atto", features_only=True).eval()
    path = save(model, tmp_path / "weights.safetensors")
    backbone = build(use_timm(tiny_cfg, "convnext_atto", CHECKPOINT=path)).bottom_up.eval()
    images = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(backbone(images).values(), model(images), strict=True):
        assert torch.equal(ours, theirs)


def test_what_training_scripts_wrap_weights_in_is_unwrapped(tiny_cfg, tmp_path):
    weights = timm.create_model("test_resnet").state_dict()
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    for number, content in enumerate((wrapped, {"model": wrapped, "epoch": 1}, {"state_dict": wrapped})):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        model = build(use_timm(tiny_cfg, "test_resnet", CHECKPOINT=str(path))).bottom_up.model
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnet", "convnext_atto.d2_in1k"])
def test_what_a_file_has_too_much_or_lacks_is_logged_by_name(tiny_cfg, tmp_path, caplog, name):
    weights = timm.create_model(name).state_dict()
    lost = next(iter(weights))
    torch.save(
        {key: value for key, value in weights.items() if key != lost} | {"extra": torch.ones(1)}, tmp_path / "x.pth"
    )
    with caplog.at_level(logging.INFO):
        build(use_timm(tiny_cfg, name, CHECKPOINT=str(tmp_path / "x.pth")))
    assert messages(caplog, f"Missing keys ({lost}")
    assert messages(caplog, "Unexpected keys (extra)")


def test_a_model_does_not_keep_the_content_of_the_file(tiny_cfg, tmp_path):
    for name in ("test_resnet", "convnext_atto"):
        path = save(timm.create_model(name), tmp_path / f"{name}.pth")
        backbone = build(use_timm(tiny_cfg, name, CHECKPOINT=path))
        configs = [module.pretrained_cfg for module in backbone.modules() if hasattr(module, "pretrained_cfg")]
        assert configs
        assert not any("state_dict" in config for config in configs)


def test_weights_of_color_images_are_adapted_to_gray_ones(tiny_cfg, tmp_path):
    model = timm.create_model("test_resnet")
    path = save(model, tmp_path / "x.pth")
    cfg = use_timm(tiny_cfg, "test_resnet", CHECKPOINT=path)
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "L", [127.5], [127.5]
    gray = build(cfg).bottom_up.model
    name = next(iter(model.state_dict()))
    torch.testing.assert_close(gray.state_dict()[name], model.state_dict()[name].sum(dim=1, keepdim=True))


def test_files_that_cannot_be_used_are_refused_by_name(tiny_cfg, tmp_path):
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "nothing.pth").write_text("")
    (tmp_path / "weights.npz").write_text("")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    other = save(timm.create_model("test_convnext"), tmp_path / "other.pth")
    wider = save(timm.create_model("resnet18"), tmp_path / "wider.safetensors")
    for path, error, message in (
        (tmp_path / "none.pth", FileNotFoundError, "MODEL.TIMM.CHECKPOINT: There is no checkpoint .*none.pth"),
        (tmp_path / "text.safetensors", ValueError, "text.safetensors is damaged, or is not a safetensors file"),
        (tmp_path / "text.pth", ValueError, "text.pth is damaged, or holds objects other than tensors"),
        (tmp_path / "nothing.pth", ValueError, "nothing.pth is damaged, or holds objects other than tensors"),
        (
            tmp_path / "weights.npz",
            ValueError,
            r"weights.npz is no checkpoint: its suffix is none of",
        ),
        (tmp_path / "empty.pth", ValueError, "empty.pth holds no weights"),
        (other, ValueError, r"none of its \d+ weights, such as stem.0.weight"),
        (wider, ValueError, r"wider.safetensors does not fit MODEL.TIMM.NAME test_resnet: .*size mismatch"),
    ):
        with pytest.raises(error, match=message) as raised:
            build(use_timm(tiny_cfg, "test_resnet", CHECKPOINT=str(path)))
        assert "--trust-checkpoint" not in str(raised.value)  # it is not for this file


def test_a_whole_detector_in_model_weights_makes_the_others_unnecessary(tiny_cfg, caplog):
    tiny_cfg.MODEL.WEIGHTS = "output/model_final.pth"
    with caplog.at_level(logging.INFO):
        build(use_timm(tiny_cfg, "resnet18", PRETRAINED=True, CHECKPOINT="none.pth"))
    assert len(messages(caplog, "MODEL.TIMM.PRETRAINED and MODEL.TIMM.CHECKPOINT are not read")) == 1


def test_resnets_of_detectron2_are_refused_as_weights(tiny_cfg):
    tiny_cfg.MODEL.WEIGHTS = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    with pytest.raises(ValueError, match=r"belongs to detectron2's own ResNets: .*MODEL.WEIGHTS ''"):
        build(use_timm(tiny_cfg, "resnet18", PRETRAINED=True))


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """An empty cache of the hub, and a hub that is a port of this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield listener


def test_without_a_network_it_fails_at_once_in_one_line_with_the_remedy(tiny_cfg, no_cache, monkeypatch):
    # Not by way of the hub's client, which would retry for most of a minute.
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    with pytest.raises(RuntimeError) as caught:
        build(use_timm(tiny_cfg, "test_resnet.r160_in1k", PRETRAINED=True))
    message = str(caught.value)
    assert "\n" not in message
    assert "test_resnet.r160_in1k are not in the local cache" in message
    assert "(.safetensors or .pth) as MODEL.TIMM.CHECKPOINT" in message


def test_a_network_that_swallows_everything_does_not_hang(tiny_cfg, no_cache, monkeypatch):
    no_cache.listen()  # connections are made, and never answered
    monkeypatch.setattr("dynamic_sparse_rcnn.modeling.backbones.weights._SECONDS_TO_ANSWER", 0.2)
    with pytest.raises(RuntimeError, match=r"does not answer \(.*timed out\)"):
        build(use_timm(tiny_cfg, "test_resnet.r160_in1k", PRETRAINED=True))


def test_what_fails_after_the_hub_answered_is_one_line_too(tiny_cfg, no_cache, monkeypatch):
    def fails(*args: object, **kwargs: object) -> None:
        raise OSError("disk full\nand more")

    monkeypatch.setattr("dynamic_sparse_rcnn.modeling.backbones.weights._unreachable", lambda url: None)
    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(RuntimeError, match=r"could not be loaded \(disk full\): give a local file") as caught:
        build(use_timm(tiny_cfg, "test_resnet.r160_in1k", PRETRAINED=True))
    assert "\n" not in str(caught.value)


def test_cached_weights_need_no_network_and_what_does_not_fit_is_named(
    tiny_cfg, no_cache, tmp_path, monkeypatch, caplog
):
    snapshot = tmp_path / "models--timm--test_resnet.r160_in1k/snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0123")
    model = timm.create_model("test_resnet")
    weights = model.state_dict()
    del weights["layer4.0.bn2.bias"]
    save_file(weights | {"decoder.weight": torch.ones(1)}, snapshot / "model.safetensors")
    monkeypatch.setattr(urllib.request, "urlopen", None)
    caplog.set_level(logging.INFO)
    backbone = build(use_timm(tiny_cfg, "test_resnet.r160_in1k", PRETRAINED=True)).bottom_up
    assert all(
        torch.equal(value, weights[key])
        for key, value in backbone.model.state_dict().items()
        if key != "layer4.0.bn2.bias"
    )
    assert messages(caplog, "Missing keys (layer4.0.bn2.bias, fc.weight, fc.bias)")
    (unexpected,) = messages(caplog, "Unexpected keys (")
    assert "decoder.weight" in unexpected


def test_a_model_without_weights_says_so(tiny_cfg):
    with pytest.raises(RuntimeError, match=r"no pretrained weights for MODEL.TIMM.NAME darknet17.*PRETRAINED False"):
        build(use_timm(tiny_cfg, "darknet17", PRETRAINED=True))
