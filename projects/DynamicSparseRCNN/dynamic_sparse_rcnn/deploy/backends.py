"""Runs exported files as if they were detectors of detectron2's contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..errors import TRUST_REMEDY, import_extra
from .exportable import INPUT_NAMES, NO_CLASS
from .inputs import Feed, prepare
from .metadata import ENTRIES, SUFFIXES, ExportMetadata
from .openvino_files import SECTION

Array = npt.NDArray[Any]


class Runtime(Protocol):
    """Runs a file; see :class:`.ExportableDetector` for the three arrays in, by name, and out."""

    metadata: ExportMetadata

    def __call__(self, feed: Feed) -> Sequence[Array]: ...


class OnnxRuntime:
    """ONNX Runtime, on a CPU or on a GPU."""

    def __init__(self, path: str, device: str, precision: str | None) -> None:
        """
        Args:
            path: of the file.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            precision: not to be chosen here.

        Raises:
            ImportError: onnxruntime is missing.
            ValueError: the device is not there, a precision is asked for, or this package did not write the file.
        """
        onnxruntime = import_extra("onnxruntime", "onnx")
        if precision is not None:
            raise ValueError(f"{path} only runs in the precision it was exported in: leave out precision {precision}")
        if not device.startswith(("cpu", "cuda")):
            raise ValueError(f"ONNX files cannot run on the device {device!r}: use cpu or cuda")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.startswith("cuda"):
            index = torch.device(device).index or 0
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": index}))
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        # It falls back to the CPU with no more than a warning.
        if device.startswith("cuda") and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise ValueError(f"this onnxruntime cannot run on {device}: install onnxruntime-gpu, or use the device cpu")
        self.metadata = ExportMetadata.from_entries(self._session.get_modelmeta().custom_metadata_map, path)

    def __call__(self, feed: Feed) -> Sequence[Array]:
        outputs: Sequence[Array] = self._session.run(None, feed)
        return outputs


class OpenVino:
    """OpenVINO, on a CPU or an Intel GPU."""

    def __init__(self, path: str, device: str, precision: str | None) -> None:
        """
        Args:
            path: of the ``.xml``.
            device: ``cpu``, or another name of OpenVINO's, such as ``GPU.1`` or ``AUTO``.
            precision: of the arithmetic; ``float16``, ``bfloat16`` or None, which is float32.

        Raises:
            ImportError: openvino is missing.
            ValueError: the device is not there, there is no such precision, or this package did not write the file.
        """
        hints = {None: "f32", "float16": "f16", "bfloat16": "bf16"}
        if precision not in hints:
            raise ValueError(f"precision is {precision!r}: use float16, bfloat16, or leave it out")
        openvino = import_extra("openvino", "openvino")
        core = openvino.Core()
        # Of several GPUs OpenVINO lists GPU.0, GPU.1, ..; GPU is the first.
        devices = [*core.available_devices, *(name.partition(".")[0] for name in core.available_devices), "AUTO"]
        if device.upper() not in devices:
            raise ValueError(f"OpenVINO has no device {device}: use one of {', '.join(dict.fromkeys(devices))}")
        model = core.read_model(path)
        places = {name: [SECTION, name] for name in ENTRIES if model.has_rt_info([SECTION, name])}
        entries = {name: str(model.get_rt_info(place).value) for name, place in places.items()}
        self.metadata = ExportMetadata.from_entries(entries, path)
        self._single = self.metadata.size is not None
        if self.metadata.size is not None:
            # Without dynamic sizes OpenVINO has less to do at run time, which small detectors notice.
            model.reshape({"images": [1, 3, *self.metadata.size], "image_sizes": [1, 2], "original_sizes": [1, 2]})
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hints[precision]}
        if device.upper() == "CPU":
            options["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
        self._compiled = core.compile_model(model, device.upper(), options)

    def __call__(self, feed: Feed) -> Sequence[Array]:
        number = len(feed["images"])
        step = 1 if self._single else number
        outputs = []
        for start in range(0, number, step):
            found = self._compiled({name: values[start : start + step] for name, values in feed.items()})
            outputs.append([x.copy() for x in found.values()])
        return [np.concatenate(x) for x in zip(*outputs, strict=True)]


class TorchProgram:
    """A ``torch.export`` program."""

    def __init__(self, path: str, device: str, precision: str | None) -> None:
        """
        Args:
            path: of the file.
            device: ``cpu``.
            precision: not to be chosen here.

        Raises:
            ValueError: another device or precision is asked for, or this package did not write the file.
        """
        if device != "cpu" or precision is not None:
            raise ValueError(f"{path} only runs on the CPU and in float32, not on {device} in {precision or 'float32'}")
        entries = dict.fromkeys(ENTRIES, "")
        program = torch.export.load(path, extra_files=entries)
        # Guards of the traced size's parity, which only the layout of an unused map depends on.
        self._program = program.module(check_guards=False)
        self.metadata = ExportMetadata.from_entries({k: v for k, v in entries.items() if v}, path)

    @torch.no_grad()
    def __call__(self, feed: Feed) -> Sequence[Array]:
        return [x.numpy() for x in self._program(*[torch.from_numpy(feed[name]) for name in INPUT_NAMES])]


_RUNTIMES: dict[str, Callable[[str, str, str | None], Runtime]] = dict(
    zip(SUFFIXES.values(), (OnnxRuntime, OpenVino, TorchProgram), strict=True)
)


class ExportedDetector(nn.Module):
    """An exported file in detectron2's contract.

    Attributes:
        metadata: of the file.
        runtime: what runs it.
    """

    def __init__(
        self, path: str | Path, device: str = "cpu", precision: str | None = None, trust: bool = False
    ) -> None:
        """
        Args:
            path: of an ``.onnx``, ``.xml`` or ``.pt2`` file that this package wrote.
            device: where it is run.
            precision: of the arithmetic, where the backend lets one choose.
            trust: whether a ``.pt2`` file may be read, which runs whatever code it holds.

        Raises:
            FileNotFoundError: there is no such file.
            ImportError: what runs it is not installed.
            ValueError: it cannot be run so, is not trusted, or this package did not write it.
        """
        super().__init__()
        suffix = Path(path).suffix
        if suffix not in _RUNTIMES:
            raise ValueError(f"{path} is not an exported file: their names end with {', '.join(_RUNTIMES)}")
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no file {path}")
        if suffix == SUFFIXES["torch"] and not trust:
            raise ValueError(
                f"{path} could run code: PyTorch unpickles parts of it. Use an .onnx or .xml file; or, "
                f"{TRUST_REMEDY} (trust_checkpoint=True)"
            )
        self.runtime = _RUNTIMES[suffix](str(path), device, precision)
        self.metadata = self.runtime.metadata

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: detectron2's dicts: ``image`` (3, H, W) uint8 of any size, in the file's channel order;
                optionally ``height`` and ``width``, the size that the detections shall have (default: the image's
                own). Images are resized here, as the file says.

        Returns:
            ``{"instances": Instances}`` for each, with ``pred_boxes``, ``scores`` and ``pred_classes``, best first.

        Raises:
            FloatingPointError: a score is NaN.
            ValueError: an image is not uint8.
        """
        for x in batched_inputs:
            if x["image"].dtype != torch.uint8:
                raise ValueError(f"exported detectors take uint8 images, got {x['image'].dtype}")
        images = [x["image"].cpu().numpy() for x in batched_inputs]
        original_sizes = [
            (int(x.get("height", image.shape[1])), int(x.get("width", image.shape[2])))
            for x, image in zip(batched_inputs, images, strict=True)
        ]
        outputs = self.runtime(prepare(images, original_sizes, self.metadata))
        boxes, scores, classes = (torch.from_numpy(np.ascontiguousarray(x)) for x in outputs)
        if scores.isnan().any():
            raise FloatingPointError(
                "the exported detector gives NaN scores: did its training diverge? Check the metrics of its run"
            )
        return [
            {"instances": self._to_instances(*values)}
            for values in zip(boxes, scores, classes, original_sizes, strict=True)
        ]

    def _to_instances(self, boxes: Tensor, scores: Tensor, classes: Tensor, size: tuple[int, int]) -> Instances:
        found = classes != NO_CLASS
        instances = Instances(size, pred_boxes=Boxes(boxes[found]), scores=scores[found], pred_classes=classes[found])
        if self.metadata.nms_inside or self.metadata.nms_threshold >= 1:
            return instances
        keep = batched_nms(
            instances.pred_boxes.tensor, instances.scores, instances.pred_classes, self.metadata.nms_threshold
        )
        return instances[keep[: self.metadata.num_detections]]
