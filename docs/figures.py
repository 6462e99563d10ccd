#!/usr/bin/env python3
"""Draws the figures of README and documentation, with a trained detector on annotated images.

    python docs/figures.py

takes the detector of shapes that comes with the package, on images that it generates in ``output/shapes``. Another one:

    python docs/figures.py --config-file output/mine/config.yaml --weights output/mine/model_best.pth \\
        --data coco:test.json:images --images 12.jpg 31.jpg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dynamic_sparse_rcnn import (
    BACKGROUND,
    BatchedTargets,
    DynamicProposalGenerator,
    HungarianMatcher,
    MatchCostModel,
    MatchCosts,
    OptimalTransportMatcher,
    Predictor,
    SparseRCNN,
    StagePredictions,
    UnitSchedule,
    model_zoo,
)
from dynamic_sparse_rcnn.config_reading import read_config
from dynamic_sparse_rcnn.data.datasets import register_dataset
from dynamic_sparse_rcnn.data.mapper import DetectionMapper
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.modeling.assignment.sinkhorn import sinkhorn
from dynamic_sparse_rcnn.visualization.cascade import draw_proposal_stages
from dynamic_sparse_rcnn.visualization.figures import Image, image_grid
from dynamic_sparse_rcnn.visualization.method import visualize_assignment, visualize_proposals

SHAPES_CONFIG = "shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml"
SHAPES_FOLDER = Path("output/shapes")
NUM_EXPERT_PROPOSALS = 8
MAX_WIDTH = 1500
# The schedule's figure: stages and proposals of the published models.
NUM_STAGES, NUM_PROPOSALS = 6, 300
FORMAT: dict[str, Any] = {"bbox_inches": "tight", "facecolor": "white", "metadata": {"Date": None}}


@dataclass(frozen=True)
class Scene:
    """One image and what the detector makes of it.

    Attributes:
        image: (H, W, 3) uint8 RGB, the network input.
        targets: its ground truths, in pixels of ``image``.
        gt_names: the class name of each.
        proposals: what the cascade starts from, with ``expert_weights`` if they are dynamic.
        predictions: of all stages.
        costs: of matching them.
    """

    image: Image
    targets: BatchedTargets
    gt_names: list[str]
    proposals: Instances
    predictions: StagePredictions
    costs: MatchCosts


@torch.no_grad()
def look(cfg: CfgNode, detector: SparseRCNN, record: dict[str, Any], class_names: Sequence[str]) -> Scene:
    """Runs the detector on an annotated image."""
    inputs = DetectionMapper(cfg, is_train=False)(record)
    images = detector.preprocess_image([inputs])
    features = detector.backbone(images.tensor)
    (proposals,), _ = detector.proposal_generator(images, features)
    predictions = detector.head(features, proposals.proposal_boxes.tensor[None], proposals.proposal_features[None])
    annotations = [a for a in record["annotations"] if not a.get("iscrowd")]
    boxes = torch.tensor([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations])
    scale = inputs["image"].shape[-1] / inputs["width"]
    classes = torch.tensor([a["category_id"] for a in annotations])
    ground_truth = Instances(proposals.image_size, gt_boxes=Boxes(boxes * scale), gt_classes=classes)
    targets = BatchedTargets.from_instances([ground_truth], detector.device)
    image = inputs["image"].permute(1, 2, 0).numpy()
    return Scene(
        np.ascontiguousarray(image if cfg.INPUT.FORMAT == "RGB" else image[..., ::-1]),
        targets,
        [class_names[c] for c in classes.tolist()],
        proposals,
        predictions,
        MatchCostModel(cfg)(predictions, targets),
    )


def draw_detections(predictor: Predictor, records: Sequence[dict[str, Any]]) -> Image:
    """What the detector finds in some images, side by side."""
    return image_grid([predictor(record["file_name"]).draw() for record in records], columns=len(records))


def draw_cascade(cfg: CfgNode, scene: Scene) -> Image:
    """The initial proposals and what each stage makes of them; those that end on a ground truth keep their color."""
    scores = scene.predictions.logits[:, 0].sigmoid().amax(-1)
    boxes = torch.cat([scene.proposals.proposal_boxes.tensor[None], scene.predictions.boxes[:, 0]])
    followed = HungarianMatcher(cfg)(scene.costs).positive[-1, 0].nonzero()[:, 0]
    return draw_proposal_stages(scene.image, boxes, scores, followed.tolist())


def plot_transport_plan(cfg: CfgNode, scene: Scene) -> Figure:
    """The plan of the last stage: how much of each proposal every ground truth and background supply."""
    matcher = OptimalTransportMatcher(cfg)
    assigned = matcher(scene.costs).gt_index[-1, 0]
    supply = matcher.schedule(scene.costs)[-1]
    cost = torch.cat([scene.costs.cost[-1].mT, scene.costs.cost.new_zeros(1, 1, len(assigned))], dim=1)
    masses = torch.cat([supply, len(assigned) - supply.sum(-1, keepdim=True)], dim=1)
    transport = sinkhorn(
        cost, masses, cost.new_ones(1, len(assigned)), epsilon=matcher.epsilon, num_iters=matcher.num_iters
    )
    plan = transport.plan[0]
    background = len(plan) - 1
    rows = torch.where(assigned == BACKGROUND, background, assigned)
    order = (rows * len(assigned) + torch.arange(len(rows))).argsort()
    figure = Figure(figsize=(8, 0.8 + 0.34 * len(plan)))
    axes = figure.subplots()
    _plot_heat_map(figure, axes, plan[:, order], "units")
    for column, row in enumerate(rows[order].tolist()):
        axes.add_patch(matplotlib.patches.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, lw=1.5, ec="C3"))
    names = [*scene.gt_names, "background"]
    axes.set_yticks(range(len(plan)), [f"{n}: {m:.1f}" for n, m in zip(names, masses[0].tolist(), strict=True)])
    axes.set_title(f"largest residual: {float(transport.residual):.1f} units", fontsize="small", loc="right")
    axes.set_xlabel("proposals")
    axes.set_ylabel("supply")
    return figure


def plot_units() -> Figure:
    """Units of one ground truth by stage, for several sums of IoUs; and the limit on all together."""
    figure = Figure(figsize=(8, 2.8))
    single, crowded = figure.subplots(1, 2)
    stages = range(1, NUM_STAGES + 1)
    for k in (8, 6, 4, 3, 2, 1):
        units = _units(iou_sum=k, ground_truths=1)
        single.plot(stages, units, marker="o", ms=3)
        single.annotate(f"k = {k}", (NUM_STAGES + 0.15, units[-1]), va="center", fontsize="small")
    single.set(xlabel="stage", ylabel="units of one ground truth", xticks=stages, ylim=0)
    for number in (10, 40, 80):
        units = _units(iou_sum=6, ground_truths=number) * number
        crowded.plot(stages, units, marker="o", ms=3, label=f"{number} ground truths, k = 6")
    crowded.axhline(0.8 * NUM_PROPOSALS, color="gray", lw=0.8, ls="--")
    crowded.annotate("80 % of 300 proposals", (1, 0.8 * NUM_PROPOSALS + 4), fontsize="small", color="gray")
    crowded.set(xlabel="stage", ylabel="units of all", xticks=stages, ylim=(0, NUM_PROPOSALS))
    crowded.legend(fontsize="small", frameon=False, loc="center right")
    for axes in (single, crowded):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _units(*, iou_sum: float, ground_truths: int) -> np.ndarray:
    """(S,) units of each of some equal ground truths, whose eight largest IoUs add up to ``iou_sum``."""
    iou = torch.zeros(NUM_STAGES, 1, NUM_PROPOSALS, ground_truths)
    iou[:, :, :8] = iou_sum / 8
    costs = MatchCosts(torch.zeros_like(iou), iou, torch.ones(1, ground_truths, dtype=torch.bool))
    schedule = UnitSchedule(fixed_k=0, top_q=8, unit_step=0.5, max_positive_ratio=0.8)
    return schedule(costs)[:, 0, 0].numpy()


def plot_expert_weights(scenes: Sequence[Scene]) -> Figure:
    """The weight of each expert for each proposal, an image above the other."""
    figure = Figure(figsize=(8, 0.6 + 1.1 * len(scenes)))
    all_axes = figure.subplots(len(scenes), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axes, scene) in enumerate(zip(all_axes, scenes, strict=True), 1):
        weights = scene.proposals.expert_weights.T
        _plot_heat_map(figure, axes, weights, "weight")
        axes.set_yticks(range(len(weights)), [f"expert {e}" for e in range(1, len(weights) + 1)], fontsize="small")
        axes.set_title(f"image {number}", fontsize="small", loc="left")
    all_axes[-1].set_xlabel("proposals")
    figure.tight_layout()
    return figure


def _plot_heat_map(figure: Figure, axes: Axes, values: Tensor, label: str) -> None:
    image = axes.imshow(values.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks([])
    figure.colorbar(image, ax=axes, label=label, pad=0.02)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes all figures."""
    args = _parse_args(arguments)
    if args.config_file is None:
        generate_shapes(SHAPES_FOLDER, "val", ShapesConfig(num_images=200))
    cfg = read_config(args.config_file or model_zoo.get_config_file(SHAPES_CONFIG))
    predictor = Predictor(
        args.config_file or SHAPES_CONFIG, args.weights, device="cpu", score_threshold=args.score_threshold
    )
    detector = predictor.model
    assert isinstance(detector, SparseRCNN)
    data = args.data or cfg.DATASETS.TEST[0]
    register_dataset(data)
    records = {Path(record["file_name"]).name: record for record in DatasetCatalog.get(data)}
    names = MetadataCatalog.get(data).thing_classes
    chosen = [records[image] for image in args.images]
    scenes = [look(cfg, detector, record, names) for record in chosen]
    args.output.mkdir(parents=True, exist_ok=True)
    write(draw_detections(predictor, chosen), args.output / "detections.jpg")
    write(draw_cascade(cfg, scenes[0]), args.output / "cascade.jpg")
    write(visualize_assignment(cfg, detector, chosen[0]), args.output / "assignment.jpg")
    # Text as text, and the same file from the same detector.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "docs", "font.size": 9}):
        plot_transport_plan(cfg, scenes[0]).savefig(args.output / "transport_plan.svg", **FORMAT)
        plot_units().savefig(args.output / "units.svg", **FORMAT)
        if isinstance(detector.proposal_generator, DynamicProposalGenerator):
            plot_expert_weights(scenes).savefig(args.output / "expert_weights.svg", **FORMAT)
            experts, _ = visualize_proposals(cfg, detector, chosen, NUM_EXPERT_PROPOSALS)
            write(experts, args.output / "experts.jpg")


def write(image: Image, path: Path) -> None:
    """Writes a JPEG that is small enough to live in the repository."""
    picture = PIL.Image.fromarray(image)
    picture.thumbnail((MAX_WIDTH, MAX_WIDTH))
    picture.save(path, quality=80, optimize=True)


def _parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="FILE", help="of a run, or of the model zoo")
    parser.add_argument("--weights", metavar="FILE")
    parser.add_argument("--data", metavar="NAME", help="default: the config's DATASETS.TEST")
    parser.add_argument("--images", nargs="+", default=["000026.png", "000039.png"], metavar="FILE")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images", metavar="FOLDER")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
