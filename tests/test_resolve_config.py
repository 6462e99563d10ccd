"""What a config leaves open follows from architecture and matcher; what contradicts them is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from dynamic_sparse_rcnn import (
    MATCHER_REGISTRY,
    Assignment,
    MatchCosts,
    Matcher,
    SparseRCNN,
    add_dynamic_sparse_rcnn_config,
    build_criterion,
    build_matcher,
    resolve_config,
)

ROOT = Path(__file__).parents[1]
GENERATORS = {"SparseRCNN": "LearnedProposalGenerator", "DynamicSparseRCNN": "DynamicProposalGenerator"}
MATCHERS = {"SparseRCNN": "HungarianMatcher", "DynamicSparseRCNN": "OptimalTransportMatcher"}

# Errors, by the keys that they name.
NORMALIZER = "DLA.NORMALIZER and MATCHER"
NMS = "NMS_THRESHOLD and MATCHER"

# Normalizer and NMS threshold in use: by the matcher in use, then by the threshold of the config, and at last for its
# normalizers None, num_gt and positives.
OUTCOMES: dict[str, dict[float | None, tuple]] = {
    "HungarianMatcher": {
        None: ((None, 1.0), NORMALIZER, NORMALIZER),
        0.7: ((None, 0.7), NORMALIZER, NORMALIZER),
        1.0: ((None, 1.0), NORMALIZER, NORMALIZER),
    },
    "OptimalTransportMatcher": {
        None: (("positives", 0.7), ("num_gt", 0.7), ("positives", 0.7)),
        0.7: (("positives", 0.7), ("num_gt", 0.7), ("positives", 0.7)),
        1.0: (NMS, NMS, NMS),
    },
}
COMBINATIONS = list(
    itertools.product(
        MATCHERS,
        (None, "HungarianMatcher", "OptimalTransportMatcher"),
        (None, 0.7, 1.0),
        (None, "num_gt", "positives"),
    )
)


@pytest.mark.parametrize(("architecture", "matcher", "nms", "normalizer"), COMBINATIONS)
def test_every_combination_is_resolved_or_refused_by_both_keys(
    tiny_dynamic_cfg, architecture, matcher, nms, normalizer
):
    cfg, node = tiny_dynamic_cfg, tiny_dynamic_cfg.MODEL.SparseRCNN
    cfg.MODEL.META_ARCHITECTURE = architecture
    node.MATCHER, node.NMS_THRESHOLD, node.DLA.NORMALIZER = matcher, nms, normalizer
    in_use = matcher or MATCHERS[architecture]
    outcomes = OUTCOMES[in_use][nms]
    outcome = outcomes[(None, "num_gt", "positives").index(normalizer)]
    if isinstance(outcome, str):
        with pytest.raises(ValueError, match=r"MODEL\.SparseRCNN\.MATCHER") as error:
            resolve_config(cfg)
        assert f"MODEL.SparseRCNN.{outcome.split()[0]} " in str(error.value)
        return
    resolve_config(cfg)
    assert outcome == (node.DLA.NORMALIZER, node.NMS_THRESHOLD)
    assert in_use == node.MATCHER
    assert GENERATORS[architecture] == cfg.MODEL.PROPOSAL_GENERATOR.NAME
    resolved = cfg.dump()
    resolve_config(cfg)
    assert cfg.dump() == resolved


def parts(cfg: CfgNode) -> tuple[str, str, str, float, str | None]:
    model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    modules = (model.proposal_generator, model.criterion, model.criterion.matcher)
    generator, criterion, matcher = (type(module).__name__ for module in modules)
    return generator, criterion, matcher, model.nms_threshold, model.criterion.normalizer


STATIC = ("LearnedProposalGenerator", "SetCriterion", "HungarianMatcher", 1.0, None)
DYNAMIC = ("DynamicProposalGenerator", "SetCriterion", "OptimalTransportMatcher", 0.7, "positives")


@pytest.mark.parametrize(("name", "expected"), [("SparseRCNN", STATIC), ("DynamicSparseRCNN", DYNAMIC)])
def test_detectors_have_the_parts_of_their_name_and_leave_the_config_as_it_was(tiny_dynamic_cfg, name, expected):
    tiny_dynamic_cfg.MODEL.META_ARCHITECTURE = name
    tiny_dynamic_cfg.freeze()
    before = tiny_dynamic_cfg.dump()
    assert parts(tiny_dynamic_cfg) == expected
    assert tiny_dynamic_cfg.dump() == before


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("SparseRCNN", "PROPOSAL_GENERATOR.NAME", "DynamicProposalGenerator", (DYNAMIC[0], *STATIC[1:])),
        ("SparseRCNN", "SparseRCNN.MATCHER", "OptimalTransportMatcher", (STATIC[0], *DYNAMIC[1:])),
        ("SparseRCNN", "SparseRCNN.NMS_THRESHOLD", 0.6, (*STATIC[:3], 0.6, None)),
        ("DynamicSparseRCNN", "PROPOSAL_GENERATOR.NAME", "LearnedProposalGenerator", (STATIC[0], *DYNAMIC[1:])),
        ("DynamicSparseRCNN", "SparseRCNN.MATCHER", "HungarianMatcher", (DYNAMIC[0], *STATIC[1:])),
        ("DynamicSparseRCNN", "SparseRCNN.DLA.NORMALIZER", "num_gt", (*DYNAMIC[:4], "num_gt")),
    ],
)
def test_a_part_that_is_chosen_brings_what_follows_from_it(tiny_dynamic_cfg, name, key, value, expected):
    tiny_dynamic_cfg.merge_from_list(["MODEL.META_ARCHITECTURE", name, f"MODEL.{key}", value])
    assert parts(tiny_dynamic_cfg) == expected


@pytest.mark.parametrize("name", MATCHERS)
def test_parts_that_are_built_alone_are_those_of_the_detector(name):
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    config = "dynamic_sparse_rcnn" if name == "DynamicSparseRCNN" else "sparse_rcnn"
    cfg.merge_from_file(str(ROOT / f"configs/coco/{config}_R_50_FPN_300pro_3x.yaml"))
    assert name == cfg.MODEL.META_ARCHITECTURE
    assert type(build_matcher(cfg)).__name__ == type(build_criterion(cfg).matcher).__name__ == MATCHERS[name]


def test_architectures_of_others_keep_their_own_and_have_no_matcher_unless_one_is_named(tiny_cfg):
    tiny_cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    resolve_config(tiny_cfg)
    assert (tiny_cfg.MODEL.PROPOSAL_GENERATOR.NAME, tiny_cfg.MODEL.SparseRCNN.MATCHER) == ("RPN", None)
    with pytest.raises(ValueError, match=r"SparseRCNN\.MATCHER is None, and MODEL\.META_ARCHITECTURE GeneralizedRCNN"):
        build_matcher(tiny_cfg)
    tiny_cfg.MODEL.SparseRCNN.MATCHER = "OptimalTransportMatcher"
    assert build_criterion(tiny_cfg).normalizer == "positives"


def test_derived_architectures_have_the_parts_of_their_base(tiny_cfg):
    class DerivedRCNN(SparseRCNN):
        pass

    META_ARCH_REGISTRY.register(DerivedRCNN)
    try:
        tiny_cfg.MODEL.META_ARCHITECTURE = "DerivedRCNN"
        assert parts(tiny_cfg) == STATIC
    finally:
        del META_ARCH_REGISTRY._obj_map["DerivedRCNN"]


def test_what_follows_from_a_matcher_of_others_follows_from_what_it_says(tiny_cfg):
    class Everybody(Matcher):
        one_to_many = True

        def __init__(self, cfg: CfgNode) -> None:
            super().__init__()

        def forward(self, costs: MatchCosts) -> Assignment:
            raise NotImplementedError

    MATCHER_REGISTRY.register(Everybody)
    try:
        tiny_cfg.MODEL.SparseRCNN.MATCHER = "Everybody"
        assert parts(tiny_cfg)[2:] == ("Everybody", 0.7, "positives")
    finally:
        del MATCHER_REGISTRY._obj_map["Everybody"]


def test_a_matcher_that_does_not_say_so_is_refused_where_it_is_defined():
    with pytest.raises(TypeError, match="Silent does not say whether it is one-to-many"):

        class Silent(Matcher):
            pass


@pytest.mark.parametrize("threshold", [-0.5, "high"])
def test_thresholds_of_nms_that_are_no_iou_are_refused(tiny_cfg, threshold):
    tiny_cfg.MODEL.SparseRCNN.NMS_THRESHOLD = threshold
    with pytest.raises(ValueError, match=r"MODEL\.SparseRCNN\.NMS_THRESHOLD is '?(-0\.5|high)"):
        build_model(tiny_cfg)


def test_a_detector_that_is_built_without_a_config_has_the_nms_of_its_matcher(tiny_dynamic_cfg):
    detector = build_model(tiny_dynamic_cfg)
    names = ("backbone", "proposal_generator", "head", "criterion")
    arguments = {name: getattr(detector, name) for name in names} | {"num_detections": 100}
    arguments |= {"pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
    assert SparseRCNN(**arguments).nms_threshold == 0.7
    with pytest.raises(ValueError, match=r"NMS_THRESHOLD is 1\.0.*MATCHER OptimalTransportMatcher"):
        SparseRCNN(**arguments, nms_threshold=1.0)


def load(tmp_path: Path, content: str) -> CfgNode:
    (tmp_path / "mine.yaml").write_text(content)
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(str(tmp_path / "mine.yaml"))
    return cfg


def test_a_file_that_says_only_the_architecture_gets_its_parts(tmp_path):
    cfg = load(
        tmp_path,
        f"_BASE_: {ROOT}/configs/shapes/sparse_rcnn_R_18_FPN_20pro.yaml\n"
        "MODEL: {META_ARCHITECTURE: DynamicSparseRCNN, DEVICE: cpu, SparseRCNN: {NUM_CLASSES: 3}}\n",
    )
    assert parts(cfg) == DYNAMIC
    cfg.MODEL.META_ARCHITECTURE = "SparseRCNN"
    assert parts(cfg) == STATIC


@pytest.mark.parametrize(("name", "expected"), [("SparseRCNN", STATIC), ("DynamicSparseRCNN", DYNAMIC)])
def test_a_config_as_a_run_saves_it_has_the_same_parts(tiny_dynamic_cfg, tmp_path, name, expected):
    tiny_dynamic_cfg.MODEL.META_ARCHITECTURE = name
    resolve_config(tiny_dynamic_cfg)
    assert parts(load(tmp_path, tiny_dynamic_cfg.dump())) == expected


@pytest.mark.parametrize(("proposals", "detections"), [(300, 100), (500, 500)])
def test_detections_follow_more_proposals_than_usual_unless_they_are_said(tiny_cfg, proposals, detections):
    tiny_cfg.MODEL.SparseRCNN.NUM_PROPOSALS = proposals
    assert build_model(tiny_cfg).num_detections == detections
    tiny_cfg.TEST.DETECTIONS_PER_IMAGE = 50
    assert build_model(tiny_cfg).num_detections == 50


def test_no_detections_at_all_are_refused(tiny_cfg):
    tiny_cfg.TEST.DETECTIONS_PER_IMAGE = 0
    with pytest.raises(ValueError, match=r"TEST\.DETECTIONS_PER_IMAGE is 0: .* -1 for no limit"):
        resolve_config(tiny_cfg)


def test_the_config_of_a_run_of_the_public_sparse_rcnn_is_read_and_what_is_ignored_is_told(tmp_path, caplog):
    content = (
        "MODEL: {META_ARCHITECTURE: SparseRCNN, SparseRCNN: {NUM_PROPOSALS: 300}}\n"
        "TEST: {AUG: {CVPODS_TTA: true, SCALE_FILTER: true, SCALE_RANGES: [[96, 10000], [64, 10000]], FLIP: true}}\n"
    )
    cfg = load(tmp_path, content)
    assert cfg.MODEL.SparseRCNN.NUM_PROPOSALS == 300
    for key in ("CVPODS_TTA", "SCALE_FILTER", "SCALE_RANGES"):
        assert f"TEST.AUG.{key}" in caplog.text
