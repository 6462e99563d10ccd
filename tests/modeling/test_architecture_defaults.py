"""What each meta-architecture is made of where the config does not say, and that the config has the last word."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from dynamic_sparse_rcnn import add_dynamic_sparse_rcnn_config

ROOT = Path(__file__).parents[2]
STATIC = ("LearnedProposalGenerator", "SetCriterion", "HungarianMatcher", 1.0)
DYNAMIC = ("DynamicProposalGenerator", "DLACriterion", "OptimalTransportMatcher", 0.7)


def parts(cfg: CfgNode) -> tuple[str, str, str, float]:
    model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    modules = (model.proposal_generator, model.criterion, model.criterion.matcher)
    generator, criterion, matcher = (type(module).__name__ for module in modules)
    return generator, criterion, matcher, model.nms_threshold


@pytest.mark.parametrize(("name", "expected"), [("SparseRCNN", STATIC), ("DynamicSparseRCNN", DYNAMIC)])
def test_the_name_alone_chooses_all_parts(tiny_dynamic_cfg, name, expected):
    tiny_dynamic_cfg.MODEL.META_ARCHITECTURE = name
    tiny_dynamic_cfg.freeze()
    before = tiny_dynamic_cfg.dump()
    assert parts(tiny_dynamic_cfg) == expected
    assert tiny_dynamic_cfg.dump() == before


@pytest.mark.parametrize(
    ("name", "defaults", "others"), [("SparseRCNN", STATIC, DYNAMIC), ("DynamicSparseRCNN", DYNAMIC, STATIC)]
)
@pytest.mark.parametrize("place", range(4))
def test_each_part_can_be_overridden_alone(tiny_dynamic_cfg, name, defaults, others, place):
    node = "MODEL.SparseRCNN"
    keys = ["MODEL.PROPOSAL_GENERATOR.NAME", f"{node}.CRITERION", f"{node}.MATCHER", f"{node}.NMS_THRESHOLD"]
    tiny_dynamic_cfg.merge_from_list(["MODEL.META_ARCHITECTURE", name, keys[place], others[place]])
    expected = [*defaults]
    expected[place] = others[place]
    assert parts(tiny_dynamic_cfg) == tuple(expected)


def test_a_negative_threshold_of_nms_which_would_leave_one_box_a_class_is_refused(tiny_cfg):
    tiny_cfg.MODEL.SparseRCNN.NMS_THRESHOLD = -0.5
    with pytest.raises(ValueError, match=r"MODEL\.SparseRCNN\.NMS_THRESHOLD is -0\.5"):
        build_model(tiny_cfg)


def test_a_file_that_says_only_the_architecture_gets_its_parts(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"_BASE_: {ROOT}/configs/shapes/sparse_rcnn_R_18_FPN_20pro.yaml\n"
        "MODEL: {META_ARCHITECTURE: DynamicSparseRCNN, DEVICE: cpu, SparseRCNN: {NUM_CLASSES: 3}}\n"
    )
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(str(file))
    assert parts(cfg) == DYNAMIC
    cfg.MODEL.META_ARCHITECTURE = "SparseRCNN"
    assert parts(cfg) == STATIC
