"""Predictions for any number of images and videos, shared by the processes of a run, to files."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from fvcore.common.timer import Timer
from tqdm import tqdm

from ..file_io import write_image, write_json
from .predictor import Predictor, batches
from .result_log import MergedResults, ResultFile, ResultLog
from .sources import Frame, FrameSource, Images, Video
from .tracking import Tracker
from .writing import VideoWriter, picture_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobOptions:
    """What is done with the images.

    Attributes:
        output: the folder of ``detections.json`` and of the pictures.
        draw: whether pictures are written.
        max_frames: of each input; None: all.
        track: whether objects are followed through videos.
    """

    output: Path
    draw: bool = True
    max_frames: int | None = None
    track: bool = False

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"--max-frames is {self.max_frames}: use 1 or more, or leave it out for all frames")


class Stopwatches:
    """How long each kind of work took in this process, in seconds."""

    def __init__(self) -> None:
        self.decode, self.infer, self.draw = Timer(), Timer(), Timer()
        for timer in vars(self).values():
            timer.pause()

    def report(self, images: int) -> str:
        """One line."""
        parts = [f"{name} {timer.seconds():.2f} s" for name, timer in vars(self).items()]
        each = self.infer.seconds() / images if images else 0
        return f"{', '.join(parts)} ({1000 * each:.0f} ms an image to infer)"


def predict_to_files(
    predictor: Predictor, sources: Sequence[FrameSource], options: JobOptions, settings: Mapping[str, object]
) -> None:
    """Predicts all images and frames, writes ``detections.json`` and pictures, and prints what was found.

    To be called by all processes of a run, which share the images and videos. Each detection is on the disk at once:
    a job that was interrupted goes on where it was when it is started again with the same settings.

    Args:
        predictor: of this process.
        sources: the same in all processes.
        options: what is done with the images.
        settings: what the detections depend on; with others an interrupted job is not continued.

    Raises:
        OSError: nothing could be read, or a file not be written.
        ValueError: an image lies in the folder that pictures are written to, or the settings are others.
    """
    units = _units(sources, options.max_frames)
    if options.track and not any(units.values()):
        raise ValueError("--track follows objects through videos, and there is no video among the inputs: leave it out")
    if options.draw:
        _check_apart(sources, options.output)
    log = ResultLog(options.output / "detections.partial")
    done = _in_main_process(lambda: log.start(dict(settings) | {"draw": options.draw}))
    if done:
        logger.info(f"{len(done)} of {len(units)} images and videos are done already: the interrupted job continues")
    job = _Job(predictor, options, units, log.open(comm.get_rank()))
    stopped = False
    try:
        job.run([name for name in units if name not in done][comm.get_rank() :: comm.get_world_size()])
    except KeyboardInterrupt:
        # Of cameras alone, that is how one ends them.
        stopped = any(video is None or video.files for video in units.values())
    finally:
        job.file.close()
        # Whatever happened: of one process, what was found is in the result file too.
        merged = _write_results(log, list(units), options.output) if comm.get_world_size() == 1 else None
    if stopped:
        logger.warning("Stopped. Detections so far are kept; the same command continues from there")
    comm.synchronize()
    if comm.is_main_process():
        merged = merged or _write_results(log, list(units), options.output)
        if not stopped:
            log.remove()
        _tell(merged, options.output, job.watches, job.images)


def _in_main_process(function: Any) -> Any:
    """What a function gives in the main process, in all of them; its error too."""
    result, error = None, None
    if comm.is_main_process():
        try:
            result = function()
        except Exception as caught:
            error = caught
    result, error = comm.all_gather((result, error))[0]
    if error is not None:
        raise error
    return result


def _units(sources: Sequence[FrameSource], max_frames: int | None) -> dict[str, Video | None]:
    """Images by their files, and videos by their names: what a process does as a whole."""
    units: dict[str, Video | None] = {}
    for source in sources:
        if isinstance(source, Video):
            if not source.files:  # two streams of one name may be two cameras
                source.name = next(name for name in _numbered(source.name) if name not in units)
            units[source.name] = source
        else:
            units |= dict.fromkeys(source.files[:max_frames])
    return units


def _numbered(name: str) -> Iterator[str]:
    """The name, and then the name with the numbers from 2 on."""
    yield name
    yield from (f"{name} ({number})" for number in itertools.count(2))


def _check_apart(sources: Sequence[FrameSource], output: Path) -> None:
    """Pictures are called as their inputs are, and must not take their place."""
    for file in itertools.chain.from_iterable(source.files for source in sources):
        if Path(file).resolve().parent == output.resolve():
            raise ValueError(f"{file} is in the folder --output, where pictures could replace it: give another folder")


def _write_results(log: ResultLog, sources: Sequence[str], output: Path) -> MergedResults:
    merged = log.merge(sources)
    write_json(merged.entries, output / "detections.json")
    return merged


def _tell(merged: MergedResults, output: Path, watches: Stopwatches, images: int) -> None:
    if merged.unreadable:
        names = ", ".join(merged.unreadable[:5])
        print(f"{len(merged.unreadable)} could not be read: {names}{' ...' if merged.unreadable[5:] else ''}")
    print(f"{len(merged.entries)} detections in {merged.images} images, in {output}")
    print(watches.report(images))
    if merged.unreadable and not merged.images:
        raise OSError("None of the inputs could be read")


class _Job:
    """One process's share."""

    def __init__(
        self, predictor: Predictor, options: JobOptions, units: Mapping[str, Video | None], file: ResultFile
    ) -> None:
        self.predictor = predictor
        self.options = options
        self.units = units
        self.file = file
        self.watches = Stopwatches()
        self.images = 0
        self.pictures = picture_names([name for name, video in units.items() if video is None], ".png")
        self.pictures |= picture_names([name for name, video in units.items() if video is not None], ".mp4")

    def run(self, names: Sequence[str]) -> None:
        """Predicts some of the units: the images together, then one video after the other."""
        images = [name for name in names if self.units[name] is None]
        self._run_source(Images(images), None, len(images))
        for name in names:
            video = self.units[name]
            if video is not None:
                length, most = video.length, self.options.max_frames
                self._run_source(video, name, most if length is None else min(length, most or length))
                if not video.unreadable:
                    self.file.complete(name)

    def _run_source(self, source: FrameSource, video: str | None, length: int | None) -> None:
        """The frames of a video, or the files of :class:`Images`, where ``video`` is None."""
        with ExitStack() as stack:
            progress = stack.enter_context(tqdm(total=length, unit="image", disable=comm.get_rank() > 0 or length == 0))
            rate = source.frames_per_second
            tracker = Tracker(rate, self.predictor.score_threshold) if self.options.track and video else None
            writer = None
            if video and self.options.draw:
                writer = stack.enter_context(VideoWriter(self.options.output / self.pictures[video], rate or 1))
            for frames in batches(self._decoded(source, video), self.predictor.batch_size):
                self._run_batch(frames, video, tracker, writer)
                progress.update(len(frames))
        for name, reason in source.unreadable:
            self.file.unreadable(name, reason)

    def _run_batch(
        self, frames: list[Frame], video: str | None, tracker: Tracker | None, writer: VideoWriter | None
    ) -> None:
        self.watches.infer.resume()
        predictions = self.predictor.predict(frames, tracker.lowest_score if tracker else None)
        self.watches.infer.pause()
        for prediction in predictions:
            if tracker is not None:
                prediction = tracker.update(prediction)
            source = video or prediction.name
            if self.options.draw:
                self.watches.draw.resume()
                if writer is None:
                    write_image(prediction.draw(), self.options.output / self.pictures[source])
                else:
                    writer.write(prediction.draw())
                self.watches.draw.pause()
            # Last: an image counts as done when its picture is there.
            self.file.write(source, prediction, complete=video is None)
            self.images += 1

    def _decoded(self, source: FrameSource, video: str | None) -> Iterator[Frame]:
        """The source's frames, decoding timed."""
        frames = self.predictor.usable(source)

        def timed_next() -> Frame | None:
            self.watches.decode.resume()
            frame = next(frames, None)
            self.watches.decode.pause()
            return frame

        yield from itertools.islice(iter(timed_next, None), self.options.max_frames if video else None)
