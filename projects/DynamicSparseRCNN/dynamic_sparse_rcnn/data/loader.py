"""The training loader, which a resumed run continues exactly where it stopped."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, build_detection_train_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import GroupedBatchSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from .mapper import DetectionMapper
from .records import Record
from .seeding import derive_seed, seeded, shared_seed

# Images that take the place of one that can no longer be used.
_SPARE_IMAGES = 16
Mapper: TypeAlias = Callable[[Record], Record]


class TrainLoader:
    """An endless loader of the same batches as detectron2's, which can start at any iteration.

    A batch and its augmentation (with random numbers of Python, NumPy and PyTorch) depend only on the seed, the
    iteration, the rank and the number of ranks; not on what was loaded before, nor on the number of workers.

    Attributes:
        start_iter: iteration of the first batch; set it before iterating.
        pin_memory: whether to pin the images' memory; set it before iterating.
    """

    def __init__(
        self,
        dataset: list[Record],
        mapper: Mapper,
        *,
        total_batch_size: int,
        seed: int,
        sampler: Sampler[int] | None = None,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """
        Args:
            dataset: records, with ``width`` and ``height`` if images are grouped by aspect ratio.
            mapper: maps a record to an input of the model.
            total_batch_size: images per batch, over all ranks.
            seed: not negative, the same on all ranks.
            sampler: yields this rank's positions in ``dataset``, endlessly, and the same ones every time; default:
                shuffled.
            aspect_ratio_grouping: whether to batch images wider than high separately from the others.
            num_workers: number of worker processes.
            pin_memory: whether to pin the images' memory, for faster copies to a GPU.

        Raises:
            ValueError: if the ranks cannot share the batch equally, or images to be grouped have no size.
        """
        self.start_iter = 0
        self.pin_memory = pin_memory
        if isinstance(mapper, DetectionMapper) and not mapper.spares:
            with_spares = copy.copy(mapper)
            with_spares.spares = dataset[:_SPARE_IMAGES]
            mapper = with_spares
        self._dataset = _SeededDataset(MapDataset(DatasetFromList(dataset, copy=False), mapper))
        self._sampler = TrainingSampler(len(dataset), seed=seed) if sampler is None else sampler
        self._groups = _aspect_groups(dataset) if aspect_ratio_grouping else None
        self._batch_size = images_of_a_process(total_batch_size)
        self._seed = seed
        self._num_workers = num_workers

    def __iter__(self) -> Iterator[list[Record]]:
        # A generator: workers start with the first batch, not before.
        yield from DataLoader(
            self._dataset,
            batch_sampler=self._seeded_batches(),
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # otherwise it draws from the global one, which dropout uses
        )

    def _seeded_batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yields batches of positions, each with the seed of its augmentation."""
        batches: BatchSampler
        if self._groups is None:
            batches = BatchSampler(self._sampler, self._batch_size, drop_last=True)
        else:
            batches = GroupedBatchSampler(self._sampler, self._groups, self._batch_size)
        for iteration, batch in enumerate(itertools.islice(batches, self.start_iter, None), self.start_iter):
            place = (self._seed, iteration, comm.get_rank())
            yield [(position, derive_seed(*place, number)) for number, position in enumerate(batch)]


def images_of_a_process(total_batch_size: int) -> int:
    """The number of images in each process's share of a batch.

    Raises:
        ValueError: if the processes cannot share the batch equally.
    """
    world_size = comm.get_world_size()
    if total_batch_size < 1 or total_batch_size % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH (of a lazy config dataloader.train.total_batch_size) is {total_batch_size}, "
            f"which {world_size} processes cannot share equally: use a multiple of {world_size}"
        )
    return total_batch_size // world_size


def _aspect_groups(dataset: list[Record]) -> list[int]:
    """0 for images wider than high, 1 for the others."""
    for record in dataset:
        if not {"width", "height"} <= record.keys():
            raise ValueError(
                f"The data set lacks width and height of {record.get('file_name', 'an image')}: add them, or "
                "set DATALOADER.ASPECT_RATIO_GROUPING False (of a lazy config dataloader.train.aspect_ratio_grouping)"
            )
    return [int(record["width"] <= record["height"]) for record in dataset]


class _SeededDataset(Dataset):
    """A data set indexed by (position, seed); the seed decides what is random in the element."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        position, seed = key
        with seeded(seed):
            return self._dataset[position]


def build_train_loader(cfg: CfgNode, dicts: Sequence[Record], mapper: Mapper) -> TrainLoader:
    """Builds the loader from a config: sampler (``DATALOADER.SAMPLER_TRAIN``), batch size and workers."""
    seed = shared_seed(cfg.SEED)
    with seeded(seed):  # detectron2 draws the sampler's seed
        arguments = build_detection_train_loader.from_config(cfg, mapper=mapper, dataset=list(dicts))
    return TrainLoader(
        arguments["dataset"],
        mapper,
        total_batch_size=arguments["total_batch_size"],
        seed=seed,
        sampler=arguments["sampler"],
        aspect_ratio_grouping=arguments["aspect_ratio_grouping"],
        num_workers=arguments["num_workers"],
        # Only if the GPU is used: pinning takes some of its memory.
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )
