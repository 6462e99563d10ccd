"""Reports of runs: whole ones, killed ones, evaluations, and several beside each other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pages import Page
from small_runs import DYNAMIC, read_metrics

from dynamic_sparse_rcnn.report.writing import write_comparison, write_report


@pytest.fixture
def written_run(tmp_path: Path, shapes: str) -> Callable[..., Path]:
    """Writes what a run on the generated shapes would leave, with the objects themselves as detections."""

    def write(name: str, score: float = 0.5, lr: float = 0.1, keep: int = 100, **replaced: str) -> Path:
        folder = tmp_path / name
        (folder / "inference").mkdir(parents=True)
        rows = [{"iteration": i, "total_loss": 9.0 - i / 20, "lr": lr, "loss_ce": 1.0} for i in (19, 39)]
        (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = f"DATASETS: {{TRAIN: ['{shapes}'], TEST: ['{shapes}']}}\nSOLVER: {{MAX_ITER: 100, BASE_LR: {lr}}}\n"
        (folder / "config.yaml").write_text(config)
        annotation_file, image_folder = shapes.removeprefix("coco:").split(":")
        text = Path(annotation_file).read_text()
        for old, new in replaced.items():
            text = text.replace(old, new)
        truth = json.loads(text)
        for image in truth["images"]:
            image["file_name"] = f"{image_folder}/{image['file_name']}"
        (folder / "inference/shapes_coco_format.json").write_text(json.dumps(truth))
        found = [{**annotation, "score": score} for annotation in truth["annotations"][:keep]]
        (folder / "inference/coco_instances_results.json").write_text(json.dumps(found))
        return folder

    return write


def one_decimal(values: Mapping[str, float], *names: str) -> list[str]:
    return [f"{values[name]:.1f}".replace("nan", "–") for name in names]


def commands_of(page: Page) -> list[str]:
    return page.texts["code"][0].splitlines()


def test_the_report_of_a_training_has_the_numbers_of_its_evaluation(run: Callable[..., Any], tmp_path: Path) -> None:
    run(*DYNAMIC, "TEST.EVAL_PERIOD", "2", "SOLVER.BASE_LR", "0.001")
    results = {name.removeprefix("bbox/"): value for name, value in read_metrics(tmp_path / "run")[-1].items()}
    page = Page.read(tmp_path / "run/report.html")  # the training has written it
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    assert page.tables["COCO's metrics, %"] == [["", *names], ["run", *one_decimal(results, *names)]]
    classes = {row[0]: row for row in page.tables["Classes"][1:]}
    assert {name: row[2] for name, row in classes.items()} == {
        "all": one_decimal(results, "AP")[0],
        **{name: one_decimal(results, f"AP-{name}")[0] for name in classes if name != "all"},
    }
    assert len(classes) == 6
    assert dict(page.tables["Runs"])["iterations logged"] == "4 of 4"
    assert any("6 images, " in text and "circle" in text for text in page.texts["pre"])
    charts = [attributes["aria-label"].split(" over ")[0] for _, attributes in page.elements if "role" in attributes]
    for chart in (
        "Total loss",
        "AP",
        "Learning rate",
        "Positives of each object, by stage",
        "Temperature of the experts",
    ):
        assert chart in charts
    assert any("Python" in text for text in page.texts["pre"])


def test_a_report_that_fails_does_not_fail_the_training(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(folder: str) -> Path:
        raise ZeroDivisionError("of the report")

    monkeypatch.setattr("dynamic_sparse_rcnn.report.writing.write_report", fail)
    assert "bbox" in run("SOLVER.MAX_ITER", "1")
    log = (tmp_path / "run/log.txt").read_text()
    assert "There is no report of this run: ZeroDivisionError: of the report" in log


def test_detections_are_those_of_the_best_checkpoint(written_run: Callable[..., Path]) -> None:
    folder = written_run("run", score=0.25)
    page = Page.read(write_report(folder))
    assert dict(page.tables["Runs"])["detections"] == "of the last evaluation"
    assert page.tables["Classes"][1][5] == "0.250"
    written_run("best", score=0.75)
    (folder.parent / "best/inference").rename(folder / "inference_best")
    page = Page.read(write_report(folder))
    assert dict(page.tables["Runs"])["detections"] == "of the best evaluation"
    assert page.tables["Classes"][1][5] == "0.750"


def test_the_log_tells_how_to_go_on_with_a_run(written_run: Callable[..., Path], caplog) -> None:
    folder = written_run("run", score=0.25)
    (folder / "model_final.pth").write_bytes(b"")
    (folder / "last_checkpoint").write_text("model_0000039.pth")
    with caplog.at_level("INFO"):
        write_report(folder)
    assert f"dsrcnn predict photos/ --weights {folder} --score-threshold 0.25\n" in caplog.text
    assert f"dsrcnn export {folder} --output {folder}/model.onnx --score-threshold 0.25" in caplog.text
    assert "train --resume" in caplog.text
    caplog.clear()
    (folder / "last_checkpoint").write_text("model_final.pth")  # it has stopped early
    (folder / "model_best.pth").write_bytes(b"")  # whose detections the folder has not got
    with caplog.at_level("INFO"):
        write_report(folder)
    assert f"dsrcnn predict photos/ --weights {folder}\n" in caplog.text
    assert "--resume" not in caplog.text and "--score-threshold" not in caplog.text


def test_a_page_needs_no_other_file_and_no_network(written_run: Callable[..., Path]) -> None:
    page = Page.read(write_report(written_run("run", keep=5)))
    references = [
        attributes[name]
        for _, attributes in page.elements
        for name in ("src", "href", "xlink:href", "data", "action")
        if name in attributes
    ]
    assert any(reference.startswith("data:image/jpeg") for reference in references)
    assert [r for r in references if not r.startswith(("#", "data:"))] == []
    assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object"} == set()
    assert re.findall(r"@import|url\((?!#)", page.html) == []


def test_images_charts_and_tables_are_accessible(written_run: Callable[..., Path]) -> None:
    page = Page.read(write_report(written_run("run", keep=5)))
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert images and all("missed" in image["alt"] for image in images)
    graphics = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in graphics)
    headers = [attributes for tag, attributes in page.elements if tag == "th"]
    assert {header["scope"] for header in headers} == {"col", "row"}
    assert len(page.texts["caption"]) == len(page.texts["table"])
    assert len(page.texts["table"]) == sum(attributes.get("class") == "scroll" for _, attributes in page.elements)


def test_missed_and_false_boxes_are_counted_and_drawn(written_run: Callable[..., Path]) -> None:
    folder = written_run("run")
    results = folder / "inference/coco_instances_results.json"
    found = json.loads(results.read_text())
    first, second = found[0]["image_id"], found[-1]["image_id"]
    total = sum(box["image_id"] == first for box in found)
    found = [box for box in found if box["image_id"] != first]
    wrong = sum(box["image_id"] == second for box in found)
    found += [{**box, "bbox": [0, 0, 2, 2], "score": 0.9} for box in found if box["image_id"] == second]
    results.write_text(json.dumps(found))
    page = Page.read(write_report(folder))
    captions = page.texts["figcaption"]
    assert captions[0].endswith(f"0 right, 0 false, {total} missed")
    assert captions[1].endswith(f"{wrong} right, {wrong} false, 0 missed")
    confusion = page.tables["Confusion matrix"]
    assert confusion[0][-1] == "missed" and confusion[-1][0] == "no object"
    assert sum(int(row[-1]) for row in confusion[1:-1]) == total
    assert sum(map(int, confusion[-1][1:])) == wrong


def test_names_are_text_and_never_markup(written_run: Callable[..., Path]) -> None:
    page = Page.read(write_report(written_run("a <i>run", keep=5, circle="<b>&amp;'")))
    assert {tag for tag, _ in page.elements} & {"i", "b"} == {"b"}  # the template's own
    assert "<b>&amp;'" in [row[0] for row in page.tables["Classes"]]
    assert page.texts["h1"] == ["Run a <i>run"]


def test_a_killed_run_says_how_far_it_is_and_how_to_resume_it(written_run: Callable[..., Path]) -> None:
    folder = written_run("killed run")
    for path in (folder / "inference").iterdir():
        path.unlink()
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 59, "total')
    assert "code" not in Page.read(write_report(folder)).texts
    for name in ("model_0000039.pth", "last_checkpoint"):
        (folder / name).touch()
    page = Page.read(write_report(folder))
    assert dict(page.tables["Runs"])["iterations logged"] == "40 of 100"
    resume, predict, *_ = commands_of(page)
    assert resume == f"dsrcnn train --resume --output '{folder}'"
    assert predict == f"dsrcnn predict photos/ --weights '{folder}'"
    assert any("1 lines of metrics.json are damaged" in text for text in page.texts["p"])


def test_the_prediction_that_is_proposed_has_the_best_threshold(written_run: Callable[..., Path]) -> None:
    folder = written_run("run", score=0.4567)
    (folder / "model_best.pth").touch()
    (folder / "inference").rename(folder / "inference_best")
    page = Page.read(write_report(folder))
    assert f"dsrcnn predict photos/ --weights {folder} --score-threshold 0.456" in commands_of(page)


def test_an_evaluation_is_reported_from_its_detections_alone(written_run: Callable[..., Path]) -> None:
    folder = written_run("run")
    (folder / "metrics.json").unlink()
    (folder / "config.yaml").unlink()
    page = Page.read(write_report(folder))
    assert page.tables["COCO's metrics, %"][1][1] == "100.0"


def test_images_that_are_gone_are_said_to_be(written_run: Callable[..., Path], shapes: str) -> None:
    folder = written_run("run", keep=5)
    path = folder / "inference/shapes_coco_format.json"
    path.write_text(path.read_text().replace(str(Path(shapes.split(":")[2]).parent), "/gone"))
    page = Page.read(write_report(folder))
    (note,) = [note for note in page.texts["p"] if note.startswith("Most missed objects")]
    assert "4 images cannot be drawn, first /gone" in note and "No such file" in note
    assert "Classes" in page.tables


def test_a_detector_that_finds_nothing_is_reported(written_run: Callable[..., Path]) -> None:
    page = Page.read(write_report(written_run("run", keep=0)))
    assert any("the detector has found nothing" in note for note in page.texts["p"])


def test_damaged_detections_do_not_hide_the_rest(written_run: Callable[..., Path]) -> None:
    folder = written_run("run")
    (folder / "inference/coco_instances_results.json").write_text("[{")
    page = Page.read(write_report(folder))
    assert any("are not reported" in note for note in page.texts["p"])
    assert page.tables["Runs"]


def test_two_runs_are_laid_over_each_other(written_run: Callable[..., Path], tmp_path: Path) -> None:
    folders = [written_run("first", lr=0.1, keep=5), written_run("second", lr=0.2)]
    page = Page.read(write_comparison(folders, tmp_path / "both.html"))
    assert page.texts["h1"] == ["first and second"]
    _, first, second, *classes = page.tables["Classes"]
    assert (first[0], second[0]) == ("all: first", "all: second")
    assert 0 < float(first[2]) < float(second[2]) == 100
    assert [row[0].split(": ")[1] for row in classes] == ["first", "second"] * 5
    assert [row[0] for row in page.tables["Sizes"][1:3]] == ["small: first", "small: second"]
    assert page.tables["What differs"][1:] == [["SOLVER.BASE_LR", "0.1", "0.2"]]
    (chart,) = [a["aria-label"] for _, a in page.elements if a.get("aria-label", "").startswith("Total loss over")]
    assert "first: training: 8.05 at 19" in chart and "second: training: 8.05 at 19" in chart


def test_runs_of_one_name_are_told_apart_by_their_paths(written_run: Callable[..., Path], tmp_path: Path) -> None:
    folders = [written_run("a/run"), written_run("b/run")]
    page = Page.read(write_comparison(folders, tmp_path / "both.html"))
    assert page.tables["Runs"][0][1:] == [str(folder) for folder in folders]


def test_a_folder_without_a_run_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has neither metrics.json nor inference"):
        write_report(tmp_path)
