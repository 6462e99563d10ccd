"""The plans of ablations: every variant and evaluation of them is a detector that can be built."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import ablate
import pytest
import yaml
from detectron2.modeling import build_model
from small_runs import use_slim_resnet_50

from dynamic_sparse_rcnn import resolve_config
from dynamic_sparse_rcnn.config_reading import read_config

ROOT = Path(__file__).parents[2]
FILES = {path.stem: path for path in sorted(ROOT.glob("benchmarks/ablations/*.yaml"))}
CONTENT = {name: yaml.safe_load(path.read_text()) for name, path in FILES.items()}
WHOLE = [name for name, content in CONTENT.items() if {"config", "variants"} <= content.keys()]
DATA = [name for name, content in CONTENT.items() if "config" in content and "variants" not in content]
QUESTIONS = [name for name, content in CONTENT.items() if "variants" in content and "config" not in content]
# Change the settings of any question, after the data set.
CHANGES = [name for name in FILES if name not in {*WHOLE, *DATA, *QUESTIONS}]
RUNS = [
    *((name, variant) for name in WHOLE for variant in CONTENT[name]["variants"]),
    *((f"fruit+{name}", variant) for name in QUESTIONS for variant in CONTENT[name]["variants"]),
]


def read(names: str) -> ablate.Plan:
    return ablate.read_plan([FILES[name] for name in names.split("+")])


def expected_generator(variant: str, plan: ablate.Plan) -> str | None:
    if variant.startswith("RetinaNet"):
        return None
    if variant.startswith("Faster"):
        return "RPN"
    dynamic = "DPG" in variant or "DynamicSparseRCNN" in [*plan.common, *plan.variants[variant], plan.config]
    return "DynamicProposalGenerator" if dynamic else "LearnedProposalGenerator"


@pytest.mark.parametrize(("names", "variant"), RUNS)
def test_every_variant_can_be_built(names, variant):
    plan = read(names)
    options = [str(part) for part in (*plan.common, *plan.variants[variant])]
    for evaluation in plan.evaluations.values():
        cfg = read_config(str(ROOT / plan.config), [*options, *map(str, evaluation)])
        resolve_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.SparseRCNN.NUM_CLASSES = "cpu", 3
    if variant != next(iter(plan.variants)) and "SparseRCNN" in cfg.MODEL.META_ARCHITECTURE:
        # The first variant has the plan's own backbone, which takes a second to make.
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        use_slim_resnet_50(cfg)
    generator = getattr(build_model(cfg), "proposal_generator", None)
    assert expected_generator(variant, plan) == (None if generator is None else type(generator).__name__)


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_changes_the_settings_of_a_question(change):
    plan, changed = read("fruit+photographs"), read(f"fruit+photographs+{change}")
    before, after = (read_config(str(ROOT / plan.config), [*map(str, each.common)]) for each in (plan, changed))
    options = CONTENT[change]["common"]
    for key, value in zip(options[::2], options[1::2], strict=True):
        *path, last = key.split(".")
        old, new = (str(reduce(getattr, path, cfg)[last]) for cfg in (before, after))
        assert new == str(value) != old


@pytest.mark.parametrize("data", DATA)
def test_every_data_set_goes_with_every_question(data):
    for question in QUESTIONS:
        plan = read(f"{data}+{question}")
        cfg = read_config(str(ROOT / plan.config), [str(part) for part in plan.common])
        assert all("{data}" in name for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES < 80
        assert cfg.TEST.EVAL_PERIOD > 0 or not plan.reference
