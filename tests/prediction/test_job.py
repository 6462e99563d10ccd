"""Predictions to files: what is written, what is said, and what an interruption leaves."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import cv2
import demo
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from small_disks import mounted
from written_videos import write_video

from dynamic_sparse_rcnn import Predictor, write_checkpoint
from dynamic_sparse_rcnn.cli import predict
from dynamic_sparse_rcnn.prediction.job import JobOptions

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture
def run(tiny_cfg, tmp_path):
    """Runs ``tools/demo.py`` with an untrained detector, whose detections all count; gives its output folder."""
    tiny_cfg.INPUT.MIN_SIZE_TEST, tiny_cfg.INPUT.MAX_SIZE_TEST = 64, 96
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    weights = tmp_path / "model.safetensors"
    write_checkpoint(weights, {"model": build_model(tiny_cfg).state_dict()})

    def run_main(*options: str) -> Path:
        output = tmp_path / "output"
        fixed = ["--weights", str(weights), "--output", str(output), "--score-threshold", "0"]
        predict.run(demo.parse_args([*fixed, *options]))
        return output

    return run_main


def test_images_are_drawn_and_their_detections_written(run, tmp_path, capsys):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(PICTURE).save(tmp_path / folder / "picture.png")
    (tmp_path / "two/broken.jpg").write_bytes(b"nothing")
    output = run("--input", str(tmp_path / "one"), str(tmp_path / "two" / "*"))
    assert {path.name for path in output.iterdir()} == {"detections.json", "picture.png", "picture_2.png"}
    assert cv2.imread(str(output / "picture.png")).shape == (384, 512, 3)
    entries = json.loads((output / "detections.json").read_text())
    assert {entry["image_id"] for entry in entries} == {1, 2}
    said = capsys.readouterr().out
    assert f"{len(entries)} detections in 2 images" in said
    assert re.search(r"1 could not be read: \S*broken\.jpg", said)


def test_decoding_inference_and_drawing_are_timed_apart(run, tmp_path, capsys):
    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    run("--input", str(tmp_path / "picture.png"))
    times = re.search(r"decode (\S+) s, infer (\S+) s, draw (\S+) s", capsys.readouterr().out)
    assert times and all(float(seconds) >= 0 for seconds in times.groups())
    assert float(times[2]) > 0 and float(times[3]) > 0


def test_without_drawing_only_the_detections_are_written(run, tmp_path, capsys):
    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    output = run("--input", str(tmp_path / "picture.png"), "--no-draw")
    assert [path.name for path in output.iterdir()] == ["detections.json"]
    assert "draw 0.00 s" in capsys.readouterr().out


def test_pictures_never_take_the_place_of_what_they_are_made_from(run, tmp_path):
    (tmp_path / "output").mkdir()
    path = tmp_path / "output" / "picture.png"
    Image.fromarray(PICTURE).save(path)
    video = write_video(tmp_path / "output" / "clip.avi", [PICTURE])
    for place in (path, path.parent, video):
        with pytest.raises(ValueError, match="give another folder"):
            run("--input", str(place))
    run("--input", str(path), "--no-draw")
    assert np.array_equal(np.asarray(Image.open(path)), PICTURE)


@pytest.fixture
def three_images(tmp_path) -> list[str]:
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(PICTURE).save(tmp_path / name)
    return [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]


def fail_at(monkeypatch, name: str, error: BaseException) -> list[str]:
    """Makes predictions of one image fail; gives the names of the others as they are predicted."""
    original, predicted = Predictor.predict, []

    def failing(self, frames, *arguments):
        if any(name in frame.name for frame in frames):
            raise error
        predicted.extend(Path(frame.name).name for frame in frames)
        return original(self, frames, *arguments)

    monkeypatch.setattr(Predictor, "predict", failing)
    return predicted


def found_in(output: Path) -> set[str]:
    return {Path(x["file_name"]).name for x in json.loads((output / "detections.json").read_text())}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no space left on device")])
def test_a_job_that_ends_early_keeps_what_it_has_found_and_goes_on_from_there(
    run, tmp_path, monkeypatch, error, three_images
):
    output = tmp_path / "output"
    with monkeypatch.context() as context:
        fail_at(context, "b.png", error)
        if isinstance(error, KeyboardInterrupt):
            run("--input", *three_images)
        else:
            with pytest.raises(OSError, match="no space left"):
                run("--input", *three_images)
    assert {path.name for path in output.iterdir()} == {"detections.json", "a.png", "detections.partial"}
    assert found_in(output) == {"a.png"}
    with monkeypatch.context() as context:
        predicted = fail_at(context, "none", error)
        run("--input", *three_images)
        assert predicted == ["b.png", "c.png"]
    assert {path.name for path in output.iterdir()} == {"detections.json", "a.png", "b.png", "c.png"}
    resumed = (output / "detections.json").read_text()
    run("--input", *three_images)
    assert (output / "detections.json").read_text() == resumed


def test_a_line_that_was_cut_is_predicted_again(run, tmp_path, monkeypatch, three_images):
    with monkeypatch.context() as context:
        fail_at(context, "c.png", KeyboardInterrupt())
        run("--input", *three_images)
    file = tmp_path / "output/detections.partial/process-0.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    predicted = fail_at(monkeypatch, "none", KeyboardInterrupt())
    run("--input", *three_images)
    assert predicted == ["b.png", "c.png"]
    assert found_in(tmp_path / "output") == {"a.png", "b.png", "c.png"}


def test_an_interrupted_job_is_not_continued_with_other_settings(run, tmp_path, monkeypatch, three_images):
    with monkeypatch.context() as context:
        fail_at(context, "b.png", KeyboardInterrupt())
        run("--input", *three_images)
    with pytest.raises(ValueError, match=r"job with different settings \(tiles\): remove it .* another --output"):
        run("--input", *three_images, "--tiles", "64")


def test_a_video_that_was_interrupted_starts_anew(run, tmp_path, monkeypatch):
    video = write_video(tmp_path / "clip.avi", [PICTURE, PICTURE[::-1], PICTURE[:, ::-1]])
    with monkeypatch.context() as context:
        fail_at(context, "clip.avi:000002", KeyboardInterrupt())
        output = run("--input", str(video))
    assert found_in(output) == {"clip.avi:000000", "clip.avi:000001"}
    assert int(cv2.VideoCapture(str(output / "clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)) == 2
    predicted = fail_at(monkeypatch, "none", KeyboardInterrupt())
    run("--input", str(video))
    assert len(predicted) == 3
    assert {x["image_id"] for x in json.loads((output / "detections.json").read_text())} == {1, 2, 3}
    assert {path.name for path in output.iterdir()} == {"detections.json", "clip.mp4"}


@pytest.mark.parametrize(
    ("names", "ids"),
    [(["a.png", "b.png"], {1, 2}), (["000012.png", "000007.png"], {12, 7}), (["1.png", "1.jpg"], {1, 2})],
)
def test_result_files_call_images_by_number_where_they_have_one(run, tmp_path, names, ids):
    for name in names:
        Image.fromarray(PICTURE).save(tmp_path / name)
    output = run("--input", *(str(tmp_path / name) for name in names))
    (tmp_path / "ordinary").touch()
    assert (output / "detections.json").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    entries = json.loads((output / "detections.json").read_text())
    assert {entry["image_id"] for entry in entries} == ids
    assert {Path(entry["file_name"]).name for entry in entries} == set(names)


@pytest.mark.parametrize("rate", [211.222, 1e6, 29.97])
def test_a_video_of_any_frame_rate_is_written(run, tmp_path, monkeypatch, rate):
    video = write_video(tmp_path / "clip.avi", [PICTURE, PICTURE])
    capture_class = cv2.VideoCapture

    class Capture:
        """Reads the file, with another rate."""

        def __init__(self, source):
            self._capture = capture_class(source)

        def __getattr__(self, name):
            return getattr(self._capture, name)

        def get(self, key):
            return rate if key == cv2.CAP_PROP_FPS else self._capture.get(key)

    with monkeypatch.context() as context:
        context.setattr(cv2, "VideoCapture", Capture)
        output = run("--input", str(video))
    written = cv2.VideoCapture(str(output / "clip.mp4"))
    assert int(written.get(cv2.CAP_PROP_FRAME_COUNT)) == 2
    assert written.get(cv2.CAP_PROP_FPS) == pytest.approx(25 if rate > 1000 else rate, abs=0.05)


def test_a_job_that_can_read_nothing_fails(run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(OSError, match="None of the inputs could be read"):
        run("--input", str(tmp_path / "broken.jpg"))


@pytest.mark.parametrize("options", [[], ["--max-frames", "2"], ["--batch-size", "2"]])
def test_videos_become_videos_of_as_many_frames(run, tmp_path, options):
    video = write_video(tmp_path / "clip.avi", [PICTURE, PICTURE[::-1], PICTURE[:, ::-1]])
    output = run("--input", str(video), *options)
    capture = cv2.VideoCapture(str(output / "clip.mp4"))
    expected = 2 if "--max-frames" in options else 3
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == expected
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert {x["image_id"] for x in json.loads((output / "detections.json").read_text())} == set(range(1, expected + 1))


@pytest.mark.parametrize("options", [[], ["--tiles", "64"]])
def test_an_image_that_nothing_would_be_left_of_is_named_and_the_others_are_predicted(run, tmp_path, capsys, options):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((1, 4000, 3), np.uint8)).save(tmp_path / "strip.png")
    output = run("--input", str(tmp_path / "*.png"), *options)
    assert found_in(output) == {"a.png"}
    assert re.search(r"1 could not be read: \S*strip\.png", capsys.readouterr().out)
    with pytest.raises(OSError, match="None of the inputs"):
        run("--input", str(tmp_path / "strip.png"), *options)


def test_a_video_that_the_disk_has_no_room_for_is_told(run, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 96, 128, 3), dtype=np.uint8)
    video = write_video(tmp_path / "clip.avi", list(noise))
    full = r"clip\.mp4 lacks frames: is its disk full|No space left on device"
    with mounted(tmp_path / "output", "100k"), pytest.raises(OSError, match=full):
        run("--input", str(video), "--score-threshold", "1")


class Camera:
    """Gives some images and then stops, or is interrupted."""

    def __init__(self, images: int, error: type[BaseException] | None = None) -> None:
        self.images, self.error, self.read_so_far = images, error, 0
        self.of_files = cv2.VideoCapture

    def __call__(self, source: int | str) -> Camera | cv2.VideoCapture:
        return self if source == 0 or str(source).startswith("rtsp://") else self.of_files(source)

    def isOpened(self) -> bool:
        return True

    def get(self, key: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.read_so_far += 1
        if self.read_so_far <= self.images:
            return True, PICTURE
        if self.error is not None:
            raise self.error
        return False, None

    def release(self) -> None:
        pass


@pytest.fixture
def log(caplog) -> pytest.LogCaptureFixture:
    logging.getLogger("dynamic_sparse_rcnn").addHandler(caplog.handler)  # runs stop the propagation
    return caplog


def use_camera(run, monkeypatch, camera: Camera, *options: str) -> Path:
    with monkeypatch.context() as context:
        context.setattr(cv2, "VideoCapture", camera)
        return run("--camera", "0", *options)


def test_a_camera_that_stops_leaves_what_it_has_given_and_that_is_told(run, monkeypatch, log, capsys):
    output = use_camera(run, monkeypatch, Camera(3))
    assert "camera 0 stopped giving images after 3: is it still connected?" in log.text
    assert "detections in 3 images" in capsys.readouterr().out
    assert found_in(output) == {f"camera 0:00000{i}" for i in range(3)}
    assert int(cv2.VideoCapture(str(output / "camera 0.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    assert {path.name for path in output.iterdir()} == {"detections.json", "camera 0.mp4"}


def test_the_stream_of_a_camera_is_read_without_end_and_its_password_is_told_to_nobody(run, monkeypatch, log):
    with monkeypatch.context() as context:
        context.setattr(cv2, "VideoCapture", Camera(3))
        output = run("--input", "rtsp://anna:secret@camera.local/garden")
    assert "rtsp://camera.local/garden stopped giving images after 3" in log.text
    assert found_in(output) == {f"garden:00000{i}" for i in range(3)}
    assert {path.name for path in output.iterdir()} == {"detections.json", "garden.mp4"}
    assert "secret" not in log.text + (output / "detections.json").read_text()


def test_a_camera_is_ended_by_an_interrupt_and_then_starts_anew(run, monkeypatch, log):
    output = use_camera(run, monkeypatch, Camera(2, KeyboardInterrupt))
    assert {path.name for path in output.iterdir()} == {"detections.json", "camera 0.mp4"}
    assert found_in(output) == {"camera 0:000000", "camera 0:000001"}
    assert "continues from there" not in log.text and "stopped giving" not in log.text
    assert len(found_in(use_camera(run, monkeypatch, Camera(9), "--max-frames", "4"))) == 4
    assert "stopped giving" not in log.text


def test_a_camera_that_gives_nothing_is_an_error(run, monkeypatch):
    with pytest.raises(OSError, match="None of the inputs could be read"):
        use_camera(run, monkeypatch, Camera(0))


def test_a_demo_without_input_is_an_error(capsys):
    with pytest.raises(SystemExit):
        demo.parse_args([])
    assert "--input or --camera" in capsys.readouterr().err


def test_two_cameras_of_one_name_are_both_read(run, monkeypatch):
    urls = [f"rtsp://{user}:secret@camera.local/live" for user in ("anna", "bert")]
    with monkeypatch.context() as context:
        context.setattr(cv2, "VideoCapture", Camera(4))
        output = run("--input", *urls, "--max-frames", "2")
    assert {path.suffix for path in output.iterdir()} == {".json", ".mp4"} and len(list(output.iterdir())) == 3
    assert {x["image_id"] for x in json.loads((output / "detections.json").read_text())} == {1, 2, 3, 4}


def test_tracks_are_kept_alive_by_detections_below_the_threshold_which_are_not_told(run, tmp_path, monkeypatch):
    pytest.importorskip("trackers")
    video, lowest, original = write_video(tmp_path / "clip.avi", [PICTURE] * 3), [], Predictor.predict

    def shifted(self, frames, lowest_score=None):
        """The untrained detector's predictions; scores from 0.05 to 0.9."""
        lowest.append(lowest_score)
        predictions = original(self, frames, 0.0)
        for prediction in predictions:
            number = len(prediction.instances)
            prediction.instances.scores = torch.linspace(0.9, 0.05, number)
        return predictions

    monkeypatch.setattr(Predictor, "predict", shifted)
    output = run("--input", str(video), "--track", "--score-threshold", "0.5")
    assert lowest == [0.1] * 3
    scores = [x["score"] for x in json.loads((output / "detections.json").read_text())]
    assert scores and min(scores) >= 0.5


@pytest.mark.parametrize("number", [0, -1])
def test_less_than_a_frame_is_refused(tmp_path, number):
    with pytest.raises(ValueError, match=f"--max-frames is {number}: use 1 or more"):
        JobOptions(tmp_path, max_frames=number)
