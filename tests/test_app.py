"""The root of the command line: help, version, usage errors, the error boundary."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmos_cli import __version__, catalog
from llmos_cli.core import atomic


def test_version(llmos):
    ran = llmos("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"llmos {__version__}\n", "")


def test_help_names_every_command_with_its_first_line(llmos):
    out = " ".join(llmos("--help").out.split())
    for name, entry in catalog.commands().items():
        assert f"{name} {entry.help}" in out


def test_no_arguments_is_help(llmos):
    assert llmos().out == llmos("--help").out


def test_an_unknown_command_is_a_usage_error_that_knows_what_was_meant(llmos):
    ran = llmos("innit")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: there is no command called 'innit'\nhint: did you mean 'init'?\n"


def test_an_unknown_option_is_a_usage_error(llmos):
    ran = llmos("init", "--tmplate", "x")
    assert ran.code == 2
    assert ran.err == (
        "error: no such option: --tmplate\nhint: did you mean '--template'? `llmos init --help` lists what it takes\n"
    )


def test_a_failure_as_json_is_on_stdout_too(llmos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = llmos("config", "check", "--json")
    assert ran.code == 4
    assert ran.json["schema"] == "llmos.error/1"
    assert ran.json["error"]["code"] == 4


COMMAND = '''"""Do what the test says."""
import os, errno
from llmos_cli.session import JsonFlag, QuietFlag, session

def {name}(json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    {body}
'''


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`command("raise OSError(...)")` drops a command file in and returns its name."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setattr(catalog, "_commands_folder", lambda: folder)
    monkeypatch.setattr("llmos_cli.commands.__path__", [str(folder)])
    catalog._found.cache_clear()

    def make(body: str) -> str:
        name = f"probe{abs(hash(body))}"
        (folder / f"{name}.py").write_text(COMMAND.format(name=name, body=body))
        return name

    yield make
    catalog._found.cache_clear()


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise KeyboardInterrupt", 130, "error: interrupted\nhint: "),
        ("raise OSError(errno.ENOSPC, 'x')", 1, "error: the disk is full\nhint: free some space"),
        ("raise OSError(errno.EROFS, 'x', '/data/a')", 1, "error: the file system is read-only: /data/a\nhint: "),
        ("open('/proc/1/mem/none')", 1, "error: a file stands where a folder is needed: /proc/1/mem/none\nhint: "),
        ("raise PermissionError(errno.EACCES, 'x', 'runs')", 1, "error: permission denied: runs\nhint: "),
        ("raise ValueError('first\\nsecond')", 1, "error: llmos failed unexpectedly: ValueError: first second\nhint: "),
    ],
)
def test_whatever_happens_is_one_sentence(command, llmos, body, code, message):
    ran = llmos(command(body))
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith(message)
    assert "Traceback" not in ran.err


def test_a_folder_that_was_removed(llmos, tmp_path, monkeypatch):
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (["status"], ["init"], ["train", "--json"], ["-C", "..", "status"]):
        ran = llmos(*words)
        assert ran.code == 4
        assert ran.err == "error: the folder you are in has been removed\nhint: `cd` into one that is there\n"


def test_the_unforeseen_leaves_its_traceback_in_the_workspace(command, llmos, workspace):
    ran = llmos(command("raise ValueError('why')"))
    (crash,) = (workspace.root / ".llmos" / "crash").iterdir()
    assert str(crash) in ran.err
    assert "ValueError: why" in crash.read_text()


def test_a_traceback_that_finds_no_room_leaves_no_empty_file(command, llmos, workspace, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "write_all", full)
    assert "the traceback could not be written anywhere" in llmos(command("raise ValueError('why')")).err
    assert not [*(workspace.root / ".llmos" / "crash").iterdir()]


def test_outside_a_workspace_it_is_in_the_users_cache(command, llmos, own_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = llmos(command("raise ValueError('why')"))
    (crash,) = (own_home / "cache" / "crash").iterdir()
    assert str(crash) in ran.err


def test_a_dropped_in_file_is_a_command(command, llmos):
    name = command("print('here')")
    assert llmos(name).out == "here\n"
    assert f"{name} Do what the test says." in " ".join(llmos("--help").out.split())


def test_a_reader_that_leaves_is_no_failure(workspace):
    llmos = Path(sys.executable).parent / "llmos"
    script = f"set -o pipefail; {llmos} config schema train | head -n 1"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "{\n", "")


def test_json_goes_through_a_pipe(workspace):
    llmos = Path(sys.executable).parent / "llmos"
    script = f"set -o pipefail; {llmos} status --json | {sys.executable} -m json.tool"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0
    assert '"schema": "llmos.status/1"' in ran.stdout


def test_global_options(llmos, workspace, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert llmos("status").code == 4
    assert llmos("-C", workspace.root, "status").code == 0
    assert llmos("-C", tmp_path / "none", "status").code == 2
    assert (
        llmos("--wait", "soon", "status").err
        == "error: --wait takes a number of seconds, not 'soon'\nhint: for example --wait 5\n"
    )


def test_help_of_a_method_lists_its_options(llmos):
    out = llmos("quantize", "--method", "gptq", "--help").out
    assert "Options of gptq (-s quantize.gptq.NAME=VALUE):\n  damping <float>" in out
    assert llmos("quantize", "--method=gtpq", "--help").err.endswith("hint: did you mean 'gptq'?\n")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("llmos chec", ["checkout"]),
        ("llmos show ", ["HEAD"]),
        ("llmos prune --method wan", ["wanda"]),
        ("llmos init --template image", ["image-classification"]),
        ("llmos tune --sampler n", ["nsga2"]),
        ("llmos train -s train.op", ["train.optimizer="]),
        ("llmos train --unset model.ar", ["model.arch"]),
        ("llmos quantize -s quantize.gptq.da", ["quantize.gptq.damping="]),
        ("llmos predict -s eval.sp", ["eval.split="]),
        ("llmos train -s prune.", []),
        ("llmos tag -d ", []),
    ],
)
def test_completion(workspace, words, offered):
    assert completed(words) == offered


def completed(words: str, python: tuple[str, ...] = ()) -> list[str]:
    """What the shell is offered for the last of the words."""
    llmos = Path(sys.executable).parent / "llmos"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), "_LLMOS_COMPLETE": "complete_bash"}
    ran = subprocess.run([*python, llmos], env=os.environ | asked, capture_output=True, text=True)
    return (ran.stderr if python else ran.stdout).split()


def test_completion_of_ids(workspace):
    first, second = "c48a" + "0" * 60, "c48b" + "1" * 60
    for each in (first, second):
        (workspace.checkpoints / each).mkdir()
    assert completed("llmos eval base c48") == [first[:12], second[:12]]
    assert completed("llmos eval base c48b") == [second[:12]]
    assert completed("llmos eval ") == ["HEAD"]


def test_completion_of_runs(workspace):
    with workspace.begin("train", config={}) as ended:
        pass
    with workspace.begin("train", config={}) as running:
        assert completed("llmos stop ") == [running.id]
        assert {*completed("llmos logs ")} == {ended.id, running.id}


def test_completion_of_config_keys_loads_no_torch(workspace):
    loaded = completed("llmos train -s train.adamw.", python=(sys.executable, "-X", "importtime"))
    assert "pydantic" in loaded and not {"torch", "numpy", "transformers"} & {*loaded}


def test_the_completion_script_loads_in_bash(llmos):
    script = llmos("completion", "bash").out + "complete -p llmos\n"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert ran.stdout == "complete -o default -F _llmos_completion llmos\n"
    assert llmos("completion", "tcsh").code == 2


def test_numbers_of_the_command_line(llmos, workspace):
    hint = "hint: `llmos logs --help` says what it takes\n"
    assert llmos("logs", "x", "-n", "many").err == f"error: --last takes a whole number, not 'many'\n{hint}"
    assert llmos("logs", "x", "-n", "-1").err == f"error: --last must be at least 0, not -1\n{hint}"
    assert llmos("logs", "x", "-n", "1").code == 4


@pytest.mark.parametrize("running", [True, False])
def test_ctrl_c_in_an_import_is_not_lost(tmp_path, running):
    """Some extensions swallow KeyboardInterrupt while they load, as this module does; others abort the process."""
    deaf = "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(0.1)\nexcept KeyboardInterrupt:\n    pass\nprint('loaded')\n"
    (tmp_path / "deaf.py").write_text(deaf)
    program = "import signal, sys, time; import llmos_cli.app; from llmos_cli.__main__ import interrupt\n"
    program += f"signal.signal(signal.SIGINT, interrupt); signal.signal(signal.SIGTERM, {'interrupt' if running else 'signal.SIG_DFL'})\n"
    program += "try:\n    import deaf; time.sleep(20)\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    # A run that is open is left tidily, after the import; without one the process ends at once.
    assert (ended.returncode, ended.stdout) == (130, "loaded\n" if running else "")
    assert ("error: interrupted" in ended.stderr) == (not running)
