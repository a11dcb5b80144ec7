"""Configs of a workspace: shown with origins, described, checked; what the templates ship."""

from __future__ import annotations

import pytest

from llmos_cli import catalog
from llmos_cli.core import config, yaml12
from llmos_cli.operations import templates
from llmos_cli.operations.config import _method_schema, resolve
from llmos_cli.options.verbs import ROOTS
from tests.operations.keys import leaves

TEMPLATES = ("causal-lm", "image-classification", "text-classification", "token-classification")


def test_every_template_has_a_config_for_every_verb():
    assert templates.names() == sorted(TEMPLATES)
    for name in TEMPLATES:
        assert set(templates.read(name)) == {f"{verb}.yaml" for verb in ROOTS}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_shipped_config_is_right_short_and_explained(template, new_workspace, tmp_path, llmos, monkeypatch):
    monkeypatch.chdir(new_workspace(tmp_path / "w", template).root)
    for name, text in templates.read(template).items():
        (tmp_path / "w" / "configs" / name).write_text(text)
        assert len(text.splitlines()) <= 40
        assert text.startswith("# ")
    assert llmos("config", "check").code == 0


def test_show_tells_where_each_value_was_set(workspace, llmos, monkeypatch):
    monkeypatch.setenv("LLMOS_TRAIN__BATCH_SIZE", "2")
    shown = llmos("config", "show", "train", "-s", "train.max_steps=7", "--json").json
    assert (shown["config"]["train"]["max_steps"], shown["config"]["train"]["batch_size"]) == (7, 2)
    assert shown["origin"]["train.max_steps"] == "-s train.max_steps=7"
    assert shown["origin"]["train.batch_size"] == "environment LLMOS_TRAIN__BATCH_SIZE"
    assert shown["origin"]["model.arch"] == "configs/train.yaml:2"


def test_what_show_prints_is_a_config_again(workspace, llmos):
    shown = llmos("config", "show", "train").out
    (workspace.root / "again.yaml").write_text(shown)
    assert yaml12.parse(shown, "").plain() == llmos("config", "show", "--json").json["config"]
    assert llmos("config", "check", "again.yaml", "--verb", "train").code == 0


def test_the_schema_knows_the_options_of_another_distributions_method(tmp_path, monkeypatch):
    (tmp_path / "shrinking_plugin.py").write_text(
        "from llmos_cli.core.section import Section\nclass Options(Section):\n    by: float = 0.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = _method_schema(catalog.Method("shrink", "shrinking_plugin", None))
    assert list(found["properties"]) == ["by"]


def test_the_schema_knows_methods_and_their_options(llmos):
    schema = llmos("config", "schema", "quantize", "--json").json["json_schema"]
    section = schema["$defs"]["QuantizeOptions"]
    assert section["properties"]["gptq"]["properties"].keys() >= {"damping", "act_order"}
    assert section["properties"]["bits"]["maximum"] == 8
    assert section["additionalProperties"] is False


def test_a_methods_own_options_are_checked(workspace, llmos):
    ran = llmos("config", "show", "quantize", "-s", "quantize.gptq.dampin=0.1")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "error: there is no option 'quantize.gptq.dampin'")
    ran = llmos("config", "show", "quantize", "-s", "quantize.gptq.damping=-1")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "error: quantize.gptq.damping must be greater than 0, not -1")


def test_defaults_of_the_workspace_reach_every_verb(workspace, llmos):
    (workspace.root / "llmos.yaml").write_text("format: 1\ndefaults: {seed: 7, heal: {temperature: 2.0}}\n")
    assert llmos("config", "show", "eval", "--json").json["config"]["seed"] == 7  # which no eval.yaml says
    assert llmos("config", "show", "prune", "--json").json["config"]["heal"]["temperature"] == 2


@pytest.mark.parametrize("verb", ROOTS)
def test_every_key_is_known_by_its_origin_and_reported_when_nothing_reads_it(verb, workspace):
    keys = dict(leaves(ROOTS[verb]))
    resolved = resolve(workspace, verb, sets=[f"{key}={yaml12.dump(value)}" for key, value in keys.items()])
    assert set(keys) <= {line.partition(" ")[0] for line in config.unread(resolved)}


@pytest.mark.parametrize("verb", ROOTS)
def test_a_key_that_is_read_is_not_reported(verb, workspace):
    for key, value in leaves(ROOTS[verb]):
        resolved = resolve(workspace, verb, sets=[f"{key}={yaml12.dump(value)}"])
        reached = resolved.config
        for part in key.split("."):
            reached = getattr(reached, part)
        assert key not in {line.partition(" ")[0] for line in config.unread(resolved)}
