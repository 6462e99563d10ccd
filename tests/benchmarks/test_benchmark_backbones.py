"""The benchmark of backbones, and the configs that it is run on."""

from __future__ import annotations

import pytest
import timm
import torch
from backbones import CONFIGS, count_gflops, images_per_second
from detectron2.config import get_cfg
from detectron2.structures import ImageList
from torch import nn

from dynamic_sparse_rcnn import add_dynamic_sparse_rcnn_config


class Attending(nn.Module):
    """Stands for a detector: a 1x1 convolution of 3 to 8 channels, then attention with 2 heads of 4 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def preprocess_image(self, inputs: list[dict[str, torch.Tensor]]) -> ImageList:
        return ImageList.from_tensors([x["image"].float() for x in inputs])

    def forward(self, inputs: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        tokens = self.backbone(self.preprocess_image(inputs).tensor).flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


def test_a_multiplication_and_its_addition_count_as_one_in_attention_too():
    inputs = [{"image": torch.zeros(3, 4, 5, dtype=torch.uint8)}]
    n = 4 * 5
    convolution, projections, attention = n * 3 * 8, n * 8 * 32, 2 * n * n * 8
    backbone, detector = count_gflops(Attending().eval(), inputs)
    assert 1e9 * backbone == pytest.approx(convolution)
    assert 1e9 * detector == pytest.approx(convolution + projections + attention)


def test_each_detector_has_its_own_speed():
    inputs = [{"image": torch.zeros(3, 4, 5, dtype=torch.uint8)}]
    calls = list[str]()
    detectors = [nn.Identity(), nn.Identity()]
    for name, detector in zip("ab", detectors, strict=True):
        detector.register_forward_hook(lambda *_, name=name: calls.append(name))
    assert len(images_per_second(detectors, inputs, repeats=2)) == 2
    assert calls == list("ababab")


@pytest.mark.parametrize("config", CONFIGS[1:], ids=lambda path: path.stem)
def test_configs_of_timm_name_weights_that_it_has_and_their_normalisation(config):
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(str(config))
    assert cfg.MODEL.TIMM.PRETRAINED and not cfg.MODEL.WEIGHTS
    pretrained = timm.get_pretrained_cfg(cfg.MODEL.TIMM.NAME)
    assert pretrained.hf_hub_id == f"timm/{cfg.MODEL.TIMM.NAME}"
    assert [255 * x for x in pretrained.mean] == pytest.approx(cfg.MODEL.PIXEL_MEAN)
    assert [255 * x for x in pretrained.std] == pytest.approx(cfg.MODEL.PIXEL_STD)
    assert cfg.INPUT.FORMAT == "RGB"
