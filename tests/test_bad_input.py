"""Bad input: one sentence, a hint, the right exit code, no traceback, and the workspace as it was. One row a case."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

Prepare = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """`words` after `llmos`; what the first line of stderr must contain; what is done to the workspace before."""

    words: str
    code: int
    says: str
    before: Prepare = field(default=lambda root: None)
    template: str = "causal-lm"

    def __str__(self) -> str:
        return self.says.replace(" ", "-")[:60]


def write(file: str, text: str) -> Prepare:
    return lambda root: (root / file).write_text(text)


def config(text: str) -> Prepare:
    """The text classifier's config with another data section."""
    model = "{arch: bag}"
    return write("configs/train.yaml", f"model: {model}\ndata: {text}\ntrain: {{max_steps: 1}}\n")


def csv(rows: str, options: str = "") -> Prepare:
    def prepare(root: Path) -> None:
        (root / "data.csv").write_text(rows)
        config(f"{{task: text-classification, source: data.csv{options}}}")(root)

    return prepare


def damage(change: Callable[[bytes], bytes]) -> Prepare:
    """Change the largest file of HEAD's checkpoint, as a bad disk would."""

    def prepare(root: Path) -> None:
        shards = sorted((root / "checkpoints").glob("*/model-*.safetensors"), key=lambda path: path.stat().st_size)
        content = change(shards[-1].read_bytes())
        for name in (shards[-1],):
            name.chmod(0o644)
            name.write_bytes(content)

    return prepare


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def unseen(root: Path) -> None:
    """A file with two labels that the checkpoint knows, and one with a label that neither has."""
    (settings,) = root.glob("checkpoints/*/config.json")
    known = list(json.loads(settings.read_text())["id2label"].values())
    rows = "".join(f"text number {at},{known[at % 2]}\n" for at in range(40))
    csv(f"text,label\n{rows}", ", splits: {validation: new.csv}")(root)
    (root / "new.csv").write_text("text,label\n" + "".join(f"words {at},new\n" for at in range(40)))


def latin(root: Path) -> None:
    csv("")(root)
    (root / "data.csv").write_bytes(f"text,label\n{LABELS}\n\xe9,a\n".encode("latin-1"))


def photos(root: Path) -> None:
    """Two classes of pictures; one of them is none."""
    for at, kind in enumerate(("cat", "dog") * 10):
        (root / "photos" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), at).save(root / "photos" / kind / f"{at}.png")
    (root / "photos/cat/2.png").write_bytes(b"no picture")


def ambiguous(root: Path) -> None:
    """A name that is a branch and a tag, a beginning that two ids have, a beginning that two runs have."""
    head = (root / ".llmos/refs/heads/main").read_text().strip()
    names = {"heads/both": head, "tags/both": "0" * 64, "runs/20010101-1": head, "runs/20010101-2": head}
    for name, checkpoint in names.items():
        (root / ".llmos/refs" / name).parent.mkdir(exist_ok=True)
        (root / ".llmos/refs" / name).write_text(checkpoint + "\n")
    for digit in "01":
        shutil.copytree(root / "checkpoints" / head, root / "checkpoints" / f"abcd{digit * 60}")


LABELS = "\n".join(f"text number {at},{'ab'[at % 2]}" for at in range(40))
LONG = "data: {task: causal-lm, source: 'builtin:pydoc', sequence_length: 64, tokenizer: {vocab_size: 300}}"

