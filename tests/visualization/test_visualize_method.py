"""The pictures of the method, from a config and a data set: assignments, and experts with what is mixed from them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dynamic_sparse_rcnn.cli import visualize
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.visualization.cascade import draw_expert_proposals

CONFIGS = Path(__file__).parents[2] / "configs/shapes"
CONFIG_OF = {
    "assignment": CONFIGS / "sparse_rcnn_R_18_FPN_20pro.yaml",
    "proposals": CONFIGS / "dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml",
}


@pytest.fixture
def draw(tmp_path):
    """Runs the tool on a generated set, and gives the picture."""
    paths = generate_shapes(tmp_path, "val", ShapesConfig(num_images=3, image_size=64))
    dataset = f"('coco:{paths.json_path}:{paths.image_folder}',)"

    def run(kind: str, *images: str, options: tuple[str, ...] = ()) -> np.ndarray:
        common = ["DATASETS.TRAIN", dataset, "DATASETS.TEST", dataset, "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST"]
        output = tmp_path / f"new/{kind}.png"
        torch.manual_seed(0)  # the untrained model is another each time
        visualize.draw(kind, str(CONFIG_OF[kind]), [*common, "64", *options], images, output, num_proposals=4)
        picture = cv2.imread(str(output))
        assert picture is not None
        return picture

    return run


@pytest.mark.parametrize("kind", CONFIG_OF)
def test_a_checkpoint_of_another_model_is_an_error_not_a_picture_of_untrained_layers(draw, kind, tmp_path):
    torch.save({"model": {"head.stranger": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not have the model that the config describes"):
        draw(kind, options=("MODEL.WEIGHTS", str(tmp_path / "other.pth")))


def test_assignments_have_a_row_for_each_matcher_and_they_differ(draw):
    picture = draw("assignment", "000002")
    height = picture.shape[0] // 2
    assert height > 64 and picture.shape[1] > 3 * 64  # three stages
    assert (picture[:height] != picture[-height:]).any()


def test_assignments_are_by_default_those_of_the_first_image(draw):
    first = draw("assignment")
    assert np.array_equal(first, draw("assignment", "000001.png"))
    assert not np.array_equal(first, draw("assignment", "000003"))


def test_an_image_that_is_not_in_the_set_is_named(draw):
    with pytest.raises(ValueError, match=r"none of the 3 images of .* is 'missing'"):
        draw("assignment", "missing")


def test_proposals_have_a_row_an_image_and_a_panel_an_expert_and_one_for_the_mixed(draw, capsys):
    picture = draw("proposals", "000001", "000003.png")
    assert np.array_equal(picture, draw("proposals", "000001", "000003"))
    rows = np.array_split(picture, 2)
    panel = picture.shape[1] // 5
    assert panel >= 64 and panel == pytest.approx(rows[0].shape[0], abs=40)  # of square images, with a caption
    assert "over the 2 images: 0.0" in capsys.readouterr().out


def test_proposals_are_by_default_those_of_the_first_images(draw):
    assert np.array_equal(draw("proposals"), draw("proposals", "000001", "000002", "000003"))


def test_static_proposals_are_refused(draw):
    with pytest.raises(ValueError, match="static proposals"):
        draw("proposals", options=("MODEL.PROPOSAL_GENERATOR.NAME", "LearnedProposalGenerator"))


def test_boxes_are_drawn_where_they_are():
    image = np.zeros((400, 400, 3), np.uint8)
    experts = torch.tensor([[[50.0, 60, 150, 160]], [[250, 260, 350, 360]]])
    mixed = torch.tensor([[200.0, 210, 300, 310]])
    picture = draw_expert_proposals(image, experts, mixed, torch.tensor([[0.25, 0.75]]))
    width = (picture.shape[1] - 12) // 3
    for number, (x1, y1, x2, y2) in enumerate([*experts[:, 0].tolist(), *mixed.tolist()]):
        panel = picture[28:, number * (width + 6) : number * (width + 6) + width].astype(int)
        lit = np.argwhere(panel.max(2) > 100)
        assert lit[:, 0].max() == pytest.approx(y2, abs=3) and lit[:, 1].max() == pytest.approx(x2, abs=3)
        assert panel[int(y1), int(x1 + x2) // 2].max() > 100 and panel[int(y1 + y2) // 2, int(x1)].max() > 100
