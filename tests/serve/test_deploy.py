"""A deployment's life on the command line: detached, listed, followed, stopped, drained; and what is refused before it begins."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations import deploy as operation
from llmos_cli.operations.config import resolve
from tests.conftest import Llmos
from tests.serve.conftest import deployed, eventually, llmos_command, new_workspace, save_llama


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return new_workspace(tmp_path_factory.mktemp("deployed") / "model", save_llama)


@pytest.fixture(autouse=True)
def inside(served: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(served.root)


def test_the_whole_life_of_a_detached_deployment(llmos: Llmos, served: Workspace):
    assert llmos("ps").out == "nothing is running; `llmos ps --all` lists every run\n"
    made = llmos("deploy", "--port", 0, "--name", "life", "-qd", "--json")
    assert made.code == 0, made.err
    url, run = made.json["url"], made.json["run"]
    try:
        assert httpx.get(f"{url}/ready").status_code == 200
        (process,) = llmos("ps", "--json").json["processes"]
        assert (process["name"], process["operation"], process["status"]) == ("life", "deploy", "running")
        assert (process["url"], process["run"]) == (url, run)
        assert process["checkpoint"] == served.resolve("HEAD")

        again = llmos("deploy", "--port", 0, "--name", "life", "--detach")
        assert again.code == 6 and "a deployment called life is running" in again.err

        assert f"ready at {url}" in llmos("logs", "life").out
        assert llmos("logs", "lif", "-n", 1).out.count("\n") == 1  # a unique beginning will do
        assert llmos("logs", run, "--json").json["events"][0]["event"] == "started"

        removed = llmos("rm", "HEAD")
        assert removed.code != 0 and "deployment life" in removed.err
    finally:
        stopped = llmos("stop", "life")
    assert stopped.code == 0 and "life ended (done)" in stopped.out
    assert served.runs.find("life").exit_code == 0
    assert llmos("ps").out.startswith("nothing is running")
    assert "life" in llmos("ps", "--all").out
    late = llmos("stop", "life")
    assert late.code == 1 and "life is not running: it is done" in late.err


def test_sigterm_drains_what_was_begun_while_its_log_is_followed(served: Workspace, tmp_path: Path):
    with deployed(served, tmp_path, "--name", "draining") as server:
        following = subprocess.Popen(
            llmos_command("logs", "draining", "-f", "--json"), cwd=served.root, stdout=subprocess.PIPE, text=True
        )
        assert following.stdout is not None
        first = json.loads(following.stdout.readline())
        said: list[str] = []

        def ask() -> None:
            body = {"prompt": "the cat", "max_tokens": 1200, "stream": True}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
                said.extend(line for line in response.iter_lines() if line)

        asking = threading.Thread(target=ask)
        asking.start()
        assert eventually(lambda: len(said) > 2)
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503 and "Retry-After" in refused.headers
        asking.join(60)
        assert said[-1] == "data: [DONE]"
        assert server.wait_ended() == 0
        rest = [json.loads(line) for line in following.stdout]
        assert following.wait(30) == 0
    assert served.runs.find("draining").status == "done"
    assert first["event"] == "started"
    assert rest[-1]["event"] == "ended" and rest[-1]["status"] == "done"


def test_a_port_in_use_is_one_sentence(llmos: Llmos):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = llmos("deploy", "--port", port)
        assert result.code == 1
        assert result.err.splitlines()[0] == f"error: port {port} of 127.0.0.1 is in use"
        detached = llmos("deploy", "--port", port, "--detach")
    assert detached.code == 1
    assert f"port {port} of 127.0.0.1 is in use" in detached.err


def test_beyond_loopback_a_key_is_required(llmos: Llmos):
    result = llmos("deploy", "--host", "0.0.0.0", "--port", 0)
    assert result.code == 2
    assert "serving on 0.0.0.0 needs an API key" in result.err


@pytest.mark.parametrize(
    ("text", "mode", "code", "sentence"),
    [
        (None, 0o600, 4, "does not exist"),
        ("key\n", 0o644, 5, "can be read by others"),
        ("# none\n", 0o600, 2, "holds no key"),
    ],
)
def test_a_key_file_must_be_private_and_hold_a_key(
    llmos: Llmos, tmp_path: Path, text: str | None, mode: int, code: int, sentence: str
):
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    result = llmos("deploy", "--port", 0, "--api-key-file", file)
    assert result.code == code and sentence in result.err


@pytest.mark.parametrize("name", ["../../out", "a/b", "..", "", "-x", "a b"])
def test_a_name_must_be_one_for_a_file(llmos: Llmos, name: str):
    result = llmos("deploy", "--port", 0, f"--name={name}")
    assert (result.code, result.err.splitlines()[0]) == (2, f"error: {name!r} is not a name for a deployment")


def test_an_interrupted_detach_leaves_nothing_behind(served: Workspace, monkeypatch: pytest.MonkeyPatch):
    begun: list[subprocess.Popen[bytes]] = []

    def interrupted(ws: Workspace, child: subprocess.Popen[bytes], *rest: object) -> None:
        begun.append(child)
        raise KeyboardInterrupt

    monkeypatch.setattr(operation, "wait_ready", interrupted)
    with pytest.raises(KeyboardInterrupt):
        operation.detach(served, "HEAD", resolve(served, "deploy"), ["deploy", "--port", "0"], timeout=60)
    assert begun[0].poll() is not None


@pytest.mark.parametrize("words", [["HEAD~9"], ["nothing"]])
def test_an_unknown_revision_is_4(llmos: Llmos, words: list[str]):
    assert llmos("deploy", *words, "--port", 0).code == 4


def test_a_flipped_byte_is_not_served(llmos: Llmos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ws = new_workspace(tmp_path / "broken", save_llama)
    monkeypatch.chdir(ws.root)
    (weights,) = ws.checkpoint("HEAD").path.glob("*.safetensors")
    times = weights.stat()
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # not even its time shows it
    result = llmos("deploy", "--port", 0)
    assert result.code == 5
    assert "is not what was saved" in result.err
    assert ws.runs.alive() == []


def test_a_context_that_the_model_does_not_have_ends_the_run_as_failed(llmos: Llmos, served: Workspace):
    result = llmos("deploy", "--port", 0, "--name", "long", "-s", "deploy.context=4096")
    assert result.code == 1
    assert "the model has 2048 positions" in result.err
    assert served.runs.find("long").status == "failed"


@pytest.mark.parametrize("command", ["logs", "stop"])
def test_an_unknown_name_is_4(llmos: Llmos, command: str):
    result = llmos(command, "nobody")
    assert result.code == 4 and "no run is called 'nobody'" in result.err


def test_stop_does_not_touch_a_process_that_only_has_the_pid(served: Workspace):
    """A run whose process is gone and whose pid another process has now: the other one lives on."""
    from dataclasses import replace

    from llmos_cli.operations.stop import send

    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        record = replace(served.runs.list()[0], pid=other.pid, pid_started=1.0)
        send(record, signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
    finally:
        other.kill()
        other.wait()


def test_a_record_that_does_not_answer_is_killed_only_when_asked(llmos: Llmos, served: Workspace):
    deaf = (
        "import signal, time; from llmos_cli.core.workspace import Workspace\n"
        "with Workspace.find().begin('deploy', config={}, name='deaf'):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", deaf], cwd=served.root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    reaper = threading.Thread(target=process.wait)
    reaper.start()
    patient = llmos("stop", "deaf", "--timeout", 0.2)
    assert patient.code == 1 and "deaf has not ended within 0.2 s" in patient.err
    killed = llmos("stop", "deaf", "--timeout", 0.2, "--kill")
    assert killed.code == 0 and "deaf ended (died)" in killed.out
    assert "deaf is not running: it died without a word" in llmos("stop", "deaf").err
    reaper.join(10)
