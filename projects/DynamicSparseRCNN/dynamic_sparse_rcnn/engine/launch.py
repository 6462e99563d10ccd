"""Starting the processes of a run: new ones on this machine, or those that ``torchrun`` has started."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import DEFAULT_TIMEOUT, default_argument_parser
from detectron2.utils import comm
from omegaconf import OmegaConf
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, record
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing.spawn import ProcessException

from ..config_reading import read_config
from ..errors import EXPECTED_ERRORS, describe

Result = TypeVar("Result")
Main = Callable[[argparse.Namespace], Result]

#: Environment variables that torchrun, and other launchers like it, set in the processes that they start.
_RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RankError(RuntimeError):
    """The error of a process that :func:`launch` has started, in one line; of several, the first."""


def launch(main: Main[Result], args: argparse.Namespace) -> Result:
    """Runs ``main(args)`` in all processes of a run.

    They are those that ``torchrun`` started, this one of them; otherwise ``--num-gpus`` new ones on this machine, one
    of ``--num-machines``: with NCCL and a GPU each, or with Gloo if the config's device is the CPU. A process that
    fails ends all others. In each of them, the modules ``args.imports`` are imported first.

    Args:
        main: a function of a module, so that new processes find it. What it gives can be pickled.
        args: detectron2's command line.

    Returns:
        What ``main`` gives in this process; or, if it runs in new ones, in the first of them.

    Raises:
        RankError: a new process failed. It has shown its stack trace, if ``args.traceback`` is set or its error was
            not one of ``EXPECTED_ERRORS``.
        ValueError: there cannot be so many processes.
    """
    import_modules(args)
    if "LOCAL_RANK" in os.environ:
        return _run_as_launched(main, args)
    _check_machines(args)
    if args.num_machines * args.num_gpus <= 1:
        return main(args)
    device = _device(args)
    if device.type == "cuda":
        _check_gpus(args.num_gpus, device, f"--num-gpus is {args.num_gpus}")
    dist_url = f"tcp://127.0.0.1:{get_free_port()}" if args.dist_url == "auto" else args.dist_url
    with tempfile.TemporaryDirectory(prefix="run_") as folder:
        outcomes = Path(folder)
        try:
            torch.multiprocessing.spawn(_process, (main, args, device.type, dist_url, outcomes), nprocs=args.num_gpus)
        except ProcessException as error:
            # The first: others fail too, for want of it.
            first = min(outcomes.glob("error_*"), key=lambda file: file.stat().st_mtime_ns, default=None)
            raise RankError(first.read_text() if first else f"a process of the run has ended: {error}") from error
        result: Result = pickle.loads((outcomes / "result").read_bytes())
        return result


def import_modules(args: argparse.Namespace) -> None:
    """Imports ``args.imports``, modules that register what the config names, also from the working directory.

    Raises:
        ImportError: there is no such module.
    """
    names: Sequence[str] = getattr(args, "imports", ())
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        importlib.import_module(name)


def _run_as_launched(main: Main[Result], args: argparse.Namespace) -> Result:
    """Joins the processes that were started as torchrun starts them."""
    missing = [name for name in _RENDEZVOUS if name not in os.environ]
    if missing:
        raise ValueError(
            f"LOCAL_RANK is in the environment, as torchrun sets it, but not {', '.join(missing)}: start the processes "
            "with torchrun, or set these too; without it, unset LOCAL_RANK"
        )
    rank, world_size, local_rank, local_size = (int(os.environ[name]) for name in _RENDEZVOUS[:4])
    if world_size % local_size or rank % local_size != local_rank:
        raise ValueError(
            f"The process of rank {rank} is number {local_rank} of {local_size} on its machine (LOCAL_RANK, "
            f"LOCAL_WORLD_SIZE), with {world_size} on all: start as many on each machine, with consecutive ranks"
        )
    if args.num_gpus not in (1, local_size) or args.num_machines not in (1, world_size // local_size):
        raise ValueError(
            f"torchrun has started {local_size} processes on each of {world_size // local_size} machines: leave out "
            "--num-gpus and --num-machines"
        )
    if world_size == 1:
        return main(args)
    device = _device(args)
    if device.type == "cuda" and torch.cuda.is_available():
        _check_gpus(local_size, device, f"torchrun's --nproc-per-node is {local_size}")
        torch.cuda.set_device(local_rank)
        backend = "nccl"
    else:
        backend = "gloo"
    store = _store_of_this_start(world_size > local_size)
    with join_group(backend, local_size, store=store, rank=rank, world_size=world_size):
        recorded: Main[Result] = record(main, _WholeErrorFile())  # type: ignore[assignment]
        return recorded(args)


class _WholeErrorFile(ErrorHandler):
    """Writes what torchrun reads of an error whole or not at all: the process may be ended while it writes."""

    def record_exception(self, e: BaseException) -> None:
        """See PyTorch's."""
        file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if not file:
            return
        os.environ["TORCHELASTIC_ERROR_FILE"] = f"{file}.part"
        try:
            super().record_exception(e)
            os.replace(f"{file}.part", file)
        finally:
            os.environ["TORCHELASTIC_ERROR_FILE"] = file


