"""MODEL.CHANNELS_LAST changes the order of values in memory, and nothing else."""

from __future__ import annotations

import torch
from detectron2.modeling import build_model


def test_losses_and_gradients_are_the_same(tiny_cfg, make_inputs):
    tiny_cfg.MODEL.RESNETS.NORM = "FrozenBN"  # two images' statistics would enlarge the rounding
    plain = build_model(tiny_cfg)
    tiny_cfg.MODEL.CHANNELS_LAST = True
    other = build_model(tiny_cfg)
    other.load_state_dict(plain.state_dict())
    seen = []
    other.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    convolution = other.backbone.bottom_up.stem.conv1.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last) and not convolution.is_contiguous()
    inputs = make_inputs([3, 2])
    losses = [model(inputs) for model in (plain, other)]
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and not seen[0].is_contiguous()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    for values in losses:
        sum(values.values()).backward()
    for (name, first), second in zip(plain.named_parameters(), other.parameters(), strict=True):
        difference = (first.grad - second.grad).norm() / first.grad.norm().clamp(min=1e-6)
        assert difference < 1e-3, name
