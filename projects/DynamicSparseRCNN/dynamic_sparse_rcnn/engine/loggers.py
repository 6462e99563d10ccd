"""Where a training logs to: the terminal, ``metrics.json``, and what the key ``LOGGERS`` names."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)
from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import Registry

from ..file_io import write_json

logger = logging.getLogger(__name__)

LOGGER_REGISTRY = Registry("LOGGER")
LOGGER_REGISTRY.__doc__ = """
Functions, named by ``LOGGERS``, that make an ``EventWriter`` of the output folder and the config of a run.
"""

_PROJECT = "dynamic-sparse-rcnn"
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
# Which runs of trackers a run logs to, for when it is resumed.
_RUN_IDS = "tracking.json"
_MLFLOW_BATCH = 1000  # more are refused


def check_loggers(names: Sequence[str]) -> None:
    """Raises ValueError if a name of ``LOGGERS`` is not registered, or its package is not installed."""
    for name in names:
        if name not in LOGGER_REGISTRY:
            known = ", ".join(sorted(key for key, _ in LOGGER_REGISTRY))
            raise ValueError(f"LOGGERS has {name!r}: registered are {known}")
        package = _PACKAGES.get(name)
        if package and find_spec(package) is None:
            raise ValueError(
                f"LOGGERS has {name!r}, but {package} is not installed: pip install 'dynamic-sparse-rcnn[{name}]'"
            )


def build_writers(
    output_dir: str, max_iter: int, names: Sequence[str], config: Mapping[str, object]
) -> list[EventWriter]:
    """The writers of a run, for its main process.

    Args:
        output_dir: of the run.
        max_iter: its number of iterations, for the time that is left.
        names: of ``LOGGER_REGISTRY``.
        config: of the run, as plain dicts.
    """
    PathManager.mkdirs(output_dir)
    own = [_Printer(max_iter), JSONWriter(str(Path(output_dir) / "metrics.json"))]
    return own + [LOGGER_REGISTRY.get(name)(output_dir, config) for name in names]


def forget_tracked_runs(output_dir: str) -> None:
    """Makes trackers begin a run of their own, as for a training that starts anew."""
    (Path(output_dir) / _RUN_IDS).unlink(missing_ok=True)


class _Printer(CommonMetricPrinter):
    """detectron2's, whose ETA divides by zero after an error in the first iterations, and hides it."""

    def _get_eta(self, storage: EventStorage) -> str | None:
        with suppress(ZeroDivisionError):
            eta: str | None = super()._get_eta(storage)
            return eta
        return None


class TrackerWriter(EventWriter):
    """Logs scalars, smoothed as detectron2's other writers do, to a tracker of experiments.

    The tracker's run begins with the first scalars; a training that is resumed goes on in it.
    """

    def __init__(self, name: str, output_dir: str, config: Mapping[str, object]) -> None:
        """
        Args:
            name: of the tracker.
            output_dir: whose last part names the run.
            config: to be shown with the run.
        """
        self.name, self.output_dir, self.config = name, Path(output_dir), config
        self._is_started = False
        self._last_iteration = -1

    def write(self) -> None:
        """Logs what is new."""
        rows: defaultdict[int, dict[str, float]] = defaultdict(dict)
        for key, (value, iteration) in get_event_storage().latest_with_smoothing_hint(20).items():
            if iteration > self._last_iteration:
                rows[iteration][key] = float(value)
        if rows and not self._is_started:
            self._start()
        for iteration in sorted(rows):
            self.log(rows[iteration], iteration)
            self._last_iteration = iteration

    def close(self) -> None:
        """Ends the tracker's run."""
        if self._is_started:
            # Writers are closed after errors too, while these are on their way up.
            self.finish(failed=isinstance(sys.exc_info()[1], (Exception, KeyboardInterrupt)))

    def _start(self) -> None:
        file = self.output_dir / _RUN_IDS
        runs: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
        runs[self.name] = self.start(runs.get(self.name))
        write_json(runs, file)
        self._is_started = True

    @abstractmethod
    def start(self, run_id: str | None) -> str:
        """Begins a run, or goes on with the one of that id; gives its id."""

    @abstractmethod
    def log(self, scalars: dict[str, float], iteration: int) -> None:
        """Logs the scalars of an iteration."""

    @abstractmethod
    def finish(self, *, failed: bool) -> None:
        """Ends the run, which an error has ended if it ``failed``."""


class WandbWriter(TrackerWriter):
    """Weights & Biases; ``WANDB_MODE=offline`` writes to the output folder alone, ``WANDB_PROJECT`` names a project."""

    def start(self, run_id: str | None) -> str:
        """See :class:`TrackerWriter`."""
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=self.output_dir.name,
            id=run_id,
            resume="allow",
            dir=str(self.output_dir),
            config=dict(self.config),
        )
        # An axis of our own: W&B drops what a resumed training logs for iterations that it had logged before.
        self._run.define_metric("*", step_metric="iteration")
        return str(self._run.id)

    def log(self, scalars: dict[str, float], iteration: int) -> None:
        """See :class:`TrackerWriter`."""
        self._run.log({"iteration": iteration, **scalars})

    def finish(self, *, failed: bool) -> None:
        """See :class:`TrackerWriter`."""
        self._run.finish(exit_code=int(failed))


class MlflowWriter(TrackerWriter):
    """MLflow at ``MLFLOW_TRACKING_URI``, by default the folder ``mlruns``; ``MLFLOW_EXPERIMENT_NAME`` is followed."""

    def start(self, run_id: str | None) -> str:
        """See :class:`TrackerWriter`."""
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 wants a database otherwise
        from mlflow import MlflowClient

        self._client = MlflowClient(
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", Path("mlruns").absolute().as_uri())
        )
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            self._run_id = run_id
            return run_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        self._run_id = self._client.create_run(experiment, run_name=self.output_dir.name).info.run_id
        self._client.log_dict(self._run_id, dict(self.config), "config.yaml")
        return self._run_id

    def log(self, scalars: dict[str, float], iteration: int) -> None:
        """See :class:`TrackerWriter`. A server that fails does not end a training."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(time.time() * 1000)
        # Names of classes are part of some.
        metrics = [Metric(re.sub(r"[^\w./ :-]", "_", key), x, now, iteration) for key, x in scalars.items()]
        try:
            for start in range(0, len(metrics), _MLFLOW_BATCH):
                self._client.log_batch(self._run_id, metrics=metrics[start : start + _MLFLOW_BATCH])
        except MlflowException as error:
            logger.warning(f"MLflow does not take the metrics of iteration {iteration}: {error}")

    def finish(self, *, failed: bool) -> None:
        """See :class:`TrackerWriter`. A server that fails does not end a training."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")
        except MlflowException as error:
            logger.warning(f"MLflow does not take the end of the run: {error}")


@LOGGER_REGISTRY.register()
def tensorboard(output_dir: str, config: Mapping[str, object]) -> EventWriter:
    """TensorBoard's event files."""
    return TensorboardXWriter(output_dir)


@LOGGER_REGISTRY.register()
def wandb(output_dir: str, config: Mapping[str, object]) -> EventWriter:
    """See :class:`WandbWriter`."""
    return WandbWriter("wandb", output_dir, config)


@LOGGER_REGISTRY.register()
def mlflow(output_dir: str, config: Mapping[str, object]) -> EventWriter:
    """See :class:`MlflowWriter`."""
    return MlflowWriter("mlflow", output_dir, config)
