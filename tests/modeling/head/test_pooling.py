"""Pooling for a cascade: detectron2's ROIPooler is the oracle, of values and gradients."""

from __future__ import annotations

import pytest
import torch
from conftest import random_boxes
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dynamic_sparse_rcnn import CascadeROIPooler

STAGES, IMAGES, BOXES, SIDE = 3, 2, 9, 512
ARGUMENTS = {"output_size": 3, "scales": [1 / 4, 1 / 8, 1 / 16, 1 / 32], "sampling_ratio": 2}


def make_pooler(pooler_class: type[ROIPooler], pooler_type: str = "ROIAlignV2", **changes) -> ROIPooler:
    return pooler_class(**ARGUMENTS | changes, pooler_type=pooler_type)


def make_maps(dtype: torch.dtype = torch.float64, levels: int = 4) -> list[Tensor]:
    return [
        torch.randn(IMAGES, 4, SIDE // stride, SIDE // stride, dtype=dtype, requires_grad=True)
        for stride in (4, 8, 16, 32)[:levels]
    ]


def make_boxes() -> list[list[Boxes]]:
    """Of each stage and image: boxes of all levels, some of which leave the image."""
    scale = torch.tensor([0.2, 1.0, 3.0]).repeat(BOXES // 3)[:, None]
    return [[Boxes(random_boxes(BOXES, SIDE, SIDE) * scale) for _ in range(IMAGES)] for _ in range(STAGES)]


def pool_all(pooler: ROIPooler, maps: list[Tensor], boxes: list[list[Boxes]]) -> list[Tensor]:
    shared = pooler.share(maps) if isinstance(pooler, CascadeROIPooler) else maps
    return [pooler(shared, stage_boxes) for stage_boxes in boxes]


def weighted_sum(pooled: list[Tensor]) -> Tensor:
    """Of all values, each with another weight."""
    return torch.stack([(x * torch.arange(x.numel(), device=x.device).view_as(x).cos()).sum() for x in pooled]).sum()


def gradients(pooler: ROIPooler, maps: list[Tensor], boxes: list[list[Boxes]]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(weighted_sum(pool_all(pooler, maps, boxes)), maps)


@pytest.mark.parametrize("pooler_type", ["ROIAlign", "ROIAlignV2"])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_values_and_gradients_are_those_of_roi_pooler(pooler_type, sampling_ratio):
    ours, oracle = (make_pooler(c, pooler_type, sampling_ratio=sampling_ratio) for c in (CascadeROIPooler, ROIPooler))
    maps, boxes = make_maps(), make_boxes()
    for pooled, expected in zip(pool_all(ours, maps, boxes), pool_all(oracle, maps, boxes), strict=True):
        torch.testing.assert_close(pooled, expected, rtol=0, atol=0)
    for gradient, expected in zip(gradients(ours, maps, boxes), gradients(oracle, maps, boxes), strict=True):
        assert expected.any(), "the boxes should reach all levels"
        torch.testing.assert_close(gradient, expected)


def test_a_pyramid_of_one_level_takes_boxes_of_all_sizes():
    maps, boxes = make_maps(levels=1), make_boxes()
    ours, oracle = (gradients(make_pooler(c, scales=[1 / 4]), maps, boxes) for c in (CascadeROIPooler, ROIPooler))
    torch.testing.assert_close(ours, oracle)


def test_roi_aligns_backward_runs_once_a_level(monkeypatch):
    calls = []
    backward = torch.ops.torchvision._roi_align_backward
    monkeypatch.setattr(
        torch.ops.torchvision, "_roi_align_backward", lambda *args: calls.append(args[1]) or backward(*args)
    )
    gradients(make_pooler(CascadeROIPooler), make_maps(), make_boxes())
    assert len(calls) == 4
    assert sum(len(rois) for rois in calls) == STAGES * IMAGES * BOXES


def test_images_of_different_numbers_of_boxes_and_of_none():
    maps = make_maps()
    boxes = [[x[: 3 * (i + stage)] for i, x in enumerate(images)] for stage, images in enumerate(make_boxes())]
    assert [len(x) for x in boxes[0]] == [0, 3]
    ours, oracle = (make_pooler(c) for c in (CascadeROIPooler, ROIPooler))
    torch.testing.assert_close(pool_all(ours, maps, boxes), pool_all(oracle, maps, boxes))
    torch.testing.assert_close(gradients(ours, maps, boxes), gradients(oracle, maps, boxes))


def test_boxes_of_nan_and_without_extent_give_what_roi_pooler_gives():
    maps, boxes = make_maps(), make_boxes()[:1]
    boxes[0][0].tensor[1] = float("nan")
    boxes[0][1].tensor[2, 2:] = boxes[0][1].tensor[2, :2]
    ours, oracle = (make_pooler(c) for c in (CascadeROIPooler, ROIPooler))
    torch.testing.assert_close(pool_all(ours, maps, boxes), pool_all(oracle, maps, boxes))
    torch.testing.assert_close(gradients(ours, maps, boxes), gradients(oracle, maps, boxes))


def test_stages_without_part_in_the_loss_give_no_gradient():
    maps, boxes = make_maps(), make_boxes()
    first, *_ = pool_all(make_pooler(CascadeROIPooler), maps, boxes)
    ours = torch.autograd.grad(weighted_sum([first]), maps)
    torch.testing.assert_close(ours, gradients(make_pooler(ROIPooler), maps, boxes[:1]))


def test_a_second_backward_pass_counts_once():
    maps, boxes = make_maps(), make_boxes()
    pooled = pool_all(make_pooler(CascadeROIPooler), maps, boxes)
    expected = gradients(make_pooler(ROIPooler), maps, boxes)
    torch.testing.assert_close(torch.autograd.grad(weighted_sum(pooled), maps, retain_graph=True), expected)
    torch.testing.assert_close(torch.autograd.grad(weighted_sum(pooled), maps, retain_graph=True), expected)
    last = gradients(make_pooler(ROIPooler), maps, boxes[-1:])
    torch.testing.assert_close(torch.autograd.grad(weighted_sum(pooled[-1:]), maps), last)


def test_a_backward_pass_that_failed_leaves_nothing_to_the_next():
    maps, boxes = make_maps(), make_boxes()
    early, *later = pool_all(make_pooler(CascadeROIPooler), maps, boxes)
    failing = early.clone()
    handle = failing.register_hook(lambda _: 1 / 0)
    loss = weighted_sum([failing, *later])
    with pytest.raises(ZeroDivisionError):
        loss.backward(retain_graph=True)
    handle.remove()
    expected = gradients(make_pooler(ROIPooler), maps, boxes)
    torch.testing.assert_close(torch.autograd.grad(loss, maps), expected)


def test_gradients_of_gradients_are_refused():
    maps, boxes = make_maps(), make_boxes()
    loss = weighted_sum(pool_all(make_pooler(CascadeROIPooler), maps, boxes)).square()
    first, *_ = torch.autograd.grad(loss, maps, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()


@pytest.mark.parametrize("frozen", [{0}, {1, 3}, {0, 1, 2, 3}])
def test_frozen_maps_get_no_gradient_and_boxes_neither(frozen):
    maps, boxes = make_maps(), make_boxes()
    for level in frozen:
        maps[level].requires_grad_(False)
    learned = [[Boxes(x.tensor.clone().requires_grad_()) for x in images] for images in boxes]
    loss = weighted_sum(pool_all(make_pooler(CascadeROIPooler), maps, learned))
    assert loss.requires_grad == (len(frozen) < 4)
    if loss.requires_grad:
        loss.backward()
    assert [x.grad is None for x in maps] == [level in frozen for level in range(4)]
    assert all(x.tensor.grad is None for images in learned for x in images)


def test_without_gradients_values_are_the_same():
    maps, boxes = make_maps(), make_boxes()
    with torch.no_grad():
        pooled = pool_all(make_pooler(CascadeROIPooler), maps, boxes)
    assert not any(x.requires_grad for x in pooled)
    torch.testing.assert_close(pooled, pool_all(make_pooler(CascadeROIPooler), maps, boxes))


def test_maps_can_come_from_checkpointed_layers_and_pooling_can_lie_in_them():
    images, boxes = torch.randn(IMAGES, 4, SIDE // 4, SIDE // 4, dtype=torch.float64), make_boxes()
    layer = torch.nn.Conv2d(4, 4, 1).double()

    def pyramid(x: Tensor) -> list[Tensor]:
        return [torch.nn.functional.avg_pool2d(layer(x).tanh(), stride) for stride in (1, 2, 4, 8)]

    def gradient(pooler_class: type[ROIPooler], inside: bool, outside: bool) -> tuple[Tensor, ...]:
        def all_of_it(x: Tensor) -> list[Tensor]:
            maps = checkpoint(pyramid, x, use_reentrant=False) if inside else pyramid(x)
            return pool_all(make_pooler(pooler_class), maps, boxes)

        pooled = checkpoint(all_of_it, images, use_reentrant=False) if outside else all_of_it(images)
        return torch.autograd.grad(weighted_sum(pooled), list(layer.parameters()))

    expected = gradient(ROIPooler, inside=False, outside=False)
    torch.testing.assert_close(gradient(CascadeROIPooler, inside=True, outside=False), expected)
    torch.testing.assert_close(gradient(CascadeROIPooler, inside=False, outside=True), expected)


def test_maps_in_half_precision_are_pooled_at_boxes_that_are_not_rounded():
    maps = [x.detach().bfloat16().requires_grad_() for x in make_maps(torch.float32)]
    exact = [x.detach().float().requires_grad_() for x in maps]
    boxes = make_boxes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pool_all(make_pooler(CascadeROIPooler), maps, boxes)
    expected = pool_all(make_pooler(ROIPooler), exact, boxes)
    assert {x.dtype for x in pooled} == {torch.bfloat16}
    torch.testing.assert_close(pooled, [x.bfloat16() for x in expected], rtol=0, atol=0)
    found = torch.autograd.grad(weighted_sum([x.float() for x in pooled]), maps)
    wanted = torch.autograd.grad(weighted_sum([x.bfloat16().float() for x in expected]), exact)
    assert {x.dtype for x in found} == {torch.bfloat16}
    torch.testing.assert_close(found, tuple(x.bfloat16() for x in wanted))


def test_maps_with_channels_last_are_pooled_alike():
    maps, boxes = make_maps(), make_boxes()
    others = [x.detach().to(memory_format=torch.channels_last).requires_grad_() for x in maps]
    pooler = make_pooler(CascadeROIPooler)
    torch.testing.assert_close(gradients(pooler, others, boxes), gradients(pooler, maps, boxes))


def test_maps_are_not_kept_for_the_backward_pass():
    pooler, boxes = make_pooler(CascadeROIPooler), make_boxes()
    maps = [2 * x for x in make_maps()]
    pyramid = pooler.share(maps)
    pooled = pooler(pyramid, boxes[0])
    storages = {x.untyped_storage().data_ptr() for x in pyramid.maps}
    saved = pooled.grad_fn.saved_tensors
    assert not storages & {x.untyped_storage().data_ptr() for x in saved}
    assert not any(isinstance(value, (list, tuple, Tensor)) for value in vars(pooled.grad_fn).values())


def test_a_list_of_maps_is_pooled_as_by_roi_pooler():
    maps, boxes = make_maps(), make_boxes()[0]
    ours, oracle = (make_pooler(c)(maps, boxes) for c in (CascadeROIPooler, ROIPooler))
    torch.testing.assert_close(ours, oracle)
    expected = torch.autograd.grad(weighted_sum([oracle]), maps)
    torch.testing.assert_close(torch.autograd.grad(weighted_sum([ours]), maps), expected)


@pytest.mark.parametrize("pooler_type", ["ROIPool", "ROIAlignRotated"])
def test_other_kinds_of_pooling_are_refused_with_the_remedy(pooler_type):
    with pytest.raises(ValueError, match=f"{pooler_type}.*use ROIPooler"):
        make_pooler(CascadeROIPooler, pooler_type)


@pytest.mark.gpu
def test_cuda_gives_what_the_cpu_gives():
    maps, boxes = make_maps(), make_boxes()
    on_cuda = [x.detach().cuda().requires_grad_() for x in maps]
    boxes_on_cuda = [[x.to("cuda") for x in images] for images in boxes]
    pooler = make_pooler(CascadeROIPooler)
    found = gradients(pooler, on_cuda, boxes_on_cuda)
    torch.testing.assert_close([x.cpu() for x in found], list(gradients(pooler, maps, boxes)))
