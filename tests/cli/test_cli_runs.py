"""``dsrcnn train``, ``eval``, ``predict`` and ``visualize`` on a small run."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest
import torch
from small_runs import CONFIG, DYNAMIC, TINY

from dynamic_sparse_rcnn.cli import main

RESULT = re.compile(r"bbox AP \S+ AP50 \S+ AP75 \S+")


@pytest.fixture(scope="module")
def trained(shapes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one iteration, with dynamic proposals."""
    folder = tmp_path_factory.mktemp("cli") / "a run"
    arguments = ["train", "--data", shapes, "--val", shapes, "--output", str(folder), "--config-file", CONFIG]
    main([*arguments, *TINY, *DYNAMIC, "SOLVER.MAX_ITER", "1"])
    return folder


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_an_evaluation_takes_the_runs_folder_and_ends_with_its_result(trained, shapes, capsys):
    before = {file.name for file in trained.iterdir()}
    main(["eval", str(trained), "--data", shapes])
    of_folder = last_line(capsys)
    assert RESULT.fullmatch(of_folder)
    assert {file.name for file in trained.iterdir()} == before | {"eval"}
    main(["eval", str(trained / "model_final.pth"), "--data", shapes, "--output", str(trained / "other")])
    assert last_line(capsys) == of_folder


def test_a_run_is_resumed_by_its_folder_alone(trained, shapes, tmp_path, capsys):
    folder = tmp_path / "resumed"
    folder.mkdir()
    for name in ("config.yaml", "model_final.pth", "last_checkpoint"):
        (folder / name).write_bytes((trained / name).read_bytes())
    main(["train", "--resume", "--output", str(folder), "SOLVER.MAX_ITER", "2"])
    assert RESULT.fullmatch(last_line(capsys))
    assert torch.load(folder / "model_final.pth")["iteration"] == 1


def test_a_training_starts_from_a_run_and_without_validation_set_has_no_result(trained, shapes, tmp_path, capsys):
    arguments = ["train", "--data", shapes, "--output", str(tmp_path / "new"), "--config-file", CONFIG]
    main([*arguments, "--weights", str(trained), *TINY, *DYNAMIC, "SOLVER.MAX_ITER", "1", "SOLVER.BASE_LR", "0.0"])
    assert not RESULT.search(capsys.readouterr().out)
    start, new = (torch.load(folder / "model_final.pth")["model"] for folder in (trained, tmp_path / "new"))
    for name, value in start.items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.equal(new[name], value), name


def test_a_training_needs_no_config(shapes, tmp_path, capsys):
    small = [
        "SOLVER.MAX_ITER",
        "1",
        "SOLVER.IMS_PER_BATCH",
        "2",
        "INPUT.MIN_SIZE_TRAIN",
        "(64,)",
        "MODEL.DEVICE",
        "cpu",
    ]
    main(["train", "--data", shapes, "--val", shapes, "--output", str(tmp_path), *small, "INPUT.MIN_SIZE_TEST", "64"])
    assert RESULT.fullmatch(last_line(capsys)) and (tmp_path / "model_final.pth").is_file()


def test_predictions_take_the_runs_folder(trained, shapes, tmp_path, capsys):
    images = shapes.split(":")[2]
    main(["predict", images, "--weights", str(trained), "--output", str(tmp_path), "--score-threshold", "0"])
    assert "detections in 6 images" in capsys.readouterr().out


@pytest.mark.parametrize(("what", "panels"), [("assignment", 3), ("proposals", 3), ("stages", 3), ("detections", 2)])
def test_figures_take_the_runs_folder(trained, shapes, tmp_path, what, panels):
    output = tmp_path / "figure.png"
    main(["visualize", what, str(trained), "--data", shapes, "--image", "000002", "--output", str(output)])
    assert cv2.imread(str(output)).shape[1] >= panels * 64


def test_a_users_module_is_imported_first(trained, shapes, tmp_path, monkeypatch, capsys):
    (tmp_path / "module_with_a_set.py").write_text(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "from dynamic_sparse_rcnn.data.datasets import register_dataset\n"
        f"name = {shapes!r}\nregister_dataset(name)\n"
        "DatasetCatalog.register('set_of_a_user', lambda: DatasetCatalog.get(name))\n"
        "known = MetadataCatalog.get(name)\n"
        "MetadataCatalog.get('set_of_a_user').set(thing_classes=known.thing_classes, evaluator_type='coco',\n"
        "    thing_dataset_id_to_contiguous_id=known.thing_dataset_id_to_contiguous_id)\n"
    )
    monkeypatch.chdir(tmp_path)
    main(["eval", str(trained), "--data", "set_of_a_user", "--import", "module_with_a_set"])
    assert RESULT.fullmatch(last_line(capsys))


def test_other_classes_are_refused_with_both_lists(trained, shapes, tmp_path, capsys):
    _, json_file, images = shapes.split(":")
    content = Path(json_file).read_text().replace('"circle"', '"disc"')
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(SystemExit):
        main(["eval", str(trained), "--data", f"coco:{tmp_path / 'other.json'}:{images}"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "['circle', " in error and "['disc', " in error
