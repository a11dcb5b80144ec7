from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from llmos_cli.data.tokenize import bpe
from llmos_cli.errors import Corrupt, LlmosError, NotFound, Untrusted, UsageError
from llmos_cli.models import foreign, headers, unpickle
from llmos_cli.models.foreign import Converted, convert
from llmos_cli.models.load import load
from llmos_cli.models.upstream import find
from llmos_cli.operations.training import state
from tests.models.conftest import logits, make


def bring(source: Path | str, target: Path, *, task: str | None = None, **options: Any) -> Converted:
    return convert(find(str(source), **options), target, task=task, dtype=None, seed=0)


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """As on the hub: one file of weights, a card, a licence, code that must not come along."""
    directory = tmp_path / "upstream"
    make("llama", "causal-lm").to(torch.bfloat16).save_pretrained(directory)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# A card")
    (directory / "LICENSE").write_text("MIT License")
    (directory / "modeling_evil.py").write_text("raise SystemExit")
    (directory / "diary.txt").write_text("not part of the model")
    return directory


def test_a_directory_becomes_one_shard_per_block_bit_for_bit(upstream: Path, tmp_path: Path) -> None:
    done = bring(upstream, tmp_path / "ours")
    assert done == Converted("causal-lm", "LlamaForCausalLM")
    assert torch.equal(logits(load(tmp_path / "ours"), "causal-lm"), logits(load(upstream), "causal-lm"))
    assert sorted(file.name for file in (tmp_path / "ours").iterdir()) == [
        "LICENSE",
        "README.md",
        "config.json",
        "generation_config.json",
        *(f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)),
        "model.safetensors.index.json",
    ]


def test_a_pickled_state_dict_gives_the_same_bytes(upstream: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(upstream, dtype=torch.bfloat16)
    bring(upstream, tmp_path / "expected")
    (upstream / "model.safetensors").unlink()
    torch.save({"state_dict": model.state_dict()}, upstream / "pytorch_model.bin")
    bring(upstream, tmp_path / "ours")

    names = sorted(file.name for file in (tmp_path / "expected").iterdir())
    assert sorted(file.name for file in (tmp_path / "ours").iterdir()) == names
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_hostile_pickle_is_refused_and_does_nothing(upstream: Path, tmp_path: Path) -> None:
    file = upstream / "hostile.pt"
    torch.save({"weight": Hostile(tmp_path / "mark")}, file)
    with pytest.raises(Untrusted, match=r"hostile\.pt holds more than weights: it calls posix\.system") as raised:
        bring(file, tmp_path / "ours")
    assert raised.value.exit_code == 5
    assert not (tmp_path / "mark").exists()


def test_a_hostile_state_of_a_training_is_refused_and_does_nothing(tmp_path: Path) -> None:
    torch.save({"position": Hostile(tmp_path / "mark")}, tmp_path / state.FILE)
    with pytest.raises(Corrupt, match="cannot be read"):
        state.step(tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(1 << 28), torch.zeros(4, 4).to_sparse(), torch.zeros(4, 4, device="meta")],
    ids=["of a byte said to be a gigabyte", "sparse", "without bytes"],
)
def test_a_tensor_that_the_file_does_not_hold_is_refused(tmp_path: Path, tensor: torch.Tensor, capsys: Any) -> None:
    torch.save({"weight": tensor}, tmp_path / "weights.bin")
    assert unpickle.main(tmp_path / "weights.bin", tmp_path / "out.safetensors") == unpickle.UNREADABLE
    assert capsys.readouterr().out.count("\n") == 1 and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json", "weights"])
