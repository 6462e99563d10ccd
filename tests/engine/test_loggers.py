"""Trackers of experiments, in their offline modes, and loggers of one's own."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.utils.events import EventWriter, get_event_storage
from small_trainings import make_training, train

from dynamic_sparse_rcnn.engine import loggers
from dynamic_sparse_rcnn.engine.loggers import LOGGER_REGISTRY, check_loggers
from dynamic_sparse_rcnn.engine.run import TrainingRun

SCORES = {2: 5.0, 4: 4.0, 6: 3.0}


def training_in_two_parts(folder: Path, name: str) -> None:
    """Six iterations, of which the last four are those of a resumed training."""
    settings: dict[str, Any] = {"eval_period": 2, "scores": SCORES, "loggers": (name,), "log_period": 1}
    train(make_training(folder, max_iter=2, **settings))
    train(make_training(folder, max_iter=6, **settings), resume=True)


def read_wandb(file: Path) -> Iterator[Any]:
    """The records of an offline run: a log of LevelDB, in blocks of 32 KiB, after a header of 7 bytes."""
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, position, message = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        message += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = proto.Record()
            record.ParseFromString(message)
            message = b""
            yield record


def read_finished_wandb(file: Path) -> list[Any]:
    """The records once the last is there: W&B's own process writes them."""
    deadline = time.monotonic() + 60
    while not (records := list(read_wandb(file))) or not records[-1].HasField("exit"):
        assert time.monotonic() < deadline, file
        time.sleep(0.05)
    return records


def test_weights_and_biases_gets_scalars_and_config_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    training_in_two_parts(tmp_path / "run", "wandb")
    files = sorted((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # parts of one run
    rows: list[dict[str, float]] = []
    for file in files:
        for record in read_finished_wandb(file):
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
            if record.HasField("run"):
                assert record.run.project == "dynamic-sparse-rcnn" and record.run.display_name == "run"
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert config["a"] == {"key": 1}
    scores = {row["iteration"]: row["bbox/AP"] for row in rows if "bbox/AP" in row}
    assert scores == {2: 5.0, 3: 4.0, 6: 3.0}  # after the last iteration detectron2 counts on
    assert sorted(row["iteration"] for row in rows if "total_loss" in row) == [0, 1, 2, 3, 4, 5]


def test_mlflow_gets_scalars_and_config_in_a_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tests")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    training_in_two_parts(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "bbox/AP")}
    assert history == {2: 5.0, 3: 4.0, 6: 3.0}
    losses = client.get_metric_history(run.info.run_id, "total_loss")
    assert [m.step for m in losses] == [0, 1, 2, 3, 4, 5]
    assert client.list_artifacts(run.info.run_id)[0].path == "config.yaml"


def test_a_new_training_in_the_same_folder_is_a_new_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for _ in range(2):
        train(make_training(tmp_path / "run", loggers=("mlflow",), max_iter=1))
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("dynamic-sparse-rcnn")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_run_that_fails_is_told_so_and_a_server_that_fails_ends_no_training(tmp_path, monkeypatch, caplog):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")

    def fail(training: TrainingRun) -> None:
        if training.iter == 2:
            raise RuntimeError("the loss is NaN")

    with pytest.raises(RuntimeError, match="NaN"):
        train(make_training(tmp_path / "run", loggers=("mlflow",), log_period=2, max_iter=3), after_step=fail)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("dynamic-sparse-rcnn")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]

    def is_down(*arguments: object) -> None:
        raise mlflow.exceptions.MlflowException("the server is down")

    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", is_down)
    train(make_training(tmp_path / "other", loggers=("mlflow",), max_iter=1))
    assert "the server is down" in caplog.text


def test_class_names_are_no_obstacle_for_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    writer = loggers.MlflowWriter("mlflow", str(tmp_path / "run"), {})
    run_id = writer.start(None)
    writer.log({"bbox/AP-$5 (new), été": 1.0, **{f"bbox/AP-{i}": 1.0 for i in range(1001)}}, 0)
    names = set(writer._client.get_run(run_id).data.metrics)
    assert len(names) == 1002 and "bbox/AP-_5 _new__ été" in names


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_clear_line(monkeypatch, name):
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    with pytest.raises(
        ValueError, match=rf"^LOGGERS has '{name}', but .* pip install 'dynamic-sparse-rcnn\[{name}\]'$"
    ):
        check_loggers((name,))
    check_loggers(("tensorboard",))


def test_a_logger_of_ones_own_is_named_in_the_config(tmp_path, monkeypatch):
    written: list[float] = []

    class Writer(EventWriter):
        def write(self) -> None:
            written.append(get_event_storage().latest()["total_loss"][0])

    monkeypatch.setitem(LOGGER_REGISTRY._obj_map, "mine", lambda output_dir, config: Writer())
    train(make_training(tmp_path, loggers=("mine",), log_period=2))
    assert len(written) == 4  # and once more at the end
