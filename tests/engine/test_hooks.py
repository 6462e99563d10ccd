"""Average of the weights, best checkpoint and early stopping."""

from __future__ import annotations

import copy
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from small_trainings import Line, make_training, train

from dynamic_sparse_rcnn.checkpoints.runs import find_checkpoint
from dynamic_sparse_rcnn.engine.hooks import find_metric
from dynamic_sparse_rcnn.engine.run import RunSettings


def checkpoint(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / f"{name}.pth")


class Killed(Exception):
    pass


def kill_after(iteration: int, training: Any) -> None:
    if training.iter == iteration - 1:
        raise Killed


def test_the_average_of_the_weights_is_evaluated_and_saved(tmp_path):
    """Its oracle: the sum of all weights, each with the product of the decays since then."""
    seen: list[dict[str, torch.Tensor]] = []
    evaluated: list[Any] = []
    training = make_training(tmp_path, ema_decay=0.4, eval_period=3, scores={3: 1.0, 6: 2.0}, evaluated=evaluated)
    start = {name: value.double() for name, value in training.parts.model.state_dict().items()}
    train(training, after_step=lambda t: seen.append(copy.deepcopy(t.parts.model.state_dict())))
    decays = [0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4]  # the sixth would be 6 / 15, which is 0.4 too
    for iterations, weights in [*evaluated, (6, checkpoint(tmp_path, "model_final")["model"])]:
        for name, value in weights.items():
            if not value.is_floating_point():
                assert value == iterations, name
                continue
            expected = start[name]
            for decay, new in zip(decays[:iterations], seen[:iterations], strict=True):
                expected = decay * expected + (1 - decay) * new[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6, msg=name)
    assert [iterations for iterations, _ in evaluated] == [3, 6]
    assert not torch.equal(seen[-1]["linear.weight"], evaluated[-1][1]["linear.weight"])


def test_a_training_with_an_average_starts_from_the_given_weights(tmp_path):
    model = Line()
    torch.save({"model": model.state_dict()}, tmp_path / "start.pth")
    training = make_training(tmp_path / "run", ema_decay=0.5, weights=str(tmp_path / "start.pth"))
    moved: list[torch.Tensor] = []
    train(training, after_step=lambda t: moved.append(t.parts.model.linear.weight.detach().clone()))
    plain = make_training(tmp_path / "plain", weights=str(tmp_path / "start.pth"))
    expected: list[torch.Tensor] = []
    train(plain, after_step=lambda t: expected.append(t.parts.model.linear.weight.detach().clone()))
    torch.testing.assert_close(moved, expected, rtol=0, atol=0)  # the average changes nothing in what is learned


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize(
    "killed", ["after step 1", "after step 2", "in evaluation 2", "after step 4", "in evaluation 4"]
)
def test_a_resumed_training_is_the_unbroken_one(tmp_path, decay, killed):
    """Weights, average, best checkpoint and patience; evaluations at 2 and 4 are after the checkpoints of these."""
    scores = {2: 5.0, 4: 4.0, 6: 3.0}
    settings: dict[str, Any] = {"ema_decay": decay, "eval_period": 2, "scores": scores, "best_metric": "bbox/AP"}
    train(make_training(tmp_path / "unbroken", **settings))
    number = int(killed[-1])
    if killed.startswith("in"):
        broken = make_training(tmp_path / "broken", **settings | {"scores": {2: 5.0} if number == 4 else {1: 1.0}})
        with pytest.raises(KeyError):
            train(broken)
    else:
        with pytest.raises(Killed):
            train(make_training(tmp_path / "broken", **settings), after_step=lambda t: kill_after(number, t))
    train(make_training(tmp_path / "broken", **settings), resume=True)
    for name in ("model_final", "model_best"):
        found, expected = (checkpoint(tmp_path / folder, name) for folder in ("broken", "unbroken"))
        assert found.keys() == expected.keys()
        for key in found.keys() - {"model", "trainer"}:
            assert found[key] == expected[key], key
        torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
        if name == "model_final":
            assert found["trainer"]["hooks"]["Evaluation"] == expected["trainer"]["hooks"]["Evaluation"]
            assert found["trainer"]["hooks"].keys() == expected["trainer"]["hooks"].keys()
            torch.testing.assert_close(
                found["trainer"]["_trainer"]["optimizer"], expected["trainer"]["_trainer"]["optimizer"], rtol=0, atol=0
            )


