from __future__ import annotations

import py_compile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from llmos_cli.core import trust
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import ConfigError, Untrusted, UsageError
from llmos_cli.models import blocks, module
from llmos_cli.models.build import build, freeze_backbone, transfer
from llmos_cli.models.load import load
from llmos_cli.models.save import save
from llmos_cli.options.model import ModelOptions
from tests.models.conftest import FACTS, TRANSFORMER, logits, make


def test_a_seed_decides_the_weights_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, same, other = (make("llama", "causal-lm", seed=seed) for seed in (1, 1, 2))

    assert torch.rand(1) == expected
    assert torch.equal(logits(one, "causal-lm"), logits(same, "causal-lm"))
    assert not torch.equal(logits(one, "causal-lm"), logits(other, "causal-lm"))


def test_widths_nobody_chose_are_small_and_fit_together() -> None:
    config = make("llama", "causal-lm", {}).config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (256, 4, 704)
    assert config.tie_word_embeddings
    assert make("vit", "image-classification", {}).config.patch_size == 2
    assert make("bert", "causal-lm").config.is_decoder


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        ({}, "no architecture is chosen", "llama"),
        ({"arch": "lama"}, "'lama' is unknown", "did you mean llama"),
        ({"arch": "llama", "hiden_size": 64}, "hiden_size is no key of llama", "did you mean hidden_size"),
        ({"arch": "gpt2", "intermediate_size": 64}, "is no key of gpt2", "-s 'model={arch: gpt2}' replaces the whole"),
        ({"arch": "llama", "hidden_size": "64"}, "'hidden_size' expected int", "hidden_size=64"),
        ({"arch": "llama", "hidden_size": 0}, "hidden_size is 0", "at least 1"),
        ({"arch": "llama", "hidden_size": 100, "num_attention_heads": 3}, "100 does not divide into 3", "1, 2, 4, 5"),
        ({"arch": "llama", "num_key_value_heads": 3}, "4 attention heads do not divide into 3", "1, 2, 4"),
        ({"arch": "llama", "hidden_size": 12, "num_attention_heads": 4}, "heads of 3", "even"),
        ({"arch": "llama", "vocab_size": 100}, "vocab_size is 100, but the tokenizer has 300", "raise it"),
        ({"arch": "llama", "max_position_embeddings": 8}, "8, but sequences need 32", "raise it"),
        ({"arch": "llama", "hidden_act": "none"}, "cannot be built", "widths"),
        ({"arch": "vit"}, "vit has no model for causal-lm", "llama or gpt2"),
        ({"module": "net.txt"}, "not FILE.py:CLASS", "my_model.py:Net"),
    ],
)
def test_a_model_that_cannot_be_is_a_config_error(model: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        build(ModelOptions(**model), "causal-lm", FACTS["causal-lm"], seed=0)
    assert hint in raised.value.hint
    assert raised.value.exit_code == 2


def test_transfer_copies_what_matches_and_lists_the_rest(tmp_path: Path) -> None:
    source = make("bert", "token-classification", seed=1)
    save(source, tmp_path)
    model = make("bert", "text-classification", {**TRANSFORMER, "num_hidden_layers": 3}, seed=2)
    report = transfer(model, tmp_path)

    weight = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(model.get_parameter(weight), source.get_parameter(weight))
    assert "bert.encoder.layer.2.output.dense.weight" in report.fresh
    assert "bert.pooler.dense.weight" in report.fresh
    assert report.unused == ()
    assert {*report.copied, *report.fresh} == set(model.state_dict())


def test_a_frozen_backbone_leaves_the_head_to_train() -> None:
    model = make("cnn", "image-classification")
    freeze_backbone(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"classifier.weight", "classifier.bias"}


def test_a_head_that_is_the_embedding_has_nothing_to_train_beside_a_frozen_backbone() -> None:
    model = make("llama", "causal-lm")
    with pytest.raises(UsageError, match="nothing to train") as raised:
        freeze_backbone(model)
    assert "model.tie_word_embeddings=false" in raised.value.hint
    untied = make("llama", "causal-lm", {**TRANSFORMER, "tie_word_embeddings": False})
    freeze_backbone(untied)
    assert {name for name, p in untied.named_parameters() if p.requires_grad} == {"lm_head.weight"}


NET = """
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

class NetConfig(PreTrainedConfig):
    model_type = "net"
    width: int = 16
    image_size: int = 8

class Net(PreTrainedModel):
    config_class = NetConfig
    main_input_name = "pixel_values"
    def __init__(self, config):
        super().__init__(config)
        self.first = nn.Linear(config.image_size ** 2, config.width)
        self.last = nn.Linear(config.width, config.num_labels)
        self.post_init()
    def forward(self, pixel_values, **kwargs):
        return ImageClassifierOutputWithNoAttention(logits=self.last(self.first(pixel_values.flatten(1)).relu()))
"""


def test_a_module_of_the_users_own_runs_when_trusted_and_travels_with_the_checkpoint(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "workspace")
    file = workspace.root / "net.py"
    file.write_text(NET)
    options = ModelOptions(module="net.py:Net", width=12)
    task = "image-classification"
    with pytest.raises(Untrusted, match=r"net\.py"):
        build(options, task, FACTS[task], seed=0, root=workspace.root)
    trust.trust(workspace, file)

    model = build(options, task, FACTS[task], seed=0, root=workspace.root).eval()
    with workspace.stage() as staged:
        save(model, staged)
        file.unlink()
        again = load(staged)
        assert (staged / "net.py").read_text() == NET
    assert torch.equal(logits(again, task), logits(model, task))
    assert model.config.num_labels == 10
    assert list(blocks.layers(model)) == ["first"]
    with pytest.raises(ConfigError, match="wdith is no key of Net"):
        build(ModelOptions(module=f"{_copy(workspace)}:Net", wdith=3), task, FACTS[task], seed=0, root=workspace.root)


PLAIN = """
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

class SizedConfig(PreTrainedConfig):
    def __init__(self, width=16, vocab_size=20, **kwargs):
        self.width, self.vocab_size = width, vocab_size
        super().__init__(**kwargs)

class NetConfig(SizedConfig):
    model_type = "plain-net"
    def __init__(self, *, depth=1, **kwargs):
        self.depth = depth
        super().__init__(**kwargs)

class Net(PreTrainedModel):
    config_class = NetConfig
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth))
        self.head = nn.Linear(config.width, config.vocab_size)
        self.post_init()
    def forward(self, input_ids, **kwargs):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden).relu()
        return CausalLMOutput(logits=self.head(hidden))
"""


def test_a_configuration_class_with_an_init_of_its_own_gets_keys_and_facts(tmp_path: Path) -> None:
    """What `__init__` names, what its bases name behind **kwargs, and no other key."""
    workspace = Workspace.create(tmp_path / "workspace")
    file = workspace.root / "plain.py"
    file.write_text(PLAIN)
    trust.trust(workspace, file)

    def net(**widths: Any) -> PreTrainedModel:
        options = ModelOptions(module="plain.py:Net", **widths)
        return build(options, "causal-lm", FACTS["causal-lm"], seed=0, root=workspace.root).eval()

    model = net(width=8, depth=3)
    assert (model.config.width, model.config.depth, model.config.vocab_size) == (8, 3, 300)
    assert logits(model, "causal-lm").shape == (3, 16, 300)
    with workspace.stage() as staged:
        save(model, staged)
        assert torch.equal(logits(load(staged), "causal-lm"), logits(model, "causal-lm"))
    with pytest.raises(ConfigError, match="kwargs is no key of Net"):
        net(kwargs=3)
    with pytest.raises(ConfigError, match="wdith is no key of Net") as raised:
        net(wdith=3)
    assert raised.value.hint == "did you mean width or depth?"


def test_bytecode_beside_a_trusted_module_does_not_run(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "workspace")
    file = workspace.root / "net.py"
    file.write_text("raise RuntimeError('bytecode ran')\n")
    py_compile.compile(str(file), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    file.write_text(f"# Not what was compiled.{NET}")
    trust.trust(workspace, file)
    assert module.load_class(file, "Net").__name__ == "Net"


def _copy(workspace: Workspace) -> str:
    (workspace.root / "copy.py").write_text(NET)
    return "copy.py"
