"""Secrets: handed in wherever one can be, and found nowhere: not in a byte of the workspace or of the user's folders, not in a
word that is said. What the user's own files say themselves is theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.app import _plainly
from llmos_cli.core.redaction import HIDDEN, hidden, is_secret, redacted
from llmos_cli.core.workspace import Workspace
from tests.conftest import Llmos, Ran

SECRET = "Zq7Vw3pLr9Tk5Xn1"
URL = f"https://me:{SECRET}@127.0.0.1:1/x.csv"
DATABASE = f"postgresql://me:{SECRET}@127.0.0.1:1/db"
SFTP = f"sftp://me:{SECRET}@127.0.0.1:1/far"
NAMES = (
    "LLMOS_KEY",
    "LLMOS_API_KEYS",
    "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MY_PASSWORD",
    "GITHUB_TOKEN",
)


def leaks(where: Path, *told: Ran, own: tuple[Path, ...] = ()) -> list[str]:
    files = [path for path in where.rglob("*") if path.is_file() and path not in own]
    found = [str(path) for path in files if SECRET.encode() in path.read_bytes() or SECRET in path.name]
    return found + [ran.out + ran.err for ran in told if SECRET in ran.out + ran.err]


COMMANDS: dict[str, tuple[str, ...]] = {
    "an option that there is not": ("train", "--token", SECRET),
    "an option's value": ("train", f"--api-key={SECRET}"),
    "a revision": ("show", f"hf_{SECRET}"),
    "a source": ("train", "-s", f"data.source={URL}"),
    "a source, signed": ("train", "-s", f"data.source=https://127.0.0.1:1/x.csv?token={SECRET}"),
    "a key that there is not": ("train", "-s", f"train.password={SECRET}"),
    "a storage": ("tune", "-s", f"tune.storage={DATABASE}"),
    "a storage, shown": ("config", "show", "tune", "-s", f"tune.storage={DATABASE}"),
    "a storage, as JSON": ("config", "show", "tune", "-s", f"tune.storage={DATABASE}", "--json"),
    "a remote": ("remote", "add", "far", SFTP),
    "a clone": ("clone", SFTP, "there"),
    "a restore": ("restore", SFTP, "there"),
    "an import": ("import", URL),
    "a hub's token": ("import", f"hf_{SECRET}"),
    "an export": ("export", "-o", URL),
    "a branch": ("branch", f"ghp_{SECRET}", "nowhere"),
    "a gate": ("eval", "--require", f"x <= password={SECRET}"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_on_the_command_line(name: str, workspace: Workspace, own_home: Path, llmos: Llmos) -> None:
    ran = llmos(*COMMANDS[name])
    assert leaks(workspace.root, ran) + leaks(own_home) == []
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("verb", ["train", "tune"])
def test_in_a_config_file(verb: str, workspace: Workspace, own_home: Path, llmos: Llmos) -> None:
    path = workspace.configs / f"{verb}.yaml"
    text = f"data: {{source: '{URL}'}}\n" if verb == "train" else f"tune: {{storage: '{DATABASE}'}}\n"
    path.write_text(text)
    shown = [llmos("config", "show", verb), llmos(verb), llmos("status"), llmos("doctor")]
    path.write_text(text + "wrong: 1\n")
    shown += [llmos("config", "check", str(path)), llmos(verb)]
    path.write_text(text.replace("}", ", wrong: 1}"))  # in the very line that is shown
    shown += [llmos("config", "check", str(path)), llmos(verb)]
    assert leaks(workspace.root, *shown, own=(path,)) + leaks(own_home) == []


def test_in_the_environment(
    workspace: Workspace, own_home: Path, llmos: Llmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline's command that shows all it was given, beside what llmos itself reads."""
    for name in NAMES:
        monkeypatch.setenv(name, f"{SECRET}{SECRET}")
    settings = workspace.root / "llmos.yaml"
    command = f"env; echo $MY_PASSWORD >&2; : Authorization: Bearer {SECRET}; exit $CODE"
    settings.write_text(f"format: 1\npipeline: {{all: {{sh: '{command}', outputs: [out.txt]}}}}\n")
    told = [llmos("run"), llmos("trust", "--pipeline"), llmos("run"), llmos("run", "--dry-run"), llmos("run", "--json")]
    monkeypatch.setenv("LLMOS_TUNE__STORAGE", DATABASE)
    told += [llmos("tune"), llmos("config", "show", "tune"), llmos("audit"), llmos("op", "log")]
    assert leaks(workspace.root, *told, own=(settings,)) + leaks(own_home) == []


