#!/usr/bin/env python3
"""Trains each variant of a plan with each seed, evaluates it, and prints mean and standard deviation as a table.

A plan is one yaml file or several, merged (see benchmarks/ablations): a config, seeds, options common to all runs,
variants, and evaluations, the last three as lists of KEY VALUE, in which {data} stands for the folder of the data.
With TEST.EVAL_PERIOD a run keeps its learning curve (metrics.json), and the table tells after how many iterations each
variant reaches the final AP of the plan's reference variant. Finished runs are not repeated, and keep no checkpoints,
which would fill a disk in a day. With --jobs several runs share the cores: small models learn faster in two runs of one
thread each than one after the other.

    python tools/ablate.py benchmarks/ablations/dla_shapes.yaml --output output/dla_shapes --jobs 2
    python tools/ablate.py benchmarks/ablations/{fruit,photographs}.yaml --data datasets --output output/fruit
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate
from tqdm import tqdm

from dynamic_sparse_rcnn.errors import add_traceback_option, one_line_errors
from dynamic_sparse_rcnn.file_io import whole_file, write_json

TRAIN_NET = Path(__file__).parent / "train_net.py"
# COCO's, and the percentage of ground truths that an initial proposal finds with an IoU of 0.5.
METRICS = ("AP", "AP50", "AP75", "recall50")
CURVE = "bbox/AP"


@dataclass(frozen=True)
class Plan:
    """What the plan files say: options are lists of KEY VALUE, by the name of the variant or evaluation."""

    config: str
    seeds: list[int]
    variants: dict[str, list[Any]]
    evaluations: dict[str, list[Any]]
    common: list[Any] = field(default_factory=list)
    #: The variant whose final AP the others' curves are compared with.
    reference: str = ""


@dataclass(frozen=True)
class Result:
    """What a run of one variant with one seed gave.

    Attributes:
        metrics: by evaluation and name.
        curve: iteration and AP of each evaluation during the training.
        minutes: that its iterations took, without evaluations.
    """

    metrics: dict[str, dict[str, float]]
    curve: list[tuple[int, float]]
    minutes: float


Results = dict[tuple[str, int], Result]


def main() -> None:
    """Runs what is missing, prints the table, and writes it to ``table.txt``, and all metrics to ``results.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    data = os.environ.get("DATA", "datasets")
    parser.add_argument(
        "--data", default=data, metavar="FOLDER", help="for {data} in the plan; default: $DATA or datasets"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    add_traceback_option(parser)
    args = parser.parse_args()
    with one_line_errors(args.traceback):
        plan = read_plan(args.plan)
        if args.jobs > 1:
            os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // args.jobs))
        results = run_all(plan, args.output, args.data, args.jobs)
        table = tabulate(summarize(plan, results), ("variant", "evaluation", *METRICS, "minutes", "reaches reference"))
        print(table)
        with whole_file(args.output / "table.txt") as file:
            file.write(f"{table}\n".encode())
        by_name = {f"{v}, seed {s}": vars(result) for (v, s), result in results.items()}
        write_json(by_name, args.output / "results.json", indent=1)


def read_plan(paths: Sequence[Path]) -> Plan:
    """Reads plan files; of several, lists and variants add up, and other keys are the last one's.

    Raises:
        ValueError: keys are missing, empty or unknown.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        content = yaml.safe_load(path.read_text()) or {}
        for key, value in content.items():
            old = merged.get(key)
            if key == "common":
                value = [*(old or []), *value]
            merged[key] = {**(old or {}), **value} if isinstance(value, dict) else value
    names = ", ".join(map(str, paths))
    empty = {key for key in ("config", "seeds", "variants", "evaluations") if not merged.get(key)}
    if wrong := sorted((merged.keys() - {entry.name for entry in fields(Plan)}) | empty):
        raise ValueError(f"{names}: missing, empty or unknown keys: {', '.join(wrong)}. See benchmarks/ablations")
    plan = Plan(**merged)
    if plan.reference and plan.reference not in plan.variants:
        raise ValueError(f"{names}: the reference {plan.reference!r} is none of the variants {list(plan.variants)}")
    return plan


def run_all(plan: Plan, output: Path, data: str, jobs: int) -> Results:
    """Runs all variants with all seeds, ``jobs`` at a time; the first failure ends it."""
    runs = [(variant, seed) for seed in plan.seeds for variant in plan.variants]
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), desc="training", unit="run") as progress:
        futures = {pool.submit(run_variant, plan, *run, output, data): run for run in runs}
        for future in as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            future.result()
            progress.update()
    return {run: future.result() for future, run in futures.items()}


def run_variant(plan: Plan, variant: str, seed: int, output: Path, data: str) -> Result:
    """Trains one variant with one seed, unless that is done, evaluates it, and deletes its checkpoints.

    Raises:
        ValueError: it has been done with other settings.
        RuntimeError: the run fails.
    """
    folder = output / f"{variant}, seed {seed}"
    done = folder / "evaluations.json"
    options = [*plan.common, *plan.variants[variant], "SEED", seed]
    settings: dict[str, Any] = {"config": plan.config, "options": options, "evaluations": plan.evaluations}
    if "{data}" in json.dumps(settings):
        settings["data"] = os.path.abspath(data)
    if done.exists() and json.loads(done.read_text())["settings"] != settings:
        raise ValueError(f"{done} is of other settings than the plan's: remove its folder, or take another --output")
    if not done.exists():
        (folder / "metrics.json").unlink(missing_ok=True)  # of a run that was interrupted
        call(plan.config, options, folder, data)
        weights = ["MODEL.WEIGHTS", folder / "model_final.pth"]
        metrics = {}
        for name, extra in plan.evaluations.items():
            call(plan.config, [*options, *weights, *extra], folder / name, data, "--eval-only")
            metrics[name] = read_metrics(folder / name)
        curve, minutes = read_curve(folder)
        write_json({"settings": settings, "metrics": metrics, "curve": curve, "minutes": minutes}, done)
        for checkpoint in folder.glob("*.pth"):
            checkpoint.unlink()
    content = json.loads(done.read_text())
    curve = [(iteration, ap) for iteration, ap in content["curve"]]
    return Result(content["metrics"], curve, content["minutes"])


def call(config: str, options: list[Any], folder: Path, data: str, *flags: str) -> None:
    """Runs ``tools/train_net.py``; what it prints goes to ``stdout.txt`` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    options = [str(option).replace("{data}", data) for option in options]
    command = [sys.executable, str(TRAIN_NET), "--config-file", config, *flags, *options, "OUTPUT_DIR", str(folder)]
    log = folder / "stdout.txt"
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        raise RuntimeError(f"the run failed, its output is in {log}")


def read_metrics(folder: Path) -> dict[str, float]:
    """The metrics of boxes and, if any, of initial proposals in the lines that detectron2 prints for copying."""
    printed = (folder / "stdout.txt").read_text().splitlines()
    lines = [line.split("copypaste: ")[1] for line in printed if "copypaste: " in line]
    metrics: dict[str, float] = {}
    for task in ("Task: proposals", "Task: bbox"):
        if task in lines or task == "Task: bbox":
            last = len(lines) - 1 - lines[::-1].index(task)
            names, values = (line.split(",") for line in lines[last + 1 : last + 3])
            metrics |= zip(names, map(float, values), strict=True)
    return metrics


def read_curve(folder: Path) -> tuple[list[tuple[int, float]], float]:
    """Iteration and AP of each evaluation during a training, and the minutes of its iterations."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    seconds = [line["time"] for line in lines if "time" in line]  # medians of the last 20 iterations
    length = max(line["iteration"] for line in lines if "time" in line) + 1
    # The last evaluation may be logged after the last iteration.
    curve = [(min(line["iteration"] + 1, length), line[CURVE]) for line in lines if CURVE in line]
    return curve, length * statistics.mean(seconds) / 60


def summarize(plan: Plan, results: Results) -> list[list[str]]:
    """A row for each variant and evaluation: mean and, of several seeds, standard deviation."""
    first = next(iter(plan.evaluations))
    curves = [results[plan.reference, seed].curve for seed in plan.seeds] if plan.reference else []
    goals = [curve[-1][1] for curve in curves if curve]
    rows = []
    for variant in plan.variants:
        runs = [results[variant, seed] for seed in plan.seeds]
        reached = iterations_until(statistics.mean(goals), runs) if goals else ""
        of_training = [mean_and_std([run.minutes for run in runs]), reached]
        for evaluation in plan.evaluations:
            metrics = [run.metrics[evaluation] for run in runs]
            cells = [mean_and_std([run[name] for run in metrics if name in run]) for name in METRICS]
            rows.append([variant, evaluation, *cells, *(of_training if evaluation == first else ["", ""])])
    return rows


def iterations_until(goal: float, runs: Sequence[Result]) -> str:
    """Mean and standard deviation of the iterations after which curves reach an AP; and how many do, if not all."""
    reached = [next((iteration for iteration, ap in run.curve if ap >= goal), None) for run in runs]
    found = [float(iteration) for iteration in reached if iteration is not None]
    share = f" ({len(found)} of {len(runs)})" if len(found) < len(runs) else ""
    return f"{mean_and_std(found, digits=0)}{share}"


def mean_and_std(values: Sequence[float], digits: int = 1) -> str:
    """``mean ± standard deviation``, or the one value, or a dash for none."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    main()
