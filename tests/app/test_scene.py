"""What the page shows of an image, without the page."""

from __future__ import annotations

import dataclasses
import itertools
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from torch import nn

from dynamic_sparse_rcnn import HungarianMatcher, Predictor
from dynamic_sparse_rcnn.app import images
from dynamic_sparse_rcnn.app.images import find_records, read_bounded
from dynamic_sparse_rcnn.app.scene import find_matchers, look, require_stages
from dynamic_sparse_rcnn.checkpoints.classes import DetectorClasses
from dynamic_sparse_rcnn.cli import main
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.prediction.sources import Frame

SIZE = 128


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """The trained detector of shapes: three stages, 20 dynamic proposals, optimal transport."""
    return Predictor(device="cpu")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> str:
    paths = generate_shapes(tmp_path_factory.mktemp("drawn"), "val", ShapesConfig(num_images=2, image_size=SIZE))
    return f"coco:{paths.json_path}:{paths.image_folder}"


@pytest.fixture(scope="module")
def record(predictor, drawn) -> dict:
    return next(iter(find_records(predictor, [drawn]).values()))


@pytest.fixture(scope="module")
def frame(record) -> Frame:
    return read_bounded(record["file_name"])


@pytest.fixture(scope="module")
def scene(predictor, frame, record):
    return look(predictor, frame, record)


def test_detections_are_those_of_the_predictor(predictor, frame, scene):
    expected = predictor(frame.pixels[..., ::-1]).instances
    found = scene.detections[scene.detections.scores >= 0.5]
    assert len(expected) > 1
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_classes, expected.pred_classes)


def test_a_large_image_is_shown_shrunk_with_its_boxes(predictor, frame):
    large = cv2.resize(frame.pixels, (20 * SIZE, 20 * SIZE))
    expected = predictor(large[..., ::-1]).instances.pred_boxes.tensor
    scene = look(predictor, Frame("large", large))
    assert scene.image.shape == (1280, 1280, 3)
    found = scene.detections.pred_boxes.tensor[scene.detections.scores >= 0.5]
    torch.testing.assert_close(found * 2, expected)
    assert 1000 < scene.stage_boxes.max() < 2000


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_followed_proposals_end_where_the_detections_are(scene, threshold):
    ends = scene.stage_boxes[-1, scene.followed(threshold)].clamp(0, SIZE)
    strong = scene.detections.pred_boxes.tensor[scene.detections.scores >= threshold]
    assert {tuple(box) for box in ends.tolist()} == {tuple(box) for box in strong.tolist()}


def test_without_detections_the_best_proposal_is_followed(scene):
    assert scene.followed(1.0) == [int(scene.stage_scores[-1].argmax())]


def test_stages_are_drawn_from_the_initial_proposals_to_the_last_stage(predictor, scene):
    pictures = [scene.draw_stage(stage, 0.5) for stage in range(4)]
    assert all((a != b).any() for a, b in itertools.pairwise(pictures))
    mixed = (scene.expert_boxes * scene.expert_weights.T[..., None]).sum(0)
    torch.testing.assert_close(scene.stage_boxes[0], mixed, atol=1e-3, rtol=1e-4)


def test_a_stage_is_labeled_with_its_own_scores(scene):
    scores = scene.stage_scores.clone()
    scores[0] = 0
    other = dataclasses.replace(scene, stage_scores=scores)
    changed = [(scene.draw_stage(stage, 0.5) != other.draw_stage(stage, 0.5)).any() for stage in range(4)]
    assert changed == [False, True, False, False]


def test_experts_weights_are_means_over_the_followed_proposals(scene):
    (weight, *others) = scene.weigh_experts(0.5).values()
    followed = scene.followed(0.5)
    assert weight == pytest.approx(sum(scene.expert_weights[i, 0].item() for i in followed) / len(followed))
    assert weight + sum(others) == pytest.approx(1)
    assert scene.draw_experts(0.5).shape[1] > scene.image.shape[1]


