#!/usr/bin/env python3
"""How fast the detector trains and infers, beside a plain Sparse R-CNN, part by part, and how it grows.

All in one process, the variants taking turns; medians, and the medians of the ratios, round by round, to the first
variant. Writes a table, ``speed.json`` and ``speed.png``. The cases:

    detector  training step, inference and peak memory of the detector ("ours"), beside those of
              plain_sparse_rcnn.py with the same weights ("plain")
    parts     of the training step of both
    options   training step and its peak memory in other ways: the dynamic convolutions' activations kept or
              recomputed, images and maps with channels last, GRAD_CHECKPOINTING
    method    training step and inference with dynamic label assignment (DLA) and proposals (DPG), beside neither
    export    inference of one image and its peak memory: as it is, in bfloat16, compiled, exported; CPUs alone
    cpu       training step in float32 and bfloat16, channels last or not, beside the plain one; CPUs alone
    scaling   the training step with the number of images, proposals and ground truths, and with the image's side

    python benchmarks/speed.py                                        # the demo's detector, minutes on two cores
    python benchmarks/speed.py --workload r50 --precision float16     # R50, 300 proposals, 800 x 1216, on a GPU
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage
from exporting import compare_exports
from plain_sparse_rcnn import PlainSparseRCNN
from speed_report import Comparison, table, write_report
from timing import Stopwatch, peak_memory, time_rounds
from torch import nn
from ways import (
    Way,
    activations_kept,
    activations_recomputed,
    grad_checkpointing,
    unchanged,
)
from workloads import Subject, Workload, data_loading

from dynamic_sparse_rcnn import SetCriterion, SparseRCNN

DEMO = Workload("shapes/sparse_rcnn_slim_R_50_FPN_20pro.yaml", 8, 128, 128, 3, 20, "cpu", None)
R50 = Workload("coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml", 16, 800, 1216, 7, 300, "cpu", None)
R18 = Workload("small/sparse_rcnn_R_18_FPN_50pro_256px.yaml", 8, 256, 256, 3, 50, "cpu", None)
LITE0 = Workload("small/sparse_rcnn_lite0_FPN_30pro_160px.yaml", 8, 160, 208, 3, 30, "cpu", None)
WORKLOADS = {"demo": DEMO, "r50": R50, "r18": R18, "lite0": LITE0}
DLA = ["MODEL.SparseRCNN.MATCHER", "OptimalTransportMatcher"]
DPG = ["MODEL.PROPOSAL_GENERATOR.NAME", "DynamicProposalGenerator"]
METHODS = {"static": [], "DLA": DLA, "DPG": DPG, "DLA + DPG": [*DLA, *DPG]}
# What grows, to these multiples of the workload's own.
GROWTH = {"images": (0.25, 0.5, 1, 2), "proposals": (1, 5, 15), "side": (0.5, 1, 2), "ground_truths": (1, 3, 6)}
GROWTH_R50 = {"images": (0.25, 0.5, 1), "proposals": (1 / 3, 1, 5 / 3), "side": (0.5, 0.75, 1), "ground_truths": (1, 8)}


def compare_detectors(workload: Workload, repeats: int) -> Iterator[Comparison]:
    """Ours and the plain one."""
    subjects = make_pair(workload)
    yield in_ms("detector", "training step", {k: s.step for k, s in subjects.items()}, workload, repeats)
    memory = {name: [peak_memory(subject.step, workload.device) / 1e6] for name, subject in subjects.items()}
    yield Comparison("detector", "peak memory of a training step", "MB", memory)
    yield in_ms("detector", "inference", {k: s.infer for k, s in subjects.items()}, workload, repeats)
    calls = {name: subject.make_prediction() for name, subject in subjects.items()}
    yield in_ms("detector", "inference without pre- and post-processing", calls, workload, repeats)


def compare_parts(workload: Workload, repeats: int) -> Iterator[Comparison]:
    """What a training step of both spends its time on."""
    subjects = make_pair(workload)
    seconds: dict[str, dict[str, list[float]]] = {}
    for repeat in range(repeats + 1):
        for name, subject in subjects.items():
            for part, value in time_parts(subject).items():
                if repeat:  # the first is for warming up
                    seconds.setdefault(part, {}).setdefault(name, []).append(1000 * value)
    with data_loading(workload) as load:
        yield in_ms("parts", "data (one process)", {"both": load}, workload, repeats)
    for part, values in seconds.items():
        yield Comparison("parts", part, "ms", values)


def time_parts(subject: Subject) -> dict[str, float]:
    """Seconds of the parts of a training step; a GPU finishes one before the next begins."""
    watch, model = Stopwatch(subject.workload.device), subject.model
    criterion = model.get_submodule("criterion")
    matching = [criterion.get_submodule("matcher")]
    if isinstance(criterion, SetCriterion):
        matching.append(criterion.cost_model)
    parts: dict[str, list[nn.Module]] = {
        "backbone": [model.get_submodule("backbone")],
        "generator": [model.get_submodule("proposal_generator")],
        "head": [model.get_submodule("head")],
        "matching": matching,
        "loss": [criterion],
    }
    with watch.timing_modules(parts), watch.timing("forward, else"):
        loss = subject.scaler.scale(subject.loss())
    watch.seconds["forward, else"] -= sum(watch.seconds[part] for part in ("backbone", "generator", "head", "loss"))
    watch.seconds["loss"] -= watch.seconds["matching"]
    with watch.timing("backward"):
        loss.backward()
    with watch.timing("optimizer"):
        subject.update()
    return {part: watch.seconds[part] for part in (*parts, "forward, else", "backward", "optimizer")}


def compare_options(workload: Workload, repeats: int) -> Iterator[Comparison]:
    """Other ways to do the same."""
    subject = Subject.make(workload)
    ways = {name: in_another_way(subject, way) for name, way in WAYS.items()}
    # Before there are other weights in the memory.
    memory = {name: [peak_memory(step, workload.device) / 1e6] for name, step in ways.items()}
    ways["channels last"] = Subject.make(workload, ["MODEL.CHANNELS_LAST", "True"]).step
    yield in_ms("options", "training step in another way", ways, workload, repeats)
    yield Comparison("options", "its peak memory", "MB", memory)


def in_another_way(subject: Subject, way: Way) -> Callable[[], None]:
    """A training step for which the detector is changed, and changed back."""

    def step() -> None:
        assert isinstance(subject.model, SparseRCNN)
        with way(subject.model):
            subject.step()

    return step


def compare_methods(workload: Workload, repeats: int) -> Iterator[Comparison]:
    """What dynamic label assignment and proposals cost."""
    subjects = {name: Subject.make(workload, options) for name, options in METHODS.items()}
    yield in_ms("method", "training step of a method", {k: s.step for k, s in subjects.items()}, workload, repeats)
    yield in_ms("method", "inference of a method", {k: s.infer for k, s in subjects.items()}, workload, repeats)


def compare_cpu_training(workload: Workload, repeats: int) -> Iterator[Comparison]:
    """What precision and memory format make of a training step."""
    full, half = (replace(workload, precision=precision) for precision in (None, "bfloat16"))
    last = ["MODEL.CHANNELS_LAST", "True"]
    subjects = make_pair(full) | {
        "channels last": Subject.make(full, last),
        "bfloat16": Subject.make(half),
        "bfloat16, channels last": Subject.make(half, last),
    }
    calls = {name: subject.step for name, subject in subjects.items()}
    yield in_ms("cpu", "training step on a CPU", calls, workload, repeats)


def compare_scaling(workload: Workload, repeats: int) -> Iterator[Comparison]:
    """The training step of larger and smaller problems."""
    growth = GROWTH if workload.config == DEMO.config else GROWTH_R50
    for what, multiples in growth.items():
        for multiple in multiples:
            grown = grow(workload, what, multiple)
            subjects = make_pair(grown) | {"ours, DLA + DPG": Subject.make(grown, METHODS["DLA + DPG"])}
            value = grown.height if what == "side" else getattr(grown, what)
            name = f"{what.replace('_', ' ')} = {value}"
            # Half as often: they are many, and some are large.
            yield in_ms("scaling", name, {k: s.step for k, s in subjects.items()}, grown, (repeats + 1) // 2)


def grow(workload: Workload, what: str, multiple: float) -> Workload:
    """A workload with that many times the images, say."""
    names = ("height", "width") if what == "side" else (what,)
    return replace(workload, **{name: max(1, round(multiple * getattr(workload, name))) for name in names})


def make_pair(workload: Workload) -> dict[str, Subject]:
    """The plain detector and ours, which share weights and optimizer."""
    ours = Subject.make(workload)
    assert isinstance(ours.model, SparseRCNN)
    return {"plain": replace(ours, model=PlainSparseRCNN(ours.model)), "ours": ours}


def in_ms(
    case: str, name: str, calls: Mapping[str, Callable[[], object]], workload: Workload, repeats: int
) -> Comparison:
    """Milliseconds of calls that take turns."""
    seconds = time_rounds(calls, repeats, workload.device)
    return Comparison(case, name, "ms", {variant: [1000 * x for x in values] for variant, values in seconds.items()})


WAYS: dict[str, Way] = {
    "ours": unchanged,
    "activations kept": activations_kept,
    "activations recomputed": activations_recomputed,
    "GRAD_CHECKPOINTING": grad_checkpointing,
}
CASES: dict[str, Callable[[Workload, int], Iterator[Comparison]]] = {
    "detector": compare_detectors,
    "parts": compare_parts,
    "options": compare_options,
    "method": compare_methods,
    "scaling": compare_scaling,
    "export": compare_exports,
    "cpu": compare_cpu_training,
}
#: Those that any device can run.
DEFAULT_CASES = [name for name in CASES if name not in ("export", "cpu")]


def parse_args() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="demo")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=DEFAULT_CASES)
    for name in ("images", "height", "width", "ground-truths", "proposals"):
        parser.add_argument(f"--{name}", type=int, help="instead of the workload's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precision", choices=("float16", "bfloat16"), help="mixed with float32; default: float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; default 1")
    parser.add_argument("--output", type=Path, default=Path("output/bench"), metavar="FOLDER")
    return parser.parse_args()


def main() -> None:
    """Prints each number when it is there, then the table."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    changes = {name: getattr(args, name) for name in ("images", "height", "width", "ground_truths", "proposals")}
    changes = {name: value for name, value in changes.items() if value is not None}
    workload = replace(WORKLOADS[args.workload], device=args.device, precision=args.precision, **changes)
    print(f"{workload}, {args.threads} CPU thread(s), medians of {args.repeats}", flush=True)
    comparisons: list[Comparison] = []
    with EventStorage():
        for number, case in enumerate(args.cases, start=1):
            print(f"case {number} of {len(args.cases)}: {case}", flush=True)
            for comparison in CASES[case](workload, args.repeats):
                comparisons.append(comparison)
                values = ", ".join(f"{k} {v:.1f}" for k, v in comparison.values.items())
                print(f"  {comparison.name}: {values} {comparison.unit}", flush=True)
    print(f"\n{table(comparisons)}")
    write_report(comparisons, vars(args) | {"output": str(args.output)}, args.output)
    print(f"\nwritten: {args.output}/speed.json, {args.output}/speed.png")


if __name__ == "__main__":
    main()
