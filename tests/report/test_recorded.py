"""What is read of a run's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamic_sparse_rcnn.data.ground_truth import file_stem
from dynamic_sparse_rcnn.report.recorded import read_run


def write_metrics(folder: Path, *rows: dict[str, float], rest: str = "") -> None:
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows) + rest)


def test_curves_of_a_run_that_was_killed_while_it_wrote(tmp_path: Path) -> None:
    rows = [{"iteration": 19, "total_loss": 3.0}, {"iteration": 39, "total_loss": 2.0, "lr": 0.1}]
    write_metrics(tmp_path, *rows, rest='{"iteration": 59, "total_')
    run = read_run(tmp_path)
    assert run.curves == {"total_loss": {19: 3.0, 39: 2.0}, "lr": {39: 0.1}}
    assert run.iterations == 40
    assert run.warnings == ("1 lines of metrics.json are damaged and left out",)


def test_a_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    write_metrics(
        tmp_path,
        *({"iteration": i, "total_loss": 9.0} for i in (19, 39, 59)),
        {"iteration": 49, "bbox/AP": 9.0},
        *({"iteration": i, "total_loss": 1.0} for i in (39, 50)),
    )
    assert read_run(tmp_path).curves == {"total_loss": {19: 9.0, 39: 1.0, 50: 1.0}}


def test_lines_of_one_run_need_not_be_sorted(tmp_path: Path) -> None:
    rows = [{"iteration": 3, "total_loss": 2.0}, {"iteration": 1, "bbox/AP": 5.0}, {"iteration": 4, "bbox/AP": 6.0}]
    write_metrics(tmp_path, *rows)
    assert read_run(tmp_path).curves == {"total_loss": {3: 2.0}, "bbox/AP": {1: 5.0, 4: 6.0}}


def test_curves_are_found_with_and_without_the_name_of_a_test_set(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"iteration": 1, "bbox/AP": 1, "coco:a:b/bbox/AP": 2, "bbox/AP-bbox": 3, "xbbox/AP": 4})
    assert read_run(tmp_path).find_curves("bbox/AP") == {"bbox/AP": {1: 1}, "coco:a:b/bbox/AP": {1: 2}}


def test_losses_of_the_training_are_not_those_of_the_validation(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"iteration": 1, "total_loss": 1, "validation/total_loss": 2})
    run = read_run(tmp_path)
    assert run.find_curves("total_loss") == {"total_loss": {1: 1}}
    assert run.find_curves("validation/total_loss") == {"validation/total_loss": {1: 2}}


@pytest.mark.parametrize(
    "config",
    [
        "DATASETS: {TRAIN: [a, b], TEST: [c]}\nSOLVER: {MAX_ITER: 90}\n",
        "dataloader: {train: {dataset: {name: a}}, test: {dataset: {name: c}}}\ntrain: {max_iter: 90}\n",
        "dataloader: {train: {dataset: {name: a}}, test: [{dataset: {name: c}}]}\ntrain: {max_iter: 90}\n",
    ],
    ids=["yaml", "lazy", "lazy with a list of test sets"],
)
def test_both_kinds_of_config_name_their_data_and_length(tmp_path: Path, config: str) -> None:
    write_metrics(tmp_path, {"iteration": 0, "total_loss": 1})
    (tmp_path / "config.yaml").write_text(config)
    run = read_run(tmp_path)
    assert (run.test_sets, run.max_iter) == (("c",), 90)


def test_versions_are_those_that_the_run_logged_last(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"iteration": 0, "total_loss": 1})
    table = "------  -----\nPython  {}\n------  -----"
    log = f"d2: Environment info:\n{table.format('3.9')}\nd2: x\nd2: Environment:\n{table.format('3.11')}\nd2: y\n"
    (tmp_path / "log.txt").write_text(log)
    assert read_run(tmp_path).environment == table.format("3.11")


def test_what_a_run_found_in_its_data_is_what_it_logged_last(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"iteration": 0, "total_loss": 1})
    first, second = ("  5 images\n  WARNING: odd\n", "  6 images\n")
    log = f"[1] d2: Data set a b\n{first}[2] d2: Data set c\n{first}[3] d2: Data set c\n{second}[4] d2: end\n"
    (tmp_path / "log.txt").write_text(log)
    assert read_run(tmp_path).datasets == {"a b": "5 images\nWARNING: odd\n", "c": "6 images\n"}


def test_detections_of_several_test_sets_have_their_names(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("DATASETS: {TEST: ['coco:a.json:a', 'coco:b.json:b']}")
    for folder in ("x", "y"):
        (tmp_path / "inference" / folder).mkdir(parents=True)
        (tmp_path / "inference" / folder / "coco_instances_results.json").write_text("[]")
    for folder, name in (("x", "coco:b.json:b"), ("y", "coco:a.json:a")):
        (tmp_path / "inference" / folder / f"{file_stem(name)}_coco_format.json").touch()
    (tmp_path / "inference/x/stages.json").write_text('[{"AP": 1.0}]')
    second, first = read_run(tmp_path).evaluations
    assert (first.dataset, first.stages) == ("coco:a.json:a", ())
    assert (second.dataset, second.stages) == ("coco:b.json:b", ({"AP": 1.0},))
