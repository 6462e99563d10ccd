"""Functions run by several processes that are each other's ranks, on this machine and with Gloo."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing import start_processes

import dynamic_sparse_rcnn.api  # noqa: F401 (registers the parts that the configs of ranks name)
from dynamic_sparse_rcnn.engine.launch import join_group

# Imported once, by the server that the processes are forked from.
multiprocessing.set_forkserver_preload(["pytest", "dynamic_sparse_rcnn.engine.main", "ranks"])


def start_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, local_size: int | None = None) -> Any:
    """Starts ``function(*arguments)`` in as many processes; gives their context, of which ``join`` waits for them.

    With ``local_size`` they behave as if on several machines, so many on each.
    """
    folder = tempfile.mkdtemp(prefix="ranks_")
    context = start_processes(
        _rank,
        (world_size, local_size or world_size, f"file://{folder}/store", function, arguments),
        nprocs=world_size,
        join=False,
        start_method="forkserver",
    )
    weakref.finalize(context, shutil.rmtree, folder, ignore_errors=True)
    return context


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, local_size: int | None = None) -> None:
    """As :func:`start_ranks`, and waits until all are done; raises what one of them raised."""
    context = start_ranks(world_size, function, *arguments, local_size=local_size)
    while not context.join():
        pass


def _rank(
    rank: int, world_size: int, local_size: int, url: str, function: Callable[..., Any], arguments: tuple
) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loaders' workers, as in other processes
    with join_group("gloo", local_size, init_method=url, rank=rank, world_size=world_size):
        function(*arguments)