def test_an_average_is_not_lost_without_a_word(tmp_path):
    with pytest.raises(Killed):
        train(make_training(tmp_path, ema_decay=0.9), after_step=lambda training: kill_after(2, training))
    with pytest.raises(ValueError, match=r"moving average .*SOLVER\.EMA\.ENABLED True"):
        train(make_training(tmp_path), resume=True)


def test_the_best_checkpoint_is_that_of_the_best_evaluation(tmp_path, caplog):
    evaluated: list[Any] = []
    scores = {1: 3.0, 2: float("nan"), 3: 7.0, 4: 7.0, 5: 6.0, 6: 1.0}
    settings: dict[str, Any] = {"eval_period": 1, "scores": scores, "best_metric": "bbox/AP", "evaluated": evaluated}
    with caplog.at_level(logging.INFO):
        train(make_training(tmp_path, **settings))
    best = checkpoint(tmp_path, "model_best")
    assert best["iteration"] == 2
    assert best["metric"] == {"name": "bbox/AP", "value": 7.0}
    assert "trainer" not in best
    torch.testing.assert_close(best["model"], dict(evaluated)[3], rtol=0, atol=0)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert "Best bbox/AP: 7.0000 after 3 iterations, saved as model_best.pth" in caplog.text


def test_without_a_metric_no_checkpoint_is_the_best(tmp_path):
    train(make_training(tmp_path, eval_period=1, scores=dict.fromkeys(range(1, 7), 1.0)))
    assert not (tmp_path / "model_best.pth").exists()


def test_of_losses_less_is_better_and_of_several_sets_the_mean_counts():
    results = {"one": {"bbox": {"AP": 10.0}}, "two": {"bbox": {"AP": 30.0, "AP50": 50.0}}}
    assert find_metric(results, "bbox/AP") == 20
    assert find_metric(results, "two/bbox/AP") == 30
    assert find_metric(results, "bbox/AP50") == 50
    with pytest.raises(ValueError, match=r"BEST_METRIC is 'box/AP', which .* gives \['one/bbox/AP', "):
        find_metric(results, "box/AP")


@pytest.mark.parametrize(("metric", "best"), [("validation/total_loss", 2), ("one/validation/total_loss", 2)])
def test_of_losses_the_smallest_is_the_best(tmp_path, metric, best):
    training = make_training(tmp_path, eval_period=1, best_metric=metric)
    losses = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    training.parts = replace(
        training.parts, evaluate=lambda model: {"one": {"validation": {"total_loss": next(losses)}}}
    )
    train(training)
    assert checkpoint(tmp_path, "model_best")["iteration"] == best - 1


def test_a_test_set_may_be_called_validation(tmp_path):
    training = make_training(tmp_path, eval_period=1, max_iter=3, best_metric="validation/bbox/AP")
    scores = iter([10.0, 30.0, 20.0])
    training.parts = replace(training.parts, evaluate=lambda model: {"validation": {"bbox": {"AP": next(scores)}}})
    train(training)
    assert checkpoint(tmp_path, "model_best")["iteration"] == 1


def test_another_metric_starts_anew_when_a_run_is_resumed(tmp_path):
    scores = {1: 80.0, 2: 90.0, 3: 85.0}
    training = make_training(tmp_path, eval_period=1, scores=scores, best_metric="bbox/AP")
    with pytest.raises(Killed):
        train(training, after_step=lambda training: kill_after(3, training))
    scores = {3: 30.0, 4: 40.0, 5: 45.0, 6: 35.0}
    settings: dict[str, Any] = {"eval_period": 1, "scores": scores, "best_metric": "one/bbox/AP", "patience": 3}
    training = make_training(tmp_path, **settings)
    evaluate = training.parts.evaluate
    training.parts = replace(training.parts, evaluate=lambda model: {"one": evaluate(model)})
    train(training, resume=True)
    assert checkpoint(tmp_path, "model_best")["metric"] == {"name": "one/bbox/AP", "value": 45.0}


