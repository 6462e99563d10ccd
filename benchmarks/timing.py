"""Times of variants that take turns, so that what else the machine does hits all alike; parts of a step; memory."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


def time_alternating(calls: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns."""
    return {name: statistics.median(values) for name, values in time_rounds(calls, repeats, device).items()}


def time_rounds(calls: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each call in each round, the calls taking turns, and turns at being the first."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for repeat in range(repeats + 1):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            start = now(device)
            calls[name]()
            if repeat:  # the first is for warming up
                seconds[name].append(now(device) - start)
    return seconds


def now(device: str) -> float:
    """Seconds on a clock: on a GPU when all that it has been given is done, on a CPU with one thread the process's own.

    The latter stands still while the machine does something else.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


class Stopwatch:
    """Seconds of the parts of one step, by name; what lies within another part counts for both."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Adds the time of what is done within."""
        start = now(self.device)
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + now(self.device) - start

    @contextmanager
    def timing_modules(self, parts: Mapping[str, list[nn.Module]]) -> Iterator[None]:
        """Adds the time of each forward pass of the modules."""
        running: dict[nn.Module, ExitStack] = {}

        def begin(module: nn.Module, part: str) -> None:
            running[module] = ExitStack()
            running[module].enter_context(self.timing(part))

        with ExitStack() as hooks:
            for part, modules in parts.items():
                for module in modules:
                    handles = (
                        module.register_forward_pre_hook(lambda m, _, part=part: begin(m, part)),
                        module.register_forward_hook(lambda m, *_: running.pop(m).close()),
                    )
                    for handle in handles:
                        hooks.callback(handle.remove)
            yield


def peak_memory(call: Callable[[], object], device: str) -> int:
    """Bytes: on a GPU the most that is allocated during the call; on a CPU the most that the call itself allocates.

    A CPU's are the tensors', as PyTorch's profiler sees them, without scratch memory of libraries.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a profiler forgets earlier cycles: there are none
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    allocated = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        allocated += change
        peak = max(peak, allocated)
    return peak
