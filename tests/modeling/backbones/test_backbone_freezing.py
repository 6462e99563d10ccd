"""What is frozen in backbones of timm, and what stays in evaluation mode."""

from __future__ import annotations

import pytest
import torch
from timm_configs import NAMES, build, use_timm

SIZE = (64, 96)


# Twins have no module of their own for a map: refused. The maps of Xception are taken within a block, of which the
# shortcut is frozen as well.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("twins_svt_small", "xception41")])
def test_freezing_takes_exactly_what_lies_before(tiny_cfg, name):
    free = build(use_timm(tiny_cfg, name)).bottom_up.eval()
    maps = free(torch.randn(1, 3, *SIZE))
    for freeze_at in (1, 2, 4):
        backbone = build(use_timm(tiny_cfg, name, FREEZE_AT=freeze_at)).bottom_up
        frozen = {key for key, parameter in backbone.named_parameters() if not parameter.requires_grad}
        # What the map of that stride depends on, by its gradients.
        names, parameters = zip(*free.named_parameters(), strict=True)
        total = maps[f"res{max(freeze_at, 2)}"].sum()
        gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        needed = {key for key, gradient in zip(names, gradients, strict=True) if gradient is not None}
        assert frozen == needed if freeze_at >= 2 else set() < frozen < needed


def test_frozen_parts_keep_their_statistics_and_their_mode_in_training(tiny_cfg):
    backbone = build(use_timm(tiny_cfg, "efficientnet_b0", FREEZE_AT=3, DROP_PATH=0.5)).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running" in key}
    backbone(torch.randn(2, 3, *SIZE))
    changed = {key for key, value in backbone.state_dict().items() if key in before and not value.equal(before[key])}
    frozen = ("bottom_up.model.bn1", "bottom_up.model.blocks.0", "bottom_up.model.blocks.1", "bottom_up.model.blocks.2")
    assert changed == {key for key in before if not key.startswith(frozen)}
    # Stochastic depth of the frozen part is off: its map is the same each time, later ones are not.
    images = torch.randn(2, 3, *SIZE)
    first, second = backbone.bottom_up(images), backbone.bottom_up(images)
    assert torch.equal(first["res3"], second["res3"])
    assert not torch.equal(first["res5"], second["res5"])


def test_with_norm_eval_no_statistics_change_and_scales_learn_unless_frozen(tiny_cfg):
    backbone = build(use_timm(tiny_cfg, "resnet18", NORM_EVAL=True)).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, *SIZE))
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    frozen = build(use_timm(tiny_cfg, "resnet18", NORM_EVAL=True, NORM_FROZEN=True))
    still = {key for key, parameter in frozen.named_parameters() if not parameter.requires_grad}
    assert still == {key for key, _ in backbone.named_parameters() if ".bn" in key or ".downsample.1." in key}


def test_statistics_stay_after_a_conversion_to_synchronised_batch_norms(tiny_cfg):
    for options in ({"NORM_EVAL": True}, {"FREEZE_AT": 5}):
        backbone = build(use_timm(tiny_cfg, "resnet18", **options))
        backbone = torch.nn.SyncBatchNorm.convert_sync_batchnorm(backbone).train()
        norms = [module for module in backbone.modules() if isinstance(module, torch.nn.SyncBatchNorm)]
        assert len(norms) == 20
        assert not any(norm.training for norm in norms)