def test_the_log_of_operations_keeps_no_config_that_holds_one(
    workspace: Workspace, llmos: Llmos, tmp_path: Path
) -> None:
    settings = workspace.root / "llmos.yaml"
    settings.write_text(f"format: 1\npipeline: {{all: {{sh: 'TOKEN={SECRET} x', outputs: [y]}}}}\n")
    ran = llmos("remote", "add", "far", tmp_path / "far")
    assert (ran.code, "llmos.yaml holds a secret" in ran.err) == (2, True)
    assert leaks(workspace.root, ran, own=(settings,)) == []
    settings.write_text("format: 1\npipeline: {all: {sh: 'TOKEN=$TOKEN x', outputs: [y]}}\n")
    assert llmos("remote", "add", "far", tmp_path / "far").code == 0


def test_what_was_trained_on_a_source_whose_name_has_one_does_not_tell_it(
    new_workspace: Callable[..., Workspace],
    own_home: Path,
    tmp_path: Path,
    llmos: Llmos,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = tmp_path / f"password={SECRET}" / "x.csv"
    table.parent.mkdir()
    rows = (f"text number {number} of {number % 2},{'odd' if number % 2 else 'even'}\n" for number in range(200))
    table.write_text(f"text,label\n{''.join(rows)}")
    workspace = new_workspace(tmp_path / "w", "text-classification")
    monkeypatch.chdir(workspace.root)
    path = workspace.configs / "train.yaml"
    path.write_text(path.read_text().replace("builtin:docstrings", str(table)))
    told = [llmos("train", "-s", "train.max_steps=1")]
    assert told[0].code == 0, told[0].err
    for words in ("show", "log", "ps --all", "eval", "checkout --configs HEAD --dry-run", "audit"):
        told.append(llmos(*words.split()))
    manifest = workspace.checkpoint().manifest
    assert f"password={HIDDEN}" in str(manifest.made.config) and SECRET not in manifest.text()
    assert leaks(workspace.root, *told, own=(path,)) + leaks(own_home) == []


def test_a_traceback_that_is_kept(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    told = _plainly(RuntimeError(f"401 for key {SECRET} at {URL}"))
    assert SECRET not in told.message + told.hint
    assert [path.parent.name for path in workspace.dot.glob("crash/*.txt")] == ["crash"] and leaks(workspace.root) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sftp://me:a%2Fb@host/f", f"sftp://me:{HIDDEN}@host/f"),
        ("PGPASSWORD=abc psql", f"PGPASSWORD={HIDDEN} psql"),
        ("  db_password: 'abc def'", f"  db_password: '{HIDDEN} def'"),
        ('{"api_key": "abc", "n": 1}', f'{{"api_key": "{HIDDEN}", "n": 1}}'),
        ("Authorization: Bearer abcdefghij", f"Authorization: Bearer {HIDDEN}"),
        ("x?X-Amz-Signature=abc&y=1", f"x?X-Amz-Signature={HIDDEN}&y=1"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\nafter", f"{HIDDEN}\nafter"),
        ("pad_token: <pad>, max_tokens=512, tokenizer: bpe", "pad_token: <pad>, max_tokens=512, tokenizer: bpe"),
        ("TOKEN=$HF_TOKEN run, token=3", "TOKEN=$HF_TOKEN run, token=3"),
        ("http://host:80/x and a@b", "http://host:80/x and a@b"),
        ('{"u":"http://x:80","m":"a@b"}', '{"u":"http://x:80","m":"a@b"}'),
    ],
)  # fmt: skip
def test_forms(text: str, told: str) -> None:
    assert redacted(text) == told
    assert redacted(told) == told


@given(st.text("=:@/?& '\"{}-*"), st.sampled_from(["", "password", "token=", "://", "Bearer "]), st.text())
def test_hiding_twice_is_hiding_once(before: str, between: str, after: str) -> None:
    once = hidden([before + between + after])
    assert hidden(once) == once


@pytest.mark.parametrize("word", ["sparsegpt", "learning_rate", "causal-lm", "hadamard"])
def test_a_variable_called_so_with_an_ordinary_word_hides_nothing(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORT_KEY", word)
    monkeypatch.setenv("OTHER_KEY", f"{word}{SECRET}")
    assert hidden({"train": {word: f"by {word}, {word}{SECRET}"}}) == {"train": {word: f"by {word}, {HIDDEN}"}}


def test_names() -> None:
    yes = (
        "token",
        "HF_TOKEN",
        "--api-token",
        "tune.db_password",
        "AWS_SECRET_ACCESS_KEY",
        "client-secret",
        "passphrase",
    )
    no = (
        "pad_token",
        "tokens",
        "max_tokens",
        "tokenizer",
        "api_key_file",
        "key",
        "keys",
        "data.source",
        "tokenizer.path",
    )
    assert [name for name in yes if not is_secret(name)] == [] == [name for name in no if is_secret(name)]