def test_the_detections_of_the_best_checkpoint_are_kept(tmp_path):
    scores = iter([30.0, 50.0, 40.0])
    training = make_training(tmp_path, eval_period=2, best_metric="bbox/AP")
    detections = tmp_path / "inference/coco_instances_results.json"

    def evaluate(model: torch.nn.Module) -> dict[str, dict[str, float]]:
        score = next(scores)
        shutil.rmtree(detections.parent, ignore_errors=True)
        detections.parent.mkdir()
        detections.write_text(str(score))
        (detections.parent / f"of {score}.json").write_text("")
        (detections.parent / "instances_predictions.pth").write_text("")
        return {"bbox": {"AP": score}}

    training.parts = replace(training.parts, evaluate=evaluate)
    train(training)
    assert checkpoint(tmp_path, "model_best")["metric"]["value"] == 50.0
    assert (tmp_path / "inference_best/coco_instances_results.json").read_text() == "50.0"
    assert detections.read_text() == "40.0"
    kept = [path.name for path in (tmp_path / "inference_best").iterdir()]
    assert sorted(kept) == ["coco_instances_results.json", "of 50.0.json"]  # of the first best one nothing is left


def test_detections_that_cannot_be_kept_do_not_end_the_training(tmp_path, monkeypatch, caplog):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("dynamic_sparse_rcnn.checkpoints.runs.shutil.copytree", fail)
    training = make_training(tmp_path, eval_period=2, best_metric="bbox/AP")

    def evaluate(model: torch.nn.Module) -> dict[str, dict[str, float]]:
        (tmp_path / "inference").mkdir(exist_ok=True)
        return {"bbox": {"AP": 1.0}}

    training.parts = replace(training.parts, evaluate=evaluate)
    train(training)
    assert "The report will have the last detections" in caplog.text
    assert (tmp_path / "model_final.pth").is_file()


def test_a_new_run_is_not_taken_for_the_earlier_one_of_its_folder(tmp_path):
    settings: dict[str, Any] = {"eval_period": 1, "best_metric": "bbox/AP"}
    train(make_training(tmp_path, scores=dict.fromkeys(range(1, 7), 1.0), **settings))
    for name in ("inference", "inference_best", "eval/inference"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "inference/coco_instances_results.json").write_text("[]")
    (tmp_path / "config.yaml").write_text("SEED: 1")
    assert find_checkpoint(tmp_path) == str(tmp_path / "model_best.pth")
    with pytest.raises(Killed):
        train(make_training(tmp_path, checkpoint_period=3), after_step=lambda training: kill_after(2, training))
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        find_checkpoint(tmp_path)
    assert not any((tmp_path / name).exists() for name in ("inference", "inference_best", "eval"))
    assert not list(tmp_path.glob("model_*.pth"))
    earlier = tmp_path / "earlier_1"
    assert (earlier / "eval").is_dir() and (earlier / "inference_best").is_dir()
    assert find_checkpoint(earlier) == str(earlier / "model_best.pth")
    assert (earlier / "model_final.pth").is_file() and (earlier / "last_checkpoint").is_file()
    (tmp_path / "config.yaml").write_text("SEED: 2")
    with pytest.raises(Killed):  # what was set aside stays
        train(make_training(tmp_path, checkpoint_period=3), after_step=lambda training: kill_after(2, training))
    assert (tmp_path / "earlier_1/inference/coco_instances_results.json").read_text() == "[]"
    assert (tmp_path / "earlier_1/model_final.pth").is_file()
    assert (tmp_path / "earlier_1/config.yaml").read_text() == "SEED: 1"
    (tmp_path / "model_final.pth").write_bytes(b"second")
    with pytest.raises(Killed):
        train(make_training(tmp_path, checkpoint_period=3), after_step=lambda training: kill_after(2, training))
    assert (tmp_path / "earlier_2/model_final.pth").read_bytes() == b"second"
    assert (tmp_path / "earlier_1/model_final.pth").read_bytes() != b"second"


def test_an_error_in_the_first_iterations_is_not_hidden_by_one_of_the_log(tmp_path):
    training = make_training(tmp_path, log_period=1)
    with pytest.raises(Killed):
        train(training, after_step=lambda training: kill_after(2, training))


def test_a_folder_without_a_run_is_left_alone(tmp_path):
    (tmp_path / "eval").mkdir()  # images, say
    (tmp_path / "config.yaml").write_text("mine")
    train(make_training(tmp_path))
    assert (tmp_path / "eval").is_dir() and (tmp_path / "config.yaml").read_text() == "mine"
    train(make_training(tmp_path))
    assert (tmp_path / "eval").is_dir() and (tmp_path / "earlier_1").is_dir()


