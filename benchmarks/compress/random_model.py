"""A Llama of random weights, for what only sizes decide: python -m benchmarks.compress.random_model OUT TOKENIZER_DIR [--layers 24].

The memory row needs a model of half a gigabyte or more in bf16; the default is one of 0.70 GB. Its KL means nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    asked = parser.parse_args()
    AutoTokenizer.from_pretrained(asked.tokenizer).save_pretrained(asked.out)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=asked.hidden, intermediate_size=asked.hidden * 11 // 4, num_hidden_layers=asked.layers,
        num_attention_heads=asked.hidden // 64, num_key_value_heads=asked.hidden // 128, max_position_embeddings=2048,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(asked.out, max_shard_size="200MB")
    size = sum(file.stat().st_size for file in asked.out.glob("*.safetensors"))
    print(f"{asked.out}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
