"""Processes of a run: who starts them, where they are, what happens when one fails, and what cannot be started."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import IO

import failing_run
import pytest
import torch
import torch.distributed as dist
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from ranks import run_ranks
from small_runs import CONFIG, ROOT
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel
from train_net import argument_parser

from dynamic_sparse_rcnn.data.loader import TrainLoader
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.engine import main as engine_main
from dynamic_sparse_rcnn.engine.launch import RankError, _WholeErrorFile, join_group, launch

LAZY_CONFIG = str(ROOT / "configs/lazy/sparse_rcnn_R_50_FPN_300pro_3x.py")
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}


def arguments(*options: str, config: str = CONFIG) -> argparse.Namespace:
    return argument_parser().parse_args(["--config-file", config, *options])


def must_not_run(args: argparse.Namespace) -> None:
    pytest.fail("started all the same")


def ran(args: argparse.Namespace) -> str:
    return "ran"


def test_one_process_runs_here_and_gives_its_result():
    assert launch(ran, arguments()) == "ran"
    assert launch(ran, arguments("--num-gpus", "0")) == "ran"


@pytest.mark.skipif(torch.cuda.device_count() >= 64, reason="has them")
@pytest.mark.parametrize(
    ("options", "config"), [((), CONFIG), (("MODEL.DEVICE", "cuda"), CONFIG), (("train.device=cuda",), LAZY_CONFIG)]
)
def test_more_gpus_than_there_are_is_an_error_that_names_the_way_to_the_cpu(options, config):
    with pytest.raises(ValueError, match=r"--num-gpus is 64, but this process sees \d+ GPUs: .*set MODEL\.DEVICE cpu"):
        launch(must_not_run, arguments("--num-gpus", "64", *options, config=config))


def test_a_lazy_config_need_not_name_the_device(tmp_path):
    config = tmp_path / "config.py"
    config.write_text("train = dict(max_iter=1)\n")
    with pytest.raises(ValueError, match="--num-gpus is 1000000"):
        launch(must_not_run, arguments("--num-gpus", "1000000", config=str(config)))


def test_one_gpu_for_several_processes_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is cuda:1, but --num-gpus is 2: set it to cuda"):
        launch(must_not_run, arguments("--num-gpus", "2", "MODEL.DEVICE", "cuda:1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-machines", "2", "--dist-url", "auto"), r"--num-machines 2 needs --dist-url tcp://<address"),
        (("--num-machines", "2"), r"--num-machines 2 needs --dist-url"),
        (("--num-machines", "2", "--machine-rank", "2"), r"--machine-rank 2: --machine-rank counts from 0"),
        (("--num-gpus", "-1"), r"--num-gpus -1"),
        (
            ("--num-machines", "2", "--num-gpus", "0"),
            r"--num-gpus 0 --num-machines 2 .* each of several machines needs at least",
        ),
    ],
)
def test_machines_that_cannot_find_each_other_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        launch(must_not_run, arguments(*options, "MODEL.DEVICE", "cpu"))


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({"LOCAL_RANK": "0"}, (), r"not RANK, WORLD_SIZE, .* start the processes with torchrun"),
        (TORCHRUN | {"RANK": "2"}, (), r"rank 2 is number 1 of 2 .* consecutive ranks"),
        (TORCHRUN | {"WORLD_SIZE": "3"}, (), r"with 3 on all: start as many on each"),
        (TORCHRUN, ("--num-gpus", "8"), r"torchrun has started 2 processes on each of 2 machines: leave out"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_an_error(monkeypatch, environment, options, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        launch(must_not_run, arguments(*options, "MODEL.DEVICE", "cpu"))


def share_three_images() -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH .* is 3, which 2 processes cannot share equally"):
        TrainLoader([{"width": 1, "height": 1}], dict, total_batch_size=3, seed=0)


def test_a_batch_that_the_processes_cannot_share_is_an_error():
    run_ranks(2, share_three_images)


def write_place(folder: Path) -> None:
    place = f"{comm.get_local_rank()} {comm.get_local_size()} {comm.get_world_size()}"
    (folder / str(comm.get_rank())).write_text(place)
    total = torch.ones(1)
    torch.distributed.all_reduce(total, group=comm._LOCAL_PROCESS_GROUP)
    assert total == 2


def test_each_process_knows_its_place_on_its_machine(tmp_path):
    run_ranks(4, write_place, tmp_path, local_size=2)
    places = [(tmp_path / str(rank)).read_text() for rank in range(4)]
    assert places == ["0 2 4", "1 2 4", "0 2 4", "1 2 4"]


@pytest.fixture
def options(tmp_path) -> list[str]:
    """Of a run on CPUs: four iterations with two images each, a checkpoint after the second."""
    paths = generate_shapes(tmp_path, "train", ShapesConfig(num_images=4, image_size=64))
    return [
        *("DATASETS.TRAIN", f"('coco:{paths.json_path}:{paths.image_folder}',)", "DATASETS.TEST", "()"),
        *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)"),
        *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
        *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.SparseRCNN.HIDDEN_DIM", "32", "MODEL.SparseRCNN.DIM_DYNAMIC", "8"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.REFERENCE_BATCH_SIZE", "0", "SOLVER.MAX_ITER", "4"),
        *("SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.STEPS", "()", "OUTPUT_DIR", str(tmp_path / "run")),
    ]


IMPORTED = """
from detectron2.modeling import META_ARCH_REGISTRY

