"""What stands for a trained detector on a command line."""

from __future__ import annotations

import pytest

from dynamic_sparse_rcnn.checkpoints.released import released_checkpoints
from dynamic_sparse_rcnn.checkpoints.runs import find_checkpoint, find_run


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "model_0000009.pth").touch()
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    return tmp_path


def test_a_folder_stands_for_its_last_checkpoint_or_its_best(run):
    found = find_run(run)
    assert (found.config_file, found.checkpoint) == (str(run / "config.yaml"), str(run / "model_0000009.pth"))
    (run / "model_best.pth").touch()
    assert find_run(str(run)).checkpoint == str(run / "model_best.pth")


def test_a_folder_without_tag_has_its_final_checkpoint(run):
    (run / "last_checkpoint").unlink()
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        find_run(run)
    (run / "model_final.pth").touch()
    assert find_run(run).checkpoint == str(run / "model_final.pth")


def test_a_tag_of_a_file_that_is_gone_is_an_error(run):
    (run / "model_0000009.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"last_checkpoint names model_0000009\.pth, which is not in"):
        find_run(run)


def test_a_checkpoint_has_the_config_beside_it_or_the_one_that_is_given(run):
    file = run / "model_0000009.pth"
    assert find_run(file).config_file == str(run / "config.yaml")
    assert find_run(file, "coco/x.yaml").config_file == "coco/x.yaml"
    (run / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs a config.*--config-file"):
        find_run(file)
    with pytest.raises(FileNotFoundError, match="needs a config"):
        find_run("https://example.invalid/model.pth")
    assert find_checkpoint("https://example.invalid/model.pth") == "https://example.invalid/model.pth"


def test_released_models_are_found_by_config_and_by_url():
    for released in released_checkpoints():
        for name in (released.config, released.url):
            found = find_run(name)
            assert (found.config_file, found.checkpoint) == (released.config, released.url)


def test_names_of_nothing_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"300pro_3x\.yaml is neither"):
        find_run("coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml")
