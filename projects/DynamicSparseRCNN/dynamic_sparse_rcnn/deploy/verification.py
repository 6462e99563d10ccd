"""Whether an exported file computes what its detector does."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .backends import Array, ExportedDetector
from .exportable import INPUT_NAMES, ExportableDetector
from .metadata import SUFFIXES, ExportMetadata
from .operators import suppress

# In the detector's divisibility; neither is the size that was traced.
_SIZES = ((2, 5), (4, 2))
# Rounding changes scores by less than 1e-5; wrong operators by more than 1e-3.
_TOLERANCE = 2e-4
# Of boxes, as a part of the longer side of the original image.
_BOX_TOLERANCE = 1e-3


@contextmanager
def verified_file(detector: nn.Module, path: str | Path, metadata: ExportMetadata) -> Iterator[Path]:
    """A path for a file, and for weights beside it, which take their places at ``path`` if the file is right.

    Args:
        detector: see :func:`verify`.
        path: of the file in the end; its folder is created.
        metadata: of the file. Only float32 is verified.

    Raises:
        ValueError: see :func:`verify`; then what was at ``path`` stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        partial = Path(folder) / path.name
        yield partial
        runs = path.suffix != SUFFIXES["onnx"] or importlib.util.find_spec("onnxruntime") is not None
        if metadata.precision == "float32" and runs:
            verify(detector, partial, metadata)
        for file in sorted(partial.parent.iterdir()):  # .bin before .xml, which is never there without it
            file.replace(path.with_name(file.name))


@torch.no_grad()
def verify(detector: nn.Module, path: Path, metadata: ExportMetadata) -> None:
    """Compares the detections of a float32 file with the detector's own, on noise of two sizes.

    It is not taken for granted: OpenVINO 2026.4 resizes a vision transformer's positions wrongly where the image size
    is dynamic, without a word.

    Args:
        detector: in evaluation mode, on the CPU.
        path: of the file.
        metadata: of the file.

    Raises:
        ValueError: they differ, or the detector's scores are not finite.
    """
    exportable = ExportableDetector(detector, suppress if metadata.nms_inside else None)
    runtime = ExportedDetector(path, trust=True).runtime
    unit = metadata.divisibility
    rng = np.random.default_rng(0)
    for height, width in (
        [metadata.size] if metadata.size else [(unit * rows, unit * columns) for rows, columns in _SIZES]
    ):
        images = rng.integers(0, 256, (1, exportable.channels, height, width), dtype=np.uint8)
        sizes = np.array([[height, width]], np.int64)
        inputs = images, sizes, sizes * np.array([[2, 3]])
        expected = [x[0].numpy() for x in exportable(*map(torch.from_numpy, inputs))]
        if not np.isfinite(expected[1]).all():
            raise ValueError("the detector gives NaN scores: did its training diverge? Check the metrics of its run")
        found = [x[0] for x in runtime(dict(zip(INPUT_NAMES, inputs, strict=True)))]
        difference = find_difference(expected, found, _BOX_TOLERANCE * max(2 * height, 3 * width))
        if difference:
            remedy = "try another format" if metadata.size else "give a fixed size (--size HxW), or try another format"
            raise ValueError(
                f"{path.name} does not reproduce the detector: for images of {height}x{width} {difference}. It was "
                f"not written: {remedy}"
            )


def find_difference(expected: Sequence[Array], found: Sequence[Array], box_tolerance: float) -> str:
    """How the detections in an image differ; the empty string if they do not.

    Boxes and classes are compared where no other score is near enough for the order to be chance.

    Args:
        expected: boxes (D, 4), scores (D,) and classes (D,), best first.
        found: likewise.
        box_tolerance: in pixels.
    """
    boxes, scores, classes = (np.asarray(x) for x in expected)
    difference = float(np.abs(found[1] - scores).max())
    if not difference <= _TOLERANCE:
        return f"scores differ by {difference:.1e}"
    # What would follow the last is unknown.
    gaps = np.abs(np.diff(scores, prepend=np.inf, append=scores[-1:]))
    apart = np.minimum(gaps[:-1], gaps[1:]) > 2 * _TOLERANCE
    if (found[2] != classes)[apart].any():
        return "classes differ"
    difference = float(np.abs(found[0] - boxes)[apart].max(initial=0.0))
    return "" if difference <= box_tolerance else f"boxes differ by {difference:.1e} pixels"