CASES = [
    Case("train -s train.max_step=5", 2, "there is no option 'train.max_step'"),
    Case("train", 2, "'train' is given twice", write("configs/train.yaml", "train: {max_steps: 1}\ntrain: {seed: 1}\n")),
    Case("train -s train.max_steps=many", 2, "train.max_steps takes a whole number, not 'many'"),
    Case("train -s train.optimizer=adamm", 2, "'adamm'"),
    Case("train -s data.source=nowhere.txt", 4, "nowhere.txt"),
    Case("train -s data.source=empty.txt", 2, "empty", write("empty.txt", "")),
    Case("train -s data.source=bad.jsonl", 2, "bad.jsonl", write("bad.jsonl", '{"text": "a"}\n{"text": \n')),
    Case("train", 2, "column", csv("alpha,beta\n" + "".join(f"{at},{at % 7}\n" for at in range(40))), "text-classification"),
    Case("train", 2, "column", csv(f"text,label\n{LABELS}\n", ", columns: {label: kind}"), "text-classification"),
    Case("train", 2, "only the label", csv("text,label\n" + "".join(f"text {at},a\n" for at in range(40))), "text-classification"),
    Case("train", 2, "nearly every row of data.csv has a label of its own", csv("text,label\n" + "".join(f"text {at},{at}\n" for at in range(40))), "text-classification"),
    Case("train", 2, "row 2 of data.csv has no text", csv(f"text,label\na,b\n,a\n{LABELS}\n"), "text-classification"),
    Case("train", 2, "data.csv is not UTF-8 text", latin, "text-classification"),
    Case("train -s data.source=rows.jsonl", 2, "row 1 of rows.jsonl: tags is 3, not a list of words", write("rows.jsonl", "".join(f'{{"tokens": "a {at}", "tags": 3}}\n' for at in range(9))), "token-classification"),
    Case("train -s data.source=photos", 2, "photos/cat/2.png is not a picture", photos, "image-classification"),
    Case("prune --pattern abc", 2, "prune.pattern cannot be 'abc'"),
    Case("train -s data.source=x.txt -s data.columns.text=body", 4, "x.txt"),
    Case("train", 2, "the validation split has a label that training did not: new", unseen, "text-classification"),
    Case("eval -s data.source=data.csv -s data.splits.test=new.csv", 2, "the test split has a label that training did not: new", unseen, "text-classification"),
    Case("train -s train.learning_rate=nan", 2, "train.learning_rate takes a number, not 'nan'"),
    Case("train -s seed=-1", 2, "seed must be at least 0, not -1"),
    Case("train -s data.source=loop", 4, "loop", lambda root: (root / "loop").symlink_to("loop")),
    Case("train -c configs", 4, "configs"),
    Case("train -s", 2, "requires an argument"),
    Case("train --confg x", 2, "no such option: --confg"),
    Case("train HEAD main", 2, "unexpected extra argument"),
    Case("trian", 2, "there is no command called 'trian'"),
    Case("HEAD train", 2, "there is no command called 'HEAD'"),
    Case("-C nowhere status", 2, "there is no folder 'nowhere'"),
    Case("-C .. status", 4, "there is no workspace"),
    Case("--wait nan status", 2, "--wait takes a number of seconds, not 'nan'"),
    Case("train", 2, "not valid YAML", write("configs/train.yaml", "model: [1, 2\n")),
    Case("train", 2, "is not UTF-8 text", lambda root: (root / "configs/train.yaml").write_bytes(b"\xff\xfe\x00")),
    Case("train", 2, "64", write("configs/train.yaml", f"model: {{arch: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32}}\n{LONG}\ntrain: {{max_steps: 1}}\n")),
    Case("train -s model.arch=lama", 2, "lama"),
    Case("train -s model.hidden_sise=64", 2, "hidden_sise"),
    Case("train nothing", 4, "nothing"),
    Case("train --resume", 4, "interrupted"),
    Case("prune --sparsity 1.5", 2, "prune.sparsity must be less than 1, not 1.5"),
    Case("prune --pattern 4:2", 2, "4:2"),
    Case("prune --pattern 2:4 --sparsity 0.7", 2, "2:4"),
    Case("prune --method wnada", 2, "'wnada'"),
    Case("quantize --bits 9", 2, "quantize.bits must be at most 8, not 9"),
    Case("quantize --method gptq --bits 1", 2, "quantize.bits must be at least 2, not 1"),
    Case("eval --require nonsense", 2, "nonsense"),
    Case("eval --require 'bits_per_byte <= 2 * base * 2'", 2, "2 * base * 2"),
    Case("eval --require 'bits_per_byte <= __import__(1)'", 4, "__import__(1)"),
    Case("eval --require 'bits_per_byte <= 1.0 * nobody'", 4, "nobody"),
    Case("eval --require 'beauty <= 1'", 3, "beauty"),
    Case("eval --require 'bits_per_byte <= 0.001'", 3, "bits_per_byte"),
    Case("eval none", 4, "none"),
    Case("show 0", 4, "0"),
    Case("show both", 2, "both is both a branch", ambiguous),
    Case("show abcd", 2, "abcd could be any of 2 checkpoints", ambiguous),
    Case("eval 20010101-", 2, "20010101- could be any of 2 runs", ambiguous),
    Case("log -n 0", 2, "-n takes a number of checkpoints from 1 on, not 0"),
    Case("log -n many", 2, "--limit takes a whole number, not 'many'"),
    Case("generate 'go on'", 2, "'go on' is no checkpoint's name"),
    Case("generate -p the --temperature nan", 2, "--temperature is nan"),
    Case("init configs/train.yaml", 1, "a file stands where a folder is needed"),
    Case("deploy --port 99999", 2, "deploy.port must be at most 65535, not 99999"),
    Case("deploy --port 0 --api-key-file configs", 2, "the API key file configs is not a text file"),
    Case(f"tag {'a' * 300}", 2, "is not a name for a tag"),
    Case("trust configs", 4, "there is no file"),
    Case("diff HEAD HEAD~9", 4, "HEAD~9"),
    Case("eval", 5, "bytes", damage(lambda content: content[:-7])),
    Case("deploy --port 0 --detach", 5, "model-", damage(flipped)),
    Case("generate", 5, "bytes", damage(lambda content: content[:-7])),
    Case("deploy --host 0.0.0.0 --port 0", 2, "key"),
    Case("tag 'a b'", 2, "a b"),
    Case("rm HEAD", 2, "HEAD"),
    Case("import missing-folder", 1, "missing-folder"),
    Case("export -o configs", 2, "configs"),
    Case("logs nobody", 4, "nobody"),
    Case("stop nobody", 4, "nobody"),
    Case("checkout nowhere", 4, "nowhere"),
    Case("tune --sampler tepe", 2, "'tepe'"),
    Case("predict HEAD missing.txt", 4, "missing.txt"),
]  # fmt: skip


