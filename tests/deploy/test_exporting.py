"""``dsrcnn export``, and the commands that run what it wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dynamic_sparse_rcnn import Predictor
from dynamic_sparse_rcnn.cli import main
from dynamic_sparse_rcnn.data.shape_images import ShapesConfig, draw_image
from dynamic_sparse_rcnn.deploy.export import halve_weights

CONFIG = "shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml"


@pytest.fixture
def picture() -> np.ndarray:
    """(128, 100, 3) uint8 BGR, as OpenCV reads it."""
    return draw_image(ShapesConfig(num_images=1, image_size=128), "val", 1).pixels[:, :100, ::-1].copy()


@pytest.mark.parametrize("file", ["shapes_onnx", "shapes_openvino"])
def test_the_predictor_takes_exported_files(file, picture, request):
    exported = Predictor(str(request.getfixturevalue(file)), score_threshold=0.1)(picture)
    expected = Predictor(device="cpu", score_threshold=0.1)(picture)
    assert len(expected.labels) > 0 and exported.labels == expected.labels
    assert exported.category_ids == expected.category_ids
    np.testing.assert_allclose(
        exported.instances.pred_boxes.tensor, expected.instances.pred_boxes.tensor, rtol=0, atol=0.1
    )
    (_,) = Predictor(weights=str(request.getfixturevalue(file))).stream([picture])


def test_an_exported_file_has_the_ap_of_its_checkpoint(shapes, shapes_onnx, tmp_path, capsys):
    lines = []
    for source in (CONFIG, str(shapes_onnx)):
        main(["eval", source, "--data", shapes, "--output", str(tmp_path / "eval")])
        lines.append(capsys.readouterr().out.splitlines()[-1])
    expected, found = ([float(x) for x in re.findall(r"\d+\.\d", line)] for line in lines)
    assert len(expected) == 3 and expected[0] > 20
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.1)


def test_predictions_of_an_exported_file_are_written(shapes_onnx, picture, tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "picture.png"), picture)
    main(
        [
            "predict",
            str(tmp_path / "picture.png"),
            "--weights",
            str(shapes_onnx),
            "--output",
            str(tmp_path),
            "--no-draw",
        ]
    )
    assert len(json.loads((tmp_path / "detections.json").read_text())) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x.tflite"], "--output x.tflite has to end with .onnx, .xml or .pt2"),
        (["--output", "x.onnx", "--format", "openvino"], "--output x.onnx has to end with .xml"),
        (["--output", "x.onnx", "--size", "100x128"], "the size 100x128 cannot be exported: use multiples of 32"),
        (["--output", "x.pt2", "--half"], "torch programs are in float32, not in float16"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["export", CONFIG, *arguments])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_evaluation_on_other_classes_is_refused(shapes_onnx, shapes, tmp_path, capsys):
    annotations, folder = shapes.removeprefix("coco:").rsplit(":", 1)
    content = json.loads(Path(annotations).read_text())
    content["categories"][0]["name"] = "zebra"
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        main(["eval", str(shapes_onnx), "--data", f"coco:{tmp_path}/other.json:{folder}"])
    assert "zebra" in capsys.readouterr().err


def test_halved_weights_take_half_the_room_and_are_rounded(tiny_onnx):
    model = onnx.load(tiny_onnx)
    before = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    size = model.ByteSize()
    halve_weights(model)
    onnx.checker.check_model(model)
    assert model.ByteSize() < 0.55 * size
    names = [x.name for x in model.graph.initializer if x.name.endswith(".half")]
    assert len(names) > 20
    for name in names:
        half = next(numpy_helper.to_array(x) for x in model.graph.initializer if x.name == name)
        expected = torch.from_numpy(before[name.removesuffix(".half")].copy()).half()
        assert torch.equal(torch.from_numpy(half.copy()), expected)
