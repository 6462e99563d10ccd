"""``dsrcnn export``, and the commands that run what it wrote."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported_detections import SHAPES, TINY
from onnx import numpy_helper

from dynamic_sparse_rcnn import Predictor
from dynamic_sparse_rcnn.cli import main
from dynamic_sparse_rcnn.data.shape_images import ShapesConfig, draw_image
from dynamic_sparse_rcnn.deploy.export import export_torch
from dynamic_sparse_rcnn.deploy.quantization import halve_weights, quantize

ROOT = Path(__file__).parents[2]
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
    strip = np.zeros((1, 4000, 3), np.uint8)  # of which nothing is left at the detector's size
    (_,) = Predictor(weights=str(request.getfixturevalue(file))).stream([picture, strip])


def evaluate(source: str, data: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[float]:
    """AP, AP50 and AP75 as the command prints them."""
    main(["eval", source, "--data", data, "--output", str(folder), "DATALOADER.NUM_WORKERS", "0"])
    return [float(x) for x in re.findall(r"\d+\.\d", capsys.readouterr().out.splitlines()[-1])]


def test_exported_files_have_the_ap_of_their_checkpoint(drawn, shapes_onnx, shapes_openvino, tmp_path, capsys):
    expected = evaluate(CONFIG, drawn, tmp_path, capsys)
    assert len(expected) == 3 and expected[0] > 70
    for file in (shapes_onnx, shapes_openvino):
        np.testing.assert_allclose(evaluate(str(file), drawn, tmp_path, capsys), expected, rtol=0, atol=0.1)


def test_eight_bits_cost_little_ap(drawn, shapes_onnx, tmp_path, capsys):
    pytest.importorskip("nncf")
    model = onnx.load(shapes_onnx)
    files = sorted(str(x) for x in Path(drawn.rpartition(":")[2]).iterdir())[:20]
    quantized = quantize(model, files, SHAPES)
    path = tmp_path / "int8.onnx"
    onnx.save(quantized, path)
    assert path.stat().st_size < 0.75 * shapes_onnx.stat().st_size
    expected = evaluate(str(shapes_onnx), drawn, tmp_path, capsys)
    found = evaluate(str(path), drawn, tmp_path, capsys)
    assert found != expected  # something is quantized
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1.0)
    # The head is not.
    rounded = {x.output[0] for x in quantized.graph.node if x.op_type == "DequantizeLinear"}
    rounded_inputs = {x.op_type for x in quantized.graph.node if rounded & set(x.input)}
    assert "Conv" in rounded_inputs and not rounded_inputs & {"MatMul", "Gemm", "RoiAlign"}


def test_the_example_finds_what_the_predictor_finds(shapes_onnx, picture, tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "picture.png"), picture)
    arguments = [sys.executable, "examples/onnx_predict.py", str(shapes_onnx), str(tmp_path / "picture.png")]
    output = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    expected = Predictor(device="cpu")(picture)
    lines = [line.split(": ", 1)[1] for line in output.splitlines()]
    assert [line.split()[0] for line in lines] == expected.labels
    boxes = [[float(x) for x in line.split(" at ")[1].split(", ")] for line in lines]
    # OpenCV resizes a little differently: 100 pixels are 128 here.
    np.testing.assert_allclose(boxes, expected.instances.pred_boxes.tensor, rtol=0, atol=1.5)
    assert (tmp_path / "picture_detections.png").is_file()


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
        (["--output", "x.tflite"], "--output x.tflite must end with .onnx, .xml or .pt2"),
        (["--output", "x.onnx", "--format", "openvino"], "--output x.onnx must end with .xml"),
        (["--output", "x.onnx", "--size", "100x128"], "the size 100x128 cannot be exported: use multiples of 32"),
        (["--output", "x.onnx", "--int8"], "--int8 needs --calibration NAME"),
        (["--output", "x.onnx", "--calibration", "coco:x.json"], "--calibration is for --int8"),
        (["--output", "x.onnx", "--score-threshold", "50"], "--score-threshold must lie in [0, 1], got 50.0"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["DATALOADER.NUM_WORKER", "0"], "the command line: there is no key DATALOADER.NUM_WORKER in detectron2"),
        (["--config-file", CONFIG], "leave out --config-file: "),
        (["--num-gpus", "2", "--config-file", CONFIG], "leave out --config-file and --num-gpus: "),
        (["--import", "no_such_module"], "No module named 'no_such_module'"),
    ],
)
def test_options_that_an_exported_file_cannot_have_are_named(shapes_onnx, shapes, options, message, capsys):
    with pytest.raises(SystemExit):
        main(["eval", str(shapes_onnx), "--data", shapes, *options])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_tilde_is_the_home_folder_in_an_evaluation_of_an_exported_file(
    shapes_onnx, shapes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    main(["eval", str(shapes_onnx), "--data", shapes, "--output=~/evaluation", "DATALOADER.NUM_WORKERS", "0"])
    assert [file.name for file in tmp_path.iterdir()] == ["home"]
    assert list((tmp_path / "home/evaluation").rglob("coco_instances_results.json"))


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


def test_the_score_threshold_of_the_file_is_the_default(tiny_onnx, tmp_path):
    model = onnx.load(tiny_onnx)
    entry = next(x for x in model.metadata_props if x.key == "score_threshold")
    entry.value = "0.3"
    onnx.save(model, tmp_path / "tiny.onnx")
    assert Predictor(tmp_path / "tiny.onnx").score_threshold == 0.3
    assert Predictor(tmp_path / "tiny.onnx", score_threshold=0.0).score_threshold == 0.0


def test_torch_programs_are_run_only_if_they_are_trusted(tiny_torch):
    with pytest.raises(ValueError, match=r"tiny\.pt2 could run code"):
        Predictor(tiny_torch)
    assert Predictor(tiny_torch, trust_checkpoint=True).classes.names == ("ant", "bee", "cat")


def test_the_cause_is_named_if_pytorch_cannot_export(tiny_detector, tmp_path):
    class Branching(torch.nn.Module):
        size_divisibility = tiny_detector.backbone.size_divisibility

        def forward(self, images):
            raise RuntimeError("this layer has no export\nand much more to say")

    tiny_detector.backbone = Branching()
    with pytest.raises(ValueError, match=r"with the backbone Branching: .*\(.*this layer has no export.*\)$"):
        export_torch(tiny_detector, tmp_path / "x.pt2", TINY)


def test_a_program_that_pytorch_writes_but_cannot_read_is_refused(tiny_detector, tmp_path, monkeypatch):
    def load(*arguments, **options):
        raise RuntimeError("We ran into an error when deserializing the saved file.")

    monkeypatch.setattr(torch.export, "load", load)
    with pytest.raises(ValueError, match=r"with the backbone .*: give a fixed size \(--size HxW\), .*deserializing"):
        export_torch(tiny_detector, tmp_path / "x.pt2", replace(TINY, size=None, nms_inside=False))
    assert not list(tmp_path.iterdir())