@pytest.fixture(scope="session")
def trained(new_workspace, tmp_path_factory) -> dict[str, Path]:
    """A trained workspace of each template that the table uses."""
    made = {}
    for template in sorted({case.template for case in CASES}):
        workspace = new_workspace(tmp_path_factory.mktemp("trained") / "model", template)
        train(workspace.root)
        made[template] = workspace.root
    return made


def train(root: Path) -> None:
    from llmos_cli import app

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert app.run(["train", "-q", "--json"]) == 0


@pytest.fixture
def root(request, trained, tmp_path, monkeypatch) -> Path:
    """A copy of the trained workspace, the case's damage done; the current folder is in it."""
    case: Case = request.getfixturevalue("case")
    copy = tmp_path / "model"
    shutil.copytree(trained[case.template], copy)
    case.before(copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input(case, root, llmos):
    before = state(root)
    ran = llmos(*shlex.split(case.words))
    assert ran.code == case.code, ran.err
    assert "Traceback" not in ran.err
    (error,) = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert case.says in error
    assert "unexpectedly" not in error
    assert "\nhint: " in ran.err
    assert state(root) == before


def test_a_failure_is_json_too(trained, llmos, monkeypatch):
    monkeypatch.chdir(trained["causal-lm"])
    failed = llmos("eval", "none", "--json")
    assert (failed.code, failed.json["error"]["code"]) == (4, 4)
    judged = llmos("eval", "--require", "bits_per_byte <= 0.001", "--json")
    assert (judged.code, judged.json["verdicts"][0]["passed"]) == (3, False)


def state(root: Path) -> dict[str, str]:
    """What must not change: checkpoints, refs, configs, and no leftovers of unfinished work."""
    kept = [
        *root.glob("checkpoints/**/*"),
        *root.glob(".llmos/refs/**/*"),
        *root.glob("configs/*"),
        *root.glob(".llmos/tmp/*"),
        root / ".llmos/HEAD",
    ]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept if path.is_file()}
