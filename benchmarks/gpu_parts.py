#!/usr/bin/env python3
"""Parts of gpu_report.py: each prints a JSON object of numbers as its last line."""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from exporting import export
from speed import DEMO, METHODS, R50
from timing import time_alternating
from workloads import Subject, Workload

from dynamic_sparse_rcnn.deploy.backends import OnnxRuntime
from dynamic_sparse_rcnn.deploy.inputs import prepare
from dynamic_sparse_rcnn.modeling.assignment.sinkhorn import sinkhorn

Numbers = dict[str, float]
_REPEATS = 5
_SHOWN_OPERATORS = 5


def measure_matching(workload: Workload) -> Numbers:
    """The operators of a DLA + DPG step's criterion that take most of the device's time, in ms."""
    subject = Subject.make(workload, METHODS["DLA + DPG"])
    subject.step()
    criterion = subject.model.get_submodule("criterion")
    on_gpu = workload.device == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    profilers: list[torch.profiler.profile] = []

    def begin(*_: object) -> None:
        profilers.append(torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, activity]))
        profilers[-1].start()

    handles = [
        criterion.register_forward_pre_hook(begin),
        criterion.register_forward_hook(lambda *_: profilers[-1].stop()),
    ]
    subject.loss()
    for handle in handles:
        handle.remove()
    times = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000
        for event in profilers[-1].key_averages()
    }
    largest = sorted(times, key=times.__getitem__, reverse=True)[:_SHOWN_OPERATORS]
    return {"all operators, ms": sum(times.values())} | {f"{name}, ms": times[name] for name in largest}


def measure_compile(workload: Workload) -> Numbers:
    """A training step as it is, and with a compiled backbone and compiled stages, in ms."""
    subject = Subject.make(workload)
    compiled = copy.deepcopy(subject.model)
    # Inductor takes minutes on a CPU, where only whether it runs is of interest.
    backend = "inductor" if workload.device == "cuda" else "aot_eager"
    compiled.get_submodule("backbone").compile(backend=backend)
    for stage in compiled.get_submodule("head.head_series").children():
        stage.compile(backend=backend)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-8)
    other = replace(subject, model=compiled, optimizer=optimizer)
    other.step()  # compiles
    return in_ms({"as it is": subject.step, "compiled": other.step}, workload.device)


def measure_graph(workload: Workload) -> Numbers:
    """Sinkhorn on the problems of a step, as it is and as one CUDA graph, in ms."""
    problems, rows = 6 * workload.images, workload.ground_truths + 1
    cost = torch.rand(problems, rows, workload.proposals, device=workload.device)
    supply = torch.full((problems, rows), 1.0, device=workload.device)
    supply[:, -1] = workload.proposals - workload.ground_truths
    demand = torch.ones(problems, workload.proposals, device=workload.device)

    def solve() -> None:
        sinkhorn(cost, supply, demand, epsilon=0.1, num_iters=50)

    calls: dict[str, Callable[[], object]] = {"as it is": solve}
    if workload.device == "cuda":
        solve()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            solve()
        calls["CUDA graph"] = graph.replay
    return in_ms(calls, workload.device)


def measure_export(workload: Workload) -> Numbers:
    """One image, eager and in ONNX Runtime on the same device, in ms; the largest difference of the scores."""
    one = replace(workload, images=1, device="cpu", precision=None)
    detector = one.make_detector(one.load_config()).eval()
    inputs = one.make_inputs(num_classes=1)
    with tempfile.TemporaryDirectory() as folder:
        path = export(detector, inputs[0]["image"], Path(folder), "onnx", "float32")
        runtime = OnnxRuntime(str(path), workload.device, None)
    image = inputs[0]["image"]
    feed = prepare([image.numpy()], [tuple(image.shape[1:])], runtime.metadata)
    detector.to(workload.device)

    @torch.no_grad()
    def eager() -> list[dict[str, Instances]]:
        outputs: list[dict[str, Instances]] = detector(inputs)
        return outputs

    expected = eager()[0]["instances"].scores.cpu()
    found = torch.from_numpy(runtime(feed)[1][0][: len(expected)].copy())
    times = in_ms({"eager": eager, "ONNX Runtime": lambda: runtime(feed)}, workload.device)
    return times | {"difference of scores": float((found - expected).abs().max())}


def in_ms(calls: dict[str, Callable[[], object]], device: str) -> Numbers:
    """Medians, by call."""
    return {f"{name}, ms": 1000 * x for name, x in time_alternating(calls, _REPEATS, device).items()}


PARTS = {
    "matching": measure_matching,
    "compile": measure_compile,
    "graph": measure_graph,
    "export": measure_export,
}


def main() -> None:
    """Measures one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--miniature", action="store_true")
    args = parser.parse_args()
    small = replace(DEMO, images=1, height=64, width=64)
    workload = replace(small if args.miniature else R50, device=args.device)
    with EventStorage():
        numbers = PARTS[args.part](workload)
    print(json.dumps({name: round(value, 6) for name, value in numbers.items()}))


if __name__ == "__main__":
    main()
