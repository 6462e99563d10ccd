"""Checkpoint files: read without running their code, written whole or not at all."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from dynamic_sparse_rcnn import read_checkpoint, write_checkpoint
from dynamic_sparse_rcnn.checkpoints.loading import SafeCheckpointer, StrictCheckpointer

ROOT = Path(__file__).parents[2]


class Harmful:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    weights = {"a": torch.rand(3, 4), "b": torch.arange(3), "c": torch.rand(2).half()}
    weights["shared"] = weights["a"]
    weights["strided"] = weights["a"].T
    write_checkpoint(tmp_path / f"x{suffix}", {"model": weights, "class_names": ["ant"], "iteration": 7})
    found = read_checkpoint(tmp_path / f"x{suffix}")
    assert found["class_names"] == ["ant"] and found["iteration"] == 7
    assert found["model"].keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(found["model"][name], value) and found["model"][name].dtype == value.dtype


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state", None])
def test_weights_are_found_where_training_scripts_put_them(tmp_path, wrapper):
    weights = {"a": torch.ones(2)}
    torch.save({wrapper: weights} if wrapper else weights, tmp_path / "x.pth")
    assert torch.equal(read_checkpoint(tmp_path / "x.pth")["model"]["a"], weights["a"])


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_code_in_pickles_is_run_only_where_it_is_trusted(tmp_path, suffix):
    path, trace = tmp_path / f"x{suffix}", tmp_path / "trace"
    content = {"model": {"a": torch.ones(2) if suffix == ".pth" else np.ones(2)}, "extra": Harmful(trace)}
    if suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="--trust-checkpoint"):
        read_checkpoint(path)
    assert not trace.exists()
    assert read_checkpoint(path, trust=True)["model"]["a"].sum() == 2
    assert trace.exists()


def test_detectron2s_own_pickles_of_arrays_need_no_trust(tiny_cfg, tmp_path):
    model, other = build_model(tiny_cfg), build_model(tiny_cfg)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    for protocol in (2, 4):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": weights, "__author__": "us"}, protocol))
        SafeCheckpointer(other).load(str(tmp_path / "x.pkl"))
        for name, value in other.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl"])
def test_damaged_files_are_errors_that_name_them(tmp_path, suffix):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(b"\x80nothing of use")
    with pytest.raises(ValueError, match=rf"damaged\{suffix}"):
        read_checkpoint(path)


def test_objects_of_a_library_that_is_not_installed_are_named_even_if_trusted(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"cnowhere_installed\nThing\n.")
    with pytest.raises(ValueError, match=r"nowhere_installed\.Thing"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="install it"):
        read_checkpoint(path, trust=True)


def test_other_files_are_errors(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match="is no checkpoint"):
        read_checkpoint(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match=r"\.safetensors or \.pth"):
        write_checkpoint(tmp_path / "x.txt", {"model": {}})
    with pytest.raises(ValueError, match="JSON"):
        write_checkpoint(tmp_path / "x.safetensors", {"model": {}, "optimizer": torch.ones(2)})


def test_safetensors_load_through_the_checkpointer(tiny_cfg, make_inputs, tmp_path):
    model, other = build_model(tiny_cfg), build_model(tiny_cfg)
    write_checkpoint(tmp_path / "x.safetensors", {"model": model.state_dict()})
    StrictCheckpointer(other).load(str(tmp_path / "x.safetensors"))
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_an_evaluation_with_a_backbone_alone_is_an_error_that_names_what_is_missing(tiny_cfg, tmp_path):
    model = build_model(tiny_cfg)
    backbone = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    write_checkpoint(tmp_path / "x.pth", {"model": backbone})
    missing = len(model.state_dict()) - len(backbone)
    with pytest.raises(ValueError, match=rf"{missing} tensors, the first init_proposal.*A backbone is no detector"):
        StrictCheckpointer(model).load(str(tmp_path / "x.pth"))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.pth"
    write_checkpoint(path, {"model": {"a": torch.ones(2)}})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_checkpoint(path, {"model": {"a": torch.zeros(2)}, "extra": lambda: None})
    assert torch.equal(read_checkpoint(path)["model"]["a"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


def test_a_full_disk_is_called_so_and_leaves_no_file(tmp_path):
    code = (
        "import resource, sys, torch\n"
        "from dynamic_sparse_rcnn import write_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"  # as near as one can come
        "for file in sys.argv[1:]:\n"
        "    try: write_checkpoint(file, {'model': {'a': torch.zeros(300, 300)}})\n"
        "    except OSError as error: print(error)"
    )
    files = [str(tmp_path / name) for name in ("x.pth", "x.safetensors")]
    ran = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [f"[Errno 27] File too large: '{file}'" for file in files]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_killed_while_it_writes_leaves_a_last_checkpoint_that_can_be_read(tmp_path):
    script = textwrap.dedent(
        """
        import itertools, sys, torch
        from dynamic_sparse_rcnn.checkpoints.loading import SafeCheckpointer
        model = torch.nn.Linear(1500, 1500)
        checkpointer = SafeCheckpointer(model, sys.argv[1])
        for number in itertools.count():
            torch.nn.init.constant_(model.weight, number)
            checkpointer.save(f"model_{number % 3}", iteration=number)
            print(number, flush=True)
        """
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "projects/DynamicSparseRCNN"), *sys.path])}
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2 + attempt):
            process.stdout.readline()
        # Until there is a file half written, which then stays half written.
        while not list(folder.glob(".model_*.partial")):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        last = folder / (folder / "last_checkpoint").read_text()
        found = read_checkpoint(last)
        assert (found["model"]["weight"] == found["iteration"]).all()
        SafeCheckpointer(torch.nn.Linear(2, 2), str(folder)).save("next")
        assert not list(folder.glob(".*"))
