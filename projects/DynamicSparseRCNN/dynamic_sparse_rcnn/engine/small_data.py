"""Settings of a training on a data set of which nothing is known yet: from the data and the machine.

What is chosen are options of a config, so that a run keeps them in its ``config.yaml`` and is resumed with them.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.datasets import read_records
from ..data.formats import parse_dataset_name
from ..data.records import BoxProblem, BoxTable, Record

logger = logging.getLogger(__name__)

#: Limits of the short side of images, in pixels, multiples of 32.
LOWEST_SIDE, HIGHEST_SIDE = 160, 320
#: Parts of a data set to train on and to choose the best checkpoint with.
TRAIN_PART, VAL_PART = "0-80%", "80-100%"

# Of fewer images, the part to choose with has none.
_FEWEST_IMAGES = 3
# Proposals per object of the fullest image: several learn from an object, and a fifth stays background.
_PROPOSALS_PER_OBJECT = 2
_PROPOSALS = (30, 300)
# The side, in pixels of the network's input, that the median object gets where the limits of the image size allow.
_WANTED_OBJECT_SIDE = 32
_SCALES = (0.8, 0.9, 1.0, 1.1, 1.2)
# The longest side, in terms of the short one.
_LONG_SIDE = 1.5
_CPU_BATCH, _GPU_BATCH = 8, 16
_MOST_WORKERS = 4
# Memory limit and current usage of the container, in bytes, of version 2 and version 1 of Linux's control groups.
_CONTAINER_MEMORY = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


@dataclass(frozen=True)
class Choice:
    """A chosen value of a config key, and why it was chosen."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key} {self.value}: {self.reason}"


@dataclass(frozen=True)
class DataSummary:
    """What the choices depend on.

    Attributes:
        num_images: with and without objects.
        most_boxes: of one image.
        object_share: median over the boxes of sqrt(width * height) in units of the image's short side.
        short_side: median of the images, in pixels.
    """

    num_images: int
    most_boxes: int
    object_share: float
    short_side: float

    @classmethod
    def of(cls, records: Sequence[Record]) -> DataSummary:
        """The summary of detectron2's records.

        Raises:
            ValueError: there is no usable box.
        """
        table = BoxTable.from_records(records)
        usable = (table.find_problems() == BoxProblem.NONE) & ~table.crowd
        if not usable.any():
            raise ValueError(f"{len(records)} images have no usable box to learn from: name data with annotations")
        boxes = table.boxes[usable]
        sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
        sizes = np.array([(record["width"], record["height"]) for record in records], dtype=np.float64)
        return cls(
            num_images=len(records),
            most_boxes=int(np.bincount(table.image[usable]).max()),
            object_share=float(np.median(sides / table.image_sizes[usable].min(axis=1))),
            short_side=float(np.median(sizes.min(axis=1))),
        )


def choose_settings(
    train: Sequence[str], val: Sequence[str], device: str, highest_side: int = HIGHEST_SIDE, processes: int = 1
) -> list[Choice]:
    """All that follows from the data and the machine, but not the length of the training.

    Args:
        train: names of the data sets to train on.
        val: names of those to choose the best checkpoint with; empty: a part of each training set is kept for that,
            where it can be divided.
        device: that trains, as ``MODEL.DEVICE`` names it.
        highest_side: limit of the short side of images, in pixels.
        processes: that share a batch and, on one machine, cores and memory.

    Raises:
        OSError, ValueError: a data set cannot be read, or has no boxes.
    """
    read = {name: read_records(name) for name in train}
    choices = [] if val else hold_out({name: len(images) for name, images in read.items()})
    records = [record for name in train for record in read[name]]
    summary, workers = DataSummary.of(records), choose_workers(processes)
    sizes = choose_image_size(summary, highest_side)
    largest = next(max(choice.value) for choice in sizes if choice.key == "INPUT.MIN_SIZE_TRAIN")
    return [
        *choices,
        choose_proposals(summary),
        *sizes,
        choose_batch(summary, device, processes),
        workers,
        choose_cache(records, largest, processes * max(1, workers.value)),
        *choose_precision(device),
    ]


def as_options(choices: Sequence[Choice]) -> list[str]:
    """Choices as keys and values of a command line."""
    return [part for choice in choices for part in (choice.key, str(choice.value))]


def count_images(names: Sequence[str]) -> int:
    """How many images the data sets have together."""
    return sum(len(read_records(name)) for name in names)


def hold_out(train: Mapping[str, int]) -> list[Choice]:
    """Keeps a fifth of each training set for choosing; nothing is chosen if one of them cannot be divided.

    Args:
        train: number of images by data set.
    """
    divisible = [name for name, count in train.items() if count >= _FEWEST_IMAGES and _can_be_divided(name)]
    parts = {name: (f"{name}:{TRAIN_PART}", f"{name}:{VAL_PART}") for name in divisible}
    if len(parts) < len(train):
        rest = ", ".join(name for name in train if name not in parts)
        logger.warning(f"Nothing chooses the best checkpoint: {rest} cannot be divided. Name other images with --val")
        return []
    reason = "a fifth of the images is kept for choosing the best checkpoint; --val names other ones"
    return [
        Choice("DATASETS.TRAIN", tuple(parts[name][0] for name in train), reason),
        Choice("DATASETS.TEST", tuple(parts[name][1] for name in train), reason),
    ]


