"""Configs and checkpoints by name, from a checkout and installed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import iopath.common.file_io
import pytest
import release_checkpoint
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.utils.file_io import PathManager

from dynamic_sparse_rcnn import Predictor, model_zoo, read_checkpoint, write_checkpoint
from dynamic_sparse_rcnn.checkpoints import released
from dynamic_sparse_rcnn.checkpoints.released import ReleasedCheckpoint, record_checkpoint, sha256_of
from dynamic_sparse_rcnn.prediction.loading import DEFAULT_CONFIG

ROOT = Path(__file__).parents[1]


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    """A folder with a table of its own, and a cache of its own."""
    folder = tmp_path / "released"
    folder.mkdir()
    (folder / "checkpoints.json").write_text("[]")
    monkeypatch.setattr(released, "FOLDER", folder)
    monkeypatch.setattr(released, "get_cache_dir", lambda: str(tmp_path / "cache"))
    return folder


@pytest.fixture
def entry(table) -> ReleasedCheckpoint:
    """An untrained detector of the default config in half precision, in the table."""
    model = model_zoo.get(DEFAULT_CONFIG, device="cpu")
    file = table / "small.safetensors"
    names = ["circle", "square", "triangle", "star", "ring"]
    weights = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    write_checkpoint(file, {"model": weights, "class_names": names, "category_ids": [1, 2, 3, 4, 5]})
    entry = ReleasedCheckpoint(DEFAULT_CONFIG, file.name, sha256_of(file), "none", "untrained")
    record_checkpoint(entry)
    return entry


def test_all_configs_are_listed_and_found():
    names = model_zoo.list_configs()
    in_checkout = [path.relative_to(ROOT / "configs").as_posix() for path in ROOT.glob("configs/*/*.yaml")]
    assert set(in_checkout) <= set(names)
    for name in names:
        assert Path(model_zoo.get_config_file(name)).is_file()


@pytest.mark.parametrize("name", ["coco/nowhere.yaml", "coco", "../setup.py", ""])
def test_an_unknown_config_is_an_error_that_lists_the_known(name):
    with pytest.raises(RuntimeError, match=r"coco/sparse_rcnn_R_50_FPN_300pro_3x\.yaml"):
        model_zoo.get_config_file(name)


def test_a_config_is_the_file_merged_into_the_defaults():
    cfg = model_zoo.get_config("coco/dynamic_sparse_rcnn_R_50_FPN_300pro_3x.yaml")
    assert isinstance(cfg, CfgNode)
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.SOLVER.MAX_ITER) == ("DynamicSparseRCNN", 263880)


def test_a_checkpoint_that_we_lack_is_an_error_that_says_where_others_are_listed():
    with pytest.raises(RuntimeError, match=r"no checkpoint for coco/dynamic_.*docs/reference/checkpoints.md lists"):
        model_zoo.get_config("coco/dynamic_sparse_rcnn_R_50_FPN_300pro_3x.yaml", trained=True)


def test_every_released_checkpoint_is_there_and_is_what_the_table_says():
    for checkpoint in released.released_checkpoints():
        if not checkpoint.address:
            assert released.local_checkpoint(checkpoint.file).stat().st_size <= 8_000_000
        model_zoo.get_config_file(checkpoint.config)


def test_a_released_model_loads_by_its_config_alone(entry):
    model = model_zoo.get(DEFAULT_CONFIG, trained=True, device="cpu")
    weights = read_checkpoint(released.FOLDER / entry.file)["model"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name].to(value.dtype)), name
    assert model_zoo.get_checkpoint_url(DEFAULT_CONFIG) == "dynamic-sparse-rcnn://small.safetensors"


def test_a_released_model_is_loaded_as_a_whole_or_not_at_all(entry, table):
    file = table / entry.file
    weights = read_checkpoint(file)["model"]
    write_checkpoint(file, {"model": {name: value for name, value in weights.items() if "class_logits" not in name}})
    record_checkpoint(dataclasses.replace(entry, sha256=sha256_of(file)))
    with pytest.raises(ValueError, match="class_logits"):
        model_zoo.get(DEFAULT_CONFIG, trained=True, device="cpu")


def test_the_five_lines_need_no_argument(entry):
    predictor = Predictor(device="cpu")
    assert predictor.classes.names == ("circle", "square", "triangle", "star", "ring")


def test_detectron2s_own_predictor_reads_a_released_checkpoint(entry):
    cfg = model_zoo.get_config(DEFAULT_CONFIG, trained=True)
    cfg.MODEL.DEVICE = "cpu"
    weights = DefaultPredictor(cfg).model.state_dict()
    for name, value in model_zoo.get(DEFAULT_CONFIG, trained=True, device="cpu").state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_a_file_with_another_hash_is_refused(entry, table):
    with (table / entry.file).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="SHA-256"):
        model_zoo.get(DEFAULT_CONFIG, trained=True, device="cpu")


def test_a_download_goes_through_the_cache_and_is_refused_on_a_wrong_hash(entry, table, tmp_path, monkeypatch):
    address, downloads = "https://example.invalid/models/small.safetensors", []

    def download(url: str, folder: str, *, filename: str) -> str:
        downloads.append(url)
        Path(folder).mkdir(parents=True, exist_ok=True)
        target = Path(folder) / filename
        target.write_bytes((table / entry.file).read_bytes())
        return str(target)

    monkeypatch.setattr(iopath.common.file_io, "download", download)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "downloads"))
    record_checkpoint(ReleasedCheckpoint(DEFAULT_CONFIG, entry.file, entry.sha256, "", "", address))
    for _ in range(2):
        assert Path(PathManager.get_local_path(entry.url)).is_file()
    assert downloads == [address]
    record_checkpoint(ReleasedCheckpoint(DEFAULT_CONFIG, entry.file, "0" * 64, "", "", address))
    with pytest.raises(ValueError, match="instead of 0000"):
        PathManager.get_local_path(entry.url)


def test_unknown_addresses_are_errors(table):
    with pytest.raises(FileNotFoundError, match="none yet"):
        PathManager.get_local_path("dynamic-sparse-rcnn://nothing.safetensors")


def test_recording_replaces_the_entry_of_the_same_config(entry, table):
    record_checkpoint(ReleasedCheckpoint("coco/other.yaml", "x", "1", "", ""))
    record_checkpoint(ReleasedCheckpoint(DEFAULT_CONFIG, "y", "2", "", ""))
    entries = json.loads((table / "checkpoints.json").read_text())
    assert [(x["config"], x["file"]) for x in entries] == [("coco/other.yaml", "x"), (DEFAULT_CONFIG, "y")]


def test_the_small_detector_fits_into_the_package():
    model = model_zoo.get(DEFAULT_CONFIG, device="cpu")
    assert 2 * sum(value.numel() for value in model.state_dict().values()) < 8_000_000


@pytest.mark.slow
def test_the_command_that_makes_the_checkpoint_records_what_it_wrote(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]
    fixed = ["--images", "4", "--held-out", "2", "--folder", str(table), *options]
    release_checkpoint.main(release_checkpoint.parse_args(fixed))
    entry = released.find_released(DEFAULT_CONFIG)
    assert entry is not None and entry.result.startswith("bbox AP ") and "SOLVER.STEPS '()'" in entry.command
    file = released.local_checkpoint(entry.file)
    assert file.stat().st_size <= 8_000_000
    found = read_checkpoint(file)
    assert found["category_ids"] == [1, 2, 3, 4, 5]
    trained = torch.load(tmp_path / "output/release/model_final.pth")["model"]
    assert found["model"].keys() == trained.keys()
    for name, value in found["model"].items():
        assert torch.equal(value, trained[name].to(value.dtype)), name
