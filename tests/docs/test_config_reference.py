"""The reference of config keys is complete, agrees with the code, and explains every key."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from config_reference import CONFIG_FILE, ConfigKey, read_config_keys, render_config_reference
from detectron2.config import CfgNode, get_cfg

from dynamic_sparse_rcnn import add_dynamic_sparse_rcnn_config


@pytest.fixture(scope="module")
def keys() -> list[ConfigKey]:
    return read_config_keys(CONFIG_FILE.read_text(encoding="utf-8"))


def values_of(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from values_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_every_key_that_the_project_adds_is_there_with_its_default(keys):
    plain, ours = get_cfg(), get_cfg()
    add_dynamic_sparse_rcnn_config(ours)
    expected = dict(values_of(ours))
    for name, _ in values_of(plain):
        del expected[name]
    assert len(expected) > 50
    assert {key.name: ast.literal_eval(key.default) for key in keys if key.default} == expected


def test_every_key_is_explained(keys):
    assert [key.name for key in keys if key.default and len(key.text) < 20] == []


def test_only_parts_of_one_switch_share_an_explanation(keys):
    texts: dict[str, set[str]] = {}
    for key in keys:
        if key.default:
            texts.setdefault(key.text, set()).add(key.section)
    shared = [text for text in texts if sum(key.text == text for key in keys if key.default) > 2]
    assert shared == []
    assert all(len(sections) == 1 for sections in texts.values())


def test_comments_reach_the_keys_below_them():
    source = '''
def add_dynamic_sparse_rcnn_config(cfg):
    """Docstring."""
    # The model.
    cfg.MODEL.X = CfgNode()
    _add(cfg.MODEL.X)
    # Both of
    # these.
    cfg.TEST.A = 1
    cfg.TEST.B = (2,)

    cfg.TEST.C = None
    # A switch: see A_KEY.
    cfg.TEST.S = CfgNode({"ON": False, "HOW": "x"})

def _add(node):
    node.FIRST = 1.5
    other = 3
    # Second.
    node.SECOND = "a"
'''
    assert read_config_keys(source) == [
        ConfigKey("MODEL.X", "", "The model."),
        ConfigKey("MODEL.X.FIRST", "1.5", ""),
        ConfigKey("MODEL.X.SECOND", "'a'", "Second."),
        ConfigKey("TEST.A", "1", "Both of these."),
        ConfigKey("TEST.B", "(2,)", "Both of these."),
        ConfigKey("TEST.C", "None", ""),
        ConfigKey("TEST.S", "", "A switch: see A_KEY."),
        ConfigKey("TEST.S.ON", "False", "A switch: see A_KEY."),
        ConfigKey("TEST.S.HOW", "'x'", "A switch: see A_KEY."),
    ]


def test_comments_are_text_but_for_the_names_of_keys():
    keys = [ConfigKey("TEST.A", "1", "Like SOLVER.MAX_ITER or TOP_Q; <folder>, *.yaml, a_b and `c`.")]
    assert render_config_reference(keys) == (
        "## `TEST` { #TEST }\n\n`TEST.A` = `1` { #TEST.A }\n"
        ":   Like `SOLVER.MAX_ITER` or `TOP_Q`; \\<folder\\>, \\*.yaml, a\\_b and \\`c\\`.\n"
    )
