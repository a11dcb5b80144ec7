"""Resolving configs: layers, places, words for what is wrong, dead options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ConfigDict, Field

from llmos_cli.core import config
from llmos_cli.core.config_errors import LOOK
from llmos_cli.core.section import Section
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import ConfigError, NotFound, UsageError


class Columns(Section):
    text: str | None = None


class Wanda(Section):
    damp: float = Field(0.1, gt=0)


class Prune(Section):
    model_config = ConfigDict(extra="allow")
    has_methods = True
    sparsity: float = Field(0.5, ge=0, lt=1)
    steps: int | None = None
    schedule: Literal["linear", "cosine"] = "linear"
    ignore: list[str] = []
    columns: Columns = Columns()
    space: dict[str, list[int]] = {}


class Root(Section):
    seed: int = 0
    prune: Prune = Prune()


class Folder:
    """What `resolve` needs of a workspace."""

    def __init__(self, root: Path) -> None:
        self.root, self.configs = root, root / "configs"
        self.configs.mkdir()

    def write(self, text: str, file: str = "configs/prune.yaml") -> None:
        (self.root / file).write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def resolve(folder, **layers):
    methods = {"wanda": lambda: Wanda, "magnitude": lambda: None}
    known = {"environ": {}, "sections": {"seed", "prune", "train"}, "methods": lambda section: methods} | layers
    return config.resolve("prune", root_model=Root, workspace=folder, **known)


def test_each_layer_lies_on_the_one_before(folder, tmp_path):
    folder.write("defaults: {seed: 1, prune: {sparsity: 0.1}, train: {any: 1}}", "llmos.yaml")
    assert resolve(folder).config.prune.sparsity == 0.1
    folder.write("prune: {sparsity: 0.2}")
    assert resolve(folder).config.prune.sparsity == 0.2
    (extra := tmp_path / "extra.yaml").write_text("prune: {sparsity: 0.3}")
    layers = {"files": [extra]}
    assert resolve(folder, **layers).config.prune.sparsity == 0.3
    layers["environ"] = {"LLMOS_PRUNE__SPARSITY": "0.4", "LLMOS_TRAIN__MAX_STEPS": "5", "LLMOS_WAIT": "5"}
    assert resolve(folder, **layers).config.prune.sparsity == 0.4
    layers["sets"] = ["prune.sparsity=0.45"]
    assert resolve(folder, **layers).config.prune.sparsity == 0.45
    layers["flags"] = {"prune.sparsity": 0.6, "prune.steps": None}
    resolved = resolve(folder, **layers)
    assert (resolved.config.prune.sparsity, resolved.config.prune.steps, resolved.config.seed) == (0.6, None, 1)
    assert resolved.mapping["prune"]["sparsity"] == 0.6
    assert resolved.files == (folder.configs / "prune.yaml", extra)


def test_what_is_set_to_a_mapping_is_that_mapping(folder):
    """`-s` replaces; a file says of a section what it says, and of an option that is a mapping all there is."""
    folder.write("prune: {columns: {text: a}, space: {train.batch_size: [1], seed: [2]}}\n")
    assert resolve(folder, sets=["prune.space={seed: [3]}"]).config.prune.space == {"seed": [3]}
    assert resolve(folder, sets=["prune.columns={}"]).config.prune.columns.text is None
    assert resolve(folder, sets=["prune.columns.text=b"]).config.prune.columns.text == "b"
    (extra := folder.root / "extra.yaml").write_text("prune: {space: {seed: [4]}, columns: {}}\n")
    layered = resolve(folder, files=[extra]).config.prune
    assert (layered.space, layered.columns.text) == ({"seed": [4]}, "a")


def test_origins_tell_where_each_value_was_set(folder):
    folder.write("defaults:\n  seed: 1\n", "llmos.yaml")
    folder.write("prune:\n  sparsity: 0.2\n  ignore: [a]\n")
    resolved = resolve(folder, sets=["prune.steps=3"], environ={"LLMOS_PRUNE__SCHEDULE": "cosine"})
    assert resolved.origin == {
        "seed": "llmos.yaml:2",
        "prune.sparsity": "configs/prune.yaml:2",
        "prune.ignore": "configs/prune.yaml:3",
        "prune.steps": "-s prune.steps=3",
        "prune.schedule": "environment LLMOS_PRUNE__SCHEDULE",
    }


def test_unset_brings_the_default_back(folder):
    folder.write("prune: {sparsity: 0.2, columns: {text: a}}")
    resolved = resolve(folder, unsets=["prune.sparsity", "prune.columns.text", "prune.nothing.here"])
    assert (resolved.config.prune.sparsity, resolved.config.prune.columns.text) == (0.5, None)


def test_a_section_with_everything_commented_out_is_at_its_defaults(folder):
    folder.write("seed: 3\nprune:\n#  sparsity: 0.2\n")
    assert resolve(folder).config.prune.sparsity == 0.5


@pytest.mark.parametrize(
    ("text", "message", "hint", "line", "column"),
    [
        ("prune:\n  sparsty: 0.5", "there is no option 'prune.sparsty'", "did you mean 'sparsity'?", 2, 3),
        ("prnue: {}", "there is no option 'prnue'", "did you mean 'prune'?", 1, 1),
        ("prune: {wnada: {damp: 1}}", "there is no option 'prune.wnada'", "did you mean 'wanda'?", 1, 9),
        ("prune: {wanda: {dmap: 1}}", "there is no option 'prune.wanda.dmap'", "did you mean 'damp'?", 1, 17),
        ("prune: {wanda: {damp: -1}}", "prune.wanda.damp must be greater than 0, not -1", "greater than 0; 0.1 when left out", 1, 23),
        ("prune:\n  columns:\n    txt: a", "there is no option 'prune.columns.txt'", "did you mean 'text'?", 3, 5),
        ("prune: {sparsity: 1.5}", "prune.sparsity must be less than 1, not 1.5", "at least 0 and less than 1; 0.5 when left out", 1, 19),
        ("prune: {steps: 2.5}", "prune.steps takes a whole number, not 2.5", LOOK, 1, 16),
        ("prune: {steps: true}", "prune.steps takes a whole number, not true", LOOK, 1, 16),
        ("prune: {steps: '2'}", "prune.steps takes a whole number, not '2'", "a number in quotes is text: take the quotes away", 1, 16),
        ("prune: {schedule: cosin}", "prune.schedule is one of linear, cosine, not 'cosin'", "did you mean 'cosine'?", 1, 19),
        ("prune: {ignore: a}", "prune.ignore takes a list, not 'a'", LOOK, 1, 17),
        ("prune: {ignore: [a, 3]}", "prune.ignore.1 takes text, not 3", LOOK, 1, 21),
        ("prune: 3", "prune takes a mapping (KEY: VALUE lines), not 3", LOOK, 1, 8),
        ("- prune", "a config is a mapping of sections", "such as `train:`", 1, 1),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(folder, text, message, hint, line, column):
    folder.write(text)
    with pytest.raises(ConfigError) as caught:
        resolve(folder)
    error = caught.value
    assert (error.message, error.hint) == (message, hint)
    assert error.place is not None
    assert (error.place.file, error.place.line, error.place.column) == ("configs/prune.yaml", line, column)


def test_a_wrong_value_of_the_command_line_names_its_option(folder):
    with pytest.raises(ConfigError, match="must be less than 1, not 2") as caught:
        resolve(folder, sets=["prune.sparsity=2"])
    assert caught.value.place is not None
    assert caught.value.place.file == "-s prune.sparsity=2"
    with pytest.raises(UsageError, match="takes KEY=VALUE"):
        resolve(folder, sets=["prune.sparsity"])


def test_a_section_that_no_verb_knows_is_an_error_everywhere(folder):
    with pytest.raises(ConfigError, match="LLMOS_PRNUE__SPARSITY"):
        resolve(folder, environ={"LLMOS_PRNUE__SPARSITY": "1"})
    folder.write("defaults: {trian: {}}", "llmos.yaml")
    with pytest.raises(ConfigError, match=r"defaults\.trian"):
        resolve(folder)


def test_a_file_that_is_not_there(folder, tmp_path):
    with pytest.raises(NotFound, match="no config file"):
        resolve(folder, files=[tmp_path / "none.yaml"])


def test_an_option_that_nothing_read_is_told(folder):
    folder.write("prune: {sparsity: 0.2, steps: 3, wanda: {damp: 1}, magnitude: {x: 1}}\n")
    resolved = resolve(folder)
    assert resolved.config.prune.sparsity == 0.2
    resolved.config.prune._read.add("wanda")
    assert config.unread(resolved) == ["prune.magnitude (configs/prune.yaml:1)", "prune.steps (configs/prune.yaml:1)"]


def test_a_default_or_a_templates_value_is_not_a_wish(folder):
    folder.write("prune: {sparsity: 0.5, steps: 3, schedule: cosine}\n")
    resolved = resolve(folder, shipped=lambda: [{"prune": {"steps": 3}}])
    assert config.unread(resolved) == ["prune.schedule (configs/prune.yaml:1)"]


def test_a_wrong_flag_is_named_as_it_was_typed(llmos: Any, workspace: Workspace) -> None:
    wrong = llmos("prune", "--sparsity", "50")
    assert wrong.code == 2 and "--sparsity" in wrong.err
