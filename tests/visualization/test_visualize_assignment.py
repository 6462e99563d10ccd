"""The picture of assignments, from a config and a data set."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dynamic_sparse_rcnn.cli import visualize
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes

CONFIG = Path(__file__).parents[2] / "configs/shapes/sparse_rcnn_R_18_FPN_20pro.yaml"


@pytest.fixture
def draw(tmp_path):
    """Runs the tool on a generated set, and gives the picture."""
    paths = generate_shapes(tmp_path, "val", ShapesConfig(num_images=3, image_size=64))
    dataset = f"('coco:{paths.json_path}:{paths.image_folder}',)"

    def run(image: str | None, *options: str) -> np.ndarray:
        common = ["DATASETS.TRAIN", dataset, "DATASETS.TEST", dataset, "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST"]
        output = tmp_path / "new/assignment.png"
        torch.manual_seed(0)  # the untrained model is another each time
        visualize.draw("assignment", str(CONFIG), [*common, "64", *options], [image] if image else [], output)
        picture = cv2.imread(str(output))
        assert picture is not None
        return picture

    return run


def test_there_is_a_row_for_each_matcher_and_they_differ(draw):
    picture = draw("000002")
    height = picture.shape[0] // 2
    assert height > 64 and picture.shape[1] > 3 * 64  # three stages
    assert (picture[:height] != picture[-height:]).any()


def test_the_first_image_is_the_default(draw):
    first = draw(None)
    assert np.array_equal(first, draw("000001.png"))
    assert not np.array_equal(first, draw("000003"))


def test_an_image_that_is_not_in_the_set_is_named(draw):
    with pytest.raises(ValueError, match=r"none of the 3 images of .* is 'missing'"):
        draw("missing")


def test_a_checkpoint_of_another_model_is_an_error_not_a_picture_of_untrained_layers(draw, tmp_path):
    torch.save({"model": {"head.stranger": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not have the model that the config describes"):
        draw(None, "MODEL.WEIGHTS", str(tmp_path / "other.pth"))
