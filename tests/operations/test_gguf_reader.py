"""GGUF files run by llama.cpp, which shares no code with what wrote them: the same likeliest tokens, the same log-probabilities."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from llmos_cli.core.workspace import Workspace
from llmos_cli.models import gguf_file, gguf_tokenizer
from llmos_cli.models.load import load
from llmos_cli.models.quantized import write_quantized
from llmos_cli.models.save import save
from tests.models.conftest import make, nearest, quantize_all
from tests.operations.test_import_export import tokenized

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs the tool xllamacpp (a llama.cpp)"),
]
WIDE = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
}
PROMPT = [5, 100, 17, 280, 44, 3, 9, 200]
TOP = 8
READER = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], 64, 1, False
params.cpuparams.n_threads = 1
params.no_extra_bufts = True  # repacked kernels crash on some processors with AMX (llama.cpp#20824)
server = xllamacpp.Server(params)
answer = server.handle_completions({"prompt": json.loads(sys.argv[2]), "max_tokens": 1, "logprobs": 8, "temperature": 0})
print("ANSWER", json.dumps(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]))
"""


def theirs(file: Path, prompt: str | list[int] = PROMPT) -> dict[int, float]:
    command = [sys.executable, "-c", READER, str(file), json.dumps(prompt)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    told = next(line for line in ended.stdout.splitlines() if line.startswith("ANSWER "))
    return {each["id"]: each["logprob"] for each in json.loads(told.removeprefix("ANSWER "))}


def ours(model: Any, prompt: list[int] = PROMPT) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1].float(), -1)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for blocks of 256, and sharp: from a random model all tokens are about equally likely."""
    directory = tmp_path_factory.mktemp("hub") / "wide"
    model = make("llama", "causal-lm", WIDE)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(12)
    save(model, directory)
    tokenized(directory)
    return directory


def check(file: Path, model: Any, tolerance: float, ids: list[int] = PROMPT, prompt: str | list[int] = PROMPT) -> None:
    expected, found = ours(model, ids), theirs(file, prompt)
    assert len(found) == TOP
    assert expected.argmax().item() in found
    for token, logprob in found.items():
        assert abs(expected[token].item() - logprob) < tolerance, (token, expected[token].item(), logprob)


@pytest.mark.parametrize("kind", list(gguf_file.TYPES))
def test_every_type_says_what_our_reader_says(
    workspace: Workspace, upstream: Path, llmos: Any, tmp_path: Path, kind: str
) -> None:
    """llama.cpp rounds the inputs of quantized matrices to 8 bits, and caches keys in fp16: hence a tolerance."""
    assert llmos("import", upstream).code == 0
    ran = llmos("export", "-o", tmp_path / "m.gguf", "--format", "gguf", "--type", kind, "--json")
    assert ran.code == 0, ran.err
    check(tmp_path / "m.gguf", gguf_file.read(tmp_path / "m.gguf"), 0.01 if kind in ("float32", "float16") else 0.08)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (8, 128)])
def test_a_quantized_checkpoint_answers_there_as_here(
    workspace: Workspace, upstream: Path, llmos: Any, tmp_path: Path, bits: int, group_size: int
) -> None:
    codes = quantize_all(load(upstream), lambda name, weight: nearest(weight, bits, group_size))
    write_quantized(tmp_path / "q", upstream, codes)
    assert llmos("import", tmp_path / "q").code == 0
    ran = llmos("export", "-o", tmp_path / "m.gguf", "--format", "gguf", "--json")
    assert ran.code == 0, ran.err
    assert f"{len(codes)} of {len(codes)} quantized matrices keep their codes" in ran.json["notes"]
    check(tmp_path / "m.gguf", load(workspace.checkpoint("HEAD").path), 0.08)


SMALL = {
    "vocab_size": 300,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SLOWER = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA = {"query_pre_attn_scalar": 32, "sliding_window": 4}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3": ("llama", {"rope_parameters": SLOWER | {"rope_theta": 1e4, "original_max_position_embeddings": 32}}),
    "llama stretched": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "qwen 2": ("qwen2", {}),
    "qwen 2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen 3": ("qwen3", {}),
    "qwen 3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "gemma": ("gemma", {}),
    "gemma 2": ("gemma2", GEMMA),
    "gemma 3": ("gemma3_text", GEMMA | {"num_hidden_layers": 7}),
    "granite": (
        "granite",
        {
            "logits_scaling": 2.0,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "smollm 3": ("smollm3", {"num_hidden_layers": 4}),
    "olmo 2": ("olmo2", {}),
}


def lively(arch: str, widths: dict[str, Any]) -> PreTrainedModel:
    """Random, with norms and biases that are not 1 and 0, and sharp."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **(SMALL | widths))).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1:
                value.add_(0.3 * torch.randn_like(value))
            elif "proj" in name:
                value.mul_(3)
        model.get_output_embeddings().weight.mul_(4 if model.config.tie_word_embeddings else 12)
    return model


