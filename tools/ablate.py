#!/usr/bin/env python3
"""Trains each variant of a plan with each seed, evaluates it, and prints mean and spread of the AP as a table.

A plan is a yaml file (see benchmarks/ablations): a config, seeds, options common to all runs, variants, and
evaluations, the last three as lists of KEY VALUE. Runs that are finished already are not repeated. With --jobs,
several runs share the cores: small models learn faster in two runs of one thread each than one after the other.

    python tools/ablate.py benchmarks/ablations/dla_shapes.yaml --output output/dla_shapes --jobs 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate
from tqdm import tqdm

TRAIN_NET = Path(__file__).parent / "train_net.py"
# COCO's, and per cent of the ground truths that an initial proposal finds, with an IoU of 0.5.
METRICS = ("AP", "AP50", "AP75", "recall50")
# The metrics of each evaluation, by variant and seed.
Results = dict[tuple[str, int], dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Plan:
    """What a plan file says: options are lists of KEY VALUE, by the name of the variant or evaluation."""

    config: str
    seeds: list[int]
    common: list[Any]
    variants: dict[str, list[Any]]
    evaluations: dict[str, list[Any]]


def main() -> None:
    """Runs what is missing, then prints the table and writes it to ``results.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    plan = read_plan(args.plan)
    if args.jobs > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // args.jobs))
    results = run_all(plan, args.output, args.jobs)
    rows = summarise(plan, results)
    print(tabulate(rows, ("variant", "evaluation", *METRICS)))
    (args.output / "results.json").write_text(
        json.dumps({f"{v}, seed {s}": r for (v, s), r in results.items()}, indent=1)
    )


def read_plan(path: Path) -> Plan:
    """Reads a plan, and stops with the names of what is missing, empty or unknown in it."""
    content = yaml.safe_load(path.read_text())
    found = set(content) if isinstance(content, dict) else set()
    expected = {field.name for field in fields(Plan)}
    empty = {name for name in ("config", "seeds", "variants", "evaluations") if name in found and not content[name]}
    if wrong := sorted((found ^ expected) | empty):
        raise SystemExit(
            f"error: {path} has missing, empty or unknown keys: {', '.join(wrong)}. See benchmarks/ablations"
        )
    return Plan(**content)


def run_all(plan: Plan, output: Path, jobs: int) -> Results:
    """Runs all variants with all seeds, ``jobs`` at a time; the first failure ends it."""
    runs = [(variant, seed) for seed in plan.seeds for variant in plan.variants]
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), desc="training", unit="run") as progress:
        futures = {pool.submit(run_variant, plan, *run, output): run for run in runs}
        for future in as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            future.result()
            progress.update()
    return {run: future.result() for future, run in futures.items()}


def run_variant(plan: Plan, variant: str, seed: int, output: Path) -> dict[str, dict[str, float]]:
    """Trains one variant with one seed, unless it is done, and gives the metrics of each evaluation."""
    folder = output / f"{variant}, seed {seed}"
    done = folder / "evaluations.json"
    options = [*plan.common, *plan.variants[variant], "SEED", seed]
    settings = {"config": plan.config, "options": options, "evaluations": plan.evaluations}
    if done.exists() and json.loads(done.read_text())["settings"] != settings:
        raise SystemExit(
            f"error: {done} is of other settings than the plan's: remove its folder, or take another --output"
        )
    if not done.exists():
        call(plan, options, folder)
        weights = ["MODEL.WEIGHTS", folder / "model_final.pth"]
        evaluations = {}
        for name, extra in plan.evaluations.items():
            call(plan, [*options, *weights, *extra], folder / name, "--eval-only")
            evaluations[name] = read_metrics(folder / name)
        partial = done.with_suffix(".partial")
        partial.write_text(json.dumps({"settings": settings, "metrics": evaluations}))
        partial.replace(done)
    metrics: dict[str, dict[str, float]] = json.loads(done.read_text())["metrics"]
    return metrics


def call(plan: Plan, options: list[Any], folder: Path, *flags: str) -> None:
    """Runs ``tools/train_net.py``; what it prints goes to ``stdout.txt`` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, TRAIN_NET, "--config-file", plan.config, *flags, *options, "OUTPUT_DIR", folder]
    log = folder / "stdout.txt"
    with log.open("w") as file:
        code = subprocess.run([str(part) for part in command], stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"error: the run failed, its output is in {log}")


def read_metrics(folder: Path) -> dict[str, float]:
    """The metrics of boxes and initial proposals that an evaluation printed in detectron2's lines for copying."""
    printed = (folder / "stdout.txt").read_text().splitlines()
    lines = [line.split("copypaste: ")[1] for line in printed if "copypaste: " in line]
    metrics: dict[str, float] = {}
    for task in ("Task: proposals", "Task: bbox"):
        last = len(lines) - 1 - lines[::-1].index(task)
        names, values = (line.split(",") for line in lines[last + 1 : last + 3])
        metrics |= zip(names, map(float, values), strict=True)
    return metrics


def summarise(plan: Plan, results: Results) -> list[list[str]]:
    """A row a variant and evaluation: mean and, of several seeds, standard deviation."""
    rows = []
    for variant in plan.variants:
        for evaluation in plan.evaluations:
            runs = [results[variant, seed][evaluation] for seed in plan.seeds]
            cells = [[run[metric] for run in runs] for metric in METRICS]
            rows.append([variant, evaluation, *map(mean_and_spread, cells)])
    return rows


def mean_and_spread(values: list[float]) -> str:
    """``mean ± standard deviation``, or the one value."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
