"""Secrets: handed in wherever one can be, and found nowhere: not in a byte of the workspace or of the user's folders, not in a
word that is said. What the user's own files say themselves is theirs."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmos_cli
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
    "a remote, with a slash in its password": ("remote", "add", "far", f"sftp://me:{SECRET}/{SECRET}@127.0.0.1/far"),
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
        ("  db_password: 'abc def'", f"  db_password: '{HIDDEN}'"),
        ('{"api_key": "abc", "n": 1}', f'{{"api_key": "{HIDDEN}", "n": 1}}'),
        ("Authorization: Bearer abcdefghij", f"Authorization: Bearer {HIDDEN}"),
        ("x?X-Amz-Signature=abc&y=1", f"x?X-Amz-Signature={HIDDEN}&y=1"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\nafter", f"{HIDDEN}\nafter"),
        ('{"password":"abc PASS, x","token":"t1"}', f'{{"password":"{HIDDEN}","token":"{HIDDEN}"}}'),
        (r'{"line": "{\"password\":\"abc\"}"}', rf'{{"line": "{{\"password\":\"{HIDDEN}\"}}"}}'),
        ('{"password":12345678}', f'{{"password":"{HIDDEN}"}}'),
        ("login password:hunterTHREE failed", f"login password:{HIDDEN} failed"),
        ("# password: correct horse, battery  # mine", f"# password: {HIDDEN}  # mine"),
        ("- db_pass: two words\r\nnext: 1", f"- db_pass: {HIDDEN}\r\nnext: 1"),
        ("a: {password: abc}, b: 1", f"a: {{password: {HIDDEN}}}, b: 1"),
        ("password = two words", f"password = {HIDDEN}"),
        ("export MYSQL_PWD='two words' DB_PASS=x", f"export MYSQL_PWD='{HIDDEN}' DB_PASS={HIDDEN}"),
        ("password: 12345678", f"password: {HIDDEN}"),
        ("x:\n  secret: |\n    one\n\n    two\n  y: 1\n", f"x:\n  secret: |\n    {HIDDEN}\n\n    {HIDDEN}\n  y: 1\n"),
        ("authorization: token abcdefghij", f"authorization: token {HIDDEN}"),
        ("sent Basic bWU6eHl6eg== to it", f"sent Basic {HIDDEN} to it"),
        ("postgresql://u:p/w@host/db", f"postgresql://u:{HIDDEN}@host/db"),
        ("postgresql://u:p@ss@host/db", f"postgresql://u:{HIDDEN}@host/db"),
        ("pad_token: <pad>, max_tokens=512, tokenizer: bpe", "pad_token: <pad>, max_tokens=512, tokenizer: bpe"),
        ("TOKEN=$HF_TOKEN run, token=3", "TOKEN=$HF_TOKEN run, token=3"),
        ("http://host:80/x and a@b", "http://host:80/x and a@b"),
        ('{"u":"http://x:80","m":"a@b"}', '{"u":"http://x:80","m":"a@b"}'),
    ],
)  # fmt: skip
def test_forms(text: str, told: str) -> None:
    assert redacted(text) == told
    assert redacted(told) == told


@pytest.mark.parametrize(
    "text",
    [
        "the token count: 12, tokens: 3, max_tokens: 5, token: 50256, time_to_first_token: 12ms, tokens per second: 4,012",
        "tokenizer: bpe, bos_token: '<s>', token: <s>, eos_token_id: 2, forward_pass: 12ms, passwords: 3, password_length: 8",
        "tags/secret: nothing -> d4cb3d76faf1, cat: /run/secrets/db_password: No such file or directory",
        "tests/operations/test_secrets.py:33: AssertionError, secret.yaml:3:5, password.py: not found",
        '{"pii.secret": 0.0, "pii.secret": 12.0, "secret": 12, "passwords": 1234}',
        "PWD=/home/me OLDPWD=/tmp/x pwd: /srv/models bypass: yes second_pass=done",
        "sha256: 9f86d081884c7d659a2feaa0c55ad015 key: 3f2a91c0dd12",
        "    password: str | None = None",
        "    token = next(tokens)",
        "if token == '</s>' and secret != x: mytoken::Kind",
        "Basic authentication failed, a basic tokenizer, Authorization: required",
        "http://host:80/pkg/@scope/x, docker://r:5000/i@sha256:ab, zip://a.csv::s3://box/x@1.zip, git@host:me/x",
        "password: null\ntoken: ${{ secrets.TOKEN }}\npassword: $DB_PASS\nsecret:\n  name: x\n",
    ],
)
def test_what_is_no_secret(text: str) -> None:
    assert redacted(text) == text


def test_nothing_that_llmos_ships_or_says_looks_like_one() -> None:
    """Its configs, and the sentences of its source."""
    root = Path(llmos_cli.__file__).parents[1]
    files = [*root.glob("configs/*/*.yaml"), *root.glob("docs/*.yml")]
    wrong = [str(path) for path in files if redacted(path.read_text()) != path.read_text()]
    for path in [*root.glob("llmos_cli/**/*.py"), *root.glob("commands/*.py")]:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        said = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings]
        wrong += [each for each in said if isinstance(each, str) and " " in each and redacted(each) != each]
    assert wrong == [] and len(files) > 5


@given(st.dictionaries(st.sampled_from(["password", "api_key", "db-secret"]), st.text(min_size=1), min_size=1))
def test_in_json_it_is_hidden_whole_and_json_stays_json(kept: dict[str, str]) -> None:
    for told in (json.dumps(kept), json.dumps(kept, separators=(",", ":")), json.dumps(kept, indent=1)):
        back = json.loads(redacted(told))
        assert all(value in (HIDDEN, kept[key]) for key, value in back.items())
        assert all(back[key] == HIDDEN for key in kept if kept[key].isalpha() and len(kept[key]) > 5)
        assert back.keys() == kept.keys()


@pytest.mark.parametrize("name", ["MYSQL_PWD", "DB_PASS", "SECOND_API_KEY"])
def test_what_the_environment_gave_is_hidden_however_it_comes_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"{SECRET}, and more")
    monkeypatch.setenv("OLDPWD", "/home/me/models")
    assert redacted(f"login {SECRET}, and more at /home/me/models") == f"login {HIDDEN} at /home/me/models"
    assert redacted(f"login {SECRET}") == f"login {HIDDEN}"


def test_numbers_lists_and_mappings_under_the_name_of_one() -> None:
    given = {"password": 12345678, "passwords": ["abc", 3], "secret": {"a": "x", "on": True}, "token": 50256}
    assert hidden(given) == {
        "password": HIDDEN,
        "passwords": [HIDDEN, 3],
        "secret": {"a": HIDDEN, "on": True},
        "token": 50256,
    }


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
        "MYSQL_PWD",
        "db_pass",
        "data.account_key",
        "AccountKey",
        "encryption_key",
        "SSHPASS",
    )
    no = (
        "PWD",
        "OLDPWD",
        "forward_pass",
        "secrets.yaml",
        "first_token",
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
