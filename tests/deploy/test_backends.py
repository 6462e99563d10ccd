"""Exported files in detectron2's contract."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from exported_detections import SHAPES, TINY, assert_same_detections
from PIL import Image

from dynamic_sparse_rcnn.deploy.backends import ExportedDetector
from dynamic_sparse_rcnn.deploy.exportable import OUTPUT_NAMES
from dynamic_sparse_rcnn.deploy.metadata import is_exported
from dynamic_sparse_rcnn.deploy.openvino_files import save_openvino

TINY_FILES = ["tiny_onnx", "tiny_openvino", "tiny_torch"]


@pytest.fixture
def inputs() -> list[dict]:
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in [(64, 50), (33, 96)]]
    return [{"image": images[0], "height": 256, "width": 200}, {"image": images[1]}]


def to_arrays(outputs: list[dict]) -> list[np.ndarray]:
    """Padded, as a file gives them."""
    fields = [
        [x["instances"].pred_boxes.tensor for x in outputs],
        [x["instances"].scores for x in outputs],
        [x["instances"].pred_classes for x in outputs],
    ]
    pads = [0.0, 0.0, -1]
    return [
        torch.nn.utils.rnn.pad_sequence(x, batch_first=True, padding_value=pad).numpy()
        for x, pad in zip(fields, pads, strict=True)
    ]


@pytest.mark.parametrize("file", TINY_FILES)
@torch.no_grad()
def test_files_take_and_give_what_detectors_do(tiny_detector, inputs, file, request):
    outputs = ExportedDetector(request.getfixturevalue(file), trust=True)(inputs)
    expected = [x["instances"] for x in tiny_detector(inputs)]
    assert [x["instances"].image_size for x in outputs] == [(256, 200), (33, 96)]
    assert 0 < len(expected[0]) <= 9
    assert_same_detections(expected, to_arrays(outputs), lowest_score=0.0)


def test_one_image_gives_what_it_gives_in_a_batch(tiny_openvino, inputs):
    detector = ExportedDetector(tiny_openvino)
    together, alone = detector(inputs), [detector([x])[0] for x in inputs]
    for first, second in zip(to_arrays(together), to_arrays(alone), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("file", [*TINY_FILES, "shapes_onnx", "shapes_openvino"])
def test_metadata_are_read_as_they_were_written(file, request):
    path = request.getfixturevalue(file)
    expected = SHAPES if "shapes" in file else TINY
    if path.suffix == ".pt2":
        expected = dataclasses.replace(TINY, size=None, nms_inside=True)
    assert ExportedDetector(path, trust=True).metadata == expected
    assert is_exported(path) and is_exported(str(path)) and not is_exported("detector.pth") and not is_exported(None)


def test_names_and_sizes_of_the_file_are_those_documented(shapes_onnx):
    import onnxruntime

    session = onnxruntime.InferenceSession(shapes_onnx)
    assert [(x.name, x.type) for x in session.get_inputs()] == [
        ("images", "tensor(uint8)"),
        ("image_sizes", "tensor(int64)"),
        ("original_sizes", "tensor(int64)"),
    ]
    assert [x.name for x in session.get_outputs()] == list(OUTPUT_NAMES)
    assert session.get_inputs()[0].shape[1] == 3 and session.get_outputs()[0].shape[1:] == [100, 4]


def test_images_of_any_size_are_resized_as_the_file_says(shapes_onnx, tiny_onnx):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 200, 3), dtype=np.uint8)
    image = {"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}
    for path, size in ((shapes_onnx, (427, 128)), (tiny_onnx, (96, 29))):  # width and height
        resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        prepared = {"image": torch.from_numpy(resized.transpose(2, 0, 1).copy()), "height": 60, "width": 200}
        detector = ExportedDetector(path)
        for first, second in zip(to_arrays(detector([image])), to_arrays(detector([prepared])), strict=True):
            np.testing.assert_array_equal(first, second)


def test_other_images_than_of_bytes_are_refused(tiny_onnx):
    with pytest.raises(ValueError, match=r"take uint8 images, got torch.float32"):
        ExportedDetector(tiny_onnx)([{"image": torch.zeros(3, 64, 96)}])


def test_what_cannot_be_run_is_refused_with_the_reason(tiny_onnx, tiny_openvino, tiny_torch, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        ExportedDetector(tmp_path / "missing.onnx")
    with pytest.raises(ValueError, match="leave out precision bfloat16"):
        ExportedDetector(tiny_onnx, precision="bfloat16")
    with pytest.raises(ValueError, match="cannot run on the device 'gpu': use cpu or cuda"):
        ExportedDetector(tiny_onnx, device="gpu")
    with pytest.raises(ValueError, match="precision is 'fp16': use float16, bfloat16"):
        ExportedDetector(tiny_openvino, precision="fp16")
    with pytest.raises(ValueError, match="OpenVINO has no device cuda"):
        ExportedDetector(tiny_openvino, device="cuda")
    with pytest.raises(ValueError, match="runs on the CPU and in float32, not on cuda"):
        ExportedDetector(tiny_torch, device="cuda", trust=True)
    with pytest.raises(ValueError, match=r"tiny.pt2 could run code.*--trust-checkpoint \(trust_checkpoint=True\)"):
        ExportedDetector(tiny_torch)
    with pytest.raises(ValueError, match=r"model.pth is not an exported file: .*\.onnx, \.xml, \.pt2"):
        ExportedDetector("model.pth")


def test_files_of_others_are_refused(tmp_path):
    import onnx

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    path = tmp_path / "foreign.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [output]), ir_version=10), path)
    with pytest.raises(ValueError, match=r"foreign.onnx was not written by dsrcnn export"):
        ExportedDetector(path)


def test_a_diverged_detector_is_an_error_in_every_backend(tiny_onnx, inputs, tmp_path):
    import onnx
    import openvino

    model = onnx.load(tiny_onnx)
    bias = next(x for x in model.graph.initializer if x.name.endswith("head_series.1.class_logits.bias"))
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] = np.nan
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "nan.onnx")
    save_openvino(openvino.Core().read_model(tmp_path / "nan.onnx"), tmp_path / "nan.xml", TINY)
    for name in ("nan.onnx", "nan.xml"):
        with pytest.raises(FloatingPointError, match="NaN scores"):
            ExportedDetector(tmp_path / name)(inputs)


class FakeCore:
    """OpenVINO on a machine with two GPUs, as far as a device is chosen; runs on the CPU."""

    available_devices = ("CPU", "GPU.0", "GPU.1")
    compiled: list[tuple[str, dict]]

    def __init__(self) -> None:
        import openvino

        FakeCore.compiled = []
        self.read_model = openvino.Core().read_model

    def compile_model(self, model: object, device: str, options: dict) -> None:
        self.compiled.append((device, options))


@pytest.mark.parametrize("device", ["cpu", "GPU.1", "gpu", "AUTO"])
def test_openvino_gets_its_devices_by_their_names_and_threads_only_for_the_cpu(tiny_openvino, monkeypatch, device):
    import openvino

    core = FakeCore()
    monkeypatch.setattr(openvino, "Core", lambda: core)
    ExportedDetector(tiny_openvino, device=device)
    ((name, options),) = core.compiled
    assert name == device.upper() and ("INFERENCE_NUM_THREADS" in options) == (device == "cpu")
    with pytest.raises(ValueError, match=r"no device GPU\.2: use one of CPU, GPU\.0, GPU\.1, GPU, AUTO"):
        ExportedDetector(tiny_openvino, device="GPU.2")


@pytest.mark.parametrize("falls_back", [False, True])
def test_onnx_runtime_runs_on_the_gpu_that_was_asked_for_or_not_at_all(tiny_onnx, monkeypatch, falls_back):
    import onnxruntime

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path, options, providers):
            super().__init__(path, options, providers=["CPUExecutionProvider"])
            self.asked_for = providers

        def get_providers(self):
            return ["CPUExecutionProvider"] if falls_back else ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    if falls_back:
        with pytest.raises(ValueError, match="cannot run on cuda:1"):
            ExportedDetector(tiny_onnx, device="cuda:1")
    else:
        session = ExportedDetector(tiny_onnx, device="cuda:1").runtime._session
        assert session.asked_for == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