@META_ARCH_REGISTRY.register()
class ImportedInTest:
    pass
"""


@pytest.fixture
def forked(monkeypatch) -> None:
    """New processes come from the server that ranks of tests are forked from: starting Python takes seconds."""
    monkeypatch.setattr(torch.multiprocessing, "spawn", partial(start_processes, start_method="forkserver"))


def test_new_processes_import_modules_and_give_the_result_of_the_first(forked, tmp_path, monkeypatch):
    (tmp_path / "module_of_a_user.py").write_text(IMPORTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = ["--num-gpus", "2", "--dist-url", "auto", "--import", "module_of_a_user", "MODEL.DEVICE", "cpu"]
    try:
        assert launch(failing_run.give, arguments(*options)) == "ImportedInTest 2"
    finally:
        META_ARCH_REGISTRY._obj_map.pop("ImportedInTest")
    with pytest.raises(ImportError, match="no_such_module"):
        launch(must_not_run, arguments("--import", "no_such_module"))


@pytest.mark.slow
def test_a_fault_of_one_process_ends_all_and_shows_where_it_is(capfd):
    with pytest.raises(RankError, match=r"^rank 1: TypeError: a fault of the program"):
        launch(failing_run.fail, arguments("--num-gpus", "2", "--dist-url", "auto", "MODEL.DEVICE", "cpu"))
    assert "Rank 1 failed:\nTraceback" in capfd.readouterr().err


@pytest.mark.slow
def test_an_expected_error_of_one_process_ends_all_and_is_told_in_one_line(forked, options, tmp_path):
    with pytest.raises(RankError, match=r"^rank 1: the disk of rank 1 is full \(--traceback shows where\)$"):
        launch(failing_run.main, arguments("--num-gpus", "2", "--dist-url", "auto", *options))
    assert "Traceback" in (tmp_path / "run/log.txt.rank1").read_text()
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000001.pth"


@pytest.mark.slow
def test_torchrun_restarts_a_run_which_goes_on_as_if_nothing_had_happened(options, tmp_path):
    python_path = os.pathsep.join([str(ROOT / "projects/DynamicSparseRCNN"), str(ROOT / "tools"), *sys.path])
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", "2", "--max-restarts", "1"),
        *(str(ROOT / "tests/failing_run.py"), "--config-file", CONFIG, "--resume", *options),
    ]
    environment = os.environ | {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "OSError: the disk of rank 1 is full" in ran.stderr
    assert "Starting training from iteration 2" in ran.stdout
    run_ranks(2, engine_main.main, arguments(*options, "OUTPUT_DIR", str(tmp_path / "unbroken")))
    found, expected = (torch.load(tmp_path / name / "model_final.pth") for name in ("run", "unbroken"))
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)


def test_no_thread_of_a_group_outlives_it(tmp_path):
    """Such a thread can abort the process at its end, after a training that went well."""
    before, within = threads(), []
    for number in range(2):  # nor does a group keep the next from being one
        url = f"file://{tmp_path}/store{number}"
        with join_group("gloo", 1, init_method=url, rank=0, world_size=1):
            assert comm.get_local_size() == dist.get_world_size(comm._get_global_gloo_group()) == 1
            model = DistributedDataParallel(torch.nn.Linear(2, 2))
            model.cycle = [model]  # as a trainer is
            del model
            within.append(threads())
        deadline = time.monotonic() + 10
        while not threads() <= before and time.monotonic() < deadline:  # the system may list a thread a little longer
            time.sleep(0.01)
        assert threads() <= before
    assert all(found - before for found in within)


def threads() -> set[str]:
    """Of this process."""
    return set(os.listdir("/proc/self/task"))


def test_a_process_that_is_ended_while_it_writes_its_error_leaves_no_part_of_it(tmp_path, monkeypatch):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))

    def end(data: object, part: IO[str]) -> None:
        part.write('{"mess')
        raise SystemExit

    with monkeypatch.context() as context:
        context.setattr(json, "dump", end)
        with pytest.raises(SystemExit):
            _WholeErrorFile().record_exception(OSError("the disk is full"))
    assert not file.exists()
    _WholeErrorFile().record_exception(OSError("the disk is full"))
    assert json.loads(file.read_text())["message"]["message"] == "OSError: the disk is full"
    assert os.environ["TORCHELASTIC_ERROR_FILE"] == str(file)