def _can_be_divided(name: str) -> bool:
    return getattr(parse_dataset_name(name), "part", name) is None  # formats of others may have no parts


def choose_proposals(summary: DataSummary) -> Choice:
    """Twice as many as the fullest image has objects, in tens."""
    lowest, highest = _PROPOSALS
    wanted = 10 * math.ceil(_PROPOSALS_PER_OBJECT * summary.most_boxes / 10)
    return Choice(
        "MODEL.SparseRCNN.NUM_PROPOSALS",
        min(max(wanted, lowest), highest),
        f"the fullest image has {summary.most_boxes} objects (at least {lowest}, at most {highest})",
    )


def choose_image_size(summary: DataSummary, highest: int = HIGHEST_SIDE) -> list[Choice]:
    """The short side that gives the median object 32 pixels, within limits and not above that of the images.

    Args:
        summary: of the data.
        highest: short side in pixels.
    """
    wanted = min(_WANTED_OBJECT_SIDE / summary.object_share, summary.short_side)
    lowest = min(LOWEST_SIDE, 32 * math.ceil(summary.short_side / 32))
    side = max(min(32 * math.ceil(wanted / 32), highest), lowest)
    reason = (
        f"the median object has {100 * summary.object_share:.0f} % of the short side of its image, "
        f"{side * summary.object_share:.0f} pixels at this size"
    )
    sides = tuple(16 * round(scale * side / 16) for scale in _SCALES)
    return [
        Choice("INPUT.MIN_SIZE_TEST", side, reason),
        Choice("INPUT.MAX_SIZE_TEST", round(_LONG_SIDE * side), "for long images"),
        Choice("INPUT.MIN_SIZE_TRAIN", sides, "around the size of the test"),
        Choice("INPUT.MAX_SIZE_TRAIN", round(_LONG_SIDE * sides[-1]), "for long images"),
    ]


def choose_batch(summary: DataSummary, device: str, processes: int = 1) -> Choice:
    """8 images, on a GPU 16 where there are enough of them; more, if the processes could not share them equally."""
    enough = device.startswith("cuda") and summary.num_images >= 4 * _GPU_BATCH
    batch = processes * math.ceil((_GPU_BATCH if enough else _CPU_BATCH) / processes)
    return Choice("SOLVER.IMS_PER_BATCH", batch, f"{summary.num_images} images, {processes} x {device}")


def choose_workers(processes: int = 1) -> Choice:
    """Half of a process's share of the cores, at most 4."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Choice("DATALOADER.NUM_WORKERS", min(cores // (2 * processes), _MOST_WORKERS), f"{cores} cores")


def choose_cache(records: Sequence[Record], short_side: int, workers: int) -> Choice:
    """Memory for photographs that are far larger than the network's input; others are decoded in no time.

    Args:
        records: of the images.
        short_side: the largest of ``INPUT.MIN_SIZE_TRAIN``; images are kept at twice that size at least.
        workers: of all processes; each has a cache of its own.
    """
    sizes = np.array([(record["width"], record["height"]) for record in records], dtype=np.float64)
    factors = np.maximum(1, sizes.min(axis=1) // (2 * short_side))
    needed = 3 * (sizes.prod(axis=1) / factors**2).sum() / 2**20
    available = _free_memory() / 2 / workers / 2**20
    if np.median(factors) < 2:
        return Choice("DATALOADER.CACHE_MEGABYTES", 0, "the images are small, and decoded in no time")
    reason = f"the images are large: shrunk they take {needed:.0f} MB, and {available:.0f} MB are free for each worker"
    return Choice("DATALOADER.CACHE_MEGABYTES", math.ceil(min(needed, available)), reason)


def _free_memory() -> int:
    """Bytes that are free on the machine and in the container, where the system tells."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows, macOS
        return 0
    for limit, usage in _CONTAINER_MEMORY:
        try:
            free = min(free, max(0, int(limit.read_text()) - int(usage.read_text())))
        except (OSError, ValueError):  # another version, or no limit ("max")
            continue
    return free


def choose_precision(device: str) -> list[Choice]:
    """Mixed precision where the hardware has bfloat16, or float16 of older GPUs; on CPUs with channels last."""
    if device.startswith("cuda"):
        dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        reason = f"the GPU has {dtype}"
    elif cpu_has_bfloat16():
        dtype, reason = "bfloat16", "the CPU has bfloat16 instructions"
    else:
        return [Choice("SOLVER.AMP.ENABLED", False, f"{device} has no half-precision instructions")]
    amp = [Choice("SOLVER.AMP.ENABLED", True, reason), Choice("SOLVER.AMP.PRECISION", dtype, reason)]
    # Its convolutions want the channels of a pixel side by side.
    return amp if device.startswith("cuda") else [*amp, Choice("MODEL.CHANNELS_LAST", True, reason)]


def cpu_has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16 (AVX512-BF16 or AMX) rather than emulating it."""
    # Of PyTorch 2.11; with older ones the training is only slower.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))
