"""Whether an exported file computes what its detector does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from .backends import ExportedDetector
from .exportable import INPUT_NAMES, ExportableDetector
from .metadata import SUFFIXES, ExportMetadata
from .operators import suppress

# In the detector's divisibility; neither is the size that was traced.
_SIZES = ((2, 5), (4, 2))
# Rounding changes scores by less than 1e-5; wrong operators by more than 1e-3.
_TOLERANCE = 2e-4


@torch.no_grad()
def verify(detector: nn.Module, path: str | Path, metadata: ExportMetadata) -> None:
    """Compares the scores of a float32 file with the detector's own, on noise of two sizes.

    It is not taken for granted: OpenVINO 2026.4 resizes a vision transformer's positions wrongly where the image size
    is dynamic, without a word. A file that fails is removed.

    Args:
        detector: in evaluation mode, on the CPU.
        path: of the file.
        metadata: of the file.

    Raises:
        ValueError: they differ.
    """
    exportable = ExportableDetector(detector, suppress if metadata.nms_inside else None)
    runtime = ExportedDetector(path).runtime
    unit = metadata.divisibility
    rng = np.random.default_rng(0)
    for height, width in (
        [metadata.size] if metadata.size else [(unit * rows, unit * columns) for rows, columns in _SIZES]
    ):
        images = rng.integers(0, 256, (1, exportable.channels, height, width), dtype=np.uint8)
        sizes = np.array([[height, width]], np.int64)
        _, expected, _ = exportable(*(torch.from_numpy(x) for x in (images, sizes, sizes)))
        _, found, _ = runtime(dict(zip(INPUT_NAMES, (images, sizes, sizes), strict=True)))
        difference = float(np.abs(found - expected.numpy()).max())
        if not difference <= _TOLERANCE:
            Path(path).unlink()
            if Path(path).suffix == SUFFIXES["openvino"]:
                Path(path).with_suffix(".bin").unlink()
            remedy = "try another format" if metadata.size else "give a fixed size (--size HxW), or try another format"
            raise ValueError(
                f"{path} does not reproduce the detector: its scores for images of {height}x{width} differ by "
                f"{difference:.1e}. It was deleted: {remedy}"
            )