def _store_of_this_start(several_machines: bool) -> dist.Store:
    """Where the processes find each other: torchrun's store, without what processes left there before a restart.

    Raises:
        RuntimeError: if it cannot be told apart: without this error they would wait for each other in vain.
    """
    store, _, _ = next(dist.rendezvous("env://"))
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if not several_machines:
        return dist.PrefixStore(f"restart_{restarts}", store)
    if restarts != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise RuntimeError(
            "torchrun cannot restart processes on several machines that share its store: start it with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment on all machines"
        )
    return store  # each machine counts its own restarts


def _process(
    local_rank: int, main: Main[Any], args: argparse.Namespace, device: str, dist_url: str, outcomes: Path
) -> None:
    """A new process; leaves the result, or its error, in a file of the folder ``outcomes``."""
    local_size = args.num_gpus
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // local_size))
    rank, world_size = args.machine_rank * local_size + local_rank, args.num_machines * local_size
    backend = "nccl" if device == "cuda" else "gloo"
    with join_group(backend, local_size, init_method=dist_url, rank=rank, world_size=world_size):
        try:
            import_modules(args)
            result = main(args)
        except Exception as error:
            (outcomes / f"error_{rank}").write_text(f"rank {rank}: {describe(error)}")
            if getattr(args, "traceback", False) or not isinstance(error, EXPECTED_ERRORS):
                print(f"Rank {rank} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            raise
        if local_rank == 0:
            (outcomes / "result").write_bytes(pickle.dumps(result))


@contextmanager
def join_group(
    backend: str,
    local_size: int,
    *,
    rank: int,
    world_size: int,
    init_method: str | None = None,
    store: dist.Store | None = None,
) -> Iterator[None]:
    """Within, this process is one of PyTorch's default group, and detectron2 knows which of them are on one machine.

    Args:
        backend: ``nccl`` or ``gloo``.
        local_size: number of processes on each machine; their ranks are consecutive.
        rank: of this process.
        world_size: number of processes.
        init_method: where they find each other, a URL.
        store: likewise, in its place.
    """
    dist.init_process_group(
        backend, timeout=DEFAULT_TIMEOUT, init_method=init_method, rank=rank, world_size=world_size, store=store
    )
    comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups(local_size)  # as detectron2's own launcher does
    comm.synchronize()
    yield
    # Not after an error: others may be waiting for this process, and its end is what ends them.
    _destroy_groups()


@contextmanager
def processes_of_torchrun() -> Iterator[tuple[int, str | None]]:
    """Joins the processes among which torchrun shares a prediction, if it has started them.

    Yields:
        Its rank, and the device that it takes: a GPU of its own where there are GPUs, None for the default.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield 0, None
        return
    rank, local_rank, local_size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    device = f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else None
    # Gloo: what they tell each other is short, and on the CPU.
    with join_group("gloo", local_size, init_method="env://", rank=rank, world_size=world_size):
        yield rank, device


def _destroy_groups() -> None:
    """Ends all groups with their threads, which PyTorch keeps as long as anything refers to a group.

    A thread of Gloo that frees a tensor while Python shuts down can abort the process: a finished run looks failed.
    """
    gc.collect()  # a finished training is a cycle; its model refers to the group that shares gradients
    dist.destroy_process_group()
    # Only now: the last of all references has to be one of Python's, which joins the threads without holding its lock.
    comm._get_global_gloo_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None


def _device(args: argparse.Namespace) -> torch.device:
    """What the config, with the command line's changes, says of the device."""
    cfg = read_config(args.config_file, args.opts)
    if isinstance(cfg, CfgNode):
        return torch.device(cfg.MODEL.DEVICE)
    return torch.device(OmegaConf.select(cfg, "train.device", default="cuda"))


def _check_machines(args: argparse.Namespace) -> None:
    fewest = 1 if args.num_machines > 1 else 0
    if args.num_gpus < fewest or args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} --machine-rank {args.machine_rank}: "
            "--machine-rank counts from 0 to --num-machines - 1; each of several machines needs at least one process"
        )
    if args.num_machines > 1 and args.dist_url in ("auto", default_argument_parser().get_default("dist_url")):
        raise ValueError(
            f"--num-machines {args.num_machines} needs --dist-url tcp://<address of machine 0>:<free port of it>, the "
            "same on all machines"
        )


def _check_gpus(wanted: int, device: torch.device, request: str) -> None:
    present = torch.cuda.device_count()
    on_cpu = "for processes on the CPU set MODEL.DEVICE cpu (of a lazy config train.device=cpu)"
    if wanted > present:
        raise ValueError(
            f"{request}, but this process sees {present} GPUs: use at most that many, or let each process see all of "
            f"its machine (CUDA_VISIBLE_DEVICES); {on_cpu}"
        )
    if device.index is not None:
        raise ValueError(
            f"MODEL.DEVICE is {device}, but {request}: set it to cuda, so that each process takes its own GPU; {on_cpu}"
        )