def test_a_link_that_leads_out_of_the_folder_is_refused(upstream: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("a key")
    (upstream / name).unlink(missing_ok=True)
    (upstream / name).symlink_to(secret)
    with pytest.raises(Untrusted, match=rf"{name} in .* is a link that leads out of it"):
        find(str(upstream))


@pytest.mark.parametrize("name", ["README.md", "NOTICE", "tokenizer_config.json"])
def test_a_link_beside_a_file_of_weights_is_refused_too(upstream: Path, tmp_path: Path, name: str) -> None:
    """Only where it would be brought along: what else lies there is nobody's business."""
    (tmp_path / "id_rsa").write_text("a key")
    (upstream / "diary.txt").unlink()
    (upstream / "diary.txt").symlink_to(tmp_path / "id_rsa")
    assert find(str(upstream / "model.safetensors")).weights == (upstream / "model.safetensors",)
    (upstream / name).unlink(missing_ok=True)
    (upstream / name).symlink_to(tmp_path / "id_rsa")
    with pytest.raises(Untrusted, match=rf"{name} in .* is a link that leads out of it"):
        find(str(upstream / "model.safetensors"))


@pytest.mark.parametrize("kind", ["BertTokenizer", "GPT2Tokenizer"])
def test_a_tokenizer_is_made_of_files_of_its_folder_alone(
    upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whatever its settings name, here or where it is imported."""
    monkeypatch.chdir(tmp_path)
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    secret = tmp_path / "secret"
    vocabulary = {"BertTokenizer": "vocab.txt", "GPT2Tokenizer": "vocab.json"}[kind]

    def write(place: Path, *tokens: str) -> None:
        told = [*words, *tokens]
        text = "\n".join(told) if vocabulary.endswith("txt") else json.dumps({word: at for at, word in enumerate(told)})
        place.write_text(text)

    (upstream / "tokenizer.json").unlink(missing_ok=True)
    write(upstream / vocabulary, "own")
    write(secret, "SECRET")
    (tmp_path / "merges").write_text("#version: 0.2\n"), (upstream / "merges.txt").write_text("#version: 0.2\n")
    names = dict.fromkeys(("vocab", "vocab_file", "tokenizer_file", "anything"), "secret")
    pointing = {**names, "merges": str(tmp_path / "merges"), "init_inputs": [str(secret)]}
    (upstream / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": kind, "unk_token": "[UNK]", **pointing})
    )
    convert(find(str(upstream)), tmp_path / "made", task="causal-lm", dtype=None, seed=0)
    made = {file.name: file.read_text() for file in (tmp_path / "made").glob("*tok*.json")}
    assert "own" in made["tokenizer.json"] and not [name for name, text in made.items() if "SECRET" in text]
    settings = json.loads(made["tokenizer_config.json"])
    assert not {*pointing} & {*settings} and settings["unk_token"] == "[UNK]"


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "config.json", "notes"])
def test_what_is_no_file_is_not_waited_for(upstream: Path, tmp_path: Path, name: str) -> None:
    (upstream / name).unlink(missing_ok=True)
    os.mkfifo(upstream / name)
    with pytest.raises(Corrupt, match=rf"{name} is a pipe"):
        bring(upstream, tmp_path / "ours")


def test_links_of_the_hubs_cache_are_its_files(upstream: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for number, file in enumerate(sorted(file for file in upstream.iterdir() if file.is_file())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert find(str(snapshot)).weights


def test_records_that_take_more_than_their_file_are_not_unpacked(tmp_path: Path, capsys: Any) -> None:
    torch.save({"weight": torch.zeros(1 << 20)}, tmp_path / "stored.bin")
    with ZipFile(tmp_path / "stored.bin") as stored, ZipFile(tmp_path / "small.bin", "w", ZIP_DEFLATED) as small:
        for each in stored.namelist():
            small.writestr(each, stored.read(each))
    assert unpickle.main(tmp_path / "small.bin", tmp_path / "out.safetensors") == unpickle.UNREADABLE
    assert "compressed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limit", "least", "message"),
    [("_MEMORY", 1 << 20, "no state dict: "), ("_SECONDS", 1, "takes more than 1 seconds")],
)
def test_a_pickle_has_the_memory_and_time_that_its_size_needs(
    upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, least: int, message: str
) -> None:
    (upstream / "model.safetensors").unlink()
    (upstream / "pytorch_model.bin").write_bytes(b"\x80\x02" + b"(" * 15_000_000 + b".")
    monkeypatch.setattr(foreign, limit, least)
    monkeypatch.setattr(foreign, "_PER_SECOND", 1 << 40)
    with pytest.raises(Corrupt, match=message):
        bring(upstream, tmp_path / "ours")


BROKEN: dict[str, tuple[Callable[[Any], object], str]] = {
    "a regular expression": (
        lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}),
        "end pattern with unmatched parenthesis",
    ),
    "nothing": (lambda t: t.clear(), "Model missing"),
    "an id below all": (lambda t: t["added_tokens"][0].update(id=-1), "integer `-1`"),
    "an id beyond all": (lambda t: t["model"]["vocab"].update(a=4_000_000_000), "has the id 4000000000"),
    "a text that grows": (
        lambda t: t.update(
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 12,
            }
        ),
        "takes more than 200 MiB of memory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_tokenizer_that_makes_no_tokens_is_refused(
    upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One that does is brought along as it is."""
    change, message = BROKEN[kind]
    file = upstream / "tokenizer.json"
    bpe(["a text"], vocab_size=300, key="t", cache=tmp_path / "cache").backend_tokenizer.save(str(file))
    bring(upstream, tmp_path / "before")
    assert (tmp_path / "before" / file.name).read_bytes() == file.read_bytes()

    said = json.loads(file.read_bytes())
    change(said)
    file.write_text(json.dumps(said))
    monkeypatch.setattr(foreign, "_MEMORY", 200 << 20)
    with pytest.raises(Corrupt, match=f"tokenizer.json of upstream makes no tokens of a text: .*{message}"):
        bring(upstream, tmp_path / "ours")


def test_other_pickles_are_refused_in_their_own_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program itself, in this process."""
    file, target = tmp_path / "weights.bin", tmp_path / "weights.safetensors"
    file.write_bytes(pickle.dumps(Hostile(tmp_path / "mark"), protocol=2))
    assert unpickle.main(file, target) == unpickle.REFUSED
    torch.save([1, 2], file)
    assert unpickle.main(file, target) == unpickle.UNREADABLE
    assert "no tensors by name" in capsys.readouterr().out
    file.write_bytes(b"noise")
    assert unpickle.main(file, target) in (unpickle.REFUSED, unpickle.UNREADABLE)
    assert not target.exists() and not (tmp_path / "mark").exists()


def test_a_base_model_gets_the_head_of_a_task(tmp_path: Path) -> None:
    model = make("bert", "text-classification")
    model.bert.save_pretrained(tmp_path / "base")
    with pytest.raises(UsageError, match="BertModel is made for no task"):
        bring(tmp_path / "base", tmp_path / "ours")
    done = bring(tmp_path / "base", tmp_path / "ours", task="text-classification")

    assert done == Converted(
        "text-classification", "BertForSequenceClassification", ("classifier.bias", "classifier.weight")
    )
    base, ours = AutoModel.from_pretrained(tmp_path / "base"), load(tmp_path / "ours")
    assert torch.equal(ours.bert.encoder.layer[1].output.dense.weight, base.encoder.layer[1].output.dense.weight)


def test_weights_of_another_model_are_refused(upstream: Path, tmp_path: Path) -> None:
    """All of it would be random, with a licence and a name."""
    file = upstream / "model.safetensors"
    stored = load_file(file)
    save_file({f"other.{name}": value for name, value in stored.items()}, file, {"format": "pt"})
    with pytest.raises(Corrupt, match="none of the tensors has a place in the LlamaForCausalLM"):
        bring(upstream, tmp_path / "ours")
    narrow = {name: value[..., :16].contiguous() if "mlp.gate" in name else value for name, value in stored.items()}
    save_file(narrow, file, {"format": "pt"})
    with pytest.raises(Corrupt, match=r"mlp\.gate_proj\.weight has the sizes \[\d+, 16\], and .*config.json says"):
        bring(upstream, tmp_path / "ours")


def test_a_dtype_can_be_chosen(upstream: Path, tmp_path: Path) -> None:
    convert(find(str(upstream)), tmp_path / "ours", task=None, dtype=torch.float16, seed=0)
    assert {entry.dtype for entry in headers.of_directory(tmp_path / "ours").values()} == {"F16"}


def test_a_quantized_directory_is_brought_as_it_is(upstream: Path, tmp_path: Path) -> None:
    from llmos_cli.models.quantized import write_quantized
    from tests.models.conftest import nearest, quantize_all

    bring(upstream, tmp_path / "dense")
    codes = quantize_all(load(tmp_path / "dense"), lambda name, weight: nearest(weight, 4, 32))
    write_quantized(tmp_path / "theirs", tmp_path / "dense", codes)
    bring(tmp_path / "theirs", tmp_path / "ours")
    assert torch.equal(logits(load(tmp_path / "ours"), "causal-lm"), logits(load(tmp_path / "theirs"), "causal-lm"))

    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq"}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LlmosError, match="quantized by awq"):
        bring(tmp_path / "theirs", tmp_path / "again")


def test_a_model_that_needs_its_own_code_is_refused(upstream: Path, tmp_path: Path) -> None:
    config = json.loads((upstream / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "modeling_evil.Config"}}
    (upstream / "config.json").write_text(json.dumps(config))
    with pytest.raises(Untrusted, match="needs Python code of its own"):
        bring(upstream, tmp_path / "ours")


def says(name: str, **values: Any) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        file = directory / name
        file.write_text(json.dumps((json.loads(file.read_bytes()) if file.exists() else {}) | values))

    return change


def holds(*offsets: tuple[int, int]) -> Callable[[Path], object]:
    header = {f"t{at}": {"dtype": "F32", "shape": [2], "data_offsets": each} for at, each in enumerate(offsets)}
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(max(end for _, end in offsets))
    return lambda directory: (directory / "model.safetensors").write_bytes(data)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "overlap": (holds((0, 8), (0, 8)), "lie over one another"),
    "hole": (holds((8, 16)), "or have room between them"),
    "deep": (lambda d: (d / "config.json").write_text("[" * 100_000), "config.json is not JSON: brackets within"),
    "deep aside": (
        lambda d: (d / "preprocessor_config.json").write_text("[" * 100_000),
        "preprocessor_config.json is not",
    ),
    "deep enough": (lambda d: (d / "tokenizer.json").write_text("[" * 150 + "]" * 150), "nested more than 100 deep"),
    "large": (lambda d: os.truncate(d / "README.md", 3 << 30), "README.md has 3,221,225,472 bytes, more than"),
    "a side": (says("config.json", hidden_size=10**12), "hidden_size is 1000000000000, which no model has"),
    "sides": (says("config.json", hidden_size=2**24), "config.json describes .* weights, and the files hold"),
    "product": (
        says("config.json", hidden_size=2**31, intermediate_size=2**31, vocab_size=2**31),
        "cannot be|describes .* weights",
    ),
    "heads": (says("config.json", num_attention_heads=0), "does not load: "),
    "a number of architectures": (says("config.json", architectures=7), "names no architecture in a list"),
    "one architecture": (says("config.json", architectures="LlamaForCausalLM"), "names no architecture in a list"),
    "formats": (says("config.json", quantization_config=[1, 2]), "does not load: "),
    "positions": (
        says("config.json", rope_parameters={"rope_type": "yarn", "factor": "x", "rope_theta": 1e4}),
        "describes a model that cannot be: ",
    ),
    "an activation": (says("config.json", hidden_act="evil"), "describes a model that cannot be: KeyError 'evil'"),
    "a type": (says("config.json", dtype="evil", torch_dtype="evil"), "does not load: "),
    "no words": (says("config.json", vocab_size=0), "describes a model that cannot be: "),
    "another's package": (
        says("config.json", model_type="timm_wrapper", architectures=["TimmWrapperForImageClassification"]),
        "does not load: ",
    ),
    "nothing": (lambda d: (d / "config.json").write_text("null"), "is no table"),
    "layers below none": (says("config.json", num_hidden_layers=-1), "describes a model of -1 layers"),
    "layers that nobody has": (says("config.json", num_hidden_layers=40), "the files lack .* most of its weights"),
    "another's shard": (
        says("model.safetensors.index.json", weight_map={"model.embed_tokens.bias": "model.safetensors"}),
        "'model.embed_tokens.bias' is in 'model.safetensors', which holds no such tensor",
    ),
    "layers in parts": (says("config.json", depths=[600, 600]), "depths is 1200, which no model has"),
    "labels": (says("config.json", num_labels=10**9), "num_labels is 1000000000, which no model has"),
    "layers": (says("config.json", num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_no_model_says_of_itself_is_refused_at_once(upstream: Path, tmp_path: Path, kind: str) -> None:
    change, message = HOSTILE[kind]
    change(upstream)
    began = time.process_time()
    with pytest.raises(Corrupt, match=message):
        bring(upstream, tmp_path / "ours")
    assert time.process_time() - began < 10


def gguf(file: Path, **numbers: int) -> Path:
    """The smallest there is: a Llama of those numbers, and not one tensor."""
    writer = GGUFWriter(file, "llama")
    for name, value in numbers.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({}, "m.gguf describes 6,[0-9,]+ weights, and the files hold 0"),
        ({"block_count": 0}, "m.gguf describes a model of 0 layers"),
        ({"embedding_length": 7}, r"m.gguf cannot be read: .* hidden size \(7\)"),
        ({"attention.head_count": 2**32 - 1}, r"m.gguf cannot be read: .* attention heads \(4294967295\)"),
    ],
)
def test_a_gguf_whose_model_it_does_not_hold_is_refused_before_that_is_made(
    tmp_path: Path, numbers: dict[str, int], message: str
) -> None:
    with pytest.raises(Corrupt, match=message):
        bring(gguf(tmp_path / "m.gguf", **numbers), tmp_path / "ours")


def test_pointers_to_code_that_is_not_needed_are_left_behind(upstream: Path, tmp_path: Path) -> None:
    config = json.loads((upstream / "config.json").read_text())
    (upstream / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "modeling_evil.Config"}}))
    (upstream / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["modeling_evil.T", null]}}')
    bring(upstream, tmp_path / "ours")
    assert "auto_map" not in (tmp_path / "ours" / "config.json").read_text()
    assert (tmp_path / "ours" / "tokenizer_config.json").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("./nowhere", NotFound, "there is no ./nowhere"),
        ("no/such/thing", NotFound, "there is no no/such/thing"),
        ("org/name", LlmosError, "the hub cannot be reached"),
        ("two words", NotFound, "neither a file nor a hub id"),
    ],
)
def test_a_source_that_is_not_there(source: str, error: type[LlmosError], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        bring(source, tmp_path)


def test_a_directory_without_weights_and_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no weights"):
        find(str(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match="is not a model"):
        find(str(tmp_path / "notes.txt"))
