"""The GPTQ layout, which AutoGPTQ made common: written from a checkpoint's own codes, and read back.

Of a linear layer with b-bit codes in groups of g inputs (AutoGPTQ's `qlinear` modules; vLLM's `gptq.py`, `gptq_marlin.py`):

    qweight  int32 [I b / 32, O]     code + 2^(b-1), inputs one after another along the first dimension, lowest bits first
    qzeros   int32 [G, O b / 32]     zero point + 2^(b-1), less 1 in version 1: its readers add it
    scales   fp16  [G, O]
    g_idx    int32 [I]               the group of each input: i // g here, for columns keep their order

config.json and quantize_config.json give bits and group size of most layers; layers that differ, or stay dense, stand in `dynamic`
under a pattern of their names (GPTQModel's way, which vLLM reads). All other weights are fp16.

Symmetric codes are version 1 (`gptq`), which every reader knows. Zero points are version 2 (`gptq_v2`: GPTQModel, vLLM from 0.11.1):
version 1 cannot say the lowest one, and GPTQModel refuses it from any other writer. No `meta` is written: transformers takes it as
a sign that auto-round cannot read the files.

Shapes: O outputs, I inputs, G groups, W words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.models import blocks, headers, packing
from llmos_cli.models.codes import stored_codes
from llmos_cli.models.dequantize import CONFIG_KEY, Read
from llmos_cli.models.load import skeleton
from llmos_cli.models.quantized import Quantized
from llmos_cli.models.save import write_streamed

BITS = (2, 3, 4, 8)
SHIFTS = {"gptq": 1, "gptq_v2": 0}
"""What a version's readers add to a stored zero point."""
MULTIPLE = 32


@dataclass(frozen=True)
class Form:
    """Of one layer: `group` inputs share a scale, all `inputs` with -1."""

    bits: int
    group: int
    inputs: int

    def said_by(self, bits: int, group: int) -> bool:
        return self.bits == bits and (self.group == group or (self.group == -1 and self.inputs == group))


