"""``dsrcnn convert-data``."""

from __future__ import annotations

from pathlib import Path

import pytest
from written_datasets import CONTENT, registered, table, write_images, write_voc

from dynamic_sparse_rcnn.cli import main


def test_a_data_set_is_converted_and_its_new_name_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_voc(tmp_path / "voc", CONTENT)
    write_images(tmp_path / "voc/JPEGImages", CONTENT)
    main(["convert-data", f"voc:{tmp_path}/voc:train", "coco", str(tmp_path / "coco"), "--split", "all"])
    name = f"coco:{tmp_path}/coco/annotations/all.json"
    assert capsys.readouterr().out.splitlines()[-1] == f"Wrote {name}"
    assert table(registered(name)) == table(f"voc:{tmp_path}/voc:train")
