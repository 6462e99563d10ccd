"""What each process of a training or an evaluation does."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from detectron2.utils import comm

from ..engine.main import main


def run_process(args: argparse.Namespace) -> dict[str, object]:
    """Trains or, with ``eval_only``, evaluates; the last line printed is the result.

    Args:
        args: detectron2's command line, and ours.
    """
    results: dict[str, object] = main(args)
    if comm.is_main_process():
        for line in summarize(results):
            print(line, flush=True)
    return results


def summarize(results: Mapping[str, object]) -> list[str]:
    """``bbox AP .. AP50 .. AP75 ..`` of an evaluation's results, with the data set's name where there are several."""
    metrics = results.get("bbox")
    if not isinstance(metrics, Mapping):
        named = {name: nested for name, nested in results.items() if isinstance(nested, Mapping)}
        return [f"{name}: {line}" for name, nested in named.items() for line in summarize(nested)]
    return ["bbox " + " ".join(f"{name} {metrics[name]:.1f}" for name in ("AP", "AP50", "AP75"))]