def test_static_proposals_have_no_experts(predictor, frame, monkeypatch):
    generator = predictor.model.proposal_generator

    def without_weights(*inputs):
        (proposals,), losses = generator(*inputs)
        proposals.remove("expert_weights")
        return [proposals], losses

    monkeypatch.setitem(predictor.model._modules, "proposal_generator", without_weights)
    scene = look(predictor, frame)
    assert scene.draw_experts(0.5) is None and scene.weigh_experts(0.5) is None


def test_the_assignment_is_that_of_the_annotations(predictor, scene, record):
    boxes = np.array([annotation["bbox"] for annotation in record["annotations"]])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(scene.gt_boxes, boxes, rtol=1e-5)
    for index in scene.gt_index["Hungarian"].tolist():
        assert sorted(i for i in index if i >= 0) == list(range(len(boxes)))
    assert (scene.gt_index["DLA"][-1] >= 0).sum() > len(boxes)
    # The proposals of the last stage lie on what they learn.
    last = scene.gt_index["DLA"][-1]
    ends = scene.stage_boxes[-1][last >= 0]
    assert (ends - scene.gt_boxes[last[last >= 0]]).abs().mean() < 6


def test_the_assignment_changes_with_stage_and_matcher_and_begins_with_none(scene):
    first, last, other = (scene.draw_assignment(*x) for x in [(0, "DLA"), (3, "DLA"), (3, "Hungarian")])
    assert (first != last).any() and (last != other).any()


def test_without_annotations_nothing_is_assigned(predictor, frame, record):
    assert look(predictor, frame).draw_assignment(1, "DLA") is None
    assert look(predictor, frame, record | {"annotations": []}).draw_assignment(1, "DLA") is None


def test_the_detectors_own_matcher_is_among_the_matchers(predictor, monkeypatch):
    matchers = find_matchers(predictor.model)
    assert list(matchers) == ["DLA", "Hungarian"]
    assert matchers["DLA"] is predictor.model.criterion.matcher

    class Other(HungarianMatcher):
        one_to_many = False

    other = Other()
    monkeypatch.setitem(predictor.model.criterion._modules, "matcher", other)
    assert find_matchers(predictor.model)["Other"] is other
    monkeypatch.setitem(predictor.model._modules, "criterion", nn.Identity())
    assert find_matchers(predictor.model) == {}


def test_a_detector_without_stages_is_refused():
    with pytest.raises(ValueError, match="A Linear has no stages"):
        require_stages(nn.Linear(1, 1))


def test_annotated_images_are_listed_in_order(predictor, drawn):
    names = list(find_records(predictor, [drawn]))
    counts = [len(record["annotations"]) for record in DatasetCatalog.get(drawn)]
    assert names == [f"{i}: 00000{i}.png ({count} objects)" for i, count in enumerate(counts, 1)]


def test_annotations_of_other_classes_are_refused(predictor, drawn, monkeypatch):
    other = DetectorClasses(("cat", "dog"), (0, 1))
    monkeypatch.setattr(predictor, "classes", other)
    with pytest.raises(ValueError, match="trained on other classes"):
        find_records(predictor, [drawn])


def test_uploads_are_bounded(tmp_path, monkeypatch):
    path = tmp_path / "upload.png"
    Image.new("1", (9000, 9000)).save(path)
    with pytest.raises(ValueError, match=r"upload.png has 9000 x 9000 pixels, more than 50 million"):
        read_bounded(str(path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"upload.png cannot be read as an image: .*decompression bomb"):
        read_bounded(str(path))
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 0)
    with pytest.raises(ValueError, match="is larger than 0 MB"):
        read_bounded(str(path))


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(ValueError, match=r"notes.png cannot be read as an image"):
        read_bounded(str(tmp_path / "notes.png"))


def test_without_gradio_the_command_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        main(["app"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: gradio is needed: pip install 'dynamic-sparse-rcnn[app]'"
