from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmos_cli.core.workspace import Workspace
from llmos_cli.models import foreign, gguf_file, headers
from llmos_cli.models.load import load
from llmos_cli.models.quantized import write_quantized
from llmos_cli.models.rewrite import rewrite
from llmos_cli.models.save import save
from llmos_cli.operations.export import _publish_file
from llmos_cli.operations.import_ import licence
from tests.models.conftest import batch, logits, make, nearest, quantize_all

TEXT = "the for statement is used to iterate over the elements of a sequence 0123456789 " * 20


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as on the hub, with a tokenizer, a chat template, a card."""
    directory = tmp_path_factory.mktemp("hub") / "tiny"
    make("llama", "causal-lm").save_pretrained(directory)
    tokenized(directory)
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return directory


def tokenized(directory: Path) -> None:
    """A byte-level BPE and a chat template beside a model."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    backend.train_from_iterator([TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", bos_token="<|end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(directory)


@pytest.fixture
def imported(workspace: Workspace, upstream: Path, llmos: Any) -> Any:
    ran = llmos("import", upstream, "--json")
    assert ran.code == 0, ran.err
    return ran.json


def test_import_commits_a_checkpoint_that_remembers_where_it_is_from(
    workspace: Workspace, upstream: Path, imported: Any
) -> None:
    checkpoint = workspace.checkpoint("HEAD")
    made = checkpoint.manifest.made

    assert imported["checkpoint"] == checkpoint.id
    assert imported["parameters"] == sum(p.numel() for p in load(upstream).parameters())
    assert (imported["tokenizer"], imported["chat_template"], imported["licence"]) == (True, True, "apache-2.0")
    assert (made.operation, made.parents, made.config["data"]) == ("import", (), {"task": "causal-lm"})
    assert set(made.data["upstream"]["files"]) == {file.name for file in upstream.iterdir()}
    assert torch.equal(logits(load(checkpoint.path), "causal-lm"), logits(load(upstream), "causal-lm"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere/at/all"], 4, "there is no nowhere/at/all"),
        (["org/name"], 1, "the hub cannot be reached"),
        (["x", "--task", "causal"], 2, "there is no task causal"),
        (["x", "--dtype", "int3"], 2, "--dtype int3 is unknown"),
    ],
)
def test_an_import_that_cannot_be_leaves_no_checkpoint(
    workspace: Workspace, llmos: Any, arguments: list[str], code: int, message: str
) -> None:
    ran = llmos("import", *arguments)
    assert ran.code == code
    assert message in ran.err
    assert workspace.head().checkpoint is None


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "generation_config.json", "config.json"])
def test_settings_that_are_no_table_are_corrupt_before_anything_is_committed(
    workspace: Workspace, upstream: Path, llmos: Any, tmp_path: Path, name: str
) -> None:
    source = shutil.copytree(upstream, tmp_path / "source")
    (source / name).write_text("[1]")
    ran = llmos("import", source)
    assert (ran.code, f"{source / name} is no table of names and values" in ran.err) == (5, True), ran.err
    assert workspace.head().checkpoint is None


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
@pytest.mark.parametrize("change", [os.truncate, lambda file, size: file.unlink(), lambda file, size: os.utime(file)])
def test_a_source_that_changes_while_it_is_read_is_not_imported(
    workspace: Workspace,
    upstream: Path,
    llmos: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, int], object],
    name: str,
) -> None:
    """The hashes that a checkpoint remembers are those of what it was made from."""
    source, convert = shutil.copytree(upstream, tmp_path / "source"), foreign.convert

    def converted(*arguments: Any, **options: Any) -> foreign.Converted:
        done = convert(*arguments, **options)
        change(source / name, 3)
        return done

    monkeypatch.setattr(foreign, "convert", converted)
    ran = llmos("import", source)
    assert (ran.code, "was changed while it was read" in ran.err) == (6, True), ran.err
    assert workspace.head().checkpoint is None


