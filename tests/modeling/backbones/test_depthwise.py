"""Depthwise convolutions train in float32, and are otherwise what they were."""

from __future__ import annotations

import copy
import pickle

import timm
import torch
from torch import nn

from dynamic_sparse_rcnn.modeling.backbones.depthwise import train_depthwise_in_float32


def is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def test_all_depthwise_convolutions_of_a_model_and_no_others_train_in_float32():
    model = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2))
    names = list(model.state_dict())
    train_depthwise_in_float32(model)
    pickle.loads(pickle.dumps(model))
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, _, y: dtypes[is_depthwise(m)].add(y.dtype))
    images = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
        assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}
        dtypes[True].clear()
        with torch.no_grad():
            model(images)
    assert dtypes == {True: {torch.bfloat16}, False: {torch.bfloat16}}
    assert list(model.state_dict()) == names


def test_gradients_under_autocast_are_those_of_float32():
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6)
    mixed = nn.Sequential(copy.deepcopy(plain))
    train_depthwise_in_float32(mixed)
    images = torch.rand(2, 6, 9, 11)
    with torch.autocast("cpu", torch.bfloat16):
        mixed(images).square().sum().backward()
    plain(images).square().sum().backward()
    torch.testing.assert_close(mixed[0].weight.grad, plain.weight.grad, rtol=0, atol=0)
