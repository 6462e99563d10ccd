"""``dsrcnn app``."""

from __future__ import annotations

import argparse

from .options import DATA_HELP, Subparsers, add_command, add_trust_option

_DESCRIPTION = """Try a detector on a page in the browser, on this machine.
RUN_OR_CHECKPOINT is a run's folder, a checkpoint, or a name in the model zoo;
default: a small detector of shapes. The page shows the detections, the
proposals after each stage, the experts' weights and, with --data, which
proposals learn from which object. It uses no network and has no telemetry."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "app", "[RUN_OR_CHECKPOINT] [OPTION ..]", _DESCRIPTION)
    parser.add_argument("source", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--data", action="append", default=[], metavar="NAME", help=DATA_HELP)
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="0: any free port; default 7860")
    parser.add_argument("--config-file", metavar="FILE", help="default: config.yaml beside the checkpoint")
    parser.add_argument("--score-threshold", type=float, default=0.5, metavar="S", help="to start with; default 0.5")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, ..")
    add_trust_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Serves the page until it is interrupted.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the port is taken, or there is no such detector or data set.
        ValueError: the detector has no stages, or the data set has other classes.
    """
    import os
    import tempfile

    from ..data.formats import expand_folders
    from ..errors import import_extra
    from ..prediction.predictor import Predictor

    # Before Gradio is imported, which reads them then.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")
    import_extra("gradio", "app")
    from ..app.images import find_records
    from ..app.page import Page, build
    from ..app.server import listen, serve

    predictor = Predictor(
        args.config_file,
        args.source,
        device=args.device,
        score_threshold=args.score_threshold,
        trust_checkpoint=args.trust_checkpoint,
    )
    page = Page(predictor, find_records(predictor, expand_folders(args.data, "test", "val", "train")))
    with tempfile.TemporaryDirectory() as uploads, listen(args.port) as listening:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        blocks = build(page, f"Dynamic Sparse R-CNN: {args.source or 'shapes'}")
        print(f"http://127.0.0.1:{listening.getsockname()[1]} (Ctrl+C ends it)", flush=True)
        serve(blocks, listening)