def write(source: Path, target: Path) -> str:
    """Write the weights and configuration of the quantized checkpoint `source` into `target`; the layout's version.

    Raises UsageError where it is not quantized, or in a way that the layout has no words for.
    """
    config = json.loads((source / "config.json").read_bytes())
    entries = headers.of_directory(source)
    with stored_codes(source) as codes, ExitStack() as stack:
        forms = _forms(config, _of_layers(codes, source), entries)
        symmetric = not any(name.endswith("_zero_point") for name in entries)
        version = "gptq" if symmetric else "gptq_v2"
        read = Read(entries, stack)
        groups = blocks.shards(headers.dense_shapes(entries))

        def shard(names: list[str]) -> dict[str, Tensor]:
            tensors: dict[str, Tensor] = {}
            for name in names:
                if name in forms:
                    tensors |= _layer(name.removesuffix(".weight"), codes[name], SHIFTS[version])
                else:
                    tensors[name] = _half(name, _values(codes[name]) if name in codes else read(name))
            return tensors

        write_streamed(groups, shard, target)
    described = _description(forms, source) | {"sym": symmetric, "checkpoint_format": version}
    config |= {CONFIG_KEY: described, "dtype": "float16"}
    for file, content in (("config.json", config), ("quantize_config.json", described)):
        (target / file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return version


def read(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """(layer, dense weight [O, I] in fp32) of each quantized layer, as the files say it."""
    described = json.loads((directory / "quantize_config.json").read_bytes())
    entries = headers.of_directory(directory)
    with ExitStack() as stack:
        tensor = Read(entries, stack)
        for name in entries:
            if name.endswith(".qweight"):
                layer = name.removesuffix(".qweight")
                yield layer, _dense(tensor, layer, _bits(described, layer), SHIFTS[described["checkpoint_format"]])


def _forms(
    config: Mapping[str, Any], codes: Mapping[str, Quantized], entries: Mapping[str, headers.Entry]
) -> dict[str, Form]:
    if not codes:
        kind = "have no whole-numbered codes" if config.get(CONFIG_KEY) else "are dense"
        raise UsageError(f"GPTQ holds quantized weights, and these {kind}", hint="`llmos quantize --method gptq` first")
    forms = {}
    for name, quantized in codes.items():
        outputs, inputs = quantized.codes.flatten(1).shape
        if quantized.bits not in BITS:
            raise UsageError(f"GPTQ has no {quantized.bits} bits", hint=f"it has {', '.join(map(str, BITS))}")
        if quantized.codes.dim() != 2 or outputs % MULTIPLE or inputs % MULTIPLE:
            raise UsageError(
                f"{name} is {list(quantized.codes.shape)}: GPTQ packs matrices with sides that {MULTIPLE} divides",
                hint="leave it out when quantizing: `-s 'quantize.ignore=[...]'`",
            )
        forms[name] = Form(quantized.bits, quantized.group_size, inputs)
    return forms


def _of_layers(codes: Mapping[str, Quantized], source: Path) -> dict[str, Quantized]:
    """Without embeddings, and the heads tied to them: the layout has none, so they are fp16."""
    tables = {f"{name}.weight" for name, module in skeleton(source).named_modules() if isinstance(module, nn.Embedding)}
    return {name: codes[name] for name in codes if name not in tables}


def _layer(layer: str, quantized: Quantized, shift: int) -> dict[str, Tensor]:
    inputs = quantized.codes.shape[1]
    scales_GO = _half(f"the scales of {layer}", quantized.scales_OG.t())
    group = inputs // len(scales_GO)
    zeros_OG = (
        torch.zeros_like(quantized.scales_OG, dtype=torch.int8) if quantized.zeros_OG is None else quantized.zeros_OG
    )
    return {
        f"{layer}.qweight": packing.pack(quantized.codes, quantized.bits).t(),
        f"{layer}.qzeros": packing.pack(zeros_OG.t() - shift, quantized.bits),
        f"{layer}.scales": scales_GO,
        f"{layer}.g_idx": (torch.arange(inputs) // group).to(torch.int32),
    }


def _values(quantized: Quantized) -> Tensor:
    return packing.dequantize(quantized.codes, quantized.scales_OG.float(), quantized.zeros_OG)


def _half(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    half = value.to(torch.float16)
    if not torch.isfinite(half).all():
        raise LlmosError(f"{name} does not fit fp16, in which GPTQ computes", hint="export another format")
    return half


def _description(forms: Mapping[str, Form], source: Path) -> dict[str, Any]:
    """The form of most layers, and what differs from it by name."""
    offered = dict.fromkeys((form.bits, form.group) for form in forms.values())
    bits, group = max(offered, key=lambda offer: sum(form.said_by(*offer) for form in forms.values()))
    names = [name for name, module in skeleton(source).named_modules() if isinstance(module, nn.Linear)]
    dynamic: dict[str, dict[str, int]] = {}
    for name in names:
        form = forms.get(f"{name}.weight")
        if form is None and name != "lm_head":
            dynamic[f"-:^{re.escape(name)}$"] = {}
        elif form is not None and (name == "lm_head" or not form.said_by(bits, group)):  # auto-round needs it said
            dynamic[f"+:^{re.escape(name)}$"] = {"bits": form.bits, "group_size": form.group}
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": False,
        "lm_head": "lm_head.weight" in forms,
        "pack_dtype": "int32",
        **({"dynamic": dynamic} if dynamic else {}),
    }


def _bits(described: Mapping[str, Any], layer: str) -> int:
    own = described.get("dynamic", {}).get(f"+:^{re.escape(layer)}$", {})
    return int(own.get("bits", described["bits"]))


def _dense(tensor: Read, layer: str, bits: int, shift: int) -> Tensor:
    """(code - zero point) * scale, the groups by g_idx."""
    qweight_WO, qzeros_GW, scales_GO = (tensor(f"{layer}.{part}") for part in ("qweight", "qzeros", "scales"))
    group_I = tensor(f"{layer}.g_idx").long()
    codes_OI = packing.unpack(qweight_WO.t().contiguous(), bits, len(group_I)).float()
    zeros_GO = packing.unpack(qzeros_GW, bits, scales_GO.shape[1]).float() + shift
    return (codes_OI - zeros_GO[group_I].t()) * scales_GO[group_I].t().float()