@pytest.mark.parametrize("name", ["README.md", "LICENSE"])
def test_a_licence_commands_no_terminal(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("---\nlicense: \x1b[31mmine\n---\n" if name == "README.md" else "\x1b[31mmine")
    assert licence(tmp_path) == "[31mmine"


def test_a_bare_state_dict_is_told_where_its_config_should_be(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    ran = llmos("import", tmp_path / "bert" / ".." / "model.pt")
    assert ran.code == 4
    assert f"error: {tmp_path.resolve()} holds no config.json" in ran.err


def test_export_copies_whole_and_refuses_to_overwrite(
    workspace: Workspace, imported: Any, llmos: Any, tmp_path: Path
) -> None:
    assert llmos("export", "-o", tmp_path / "out").code == 0
    tree = workspace.checkpoint("HEAD").manifest.tree
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(tree)
    again = llmos("export", "-o", tmp_path / "out")
    assert (again.code, "exists already" in again.err) == (2, True)
    assert llmos("export").code == 2


def test_an_export_is_no_url(workspace: Workspace, imported: Any, llmos: Any) -> None:
    before = set(workspace.root.iterdir())
    ran = llmos("export", "-o", "sftp://somewhere/model")
    assert (ran.code, "is a URL" in ran.err) == (2, True)
    assert set(workspace.root.iterdir()) == before


@pytest.mark.parametrize("place", [".llmos/refs/heads/evil", "checkpoints/zz"])
def test_an_export_is_none_of_the_workspaces_own(workspace: Workspace, imported: Any, llmos: Any, place: str) -> None:
    ran = llmos("export", "-o", place)
    assert (ran.code, ran.err.splitlines()[0].endswith(f"{place} is no place for an output")) == (2, True)
    assert not (workspace.root / place).exists()


def test_an_export_to_where_no_folder_can_be_is_refused(workspace: Workspace, imported: Any, llmos: Any) -> None:
    ran = llmos("export", "-o", "/proc/nowhere/model")
    assert (ran.code, ran.err) == (
        1,
        "error: cannot write /proc/nowhere/model: no such file or directory\nhint: name another place\n",
    )


def test_export_hashes_before_it_writes(workspace: Workspace, imported: Any, llmos: Any, tmp_path: Path) -> None:
    shard = next(workspace.checkpoint("HEAD").path.glob("*.safetensors"))
    shard.chmod(0o644)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    ran = llmos("export", "-o", tmp_path / "out")
    assert ran.code == 5
    assert not (tmp_path / "out").exists()


def test_a_quantized_checkpoint_is_exported_dense(
    workspace: Workspace, imported: Any, llmos: Any, tmp_path: Path
) -> None:
    source = workspace.checkpoint("HEAD").path
    codes = quantize_all(load(source), lambda name, weight: nearest(weight, 4, 32))
    write_quantized(tmp_path / "quantized", source, codes)
    quantized = llmos("import", tmp_path / "quantized", "--json").json
    ran = llmos("export", "-o", tmp_path / "dense", "--dequantize", "--json")

    assert (ran.code, ran.json["difference"]) == (0, 0.0)
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert headers.parameters(tmp_path / "dense") == quantized["parameters"]
    assert AutoTokenizer.from_pretrained(tmp_path / "dense").eos_token == "<|end|>"


def test_what_would_answer_nan_is_not_exported(workspace: Workspace, imported: Any, llmos: Any, tmp_path: Path) -> None:
    """A weight past what float16 holds."""
    parent = workspace.checkpoint("HEAD")
    model = load(parent.path)
    model.get_parameter("model.norm.weight").data *= 1e6
    with workspace.begin("train", config={}) as run, workspace.stage() as staged:
        rewrite(model, parent.path, staged)
        run.commit(staged, parent.manifest.made)
    ran = llmos("export", "-o", tmp_path / "half", "--type", "float16")
    assert ran.code == 1 and "export with --type float32" in ran.err and not (tmp_path / "half").exists()
    model.get_parameter("model.norm.weight").data *= torch.nan
    with workspace.begin("train", config={}) as run, workspace.stage() as staged:
        rewrite(model, parent.path, staged)
        run.commit(staged, parent.manifest.made)
    for asked in (["--type", "float16"], ["--format", "gguf"]):
        ran = llmos("export", "-o", tmp_path / "half.gguf", *asked)
        assert ran.code == 1 and "the checkpoint answers what is not finite" in ran.err


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.02), ("q8_0", 0.02)])
def test_gguf_reads_back_with_its_tokenizer(
    workspace: Workspace, imported: Any, llmos: Any, tmp_path: Path, dtype: str, bound: float
) -> None:
    ran = llmos("export", "-o", tmp_path / "model.gguf", "--format", "gguf", "--dtype", dtype, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["difference"] < bound
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    ours = AutoTokenizer.from_pretrained(workspace.checkpoint("HEAD").path)
    assert theirs.encode("the statement 12") == ours.encode("the statement 12")
    if dtype == "float32":
        again = llmos("import", tmp_path / "model.gguf", "--dtype", "float32", "--json")
        assert again.code == 0, again.err
        assert again.json["tokenizer"]
        assert "GGUF" not in again.err
        again_logits = logits(load(workspace.checkpoint("HEAD").path), "causal-lm")
        expected = logits(load(workspace.checkpoint(imported["checkpoint"]).path), "causal-lm")
        torch.testing.assert_close(again_logits, expected)


def test_gguf_of_a_quantized_checkpoint_holds_its_very_codes(
    workspace: Workspace, imported: Any, llmos: Any, tmp_path: Path
) -> None:
    source = workspace.checkpoint("HEAD").path
    codes = quantize_all(load(source), lambda name, weight: nearest(weight, 8 if "v_proj" in name else 4, 32))
    write_quantized(tmp_path / "q", source, codes)
    assert llmos("import", tmp_path / "q").code == 0
    ran = llmos("export", "-o", tmp_path / "model.gguf", "--format", "gguf", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["notes"] == [
        "matrices: 1 BF16, 12 Q4_0, 2 Q8_0",
        "14 of 14 quantized matrices keep their codes",
    ]
    assert ran.json["difference"] < 2e-3
    here, there = load(workspace.checkpoint("HEAD").path), gguf_file.read(tmp_path / "model.gguf")
    for name, value in here.named_parameters():
        torch.testing.assert_close(there.get_parameter(name), value, rtol=1e-2 if "embed" in name else 1e-3, atol=1e-6)
    assert gguf_file.licence(tmp_path / "model.gguf") == "apache-2.0"

    narrower = llmos("export", "-o", tmp_path / "narrow.gguf", "--format", "gguf", "--type", "q4_0", "--json")
    assert narrower.json["notes"][1] == "12 of 14 quantized matrices keep their codes"


def test_a_gguf_that_describes_no_model_is_corrupt(
    workspace: Workspace, imported: Any, llmos: Any, tmp_path: Path
) -> None:
    assert llmos("export", "-o", tmp_path / "model.gguf", "--format", "gguf").code == 0
    good = (tmp_path / "model.gguf").read_bytes()

    def patched(key: str, value: bytes, skip: int) -> Any:
        """Of the value that stands `skip` bytes behind a name."""
        content, at = bytearray(good), good.index(key.encode()) + len(key) + skip
        content[at : at + len(value)] = value
        (tmp_path / "bad.gguf").write_bytes(content)
        return llmos("import", tmp_path / "bad.gguf", "--dry-run")

    four = (200_000).to_bytes(4, "little")
    for key, value, skip, said in (
        ("llama.block_count", four, 4, "which no model has"),
        ("llama.attention.head_count", bytes(4), 4, "cannot be read"),
        ("blk.0.attn_q.weight", bytes(8), 4 + 16 + 4, "lie over one another"),
        ("blk.0.attn_q.weight", (8).to_bytes(4, "little"), 4 + 16, "or have room between them"),  # Q8_0 where bf16 is
    ):
        told = patched(key, value, skip)
        assert (told.code, said in told.err) == (5, True), told.err


def test_a_file_that_is_no_gguf_is_corrupt(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF and nothing else")
    ran = llmos("import", tmp_path / "x.gguf")
    assert ran.code == 5, ran.err
    assert "x.gguf cannot be read" in ran.err


LOADER = """
import sys, torch
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification
for name in sys.argv[2:]:
    directory = sys.argv[1] + "/" + name
    auto = AutoModelForImageClassification if name == "cnn" else AutoModelForSequenceClassification
    model = auto.from_pretrained(directory + "/alone", trust_remote_code=True).eval()
    with torch.inference_mode():
        torch.save(model(**torch.load(directory + "/inputs.pt")).logits, directory + "/logits.pt")
assert not any(name.startswith("llmos") for name in sys.modules)
"""


def test_small_architectures_stand_alone(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    """Quantized ones too: they are written dense, and read in a process that never imports llmos."""
    tasks = {"cnn": "image-classification", "lstm": "text-classification", "bag": "text-classification"}
    expected = {}
    for arch, task in tasks.items():
        model, directory = make(arch, task), tmp_path / arch
        save(model, directory / "dense")
        codes = quantize_all(model, lambda name, weight: nearest(weight, 8))
        write_quantized(directory / "quantized", directory / "dense", codes)
        assert llmos("import", directory / "quantized").code == 0
        ran = llmos("export", "-o", directory / "alone", "--standalone", "--json")
        assert (ran.code, ran.json["code"]) == (0, f"modeling_{arch}.py")
        torch.save(batch(task), directory / "inputs.pt")
        expected[arch] = logits(load(workspace.checkpoint("HEAD").path), task)

    subprocess.run([sys.executable, "-I", "-c", LOADER, str(tmp_path), *tasks], check=True)
    for arch in tasks:
        torch.testing.assert_close(torch.load(tmp_path / arch / "logits.pt"), expected[arch])


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_gguf_overwrites_nothing(workspace: Workspace, llmos: Any, tmp_path: Path, there: str) -> None:
    save(make("llama", "causal-lm"), tmp_path / "llama")
    assert llmos("import", tmp_path / "llama").code == 0
    output = tmp_path / "model.gguf"
    {
        "file": lambda: output.write_text("mine"),
        "folder": output.mkdir,
        "link": lambda: output.symlink_to("nowhere"),
    }[there]()
    before = output.lstat()
    ran = llmos("export", "-o", output, "--format", "gguf")
    assert (ran.code, ran.err.splitlines()[0]) == (2, f"error: {output} exists already")
    assert output.lstat() == before


def test_a_file_that_appeared_meanwhile_stays(tmp_path: Path) -> None:
    made, output = tmp_path / "made", tmp_path / "model.gguf"
    made.write_text("new")
    output.write_text("mine")
    assert not _publish_file(made, output)
    assert output.read_text() == "mine"
    output.unlink()
    assert _publish_file(made, output)
    assert output.read_text() == "new"


def test_what_llama_cpp_does_not_run_is_no_gguf(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    save(make("cnn", "image-classification"), tmp_path / "cnn")
    assert llmos("import", tmp_path / "cnn").code == 0
    ran = llmos("export", "-o", tmp_path / "model.gguf", "--format", "gguf")
    assert (ran.code, "not cnn" in ran.err) == (2, True)
    assert llmos("export", "-o", tmp_path / "x", "--dtype", "q8_0").code == 2


def test_rows_of_a_head_become_neighbours() -> None:
    rows = torch.arange(8.0)[:, None]
    assert gguf_file._neighbours(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(gguf_file._neighbours(rows, 0), rows)
