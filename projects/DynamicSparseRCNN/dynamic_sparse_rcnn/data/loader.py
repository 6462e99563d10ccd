"""The batches of a training, which a run that goes on takes up where it left them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from detectron2.data import DatasetFromList, MapDataset, build_detection_train_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import GroupedBatchSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from .mapper import DetectionMapper
from .seeding import derive_seed, seeded, shared_seed

# Images that take the place of one that can no longer be used.
_SPARE_IMAGES = 16
Mapper = Callable[[dict[str, Any]], dict[str, Any]]


class TrainLoader:
    """The same batches as detectron2's training loader gives, endless, but from any iteration on.

    What a batch contains depends on the seed, the iteration, the rank and the number of ranks alone: neither on what
    was loaded before, nor on the number of workers. So does its augmentation, with Python's, NumPy's and PyTorch's
    random numbers.

    Attributes:
        start_iter: iteration whose batch comes first; to be set before the first batch is asked for.
        pin_memory: likewise.
    """

    def __init__(
        self,
        dataset: list[dict[str, Any]],
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
            dataset: detectron2's dictionaries, with ``width`` and ``height`` if images are grouped by them.
            mapper: makes an input of the model of one of them.
            total_batch_size: images of a batch on all ranks together.
            seed: not negative, the same on all ranks.
            sampler: gives this rank's positions in ``dataset``, without end and the same ones each time; by default
                they are shuffled.
            aspect_ratio_grouping: whether the images of a batch are all wider than high, or none is.
            num_workers: processes that load.
            pin_memory: whether images are put where a GPU can fetch them without the host.

        Raises:
            ValueError: if the batch cannot be shared equally by the ranks, or images to be grouped have no size.
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

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        # A generator: no worker starts before the first batch is asked for.
        yield from DataLoader(
            self._dataset,
            batch_sampler=self._seeded_batches(),
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # otherwise it draws from the one that dropout uses
        )

    def _seeded_batches(self) -> Iterator[list[tuple[int, int]]]:
        """Positions of the images of each batch, each with the seed of its augmentation."""
        batches: BatchSampler
        if self._groups is None:
            batches = BatchSampler(self._sampler, self._batch_size, drop_last=True)
        else:
            batches = GroupedBatchSampler(self._sampler, self._groups, self._batch_size)
        for iteration, batch in enumerate(itertools.islice(batches, self.start_iter, None), self.start_iter):
            place = (self._seed, iteration, comm.get_rank())
            yield [(position, derive_seed(*place, number)) for number, position in enumerate(batch)]


def images_of_a_process(total_batch_size: int) -> int:
    """Its share of a batch.

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


def _aspect_groups(dataset: list[dict[str, Any]]) -> list[int]:
    """0 for images wider than high, 1 for others."""
    for record in dataset:
        if not {"width", "height"} <= record.keys():
            raise ValueError(
                f"The data set does not have width and height of {record.get('file_name', 'an image')}: add them, or "
                "set DATALOADER.ASPECT_RATIO_GROUPING False (of a lazy config dataloader.train.aspect_ratio_grouping)"
            )
    return [int(record["width"] <= record["height"]) for record in dataset]


class _SeededDataset(Dataset):
    """A data set whose elements are asked for with the seed of what is random in them."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        position, seed = key
        with seeded(seed):
            return self._dataset[position]


def build_train_loader(cfg: Any, dicts: Sequence[dict[str, Any]], mapper: Mapper) -> TrainLoader:
    """The loader of a config's sampler (``DATALOADER.SAMPLER_TRAIN``, of detectron2), batch and workers."""
    seed = shared_seed(cfg.SEED)
    with seeded(seed):  # detectron2 draws the sampler's
        arguments = build_detection_train_loader.from_config(cfg, mapper=mapper, dataset=list(dicts))
    return TrainLoader(
        arguments["dataset"],
        mapper,
        total_batch_size=arguments["total_batch_size"],
        seed=seed,
        sampler=arguments["sampler"],
        aspect_ratio_grouping=arguments["aspect_ratio_grouping"],
        num_workers=arguments["num_workers"],
        # Not wherever there is a GPU: pinning takes some of its memory.
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )
