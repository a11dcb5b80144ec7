"""llmos run with verbs: stages that read one another's checkpoints, gates, data that changes, and the cache of a CI job."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.pipeline import facts
from tests.operations.test_run import statuses

VERBS = """\
pipeline:
  prepare:
    sh: cut -d, -f1-2 raw.csv > data.csv
    inputs: [raw.csv]
    outputs: [data.csv]
  base:
    verb: train
    set: {data.source: data.csv, data.task: text-classification, model.arch: bag, train.max_steps: 2}
  judge:
    verb: eval
    rev: base
    set: {eval.latency: false}
    require: ["loss <= 1.5 * base"]
  ship:
    verb: export
    rev: base
    needs: [judge]
    outputs: [out/model]
"""


@pytest.fixture(scope="module")
def _verbs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from llmos_cli.operations.init import init

    root = tmp_path_factory.mktemp("run") / "workspace"
    init(root, "text-classification")
    (root / "configs" / "train.yaml").write_text("seed: 0\n")
    rows = [f"{'good nice fine' if at % 2 else 'bad poor sad'} {at},{at % 2},x" for at in range(200)]
    (root / "raw.csv").write_text("text,label,rest\n" + "\n".join(rows) + "\n")
    (root / "llmos.yaml").write_text(VERBS)
    environment = {**os.environ, "LLMOS_CONFIG_HOME": str(root.parent / "home"), "LLMOS_COMPILE": "off"}
    llmos = [sys.executable, "-m", "llmos_cli"]
    subprocess.run([*llmos, "trust", "--pipeline"], cwd=root, env=environment, check=True, capture_output=True)
    cached = ["--cache-dir", "../cache"]
    ran = subprocess.run([*llmos, "run", "-q", *cached], cwd=root, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return root


@pytest.fixture
def verbs(_verbs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llmos) -> Workspace:
    """A workspace of its own in which the pipeline has run; what it made is in ../cache too."""
    shutil.copytree(_verbs, tmp_path / "workspace", symlinks=True)
    shutil.copytree(_verbs.parent / "cache", tmp_path / "cache")
    monkeypatch.chdir(tmp_path / "workspace")
    llmos("trust", "--pipeline")
    return Workspace.find()


def test_stages_that_read_one_another(verbs: Workspace, llmos):
    told = llmos("run", "--json")
    assert statuses(told) == {"prepare": "fresh", "base": "fresh", "judge": "fresh", "ship": "fresh"}
    base = verbs.resolve("stages/base")
    assert told.json["stages"][1]["checkpoint"] == base
    assert verbs.head().checkpoint is None, "no branch moves"
    assert told.json["stages"][2]["verdicts"][0]["requirement"] == "loss <= 1.5 * loss@base"
    assert told.json["stages"][2]["metrics"]["loss"] > 0
    assert (verbs.root / "out" / "model" / "config.json").is_file()
    assert "(stages/base)" in llmos("log", "stages/base").out
    assert llmos("rm", base).code != 0, "it is in use"
    assert llmos("gc", "--expire", "now").code == 0 and verbs.resolve("stages/base") == base
    assert llmos("tag", "-d", "stages/none").code == 4
    assert "name stages/base deleted" in llmos("tag", "-d", "stages/base").out
    assert llmos("rm", base, "--dry-run").code == 0 and llmos("show", "stages/base").code == 4
    assert llmos("undo").code == 0 and verbs.resolve("stages/base") == base
    llmos("tag", "-d", "stages/base")
    assert llmos("run").code == 0 and verbs.resolve("stages/base") == base, "the pipeline has it"


def test_what_changed_data_reaches(verbs: Workspace, llmos):
    """Exactly what depends on it, through the files: the training reads what the command would write."""
    (verbs.root / "raw.csv").write_text((verbs.root / "raw.csv").read_text().replace(",x\n", ",y\n"))
    planned = llmos("run", "--dry-run", "--json")
    assert statuses(planned) == {"prepare": "would run", "base": "may run", "judge": "may run", "ship": "may run"}
    told = llmos("run", "--json")  # the column is cut off: the same data.csv
    assert statuses(told) == {"prepare": "made", "base": "fresh", "judge": "fresh", "ship": "fresh"}


def test_each_reason_is_told(verbs: Workspace, llmos):
    def planned(name: str) -> str:
        stage = next(each for each in llmos("run", "--dry-run", "--json").json["stages"] if each["stage"] == name)
        return f"{stage['status']}: {stage['why']}"

    train, text = verbs.configs / "train.yaml", VERBS
    train.write_text("# a comment\nseed: 0\n\ntrain:\n")
    assert planned("base") == "fresh: "
    train.write_text("seed: 1\n")
    assert planned("base") == "would run: seed was 0 and is 1"
    train.write_text("seed: 0\n")
    (verbs.root / "llmos.yaml").write_text(text.replace("max_steps: 2", "max_steps: 3"))
    assert planned("base") == "would run: train.max_steps was 2 and is 3" and planned("judge") == "may run: after base"
    (verbs.root / "llmos.yaml").write_text(text.replace("1.5 * base", "1.25 * base"))
    assert planned("judge").startswith("would run: eval.require was") and planned("base") == "fresh: "
    assert "1.5 * base" in planned("judge") and "1.25 * base" in planned("judge"), planned("judge")
    (verbs.root / "llmos.yaml").write_text(
        text.replace('["loss <= 1.5 * base"]', '["loss <= 1.5 * base", "loss <= 9"]')
    )
    assert planned("judge") == "would run: eval.require has ['loss <= 9'] too"
    (verbs.root / "llmos.yaml").write_text(text)
    (verbs.root / "data.csv").write_text("edited")
    told = llmos("run", "--dry-run", "--json").json["stages"][0]
    assert (told["status"], told["message"]) == ("would fail", "data.csv is not what prepare wrote")
    rehearsed = llmos("run", "--dry-run")
    assert rehearsed.code == llmos("run", "--dry-run", "--json").code == 6
    assert "would fail  prepare: data.csv" in rehearsed.out and "prepare would not succeed" in rehearsed.err
    assert llmos("run", "prepare").code == told["code"] == 6 and (verbs.root / "data.csv").read_text() == "edited"
    (verbs.root / "data.csv").unlink()
    assert planned("prepare") == "would be restored: data.csv is gone, and was kept"
    shutil.rmtree(verbs.root / "out")
    assert planned("ship") == "may run: after base, judge"


def test_another_llmos_or_another_class_of_machine_makes_it_anew(
    verbs: Workspace, llmos, monkeypatch: pytest.MonkeyPatch
):
    """Every stage says so; what an equal machine with other threads made, stands."""
    found, code = facts.environment(), facts.SOURCE

    def planned(environment: dict[str, Any], source: str = code) -> tuple[str, str]:
        facts.machine.cache_clear()
        monkeypatch.setattr(facts, "environment", lambda: environment)
        monkeypatch.setattr(facts, "SOURCE", source)
        first = llmos("run", "--dry-run", "--json").json["stages"][0]
        return first["status"], first["why"]

    try:
        assert planned({**found, "threads": 64}) == ("fresh", "")
        assert planned(found, "f" * 64) == ("would run", "llmos is another one")
        assert planned({**found, "python": "3.99"}) == ("would run", f"python was {found['python']} and is 3.99")
        newer = planned({**found, "packages": {**found["packages"], "torch": "9.9"}})
        assert newer == ("would run", f"packages.torch was {found['packages']['torch']} and is 9.9")
    finally:
        facts.machine.cache_clear()


def test_a_gate_that_fails_ends_the_run_with_3(verbs: Workspace, llmos, tmp_path):
    (verbs.root / "llmos.yaml").write_text(VERBS.replace("loss <= 1.5 * base", "loss <= 0.5 * base"))
    told = llmos("run", "-q", "--junit", tmp_path / "j.xml", "--summary", tmp_path / "s.md")
    assert told.code == 3
    assert "error: judge did not succeed: the gate failed: loss <= 0.5 * loss@base (loss is" in told.err
    assert "FAILED  judge: loss <= 0.5 * loss@base" in told.out
    xml = (tmp_path / "j.xml").read_text()
    assert 'classname="llmos.gate.judge"' in xml and "<failure" in xml
    assert "- **FAILED** `judge`: `loss <= 0.5 * loss@base`" in (tmp_path / "s.md").read_text()


@pytest.fixture
def clone(verbs: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llmos) -> Workspace:
    """What a CI job checks out: the pipeline, its configs and its data."""
    for name in ("llmos.yaml", "raw.csv", "configs/train.yaml"):
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(verbs.root / name, tmp_path / "clone" / name)
    monkeypatch.chdir(tmp_path / "clone")
    assert llmos("init", "-q", "--template", "text-classification").code == 0
    assert llmos("trust", "--pipeline").code == 0
    return Workspace.find()


def test_the_cache_survives_the_workspace(verbs: Workspace, clone: Workspace, llmos, tmp_path):
    """What was made comes from the cache, to the byte, with what was measured of it."""
    cached = ("--cache-dir", tmp_path / "cache")
    planned = llmos("run", "base", *cached, "--dry-run", "--json")
    assert statuses(planned) == {"prepare": "would be restored", "base": "may run"}
    told = llmos("run", "base", "judge", *cached, "--json")
    assert statuses(told) == {"prepare": "restored", "base": "restored", "judge": "restored"}
    assert clone.resolve("stages/base") == verbs.resolve("stages/base")
    assert llmos("fsck").code == 0
    assert llmos("log", "--metric", "loss", "stages/base").code == 0
    again = llmos("run", "base", "judge", "--json")
    assert set(statuses(again).values()) == {"fresh"}, "the cache is not needed any more"


def test_weights_that_were_removed_here_come_from_the_cache(verbs: Workspace, llmos, tmp_path):
    base, cached = verbs.resolve("stages/base"), ("run", "base", "--cache-dir", tmp_path / "cache", "--json")
    assert llmos("rm", "-f", base).code == 0 and base in verbs.dropped
    assert statuses(llmos(*cached, "--dry-run"))["base"] == "would be restored"
    assert statuses(llmos(*cached))["base"] == "restored"
    assert base not in verbs.dropped and llmos("fsck").code == 0
    assert statuses(llmos("run", "base", "--json"))["base"] == "fresh"
    llmos("rm", "-f", base), (tmp_path / "cache" / "checkpoints" / f"{base}.json").unlink()
    planned = llmos(*cached, "--dry-run")
    assert statuses(planned)["base"] == "would run" and "does not have the weights that base made" in planned.err
    assert statuses(llmos(*cached))["base"] == "made"


def test_a_damaged_cache_holds_less(verbs: Workspace, clone: Workspace, llmos, tmp_path):
    weights = verbs.manifest(verbs.resolve("stages/base")).tree["model-00001-of-00001.safetensors"]
    damaged = tmp_path / "cache" / "objects" / weights.sha256[:2] / weights.sha256[2:]
    damaged.chmod(0o644)
    damaged.write_bytes(bytes(weights.size))
    told = llmos("run", "base", "--cache-dir", tmp_path / "cache", "--json", "-q")
    assert statuses(told) == {"prepare": "restored", "base": "made"}
    assert "base cannot be had from the cache" in told.err
    assert hashlib.sha256(damaged.read_bytes()).hexdigest() == weights.sha256, "the next one need not make it again"


@pytest.mark.parametrize("name", ["../../stolen", "/tmp/stolen", "llmos.yaml", "other.csv", "data.csv/../x"])
def test_a_hostile_cache_writes_nothing_elsewhere(verbs: Workspace, clone: Workspace, llmos, tmp_path, name):
    for path in (tmp_path / "cache" / "results").glob("*.json"):
        result = json.loads(path.read_text())
        if result["stage"] == "prepare":
            path.chmod(0o644)
            path.write_text(json.dumps({**result, "outputs": dict.fromkeys([name], *result["outputs"].values())}))
    before = sorted(tmp_path.rglob("stolen"))
    told = llmos("run", "prepare", "--cache-dir", tmp_path / "cache", "--json", "-q")
    assert statuses(told) == {"prepare": "made"} and "makes no sense" in told.err
    assert sorted(tmp_path.rglob("stolen")) == before == []
    assert (clone.root / "llmos.yaml").read_text() == VERBS


def test_a_remote_is_a_cache_too(verbs: Workspace, clone: Workspace, llmos, tmp_path):
    (clone.root / "llmos.yaml").write_text(VERBS + f"remotes: {{origin: {tmp_path / 'cache'}}}\n")
    told = llmos("run", "base", "--cache-dir", "origin", "--json", "-q")
    assert statuses(told) == {"prepare": "restored", "base": "restored"}
    assert llmos("branch", "main", "stages/base").code == 0 and llmos("push", "-q").code == 0


@pytest.mark.slow
def test_a_deployment_is_up_to_date_while_it_serves_and_gives_way(verbs: Workspace, llmos):
    deploy = "  serve: {verb: deploy, rev: base, needs: [judge], set: {deploy.name: chat, deploy.port: 0}}\n"
    (verbs.root / "llmos.yaml").write_text(VERBS + deploy)
    try:
        assert statuses(llmos("run", "serve", "--json", "-q"))["serve"] == "made"
        assert statuses(llmos("run", "serve", "--json", "-q"))["serve"] == "fresh"
        (first,) = verbs.runs.alive()
        assert (first.operation, first.name) == ("deploy", "chat")
        changed = deploy.replace("deploy.port: 0", "deploy.port: 0, deploy.slots: 2")
        (verbs.root / "llmos.yaml").write_text(VERBS + changed)
        assert statuses(llmos("run", "serve", "--json", "-q"))["serve"] == "made"
        (second,) = verbs.runs.alive()
        assert second.name == "chat" and second.id != first.id
    finally:
        llmos("stop", "chat")
    assert "chat is not running" in llmos("run", "serve", "--dry-run").out


MATRIX = """\
pipeline:
  base: {verb: train, set: {model.arch: mlp, model.hidden_size: 16}}
  small:
    verb: quantize
    rev: base
    foreach: {bits: [4, 8]}
    set: {quantize.bits: "${bits}", quantize.method: rtn, quantize.group_size: 8, quantize.latency: false}
  compare: {verb: eval, rev: small/8, require: ["loss <= 2 * small/4"], set: {eval.latency: false}}
"""


@pytest.mark.slow
def test_a_matrix_of_compressions_each_from_the_same_parent(new_workspace, llmos, tmp_path, monkeypatch):
    ws = new_workspace(tmp_path / "matrix", "image-classification")
    monkeypatch.chdir(ws.root)
    (ws.root / "llmos.yaml").write_text(MATRIX)
    told = llmos("run", "--json", "-q", "--jobs", "2")
    assert statuses(told) == {"base": "made", "small/4": "made", "small/8": "made", "compare": "made"}
    for bits in ("4", "8"):
        made = ws.manifest(ws.resolve(f"stages/small/{bits}")).made
        assert made.parents == (ws.resolve("stages/base"),) and made.config["quantize"]["bits"] == int(bits)
    assert set(statuses(llmos("run", "--json")).values()) == {"fresh"}
    assert llmos("undo").code == 0, "a stage's ref moved by an operation like any other"
    assert set(statuses(llmos("run", "--json")).values()) == {"fresh"}, "and what was made is still remembered"
