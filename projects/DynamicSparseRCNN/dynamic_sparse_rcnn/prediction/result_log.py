"""Detections on the disk as they are found, one line for each image, until they are merged to one result file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..file_io import whole_file, write_json
from .results import Prediction

_SETTINGS = "settings.json"
_DONE = "done.jsonl"


@dataclass
class MergedResults:
    """What all processes have found.

    Attributes:
        images: number of images or frames.
        entries: of a COCO result file.
        unreadable: images and videos that could not be read.
    """

    images: int = 0
    entries: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


class ResultLog:
    """The folder in which a prediction that is under way keeps its detections.

    Each process writes a file of its own there. An image or video counts as done when all of it is written; what an
    interrupted prediction has done is kept by the next one of the same settings, and the rest is done again.
    """

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: is created by :meth:`start`.
        """
        self.folder = folder

    def start(self, settings: dict[str, object]) -> set[str]:
        """Makes the folder ready, before any process writes to it; to be called in one process.

        Args:
            settings: of the prediction, in types that JSON has.

        Returns:
            The images and videos that are done.

        Raises:
            ValueError: the folder holds detections that were made with other settings.
        """
        file = self.folder / _SETTINGS
        if file.is_file():
            before = json.loads(file.read_text())
            different = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
            if different:
                raise ValueError(
                    f"{self.folder} belongs to an interrupted job with different settings ({', '.join(different)}): "
                    "remove it to start over, or give another --output"
                )
        lines = list(self._lines())
        done = {line["source"] for line in lines if line.get("complete")}
        with whole_file(self.folder / _DONE) as opened:
            opened.writelines(_encode(line) for line in lines if line["source"] in done)
        for other in self.folder.glob("process-*.jsonl"):
            other.unlink()
        write_json(settings, file)
        return done

    def open(self, rank: int) -> ResultFile:
        """The file of one process."""
        return ResultFile(self.folder / f"process-{rank}.jsonl")

    def merge(self, sources: Sequence[str]) -> MergedResults:
        """What has been found so far.

        An image's id is its file name where that is a number for all of them (as COCO's own images have it), and its
        position otherwise, from 1.

        Args:
            sources: all images and videos, in the order that decides the positions.
        """
        position = {source: number for number, source in enumerate(sources)}
        lines = [line for line in self._lines() if line["source"] in position]
        lines.sort(key=lambda line: position[line["source"]])
        found = [line for line in lines if "name" in line]
        merged = MergedResults(len(found), unreadable=[line["source"] for line in lines if "error" in line])
        for image_id, line in zip(image_ids([line["name"] for line in found]), found, strict=True):
            merged.entries += [entry | {"image_id": image_id} for entry in line["detections"]]
        return merged

    def remove(self) -> None:
        """Removes the folder, once its content is merged."""
        shutil.rmtree(self.folder)

    def _lines(self) -> Iterator[dict[str, Any]]:
        for file in sorted(self.folder.glob("*.jsonl")):
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
                if not line.endswith("\n"):
                    continue  # its process was killed while it wrote
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"{file}, line {number}, is damaged: remove {self.folder} to start over"
                    ) from error


class ResultFile:
    """The detections of one process, each on the disk once it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write(self, source: str, prediction: Prediction, *, complete: bool) -> None:
        """Adds the detections in one image.

        Args:
            source: the image's own file, or the video's.
            prediction: its detections.
            complete: whether that was all of the source.
        """
        self._write(source=source, name=prediction.name, detections=prediction.to_coco(), complete=complete)

    def complete(self, source: str) -> None:
        """Notes that all frames of a video are written."""
        self._write(source=source, complete=True)

    def unreadable(self, source: str, reason: str) -> None:
        """Notes that an image or video could not be read."""
        self._write(source=source, error=reason)

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def _write(self, **line: Any) -> None:
        self._file.write(_encode(line))
        self._file.flush()


def _encode(line: dict[str, Any]) -> bytes:
    return (json.dumps(line) + "\n").encode()


def image_ids(names: Sequence[str]) -> list[int]:
    """Ids of images for COCO's files, see :meth:`ResultLog.merge`."""
    stems = [Path(name).stem for name in names]
    if all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(names) + 1))