def telling(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """Only letters and digits are likely: a token that ends the text, or is a part of a character, is answered without
    log-probabilities."""
    known = AutoTokenizer.from_pretrained(directory).get_vocab()
    plain = [index for token, index in known.items() if token.isascii() and token.isalnum()]
    with torch.no_grad():
        head_VI = model.get_output_embeddings().weight
        kept_VI = torch.zeros_like(head_VI)
        kept_VI[plain] = head_VI[plain]
        head_VI.copy_(kept_VI)
    return model


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_says_what_transformers_says(
    workspace: Workspace, llmos: Any, tmp_path: Path, kind: str
) -> None:
    arch, widths = ARCHITECTURES[kind]
    tokenized(tmp_path / "hub")
    model = telling(lively(arch, widths), tmp_path / "hub")
    save(model, tmp_path / "hub")
    assert llmos("import", tmp_path / "hub", "--dtype", "float32").code == 0
    ran = llmos("export", "-o", tmp_path / "m.gguf", "--format", "gguf", "--type", "float32", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["difference"] < 1e-5
    check(tmp_path / "m.gguf", model, 0.02)


PIECES = (
    "the model reads text, and text is cut into pieces: the pieces of the text, the numbers 12 345 6789, two  spaces."
)


def pieces(directory: Path, *, words: Any = None) -> Any:
    """BPE over characters with bytes for what it lacks, as Llama 2 and Gemma have it; with `words`, BPE over bytes."""
    if words is None:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        backend.normalizer = normalizers.Sequence(steps)
        alphabet, special = [], ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = words
        alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator([PIECES] * 3, trainer)
    found = json.loads(backend.to_str())
    found["added_tokens"] = found["added_tokens"][:3]
    begin = {"Sequence": {"id": "A", "type_id": 0}}
    found["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, begin],
        "pair": [begin, begin],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    backend = Tokenizer.from_str(json.dumps(found))
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.save_pretrained(directory)
    return made


def split(pattern: str) -> Any:
    by = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([by, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@pytest.mark.parametrize("rule", ["pieces", *gguf_tokenizer.WORDS.values()])
def test_text_is_cut_there_as_here(tmp_path: Path, rule: str) -> None:
    """The same likeliest tokens after a text: it was cut alike. Merges, bytes that have no piece, digits, spaces and the first
    token are met."""
    named = {name: pattern for pattern, name in gguf_tokenizer.WORDS.items()}
    tokenizer = pieces(tmp_path / "hub", words=None if rule == "pieces" else split(named[rule]))
    model = telling(lively("llama", {"vocab_size": 340}), tmp_path / "hub")
    save(model, tmp_path / "hub")
    gguf_file.write(tmp_path / "hub", tmp_path / "m.gguf", dtype="float32")
    for text in (PIECES, "It's 2024:  the\n\n textual model don't", "na\u00efve \u4e2d\u6587 pieces"):
        check(tmp_path / "m.gguf", model, 0.02, tokenizer(text).input_ids, text)
