"""Images that the page is given: uploads, which are bounded, and those of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog
from PIL import Image

from ..checkpoints.classes import DetectorClasses
from ..data.datasets import register_dataset
from ..data.images import IMAGE_ERRORS, read_image
from ..data.records import Record
from ..prediction import Predictor
from ..prediction.sources import Frame

MAX_FILE_BYTES = 32 << 20
MAX_PIXELS = 50_000_000


def read_bounded(path: str) -> Frame:
    """Reads an image of at most ``MAX_FILE_BYTES`` bytes and ``MAX_PIXELS`` pixels.

    Raises:
        ValueError: it is larger, or not an image.
    """
    name = Path(path).name
    if Path(path).stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{name} is larger than {MAX_FILE_BYTES >> 20} MB: save it smaller")
    try:
        with Image.open(path) as image:  # reads the header alone
            width, height = image.size
        if width * height <= MAX_PIXELS:
            return Frame(name, read_image(path, "RGB"))
    except IMAGE_ERRORS as error:
        raise ValueError(f"{name} cannot be read as an image: {error}") from error
    raise ValueError(f"{name} has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million: save it smaller")


def find_records(predictor: Predictor, datasets: Sequence[str]) -> dict[str, Record]:
    """The images of data sets by the names that the page lists.

    Raises:
        FileNotFoundError, ValueError: there is no such data set, or it has other classes than the detector.
    """
    found: dict[str, Record] = {}
    for dataset in datasets:
        register_dataset(dataset)
        predictor.classes.require(DetectorClasses.from_datasets([dataset]), "The detector")
        for record in DatasetCatalog.get(dataset):
            found[f"{len(found) + 1}: {Path(record['file_name']).name} ({len(record['annotations'])} objects)"] = record
    return found
