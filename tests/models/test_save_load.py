from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmos_cli.errors import Corrupt, LlmosError, NotFound
from llmos_cli.models import blocks, headers
from llmos_cli.models.load import load, skeleton
from llmos_cli.models.rewrite import rewritten
from llmos_cli.models.save import METADATA, save, tensors
from tests.models.conftest import CASES, FACTS, logits, make


def hashes(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(directory.iterdir())}


@pytest.mark.parametrize(("arch", "task", "widths"), CASES)
def test_a_model_comes_back_the_same_and_is_saved_to_the_same_bytes(
    arch: str, task: str, widths: dict[str, Any], tmp_path: Path
) -> None:
    model = make(arch, task, widths)
    save(model, tmp_path / "once")
    again = load(tmp_path / "once")
    save(again, tmp_path / "twice")

    assert torch.equal(logits(again, task), logits(model, task))
    assert hashes(tmp_path / "once") == hashes(tmp_path / "twice")
    assert headers.parameters(tmp_path / "once") == sum(p.numel() for p in model.parameters())
    assert set(skeleton(tmp_path / "once").state_dict()) == set(model.state_dict())


def test_a_changed_block_changes_its_own_shard_alone(llama: PreTrainedModel, tmp_path: Path) -> None:
    save(llama, tmp_path / "before", dtype=torch.bfloat16)
    other = make("llama", "causal-lm")
    with torch.no_grad():
        other.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(2)
    save(other, tmp_path / "after", dtype=torch.bfloat16)

    before, after = hashes(tmp_path / "before"), hashes(tmp_path / "after")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"model-00003-of-00004.safetensors"}


def test_a_shard_that_stayed_the_same_to_the_bit_is_the_other_checkpoints_file(tmp_path: Path) -> None:
    llama, name = make("llama", "causal-lm"), "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        llama.get_parameter(name)[0, 0] = 0.0
        llama.get_parameter(name)[0, 1] = float("nan")
    save(llama, tmp_path / "before")
    weight = tensors(llama)[name].clone()
    rewritten({name: weight}, tmp_path / "before", tmp_path / "same")
    save(llama, tmp_path / "again", like=tmp_path / "before")
    weight[0, 0] = -0.0
    rewritten({name: weight}, tmp_path / "before", tmp_path / "other")

    assert shared(tmp_path / "before", tmp_path / "same") == shared(tmp_path / "before", tmp_path / "again") == 4
    assert shared(tmp_path / "before", tmp_path / "other") == 3
    assert torch.signbit(stored(tmp_path / "other", name)[0, 0])
    assert (tmp_path / "before" / headers.INDEX).read_text() == (tmp_path / "same" / headers.INDEX).read_text()


