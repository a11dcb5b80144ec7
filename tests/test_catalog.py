"""The catalog: names from files, help and options from their source, entry points of other distributions."""

from __future__ import annotations

import pytest

from llmos_cli import catalog
from llmos_cli.errors import UsageError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package folder of its own, to drop files into."""
    monkeypatch.setattr(catalog, "PACKAGE", tmp_path)
    (tmp_path / "methods" / "prune").mkdir(parents=True)
    catalog._found.cache_clear()
    catalog._groups_installed.cache_clear()
    yield tmp_path
    catalog._found.cache_clear()
    catalog._groups_installed.cache_clear()


METHOD = '''"""Half-quadratic: shrink towards a plane (Doe 2024)."""
from llmos_cli.core.section import Section
raise SystemExit("read, never imported")
class Options(Section):
    damp: float = Field(0.01, gt=0)
    """Share of the mean
    added to the diagonal."""
    order: Literal["a", "b"] = "a"
    seed: int
class Other:
    x: int = 1
'''


def test_dropping_in_a_file_adds_a_method(folder):
    (folder / "methods" / "prune" / "half_quadratic.py").write_text(METHOD)
    method = catalog.methods("prune")["half-quadratic"]
    assert method.help == "Half-quadratic: shrink towards a plane (Doe 2024)."
    assert method.module_name == "llmos_cli.methods.prune.half_quadratic"


def test_options_are_read_from_the_source(folder):
    (folder / "methods" / "prune" / "half_quadratic.py").write_text(METHOD)
    options = catalog.options(catalog.method("prune", "half-quadratic"))
    assert [(option.name, option.type, option.told) for option in options] == [
        ("damp", "float", "Share of the mean added to the diagonal. [0.01]"),
        ("order", "Literal['a', 'b']", "['a']"),
        ("seed", "int", ""),
    ]


def test_an_entry_point_adds_a_method(folder, monkeypatch):
    site = folder / "site"
    (site / "plugin-1.0.dist-info").mkdir(parents=True)
    (site / "plugin-1.0.dist-info" / "entry_points.txt").write_text("[llmos.methods.prune]\nshrink = shrinking.prune\n")
    (site / "plugin-1.0.dist-info" / "METADATA").write_text("Name: plugin\nVersion: 1.0\n")
    (site / "shrinking").mkdir()
    (site / "shrinking" / "prune.py").write_text('"""Shrink."""\nNAME = "shrink"\n')
    monkeypatch.syspath_prepend(str(site))
    assert catalog.method("prune", "shrink").load().NAME == "shrink"


def test_an_unknown_name_knows_what_was_meant():
    with pytest.raises(UsageError) as caught:
        catalog.method("prune", "wnada")
    assert (caught.value.message, caught.value.hint) == (
        "there is no prune method called 'wnada'",
        "did you mean 'wanda'?",
    )
    with pytest.raises(UsageError, match="no task called 'poetry'") as caught:
        catalog.task("poetry")
    assert "causal-lm" in caught.value.hint


def test_a_keyword_is_a_command_through_an_underscore():
    assert catalog._name("import_") == "import"
    assert catalog._name("image_classification") == "image-classification"


def test_every_shipped_method_is_found():
    assert {"magnitude", "wanda"} <= set(catalog.methods("prune"))
    assert {"rtn", "gptq", "w8a8"} <= set(catalog.methods("quantize"))