@pytest.mark.parametrize(("patience", "last"), [(1, 4), (2, 5), (3, 6), (4, 10)])
def test_a_training_stops_when_its_patience_is_over(tmp_path, patience, last, caplog):
    scores = {1: 1.0, 2: 2.0, 3: 3.0, **dict.fromkeys(range(4, 7), 2.0), **dict.fromkeys(range(7, 11), 4.0)}
    settings: dict[str, Any] = {"eval_period": 1, "scores": scores, "best_metric": "bbox/AP", "max_iter": 10}
    with caplog.at_level(logging.INFO):
        train(make_training(tmp_path, patience=patience, **settings))
    assert checkpoint(tmp_path, "model_final")["iteration"] == last - 1
    assert checkpoint(tmp_path, "model_best")["iteration"] == (6 if last == 10 else 2)
    assert ("Stopping after" in caplog.text) == (last < 10)
    assert "Exception" not in caplog.text
    rows = (tmp_path / "metrics.json").read_text()
    assert re.search(rf'"bbox/AP": [\d.]+, .*"iteration": {last - 1 if last < 10 else 10}\b', rows)


def test_a_training_that_has_stopped_stays_stopped_until_its_patience_is_raised(tmp_path):
    scores = {1: 2.0, **dict.fromkeys(range(2, 7), 1.0)}
    settings: dict[str, Any] = {"eval_period": 1, "scores": scores, "best_metric": "bbox/AP"}
    train(make_training(tmp_path, patience=2, **settings))
    steps: list[int] = []
    train(make_training(tmp_path, patience=2, **settings), resume=True, after_step=lambda t: steps.append(t.iter))
    assert not steps and checkpoint(tmp_path, "model_final")["iteration"] == 2
    train(make_training(tmp_path, patience=4, **settings), resume=True, after_step=lambda t: steps.append(t.iter))
    assert steps == [3]  # and 4, in which it stops before it comes to that
    assert checkpoint(tmp_path, "model_final")["iteration"] == 4


def stop_on_a_rank(folder: Path) -> None:
    scores = {1: 2.0, **dict.fromkeys(range(2, 7), 1.0)}
    steps: list[int] = []
    training = make_training(folder, eval_period=1, scores=scores, best_metric="bbox/AP", patience=2, ema_decay=0.5)
    train(training, after_step=lambda t: steps.append(t.iter))
    assert training.iter == 2
    rank = torch.distributed.get_rank()
    torch.save(training.evaluated_model.state_dict(), folder / f"average_of_rank_{rank}.pth")


def test_all_processes_stop_together_with_one_average(tmp_path):
    run_ranks(2, stop_on_a_rank, tmp_path)
    first, second = (checkpoint(tmp_path, f"average_of_rank_{rank}") for rank in range(2))
    for name, value in first.items():
        if name.startswith("linear"):  # statistics of batches are each rank's own until an evaluation
            assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema_decay": 1.0}, r"SOLVER\.EMA\.DECAY .* is 1\.0: use a number between 0 and 1"),
        ({"patience": 1, "eval_period": 1, "best_metric": ""}, r"SOLVER\.PATIENCE .* is 1: .*needs TEST\.BEST_METRIC"),
        ({"patience": 1, "eval_period": 0, "best_metric": "bbox/AP"}, r"SOLVER\.PATIENCE .*TEST\.EVAL_PERIOD"),
        ({"max_iter": 0}, r"SOLVER\.MAX_ITER .* is 0"),
        ({"output_dir": "s3://bucket/run"}, r"OUTPUT_DIR .* is s3://bucket/run: runs are written to a folder"),
        ({"checkpoint_period": 0}, r"SOLVER\.CHECKPOINT_PERIOD .* 0: a training needs at least 1"),
        ({"loggers": ("tensorbored",)}, r"LOGGERS has 'tensorbored': registered are mlflow, tensorboard, wandb"),
    ],
)
def test_settings_that_cannot_be_are_errors_that_name_their_keys(settings, message):
    with pytest.raises(ValueError, match=message):
        RunSettings(**{"output_dir": "", "weights": "", "max_iter": 1, "seed": 0, "checkpoint_period": 1, **settings})