def test_what_is_written_where_a_shared_shard_was_leaves_the_other_checkpoint_alone(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    save(llama, tmp_path / "before")
    before = hashes(tmp_path / "before")
    rewritten({}, tmp_path / "before", tmp_path / "after")
    save(make("llama", "causal-lm"), tmp_path / "after", dtype=torch.bfloat16)
    assert hashes(tmp_path / "before") == before
    assert shared(tmp_path / "before", tmp_path / "after") == 0


def shared(one: Path, other: Path) -> int:
    return sum(file.samefile(other / file.name) for file in headers.files(one))


def stored(directory: Path, name: str) -> Tensor:
    value: Tensor = load_file(headers.of_directory(directory)[name].file)[name]
    return value


def test_shards_hold_embeddings_blocks_head_and_tied_tensors_once(llama: PreTrainedModel, tmp_path: Path) -> None:
    save(llama, tmp_path, dtype=torch.bfloat16)
    index = json.loads((tmp_path / headers.INDEX).read_text())["weight_map"]
    first, *between, last = sorted(set(index.values()))

    assert [name for name, file in index.items() if file == first] == ["model.embed_tokens.weight"]
    assert [name for name, file in index.items() if file == last] == ["model.norm.weight"]
    assert len(between) == 2
    assert "lm_head.weight" not in index
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {entry.dtype for entry in headers.of_directory(tmp_path).values()} == {"BF16"}
    assert _metadata(tmp_path / first) == METADATA


def test_stock_transformers_reads_what_we_save(llama: PreTrainedModel, tmp_path: Path) -> None:
    save(llama, tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(stock, "causal-lm"), logits(llama, "causal-lm"))


def test_bf16_weights_are_widened_on_loading_unless_told(llama: PreTrainedModel, tmp_path: Path) -> None:
    save(llama, tmp_path, dtype=torch.bfloat16)
    assert load(tmp_path).dtype == torch.float32
    assert load(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_file_is_corrupt(llama: PreTrainedModel, tmp_path: Path, cut: int) -> None:
    save(llama, tmp_path)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(Corrupt, match=shard.name):
        load(tmp_path)


def test_a_missing_tensor_is_an_error_not_a_random_weight(llama: PreTrainedModel, tmp_path: Path) -> None:
    save(llama, tmp_path)
    index = json.loads((tmp_path / headers.INDEX).read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if "00003" not in file}
    (tmp_path / headers.INDEX).write_text(json.dumps(index))
    with pytest.raises(Corrupt, match=r"lacks 9 .* model\.layers\.1\.input_layernorm"):
        load(tmp_path)


def test_a_tensor_of_another_shape_is_an_error(llama: PreTrainedModel, tmp_path: Path) -> None:
    save(llama, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(Corrupt, match="in another shape"):
        load(tmp_path)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"holds no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(LlmosError, match="describes unheard-of"):
        load(tmp_path)


def test_the_parts_of_a_model_have_one_description() -> None:
    found = {arch: make(arch, task, widths) for arch, task, widths in CASES if task != "causal-lm" or arch == "llama"}
    names = {arch: [block.name for block in blocks.blocks(model)] for arch, model in found.items()}

    assert names["llama"] == ["model.layers.0", "model.layers.1"]
    assert names["bert"] == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert names["vit"] == ["vit.layers.0", "vit.layers.1"]
    assert names["cnn"] == ["backbone.blocks.0", "backbone.blocks.1", "backbone.blocks.2"]
    assert names["mlp"] == ["backbone.layers.0", "backbone.layers.1"]
    assert names["bag"] == [""]
    assert blocks.head_names(found["llama"]) == ["lm_head"]
    assert blocks.head_names(found["roberta"]) == ["classifier.dense", "classifier.out_proj"]
    assert len(blocks.layers(found["llama"])) == 14
    assert "vit.embeddings.patch_embeddings.projection" not in blocks.layers(found["vit"])
    assert list(blocks.weights(blocks.layers(found["lstm"])["backbone.layers.0.ahead"])) == [
        "weight_ih_l0",
        "weight_hh_l0",
    ]


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_padding_changes_nothing(task: str) -> None:
    for arch in ("lstm", "bag") if task == "text-classification" else ("lstm",):
        model = make(arch, task)
        ids = torch.randint(1, 300, (1, 10))
        padded = torch.cat([ids, torch.zeros(1, 6, dtype=torch.long)], 1)
        with torch.inference_mode():
            alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            beside = model(input_ids=padded, attention_mask=(padded > 0).long()).logits
        torch.testing.assert_close(beside[:, :10] if task == "token-classification" else beside, alone)


def test_facts_reach_the_configuration(llama: PreTrainedModel) -> None:
    assert llama.config.vocab_size == FACTS["causal-lm"]["vocab_size"]
    assert llama.config.max_position_embeddings == 32


def _metadata(file: Path) -> dict[str, str]:
    size = int.from_bytes(file.read_bytes()[:8], "little")
    return dict(json.loads(file.read_bytes()[8 : 8 + size])["__metadata__"])
