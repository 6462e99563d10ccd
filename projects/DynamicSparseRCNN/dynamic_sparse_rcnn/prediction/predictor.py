"""The short way from images to detections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances

from ..engine.precision import autocast
from .loading import load_detector
from .results import Prediction
from .sources import Frame, FrameSource, InMemory, open_source
from .tiles import merge, split


class Predictor:
    """A detector for images of any kind.

    >>> predictor = Predictor()  # the small detector of shapes that comes with the package  # doctest: +SKIP
    >>> predictor("image.jpg").save("detections.png")  # doctest: +SKIP

    Attributes:
        model: the detector, in evaluation mode.
        classes: names and category ids of what it finds.
        score_threshold: detections with a lower score are left out.
        batch_size: images that are run at once. Images of a batch are padded to a common size, which changes their
            detections a little if sizes differ.
        tiles: sides of tiles in pixels, or None.
    """

    def __init__(
        self,
        config: str | Path | CfgNode | Any = None,
        weights: str | None = None,
        *,
        device: str | None = None,
        score_threshold: float | None = None,
        batch_size: int = 1,
        precision: str | None = None,
        tiles: int | None = None,
        class_names: Sequence[str] | None = None,
        trust_checkpoint: bool = False,
    ) -> None:
        """
        Args:
            config: a ``.yaml`` or a lazy ``.py`` by its path or its name in the model zoo, or such a config itself.
                Default: ``config.yaml`` beside ``weights``, where runs write it; without ``weights`` the detector
                that comes with the package. Or, without ``weights``, the folder of a run, a checkpoint, or an exported
                file (``.onnx``, ``.xml``, ``.pt2``).
            weights: anything that ``MODEL.WEIGHTS`` can be, or the folder of a run. Default: the config's, or our
                released checkpoint of it. Or an exported file.
            device: of the model. Default: the config's, or the CPU where there is no GPU.
            score_threshold: in [0, 1]. Default: that of an exported file, otherwise 0.5.
            batch_size: at least 1.
            precision: ``float16`` or ``bfloat16``, mixed with float32 (on the CPU it is bfloat16 in any case).
                Default: float32. Of exported files OpenVINO's alone let one choose.
            tiles: sides, in pixels, of the tiles in which large images are looked at too, one after the other, for
                small objects in them. Default: images are looked at as a whole alone.
            class_names: of all classes, for a checkpoint that does not name its classes. Default: what the checkpoint
                says, or the config's data sets.
            trust_checkpoint: whether a pickled checkpoint, its config or a ``.pt2`` file may hold code, which is then
                run.

        Raises:
            FileNotFoundError: there is no such config or checkpoint.
            ValueError: an argument is out of its range, or the weights are not those of the model or of the classes.
        """
        if not 0 <= (score_threshold or 0) <= 1 or batch_size < 1 or (tiles is not None and tiles < 32):
            raise ValueError(
                "score_threshold must lie in [0, 1], batch_size be at least 1 and tiles at least 32, got "
                f"{score_threshold}, {batch_size} and {tiles}"
            )
        loaded = load_detector(config, weights, device, trust_checkpoint, class_names, precision)
        self.model = loaded.model
        self.classes = loaded.classes
        self.score_threshold = loaded.score_threshold if score_threshold is None else score_threshold
        self.batch_size = batch_size
        self.tiles = tiles
        self._loaded = loaded

    def __call__(self, image: str | Path | InMemory) -> Prediction:
        """The detections in one image.

        Args:
            image: a path, a URL, or an image in memory, see :func:`.sources.to_frame`: a NumPy array (BGR), a PyTorch
                tensor (RGB) or a PIL image.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            TypeError, ValueError: it is not one image: see :meth:`stream`.
        """
        source = open_source(image)
        if source.length != 1 or source.frames_per_second is not None:
            raise ValueError(f"{image} is not one image: use Predictor.stream for folders, patterns and videos")
        frames = list(self.usable(source))
        if not frames:
            raise OSError(": ".join(source.unreadable[0]))
        return self.predict(frames)[0]

    def stream(
        self, source: FrameSource | str | Path | int | InMemory | Sequence[str | Path | InMemory]
    ) -> Iterator[Prediction]:
        """The detections in many images, one after the other, each as it is read.

        Images that cannot be read are left out, with a warning each; a ``FrameSource`` counts them.

        Args:
            source: anything that :func:`.sources.open_source` takes, or what it gave.
        """
        source = source if isinstance(source, FrameSource) else open_source(source)
        for frames in batches(self.usable(source), self.batch_size):
            yield from self.predict(frames)

    def usable(self, source: FrameSource) -> Iterator[Frame]:
        """The images of a source, but for those that nothing is left of at the detector's size: it reports them."""
        for frame in source:
            problem = self._loaded.resize.problem(*frame.pixels.shape[1::-1]) if self._loaded.resize else ""
            if problem:
                source.report(frame.name, f"it {problem}")
            else:
                yield frame

    def predict(self, frames: Sequence[Frame], lowest_score: float | None = None) -> list[Prediction]:
        """The detections in some images, run as one batch, or in tiles.

        Args:
            frames: the images.
            lowest_score: in place of ``score_threshold``, for those who filter detections themselves.
        """
        lowest = self.score_threshold if lowest_score is None else lowest_score
        if self.tiles is None:
            found = self._detect(frames, lowest)
        else:
            found = [self._detect_in_tiles(frame, self.tiles, lowest) for frame in frames]
        return [
            Prediction(frame.name, frame.pixels, instances, self.classes.names, self.classes.category_ids)
            for frame, instances in zip(frames, found, strict=True)
        ]

    def _detect_in_tiles(self, frame: Frame, side: int, lowest: float) -> Instances:
        parts = split(frame, side)
        tiles = [tile for tile, _ in parts]
        found = [x for batch in batches(tiles, self.batch_size) for x in self._detect(batch, lowest)]
        height, width = tiles[-1].pixels.shape[:2]
        return merge(found, parts, 1 / self._loaded.resize.scale(width, height) if self._loaded.resize else 1.0)

    @torch.no_grad()
    def _detect(self, frames: Sequence[Frame], lowest: float) -> list[Instances]:
        with autocast(self._loaded.autocast_dtype, self._loaded.device):
            outputs = self.model([self.to_input(frame) for frame in frames]) if frames else []
        found = [output["instances"].to("cpu") for output in outputs]
        return [instances[instances.scores >= lowest] for instances in found]

    def to_input(self, frame: Frame) -> dict[str, Any]:
        """What the detector is given for an image: detectron2's dict, with the image resized."""
        pixels = frame.pixels if self._loaded.image_format == "RGB" else frame.pixels[..., ::-1]
        augmented = T.AugInput(pixels)
        self._loaded.augmentations(augmented)
        image = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        height, width = frame.pixels.shape[:2]
        return {"image": image, "height": height, "width": width, "file_name": frame.name}


def batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Lists of ``size`` frames, the last of which may be shorter."""
    batch: list[Frame] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
