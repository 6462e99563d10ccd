#!/usr/bin/env python3
"""Detects objects in images, folders, glob patterns, video files and the pictures of a camera.

Without a config it is the small detector of shapes that comes with the package. To ``--output`` go
``detections.json`` (COCO's result format) and, unless there is ``--no-draw``, each image with its detections, or the
video. At the end it says how much time went into decoding, into the model and into drawing.

    python tools/demo.py --input docs/shapes.png
    python tools/demo.py --config-file output/mine/config.yaml --weights output/mine/model_final.pth \\
        --input 'photos/*.jpg' clip.mp4 --output output/predictions
    python tools/demo.py --camera 0 --max-frames 300
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger
from fvcore.common.timer import Timer
from tqdm import tqdm

from dynamic_sparse_rcnn import Prediction, Predictor
from dynamic_sparse_rcnn.prediction.predictor import batches
from dynamic_sparse_rcnn.prediction.results import CocoResults
from dynamic_sparse_rcnn.prediction.sources import Frame, FrameSource, open_source
from dynamic_sparse_rcnn.prediction.writing import PictureWriter

logger = logging.getLogger("dynamic_sparse_rcnn.demo")


class Stopwatches:
    """How long each kind of work took, in seconds."""

    def __init__(self) -> None:
        self.decode, self.infer, self.draw = (_paused() for _ in range(3))

    def decoded(self, source: FrameSource, at_most: int | None) -> Iterator[Frame]:
        """The source's frames, decoding timed."""
        frames = iter(source)
        yield from itertools.islice(iter(lambda: _timed_next(self.decode, frames), None), at_most)

    def report(self, images: int) -> str:
        """One line."""
        parts = [f"{name} {timer.seconds():.2f} s" for name, timer in vars(self).items()]
        each = self.infer.seconds() / images if images else 0
        return f"{', '.join(parts)} ({1000 * each:.0f} ms an image to infer)"


def _paused() -> Timer:
    timer = Timer()
    timer.pause()
    return timer


def _timed_next(timer: Timer, frames: Iterator[Frame]) -> Frame | None:
    timer.resume()
    try:
        return next(frames, None)
    finally:
        timer.pause()


def main(args: argparse.Namespace) -> None:
    """Runs the demo; the last lines printed are what was found, where it is and how long it took.

    Raises:
        OSError: none of the images could be read, or a picture not be written.
        ValueError: an image lies in the folder that pictures are written to.
    """
    setup_logger(name="dynamic_sparse_rcnn")
    sources = [open_source(item) for item in args.input]
    if args.camera is not None:
        sources.append(open_source(args.camera))
    predictor = Predictor(
        args.config_file,
        args.weights,
        device=args.device,
        score_threshold=args.score_threshold,
        batch_size=args.batch_size,
        precision=args.precision,
        trust_checkpoint=args.trust_checkpoint,
    )
    if not args.no_draw:
        _check_apart(sources, args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    watches, results, written, found, images = Stopwatches(), CocoResults(), set[Path](), 0, 0
    try:
        for source in sources:
            writer = PictureWriter(args.output, source, written)
            for prediction in run(predictor, source, writer, watches, args):
                results.add(prediction)
                found, images = found + len(prediction.instances), images + 1
    except KeyboardInterrupt:
        logger.warning("Stopped; what has been found so far is kept")
    results.write(args.output / "detections.json")
    unreadable = [file for source in sources for file, _ in source.unreadable]
    if unreadable:
        print(f"{len(unreadable)} could not be read: {', '.join(unreadable[:5])}{' ...' if unreadable[5:] else ''}")
    print(f"{found} detections in {images} images, in {args.output}")
    print(watches.report(images))
    if unreadable and not images:
        raise OSError("nothing that was given could be read")


def run(
    predictor: Predictor, source: FrameSource, writer: PictureWriter, watches: Stopwatches, args: argparse.Namespace
) -> Iterator[Prediction]:
    """The predictions of one source; draws them on the way."""
    length = source.length if args.max_frames is None else min(source.length or args.max_frames, args.max_frames)
    with writer, tqdm(total=length, unit="image") as progress:
        for frames in batches(watches.decoded(source, args.max_frames), args.batch_size):
            watches.infer.resume()
            predictions = predictor.predict(frames)
            watches.infer.pause()
            watches.draw.resume()
            for prediction in predictions if not args.no_draw else ():
                writer.write(prediction)
            watches.draw.pause()
            progress.update(len(frames))
            yield from predictions


def _check_apart(sources: Sequence[FrameSource], output: Path) -> None:
    """Pictures are called as their inputs are, and must not take their place."""
    for file in itertools.chain.from_iterable(source.files for source in sources):
        if Path(file).resolve().parent == output.resolve():
            raise ValueError(
                f"{file} lies in the folder of --output, where pictures could replace it: give another one"
            )


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="FILE", help="a config's path, or its name in the model zoo")
    parser.add_argument("--weights", metavar="FILE", help="default: the config's, or our checkpoint of it")
    parser.add_argument("--input", nargs="+", default=[], metavar="PATH", help="images, folders, patterns, videos")
    parser.add_argument("--camera", type=int, metavar="N", help="number of a camera, usually 0")
    parser.add_argument("--max-frames", type=int, metavar="N", help="of each input")
    parser.add_argument("--output", type=Path, default=Path("output/predictions"), metavar="FOLDER")
    parser.add_argument("--no-draw", action="store_true", help="detections.json alone")
    parser.add_argument("--score-threshold", type=float, default=0.5, metavar="S")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N")
    parser.add_argument("--precision", help="float16 or bfloat16, mixed with float32; default: float32")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--trust-checkpoint", action="store_true", help="run code that a pickled checkpoint may hold")
    args = parser.parse_args(arguments)
    if not args.input and args.camera is None:
        parser.error("nothing to look at: give --input or --camera")
    return args


if __name__ == "__main__":
    try:
        main(parse_args())
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
