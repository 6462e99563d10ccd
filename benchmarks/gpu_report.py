#!/usr/bin/env python3
"""Everything that waits for a GPU, in at most ten minutes: tests, speed, memory, matching, a training, an export.

Each part is a process of its own that is stopped when its time is over; what it measured until then, and what failed,
is in the table all the same. Writes ``report.json`` and ``report.md``.

    python benchmarks/gpu_report.py --data coco:train.json:images     # with 300 iterations on this set, at 640 px
    python benchmarks/gpu_report.py --miniature                       # on a CPU: whether all parts run
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tabulate import tabulate

ROOT = Path(__file__).parents[1]
#: Configs of the training: with a GPU, and in miniature.
CONFIG, SMALL_CONFIG = "coco/dynamic_sparse_rcnn_R_50_FPN_300pro_3x.yaml", "small/sparse_rcnn_R_18_FPN_50pro_256px.yaml"


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: in the table.
        command: whose last line, or ``speed.json`` if it writes one, has the numbers.
        limit: seconds after which it is stopped.
        speed: the folder of ``speed.json``.
    """

    name: str
    command: list[str]
    limit: int
    speed: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a part.

    Attributes:
        name: of the part.
        state: ``done``, ``failed`` or ``stopped``, the latter after its limit.
        seconds: that it took.
        numbers: by name, what it measured.
        tail: the last lines of what it printed, where it is not done.
    """

    name: str
    state: str
    seconds: float
    numbers: dict[str, float | str] = field(default_factory=dict)
    tail: str = ""


def plan(output: Path, data: str | None, miniature: bool) -> Iterator[Part]:
    """All parts; their limits add up to less than ten minutes."""
    device = "cpu" if miniature else "cuda"
    size = ["--workload", "demo", "--images", "1", "--repeats", "1"] if miniature else ["--workload", "r50"]
    speed = [sys.executable, "benchmarks/speed.py", *size, "--device", device]
    parts = [sys.executable, "benchmarks/gpu_parts.py", "--device", device]
    tests = ["tests/benchmarks/test_plain_sparse_rcnn.py"] if miniature else ["-m", "gpu"]
    yield Part("tests", [sys.executable, "-m", "pytest", "-q", *tests], 80)
    for precision, cases, limit in (("float16", ["detector", "method"], 100), ("bfloat16", ["detector"], 70)):
        folder = output / precision
        repeats = [] if miniature else ["--repeats", "5"]
        options = ["--precision", precision, "--cases", *cases, "--output", str(folder), *repeats]
        yield Part(f"speed, {precision}", [*speed, *options], limit, folder)
    for name, limit in (("matching", 30), ("compile", 80), ("graph", 20), ("export", 60)):
        yield Part(name, [*parts, name, *(["--miniature"] if miniature else [])], limit)
    if data is not None:
        config, iterations = (SMALL_CONFIG, 2) if miniature else (CONFIG, 300)
        side = 64 if miniature else 640
        options = ["SOLVER.MAX_ITER", str(iterations), "INPUT.MIN_SIZE_TRAIN", f"({side},)", "INPUT.MIN_SIZE_TEST"]
        options += [str(side), "INPUT.CROP.ENABLED", "False", "MODEL.DEVICE", device, "MODEL.WEIGHTS", ""]
        options += ["SOLVER.IMS_PER_BATCH", "2" if miniature else "16"]
        train = [sys.executable, "-m", "dynamic_sparse_rcnn.cli", "train", "--data", data, "--val", data]
        yield Part("training", [*train, "--output", str(output / "run"), "--config-file", config, *options], 150)


def run_part(part: Part) -> Outcome:
    """Runs one part, for no longer than its limit."""
    start = time.perf_counter()
    try:
        done = subprocess.run(part.command, cwd=ROOT, timeout=part.limit, capture_output=True, text=True)
        state, output = "done" if done.returncode == 0 else "failed", done.stdout + done.stderr
        last = done.stdout.strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired as error:
        state, last = "stopped", ""
        output = "".join(x.decode() if isinstance(x, bytes) else x or "" for x in (error.stdout, error.stderr))
    numbers = read_numbers(last, part.speed) if state == "done" else {}
    tail = "" if state == "done" else "\n".join(output.splitlines()[-15:])
    return Outcome(part.name, state, time.perf_counter() - start, numbers, tail)


def read_numbers(last: str, speed: Path | None) -> dict[str, float | str]:
    """The numbers of a part: medians and ratios of ``speed.json``, a JSON object, or the last line as it is."""
    if speed is not None:
        content = json.loads((speed / "speed.json").read_text())
        return {
            f"{entry['name']}, {variant}, {entry['unit']}": f"{value:.1f} ({entry['ratios'][variant]:.3f} x)"
            for entry in content["comparisons"]
            for variant, value in entry["medians"].items()
        }
    try:
        numbers = json.loads(last)
    except json.JSONDecodeError:
        return {"result": last}
    return numbers if isinstance(numbers, dict) else {"result": last}


def write_report(outcomes: Sequence[Outcome], folder: Path) -> str:
    """Writes both files; returns the table."""
    rows = [
        (x.name, x.state, f"{x.seconds:.0f} s", name, value)
        for x in outcomes
        for name, value in (x.numbers or {x.tail.rpartition("\n")[2][:120]: ""}).items()
    ]
    table = tabulate(rows, ("part", "state", "took", "what", "value"), tablefmt="github")
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    content = {"machine": machine, "torch": torch.__version__, "parts": [asdict(x) for x in outcomes]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "report.md").write_text(f"{machine}, PyTorch {torch.__version__}\n\n{table}\n")
    return table


def main() -> None:
    """Runs all parts, one after the other; ends with an error if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="NAME", help="coco:JSON:FOLDER or another form; default: no training")
    parser.add_argument("--miniature", action="store_true", help="small problems, on a CPU")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts to run; default: all")
    parser.add_argument("--output", type=Path, default=Path("output/gpu_report"), metavar="FOLDER")
    args = parser.parse_args()
    if not args.miniature and not torch.cuda.is_available():
        parser.error("there is no GPU here that PyTorch can use: --miniature runs small problems on a CPU")
    outcomes: list[Outcome] = []
    folder = args.output.absolute()
    for part in plan(folder, args.data, args.miniature):
        if not args.only or part.name in args.only:
            outcomes.append(run_part(part))
            print(f"{part.name}: {outcomes[-1].state} after {outcomes[-1].seconds:.0f} s", flush=True)
            table = write_report(outcomes, folder)  # after each part: an interrupted report has what it has
    print(f"\n{table if outcomes else 'no part'}\n\nwritten: {args.output}/report.json, {args.output}/report.md")
    if any(x.state == "failed" for x in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
