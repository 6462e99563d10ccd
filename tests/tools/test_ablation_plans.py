"""The plans of ablations: every variant and evaluation of them is a detector that can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from dynamic_sparse_rcnn import add_dynamic_sparse_rcnn_config

ROOT = Path(__file__).parents[2]
PLANS = {path.name: yaml.safe_load(path.read_text()) for path in ROOT.glob("benchmarks/ablations/*.yaml")}
RUNS = [(plan, variant) for plan, content in PLANS.items() for variant in content["variants"]]


@pytest.mark.parametrize(("plan", "variant"), RUNS)
def test_every_variant_can_be_built(plan, variant):
    content = PLANS[plan]
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(str(ROOT / content["config"]))
    for evaluation in content["evaluations"].values():
        cfg.merge_from_list([*content["common"], *content["variants"][variant], *evaluation])
    cfg.MODEL.DEVICE, cfg.MODEL.SparseRCNN.NUM_CLASSES = "cpu", 3
    generator = type(build_model(cfg).proposal_generator).__name__
    assert generator == ("DynamicProposalGenerator" if "DPG" in variant else "LearnedProposalGenerator")
