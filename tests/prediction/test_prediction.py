"""Detections from images of any kind, with few lines."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from written_videos import write_video

from dynamic_sparse_rcnn import Predictor, write_checkpoint
from dynamic_sparse_rcnn.config_reading import read_config
from dynamic_sparse_rcnn.prediction.sources import open_source, to_frame

HEIGHT, WIDTH = 48, 64


@pytest.fixture
def picture() -> np.ndarray:
    """(48, 64, 3) uint8 RGB."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def predictor(tiny_cfg, tmp_path) -> Predictor:
    """Untrained, so that it finds something everywhere."""
    return make_predictor(tiny_cfg, tmp_path)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What reading images warns of, whatever earlier tests have made of the loggers."""
    said: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, logger = Collector(logging.WARNING), logging.getLogger("dynamic_sparse_rcnn.prediction.sources")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def make_predictor(cfg, folder: Path, **arguments) -> Predictor:
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    weights = folder / "detector.safetensors"
    classes = {"class_names": ["ant", "bee", "cat"], "category_ids": [2, 3, 5]}
    write_checkpoint(weights, {"model": build_model(cfg).state_dict(), **classes})
    return Predictor(cfg, str(weights), **{"score_threshold": 0.0} | arguments)


def test_a_file_and_the_array_that_opencv_reads_from_it_give_the_same_detections(predictor, picture, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    of_file, of_array = predictor(path), predictor(cv2.imread(str(path)))
    assert len(of_file.instances) > 0
    assert torch.equal(of_file.instances.pred_boxes.tensor, of_array.instances.pred_boxes.tensor)
    assert np.array_equal(of_file.image, picture) and np.array_equal(of_array.image, picture)


def test_mixed_precision_finds_nearly_the_same(tiny_cfg, picture, tmp_path):
    exact = make_predictor(tiny_cfg, tmp_path)
    mixed = Predictor(tiny_cfg, str(tmp_path / "detector.safetensors"), score_threshold=0.0, precision="bfloat16")
    first, second = exact(picture).instances, mixed(picture).instances
    assert not torch.equal(first.scores, second.scores)
    assert second.scores.dtype == second.pred_boxes.tensor.dtype == torch.float32
    torch.testing.assert_close(first.scores.mean(), second.scores.mean(), rtol=0.05, atol=0)
    with pytest.raises(ValueError, match="precision is 'half': use float16 or bfloat16"):
        Predictor(tiny_cfg, str(tmp_path / "detector.safetensors"), precision="half")


def test_boxes_are_in_pixels_of_the_image(predictor, picture):
    boxes = predictor(picture).instances.pred_boxes.tensor
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= WIDTH and boxes[:, 3].max() <= HEIGHT
    assert boxes[:, 2].max() > WIDTH / 2


def test_channels_reach_the_model_in_the_order_of_the_config(tiny_cfg, picture, tmp_path):
    seen = {}
    for order in ("RGB", "BGR"):
        tiny_cfg.INPUT.FORMAT = order
        predictor = make_predictor(tiny_cfg, tmp_path)
        predictor.model.register_forward_pre_hook(lambda _, arguments, order=order: seen.update({order: arguments[0]}))
        predictor(picture)
    rgb, bgr = (seen[order][0]["image"] for order in ("RGB", "BGR"))
    assert torch.equal(rgb, bgr.flip(0)) and not torch.equal(rgb, bgr)
    # The array is BGR: its last channel is the first of the model.
    assert abs(rgb[0].float().mean() - picture[..., 2].mean()) < 1


def test_images_turned_by_exif_grey_and_of_16_bits_are_read_as_in_training(tmp_path, picture):
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(turned, exif=exif)
    gray = tmp_path / "gray.png"
    Image.fromarray(picture[..., 0]).save(gray)
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), picture[..., 0].astype(np.uint16) * 256 + 200)
    by_name = {Path(frame.name).name: frame.pixels for frame in open_source([str(turned), str(gray), str(deep)])}
    assert by_name["turned.jpg"].shape == (WIDTH, HEIGHT, 3)
    for name in ("gray.png", "deep.png"):
        assert np.array_equal(by_name[name], np.repeat(picture[..., :1], 3, axis=2)), name


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 3), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3, 1), 7 * 256 + 9, np.uint16), [7, 7, 7]),
        (np.dstack([np.full((2, 3), value, np.uint8) for value in (1, 2, 3)]), [3, 2, 1]),
        (np.dstack([np.full((2, 3), value, np.uint8) for value in (1, 2, 3, 4)]), [3, 2, 1]),
    ],
)
def test_arrays_of_all_usual_layouts_become_rgb(array, expected):
    assert to_frame(array, "x").pixels.tolist() == [[expected] * 3] * 2


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3, 3)), np.zeros((2, 3, 2), np.uint8), np.zeros((0, 3, 3), np.uint8), np.zeros(3, np.uint8)]
)
def test_arrays_that_are_no_images_are_refused(array):
    with pytest.raises(ValueError, match=r"x must be \(H,W,3\) BGR"):
        to_frame(array, "x")


def test_folders_and_patterns_give_their_images_in_order_and_count_what_cannot_be_read(predictor, picture, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("b.png", "a.png"):
        Image.fromarray(picture).save(folder / name)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    for place in (folder, str(folder / "*.png"), str(tmp_path / "**" / "*.png")):
        source = open_source(place)
        assert [Path(x.name).name for x in predictor.stream(source)] == ["a.png", "b.png"]
        assert [Path(file).name for file, _ in source.unreadable] == ["broken.png"]
        assert source.length == 3


def test_a_single_broken_image_is_an_error_that_names_it(predictor, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(OSError, match=r"broken\.jpg"):
        predictor(path)


@pytest.mark.parametrize("place", ["nowhere.jpg", "nowhere", "nothing*.jpg", "."])
def test_places_without_images_are_errors(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere|no image"):
        open_source(place)


def test_addresses_with_a_query_are_no_patterns():
    assert open_source("https://example.invalid/picture.jpg?size=3").length == 1


def test_videos_give_their_frames(predictor, picture, tmp_path):
    video = write_video(tmp_path / "clip.avi", [picture, np.zeros_like(picture), picture])
    source = open_source(video)
    assert source.length == 3 and source.frames_per_second == pytest.approx(10)
    frames = list(source)
    assert [Path(frame.name).name for frame in frames] == [f"clip.avi:{n:06d}" for n in range(3)]
    assert frames[1].pixels.mean() < 10 < 100 < frames[0].pixels.mean()
    assert len(list(source)) == 3 and not source.unreadable
    with pytest.raises(ValueError, match=r"Predictor\.stream"):
        predictor(video)


def test_a_file_that_is_no_video_is_an_error(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(OSError, match=r"clip\.mp4 cannot be opened"):
        open_source(path)


def test_a_camera_that_is_not_there_is_an_error():
    with pytest.raises(OSError, match="camera 99 cannot be opened"):
        open_source(99)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batches_of_equal_sizes_give_the_detections_of_single_images(tiny_cfg, tmp_path, batch_size):
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(3)]
    predictor = make_predictor(tiny_cfg, tmp_path, batch_size=batch_size)
    streamed = list(predictor.stream(arrays))
    for array, one in zip(arrays, streamed, strict=True):
        alone = predictor(array)
        assert torch.allclose(one.instances.scores, alone.instances.scores, atol=1e-5)
        assert torch.allclose(one.instances.pred_boxes.tensor, alone.instances.pred_boxes.tensor, atol=1e-3)


def test_the_score_threshold_leaves_out_the_weaker(predictor, picture):
    everything = predictor(picture).instances
    predictor.score_threshold = float(everything.scores.median())
    kept = predictor(picture).instances
    assert torch.equal(kept.scores, everything.scores[everything.scores >= predictor.score_threshold])
    assert 0 < len(kept) < len(everything)


@pytest.mark.parametrize("arguments", [{"score_threshold": 1.5}, {"score_threshold": -0.1}, {"batch_size": 0}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must lie in"):
        Predictor(**arguments)


def test_coco_entries_have_the_category_ids_of_the_training_set_and_xywh_boxes(predictor, picture):
    prediction = predictor(picture)
    for entry, box, score, index in zip(
        prediction.to_coco(7),
        prediction.instances.pred_boxes.tensor.tolist(),
        prediction.instances.scores.tolist(),
        prediction.instances.pred_classes.tolist(),
        strict=True,
    ):
        assert entry["image_id"] == 7 and entry["category_id"] == [2, 3, 5][index]
        assert entry["bbox"] == pytest.approx([box[0], box[1], box[2] - box[0], box[3] - box[1]], abs=1e-4)
        assert entry["score"] == pytest.approx(score)
    assert set(prediction.labels) <= {"ant", "bee", "cat"}


def test_drawings_show_the_detections_and_small_images_enlarged(predictor, picture):
    prediction = predictor(np.zeros_like(picture))
    drawn = prediction.draw()
    assert drawn.shape == (384, 512, 3) and drawn.dtype == np.uint8
    assert drawn.any()
    assert prediction.draw(scale=1.0).shape == picture.shape
    assert np.array_equal(drawn, prediction.draw())


def test_strips_are_not_enlarged_beyond_measure(predictor):
    assert predictor(np.zeros((8, 512, 3), np.uint8)).draw().shape == (32, 2048, 3)


def test_class_names_can_be_given_to_a_checkpoint_that_has_none(tiny_cfg, tmp_path):
    weights = str(tmp_path / "unnamed.pth")
    write_checkpoint(weights, {"model": build_model(tiny_cfg).state_dict()})
    assert Predictor(tiny_cfg, weights, class_names=["x", "y", "z"]).classes.names == ("x", "y", "z")
    with pytest.raises(ValueError, match="2 names, but the detector 3 classes"):
        Predictor(tiny_cfg, weights, class_names=["x", "y"])


def test_class_names_that_are_not_the_checkpoints_are_refused(tiny_cfg, tmp_path):
    make_predictor(tiny_cfg, tmp_path, class_names=["ant", "bee", "cat"])
    with pytest.raises(ValueError, match=r"\['ant', 'bee', 'cat'\].*\['bee', 'ant', 'cat'\].*another order"):
        make_predictor(tiny_cfg, tmp_path, class_names=["bee", "ant", "cat"])


def test_weights_alone_find_the_config_that_a_run_left_beside_them(tiny_cfg, tmp_path, picture):
    expected = make_predictor(tiny_cfg, tmp_path)(picture)
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    found = Predictor(weights=str(tmp_path / "detector.safetensors"), score_threshold=0)(picture)
    assert torch.equal(found.instances.pred_boxes.tensor, expected.instances.pred_boxes.tensor)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="needs a config"):
        Predictor(weights=str(tmp_path / "detector.safetensors"))


def test_a_config_without_weights_is_refused(tiny_cfg):
    with pytest.raises(ValueError, match="untrained"):
        Predictor(tiny_cfg)
    for name in ("coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml", "lazy/sparse_rcnn_R_50_FPN_300pro_3x.py"):
        with pytest.raises(ValueError, match=r"checkpoints\.md lists checkpoints"):
            Predictor(name)


def test_an_unknown_config_is_an_error_that_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"coco/sparse_rcnn_R_50_FPN_100pro_3x\.yaml"):
        Predictor("nowhere.yaml", "x.pth")


@pytest.mark.parametrize("name", ["output/nowhere", "output/run.v2", "nowhere.pth"])
def test_a_run_that_does_not_exist_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"{name} is neither the folder of a run, nor a checkpoint"):
        Predictor(name)


def test_the_number_of_classes_comes_from_the_weights_where_the_config_leaves_it_open(tiny_cfg, tmp_path, picture):
    expected = make_predictor(tiny_cfg, tmp_path)(picture)
    tiny_cfg.MODEL.SparseRCNN.NUM_CLASSES = 0
    found = Predictor(tiny_cfg, str(tmp_path / "detector.safetensors"), score_threshold=0)(picture)
    assert torch.equal(found.instances.scores, expected.instances.scores)


@pytest.mark.parametrize("count", [2, 5])
def test_a_video_that_ends_early_is_warned_of_and_its_frames_are_used(picture, tmp_path, monkeypatch, warnings, count):
    video = write_video(tmp_path / "clip.avi", [picture, picture])
    source = open_source(video)
    monkeypatch.setattr(source, "_length", count)
    assert len(list(source)) == 2 and not source.unreadable
    if count == 2:
        assert not warnings
    else:
        assert len(warnings) == 1 and "ends after 2 of the 5 frames" in warnings[0] and "skipped" not in warnings[0]


def test_images_in_memory_of_all_libraries_are_the_file(predictor, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "picture.png")
    expected = predictor(tmp_path / "picture.png").instances.pred_boxes.tensor
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    variants = [Image.fromarray(picture), tensor, tensor / 255, picture[..., ::-1]]
    for image in variants:
        assert torch.equal(predictor(image).instances.pred_boxes.tensor, expected)
    mixed = list(predictor.stream([str(tmp_path / "picture.png"), *variants]))
    assert len(mixed) == 5 and all(torch.equal(x.instances.pred_boxes.tensor, expected) for x in mixed)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_pil_images_of_all_modes_are_read_as_their_files(picture, tmp_path, mode):
    image = Image.fromarray(picture).convert(mode)
    image.save(tmp_path / "image.tiff")
    (of_file,) = open_source(tmp_path / "image.tiff")
    assert np.array_equal(to_frame(image, "x").pixels, of_file.pixels)


def test_pil_images_are_turned_and_made_8_bit_as_files_are(picture, tmp_path):
    deep = Image.fromarray(picture[..., 0].astype(np.uint16) * 256 + 200)
    assert np.array_equal(to_frame(deep, "x").pixels, np.repeat(picture[..., :1], 3, axis=2))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    assert np.array_equal(to_frame(turned, "x").pixels, np.rot90(picture, k=-1))
    with pytest.raises(ValueError, match="PIL image of mode F"):
        to_frame(Image.fromarray(np.zeros((2, 2), np.float32)), "x")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, 3, 3), torch.zeros(3, 2), torch.full((3, 2, 2), 1.5), torch.zeros(3, 2, 2, dtype=torch.int64)],
)
def test_tensors_that_are_no_images_are_refused(tensor):
    with pytest.raises(ValueError, match=r"x must be a tensor \(3,H,W\)"):
        to_frame(tensor, "x")


@pytest.mark.parametrize("thing", [None, 1.5, b"bytes", {"image": 1}, io.BytesIO(), True, [None], ["a.png", 3]])
def test_other_things_are_refused_by_name(predictor, thing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    with pytest.raises(TypeError, match=r"image \d is a \w+: give the path or URL of an image"):
        predictor(thing)


@pytest.mark.parametrize("suffix", [".gif", ".tiff"])
def test_a_file_of_several_images_gives_its_first_and_that_is_said_once(picture, tmp_path, suffix, warnings):
    pages = [Image.fromarray(picture), Image.fromarray(picture[::-1])]
    for name in ("one", "two"):
        pages[0].save(tmp_path / f"{name}{suffix}", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / f"single{suffix}")
    assert len(list(open_source([tmp_path / f"{name}{suffix}" for name in ("single", "one", "two")]))) == 3
    (said,) = warnings
    assert f"one{suffix} holds several images" in said


def test_a_prediction_is_told_in_plain_types(predictor, picture):
    prediction = predictor(picture)
    told = json.loads(json.dumps(prediction.to_dict()))
    assert (told["width"], told["height"], len(told["detections"])) == (WIDTH, HEIGHT, len(prediction.instances))
    for entry, box, label in zip(
        told["detections"], prediction.instances.pred_boxes.tensor.tolist(), prediction.labels, strict=True
    ):
        assert entry["box"] == pytest.approx(box) and entry["label"] == label
        assert ["ant", "bee", "cat"][entry["class"]] == label


def test_supervision_gets_the_same_detections(predictor, picture):
    pytest.importorskip("supervision")
    prediction = predictor(picture)
    found = prediction.to_supervision()
    assert np.allclose(found.xyxy, prediction.instances.pred_boxes.tensor)
    assert np.allclose(found.confidence, prediction.instances.scores)
    assert found.class_id.tolist() == prediction.instances.pred_classes.tolist()
    assert found.data["class_name"].tolist() == prediction.labels


def test_the_folder_of_a_run_stands_for_its_checkpoint_and_config(tiny_cfg, tmp_path, picture):
    expected = make_predictor(tiny_cfg, tmp_path)(picture)
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    (tmp_path / "last_checkpoint").write_text("detector.safetensors")
    for arguments in ({"weights": str(tmp_path)}, {"config": tmp_path}, {"config": tmp_path / "detector.safetensors"}):
        found = Predictor(**arguments, score_threshold=0)(picture)
        assert torch.equal(found.instances.scores, expected.instances.scores)


def test_the_config_beside_a_checkpoint_runs_no_code_unless_it_is_trusted(tiny_cfg, tmp_path):
    make_predictor(tiny_cfg, tmp_path)
    trace = tmp_path / "trace"
    tag = f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{trace}']"
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump().replace(f"OUTPUT_DIR: {tiny_cfg.OUTPUT_DIR}", tag))
    weights = str(tmp_path / "detector.safetensors")
    with pytest.raises(ValueError, match=r"config\.yaml.*os\.mkdir.*--trust-checkpoint"):
        Predictor(weights=weights)
    assert not trace.exists()
    Predictor(weights=weights, trust_checkpoint=True)
    assert trace.exists()


def test_a_lazy_config_need_name_neither_device_nor_weights():
    cfg = read_config("lazy/sparse_rcnn_R_50_FPN_300pro_3x.py")
    del cfg.train.device, cfg.train.init_checkpoint
    with pytest.raises((AssertionError, FileNotFoundError), match=r"missing\.pth"):
        Predictor(cfg, "missing.pth")


def test_the_score_threshold_is_a_half_unless_it_is_given(tiny_cfg, tmp_path):
    assert make_predictor(tiny_cfg, tmp_path, score_threshold=None).score_threshold == 0.5


def test_videos_that_wait_keep_no_file_open(picture, tmp_path):
    sources = [open_source(write_video(tmp_path / f"{n}.avi", [picture, picture])) for n in range(3)]
    opened = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
    assert not [file for file in opened if file.endswith(".avi")]
    assert [len(list(source)) for source in sources] == [2, 2, 2]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("rtsp://10.0.0.1:554/user=admin&password=x&channel=1", "rtsp://10.0.0.1:554"),
        ("rtsp://anna:secret@10.0.0.1/live/token=x/1?password=y#z", "rtsp://10.0.0.1/live/1"),
        ("rtsp://10.0.0.1/Streaming/Channels/101", "rtsp://10.0.0.1/Streaming/Channels/101"),
    ],
)
def test_streams_are_called_by_what_is_no_password(url, name, monkeypatch):
    class Capture:
        def __init__(self, source):
            assert source == url

        def isOpened(self):
            return True

        def get(self, key):
            return 0.0

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    assert open_source(url).name == name
