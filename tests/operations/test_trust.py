"""Trusting code of a workspace."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from llmos_cli.core import trust
from llmos_cli.errors import Untrusted


@pytest.fixture
def code(workspace):
    path = workspace.root / "my_model.py"
    path.write_text("print('hello')\n")
    return path


def test_code_runs_only_when_its_content_is_listed(workspace, code, llmos):
    with pytest.raises(Untrusted) as caught:
        trust.require(workspace, code)
    assert (caught.value.exit_code, caught.value.hint) == (5, "read it, then `llmos trust my_model.py`")
    assert llmos("trust", "my_model.py").code == 0
    trust.require(workspace, code)
    code.write_text("print('changed')\n")
    with pytest.raises(Untrusted):
        trust.require(workspace, code)


def test_consent_lists_it(workspace, code):
    with pytest.raises(Untrusted):
        trust.require(workspace, code, ask=lambda question: False)
    trust.require(workspace, code, ask=lambda question: "my_model.py" in question)
    trust.require(workspace, code)


@pytest.mark.parametrize("named", ["llmos.yaml", "./llmos.yaml", "configs/../llmos.yaml"])
def test_the_settings_are_no_code_and_their_commands_are_trusted_one_by_one(workspace, llmos, named):
    (workspace.root / "llmos.yaml").write_text("format: 1\npipeline: {all: {sh: 'true', outputs: [x]}}\n")
    ran = llmos("trust", named)
    assert (ran.code, ran.out, "llmos trust --pipeline" in ran.err) == (2, "", True)
    assert llmos("trust", "--list").out == "No code is trusted here.\n"


def test_list_and_revoke(workspace, code, llmos):
    assert llmos("trust", "--list").out == "No code is trusted here.\n"
    listed = llmos("trust", "my_model.py", "--json").json
    assert listed["schema"] == "llmos.trust/1"
    assert [(file["path"], file["current"]) for file in listed["files"]] == [("my_model.py", True)]
    assert llmos("trust", "--revoke", "my_model.py").code == 0
    with pytest.raises(Untrusted):
        trust.require(workspace, code)
    assert llmos("trust", "--revoke", "my_model.py").code == 4


def test_files_that_are_trusted_at_once_are_all_listed(workspace):
    files = [workspace.root / f"{number}.py" for number in range(16)]
    for file in files:
        file.write_text(f"# {file.name}\n")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: trust.trust(workspace, file), files))
    assert sorted(trust.trusted(workspace).values()) == sorted(file.name for file in files)


def test_the_list_is_the_users_not_the_workspaces(workspace, code, own_home):
    trust.trust(workspace, code)
    assert (own_home / "config" / "trusted.json").stat().st_mode & 0o077 == 0
    assert not any("trusted" in path.name for path in workspace.root.rglob("*"))


def test_a_list_that_was_tampered_with_trusts_nothing(workspace, code, own_home, llmos):
    trust.trust(workspace, code)
    (own_home / "config" / "trusted.json").write_text("[1, 2")
    assert llmos("trust", "--list").code == 5


def test_init_says_which_code_will_ask(tmp_path, llmos, monkeypatch):
    """A folder that was cloned holds somebody's code too: being there before `init` makes none of it trusted."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text("model: {module: 'my_model.py:Net'}\n")
    (tmp_path / "my_model.py").write_text("raise SystemExit('ran')\n")
    (tmp_path / "other.py").write_text("")
    monkeypatch.chdir(tmp_path)
    told = llmos("init").out
    assert "Code of yours in my_model.py: read it, then `llmos trust my_model.py` lets it run\n" in told
    assert "other.py" not in told
    assert llmos("train").code == 5
    assert llmos("trust", "my_model.py").code == 0
    (tmp_path / ".llmos" / "HEAD").unlink()  # begun again
    assert "Code of yours in my_model.py: trusted already\n" in llmos("init").out


def test_init_reads_a_config_that_is_no_config(tmp_path, llmos, monkeypatch):
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    for text in ("", "model: [", "model:\n", "model: 3\n", "model: {module: 4}\n", "model: {module: none.py}\n"):
        (tmp_path / "configs" / "train.yaml").write_text(text)
        assert llmos("init").code == 0, text
        (tmp_path / ".llmos" / "HEAD").unlink()


def test_exactly_one_wish(workspace, llmos):
    assert llmos("trust").code == 2
    assert llmos("trust", "a.py", "--list").code == 2
