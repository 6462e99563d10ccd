"""Static proposals: learned boxes and features that are the same for all images."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..structures import image_sizes_to_whwh


def initial_boxes(kind: str, number: int) -> Tensor:
    """Returns the initial values of learned boxes.

    Args:
        kind: ``image``: the whole image, as published; ``grid``: centers on a grid over the image, with the size of two
            grid cells; ``random``: uniformly random centers and sizes.
        number: P.

    Returns:
        (P, 4) float32, normalized cxcywh.

    Raises:
        ValueError: ``kind`` is none of these.
    """
    if kind == "image":
        return torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(number, 1)
    if kind == "grid":
        columns = math.ceil(math.sqrt(number))
        rows = math.ceil(number / columns)
        index = torch.arange(number)
        size = torch.tensor([2 / columns, 2 / rows]).clamp(max=1.0).expand(number, 2)
        centers = torch.stack([(index % columns + 0.5) / columns, (index // columns + 0.5) / rows], dim=1)
        return torch.cat([centers, size], dim=1)
    if kind == "random":
        return torch.cat([torch.rand(number, 2), 0.1 + 0.5 * torch.rand(number, 2)], dim=1)
    raise ValueError(f"MODEL.SparseRCNN.INIT_BOXES is {kind!r}: use one of image, grid, random")


def gather_features(features: Tensor, spread: float) -> Tensor:
    """Brings independent features nearer to each other by adding a common part.

    Not in the paper, whose features start independently. In short trainings AP was higher with a small spread.

    Args:
        features: (P, C), independent, with mean 0 and standard deviation 1.
        spread: s in [0, 1]. The result is s times the features, plus sqrt(1 - s^2) times a common random feature.

    Returns:
        (P, C), with the same mean and standard deviation; with a spread of 1, the input.

    Raises:
        ValueError: the spread is out of its range.
    """
    if not 0 <= spread <= 1:
        raise ValueError(f"MODEL.SparseRCNN.INIT_FEATURE_SPREAD must lie in [0, 1], got {spread}")
    if spread == 1:  # without drawing random numbers, so that all later ones are as published
        return features
    return spread * features + math.sqrt(1 - spread**2) * torch.randn(features.shape[1])


@PROPOSAL_GENERATOR_REGISTRY.register()
class LearnedProposalGenerator(nn.Module):
    """Learned proposals that are the same for every image (Sparse R-CNN, section 3.2)."""

    @configurable
    def __init__(
        self, *, num_proposals: int, channels: int, init_boxes: str = "image", init_feature_spread: float = 1.0
    ) -> None:
        """
        Args:
            num_proposals: P.
            channels: C, channels of the proposal features.
            init_boxes: the ``kind`` of :func:`initial_boxes`.
            init_feature_spread: the ``spread`` of :func:`gather_features`.
        """
        super().__init__()
        if num_proposals < 1:
            raise ValueError(f"MODEL.SparseRCNN.NUM_PROPOSALS is {num_proposals}: at least 1 is needed")
        self.init_proposal_features = nn.Embedding(num_proposals, channels)
        self.init_proposal_boxes = nn.Embedding(num_proposals, 4)
        with torch.no_grad():
            self.init_proposal_boxes.weight.copy_(initial_boxes(init_boxes, num_proposals))
            features = self.init_proposal_features.weight
            features.copy_(gather_features(features, init_feature_spread))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        node = cfg.MODEL.SparseRCNN
        return {
            "num_proposals": node.NUM_PROPOSALS,
            "channels": node.HIDDEN_DIM,
            "init_boxes": node.INIT_BOXES,
            "init_feature_spread": node.INIT_FEATURE_SPREAD,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Returns the proposals, with the interface of detectron2's proposal generators. Ignores all but image sizes.

        Returns:
            An ``Instances`` per image with ``proposal_boxes`` (P, absolute XYXY pixels) and ``proposal_features``
            (P, C); and an empty dict of losses.
        """
        boxes = box_convert(self.init_proposal_boxes.weight, "cxcywh", "xyxy")
        whwh = image_sizes_to_whwh(images.image_sizes, boxes.device)
        return [
            Instances(
                size,
                proposal_boxes=Boxes(image_boxes),
                proposal_features=self.init_proposal_features.weight,
            )
            for size, image_boxes in zip(images.image_sizes, boxes * whwh[:, None], strict=True)
        ], {}
