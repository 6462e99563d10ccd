"""Two processes learn what one process with both batches learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.nn.parallel import DistributedDataParallel

import dynamic_sparse_rcnn  # noqa: F401  registers the detector in the new processes too


def gradients_of_a_rank(rank: int, cfg: CfgNode, inputs: list[list[dict]], folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(build_model(cfg), broadcast_buffers=False)
    sum(model(inputs[rank]).values()).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in model.module.named_parameters()}, folder / "gradients.pth")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("counts", [[5, 1, 2, 0], [3, 2, 0, 0]])
@pytest.mark.parametrize(
    ("criterion", "matcher"), [("SetCriterion", "HungarianMatcher"), ("DLACriterion", "OptimalTransportMatcher")]
)
def test_gradients_of_two_ranks_equal_those_of_one_process(tiny_cfg, make_inputs, tmp_path, counts, criterion, matcher):
    tiny_cfg.MODEL.SparseRCNN.CRITERION, tiny_cfg.MODEL.SparseRCNN.MATCHER = criterion, matcher
    check_gradients(tiny_cfg, make_inputs(counts, [(64, 96)] * 4), tmp_path)


def test_gradients_of_dynamic_proposals_are_those_of_one_process_too(tiny_dynamic_cfg, make_inputs, tmp_path):
    check_gradients(tiny_dynamic_cfg, make_inputs([3, 2, 1, 0], [(64, 96), (48, 80), (64, 96), (64, 64)]), tmp_path)


def check_gradients(cfg: CfgNode, inputs: list[dict], folder: Path) -> None:
    # Batch statistics would be each rank's own.
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    torch.multiprocessing.spawn(gradients_of_a_rank, (cfg, [inputs[:2], inputs[2:]], folder), nprocs=2)
    torch.manual_seed(0)
    model = build_model(cfg)
    sum(model(inputs).values()).backward()
    found = torch.load(folder / "gradients.pth")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
