"""The router: the published size, an image's own cells alone, finite whatever comes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from dynamic_sparse_rcnn import ExpertRouter


def make_router(strides=(4, 8, 16, 32), channels=8, **sizes) -> ExpertRouter:
    levels = [ShapeSpec(channels=channels, stride=stride) for stride in strides]
    sizes = {"num_experts": 3, "num_proposals": 5, "hidden_channels": 12, "pool_size": 6} | sizes
    return ExpertRouter(levels, **sizes)


def make_features(router: ExpertRouter, images: int, height: int, width: int, channels=8) -> list[torch.Tensor]:
    return [torch.randn(images, channels, -(-height // s), -(-width // s)) for s in router.strides]


def staircase_logits(router: ExpertRouter, features: list[torch.Tensor]) -> torch.Tensor:
    """One image's logits in float64, cell by cell: every channel's own 3x3 filter at every second cell."""
    aggregated = torch.zeros(0, *features[0].shape[1:], dtype=torch.float64)
    for feature, layer in zip(features, router.downsamplings, strict=True):
        maps = torch.cat([aggregated, feature.double()])
        channels, height, width = maps.shape
        padded = torch.zeros(channels, height + 2, width + 2, dtype=torch.float64)
        padded[:, 1:-1, 1:-1] = maps
        parameters = layer.state_dict()
        weight, bias = parameters["weight"].double()[:, 0], parameters["bias"].double()
        aggregated = torch.zeros(channels, -(-height // 2), -(-width // 2), dtype=torch.float64)
        for y in range(aggregated.shape[1]):
            for x in range(aggregated.shape[2]):
                window = padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
                aggregated[:, y, x] = (window * weight).sum((1, 2)) + bias
    summed = aggregated.sum(0)
    pooled = _bilinear(_bilinear(summed, router.pool_size).T, router.pool_size).T
    pooled = (pooled - pooled.mean()) / (pooled.var(correction=0) + 1e-5).sqrt()
    pooled = pooled.flatten() / router.pool_size
    hidden = (router.hidden.weight.double() @ pooled + router.hidden.bias.double()).clamp(min=0)
    logits = router.logits.weight.double() @ hidden / len(hidden) ** 0.5 + router.logits.bias.double()
    return logits.view(router.num_experts, -1).detach()


def _bilinear(rows: torch.Tensor, number: int) -> torch.Tensor:
    """Enlarges the first dimension; the samples lie in the middles of equal parts."""
    resized = []
    for i in range(number):
        position = min(max((i + 0.5) * len(rows) / number - 0.5, 0), len(rows) - 1)
        low = int(position)
        high = min(low + 1, len(rows) - 1)
        resized.append(rows[low] * (1 - position + low) + rows[high] * (position - low))
    return torch.stack(resized)


def randomize(router: ExpertRouter) -> None:
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter)


def test_the_size_is_the_published_one():
    router = make_router(channels=256, num_experts=4, num_proposals=300, hidden_channels=1500, pool_size=30)
    assert sum(parameter.numel() for parameter in router.parameters()) == 3_178_300


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (8, 16, 32), (32,), (4, 8, 16, 32, 64)])
def test_logits_equal_a_written_out_float64_staircase(strides):
    router = make_router(strides)
    randomize(router)
    features = make_features(router, 2, 320, 256)
    logits = router(features, [(320, 256)] * 2)
    assert logits.shape == (2, 3, 5)
    for image in range(2):
        expected = staircase_logits(router, [feature[image] for feature in features])
        torch.testing.assert_close(logits[image].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (40, 50), (33, 101), (1, 1)])
def test_what_lies_outside_an_image_does_not_matter(size):
    router = make_router()
    randomize(router)
    height, width = size
    alone = make_features(router, 1, height, width)
    batch = make_features(router, 2, 192, 160)
    for own, padded in zip(alone, batch, strict=True):
        padded[0] = 1e4
        padded[0, :, : own.shape[2], : own.shape[3]] = own[0]
    logits = router(batch, [size, (192, 160)])
    torch.testing.assert_close(logits[:1], router(alone, [size]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        logits[0].double(), staircase_logits(router, [x[0] for x in alone]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("size", [(64, 64), (800, 1333), (1333, 64)])
def test_any_image_size_is_routed(size):
    router = make_router(pool_size=30)
    features = make_features(router, 1, *size)
    logits = router(features, [size])
    expected = staircase_logits(router, [x[0] for x in features])
    torch.testing.assert_close(logits[0].double(), expected, rtol=1e-4, atol=1e-4)


def test_sums_beyond_float16_are_those_of_float64_under_autocast():
    router = make_router()
    features = [torch.full_like(x, 2e4) for x in make_features(router, 1, 64, 64)]
    with torch.autocast("cpu", dtype=torch.float16):
        logits = router(features, [(64, 64)])
    assert logits.dtype == torch.float32
    expected = staircase_logits(router, [x[0] for x in features])
    torch.testing.assert_close(logits[0].double(), expected, rtol=0.02, atol=0.002)


@pytest.mark.parametrize("side", [1, 6, 30])
@pytest.mark.parametrize("size", [(64, 64), (25, 38), (3, 1)])
def test_pooling_equals_torchs_antialiased_resizing_of_each_images_own_cells(side, size):
    router = make_router(pool_size=side)
    maps = torch.randn(3, 8, *size, dtype=torch.float64)
    own_cells = [size, (1, 1), ((size[0] + 1) // 2, size[1])]
    pooled = router._pool(maps, own_cells)
    for image, (rows, columns), found in zip(maps, own_cells, pooled, strict=True):
        summed = image[None, :, :rows, :columns].sum(1, keepdim=True)
        expected = F.interpolate(summed, (side, side), mode="bilinear", antialias=True)
        torch.testing.assert_close(found, expected[0, 0])


def test_all_experts_start_with_about_the_same_weight():
    router = make_router(channels=256, num_experts=4, num_proposals=300, hidden_channels=1500, pool_size=30)
    weights = router(make_features(router, 2, 256, 320, channels=256), [(256, 320)] * 2).softmax(1)
    assert weights.min() > 0.15 and weights.max() < 0.4
    assert weights.std(1).max() > 0


def test_the_scale_of_the_feature_maps_does_not_matter():
    router = make_router()
    features = make_features(router, 2, 128, 128)
    expected = router(features, [(128, 128)] * 2)
    for scale in (0.1, 10.0):
        torch.testing.assert_close(
            router([scale * x for x in features], [(128, 128)] * 2), expected, rtol=1e-2, atol=1e-4
        )


@pytest.mark.parametrize("strides", [(), (4, 16), (8, 4), (4, 4)])
def test_levels_whose_strides_do_not_double_are_refused(strides):
    with pytest.raises(ValueError, match=r"strides \[.*MODEL\.ROI_HEADS\.IN_FEATURES"):
        make_router(strides)


def test_adam_does_not_let_the_weights_settle_on_one_expert_at_once():
    """One expert is a little better for all images: a few dozen steps may not give it all of the weight."""
    router = make_router(channels=64, num_experts=4, num_proposals=20, hidden_channels=1500, pool_size=30)
    features = make_features(router, 4, 128, 128, channels=64)
    gain = 0.01 * torch.randn(4, 20)
    optimizer = torch.optim.AdamW(router.parameters(), 5e-4)
    for _ in range(40):
        optimizer.zero_grad()
        weights = (router(features, [(128, 128)] * 4) / 30).softmax(1)
        (-weights * gain).sum().backward()
        optimizer.step()
    weights = router(features, [(128, 128)] * 4).softmax(1)
    entropy = torch.special.entr(weights).sum(1).mean()
    assert 0.5 * math.log(4) < entropy < math.log(4)
