"""The forms in which a quantized layer can be held, each with its kernel: a function that says whether it can be here, and builds it.

A form is the tensors it needs and a product `[..., I] -> [..., O]` in x's dtype. Adding a kernel is adding an entry to FORMS; which
one is used is measured (`choice`). Letters as in `codes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from llmos_cli import device
from llmos_cli.models import fp8
from llmos_cli.models.kernels import native
from llmos_cli.models.kernels.codes import Codes

Product = Callable[[Tensor], Tensor]
AVX_GROUPS = (32, 64, 128, 256)
"""Group sizes that torch's int4 kernels take."""


@dataclass(frozen=True)
class Form:
    """A layer ready to multiply."""

    name: str
    product: Product
    tensors: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class Kernel:
    """`usable(codes, dtype of x)`; `build` is called only where it is. Codes are where the layer computes."""

    usable: Callable[[Codes, torch.dtype], bool]
    build: Callable[[Codes, torch.dtype], tuple[Product, tuple[Tensor, ...]]]


def build(name: str, codes: Codes, dtype: torch.dtype) -> Form:
    product, tensors = FORMS[name].build(codes, dtype)
    return Form(name, product, tensors)


def usable(codes: Codes, dtype: torch.dtype) -> list[str]:
    """Names of the forms that this layer can take on its device, `dense` always among them."""
    return [name for name, kernel in FORMS.items() if kernel.usable(codes, dtype)]


def dense(codes: Codes, dtype: torch.dtype) -> tuple[Product, tuple[Tensor, ...]]:
    """Dequantized. Inputs are not rounded: where W8A8 does not repay, nothing is gained by its error either."""
    weight_OI = codes.dense(dtype)
    bias_O = None if codes.bias_O is None else codes.bias_O.to(dtype)
    return lambda x: F.linear(x, weight_OI, bias_O), _present(weight_OI, bias_O)


def native_w8a8(codes: Codes, dtype: torch.dtype) -> tuple[Product, tuple[Tensor, ...]]:
    packed, scales_O, shifts_O = native.pack_w8a8(codes)
    bias_O, outputs = _float(codes.bias_O), codes.shape[0]
    return lambda x: native.w8a8(x, packed, scales_O, shifts_O, bias_O, outputs), _present(
        packed, scales_O, shifts_O, bias_O
    )


def native_weights(codes: Codes, dtype: torch.dtype) -> tuple[Product, tuple[Tensor, ...]]:
    packed, scales_GO, bits = native.pack_weights(codes)
    bias_O, outputs = _float(codes.bias_O), codes.shape[0]
    return lambda x: native.weights(x, packed, scales_GO, bias_O, bits, outputs), _present(packed, scales_GO, bias_O)


def onednn_w8a8(codes: Codes, dtype: torch.dtype) -> tuple[Product, tuple[Tensor, ...]]:
    """oneDNN's int8 product, tokens rounded around it."""
    packed = torch.ops.onednn.qlinear_prepack(codes.codes_OI, None)
    scales_O = codes.scales_OG.float().flatten()
    zeros_O = torch.zeros(codes.shape[0], dtype=torch.int32)
    bias_O = _float(codes.bias_O)

    def product(x: Tensor) -> Tensor:
        codes_TI, scales_T1 = round_tokens(x)
        exact = torch.ops.onednn.qlinear_pointwise(
            codes_TI, 1.0, 0, packed, scales_O, zeros_O, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return _finished(exact * scales_T1, bias_O, x)

    return product, _present(packed, scales_O, zeros_O, bias_O)


def cuda_w8a8(codes: Codes, dtype: torch.dtype) -> tuple[Product, tuple[Tensor, ...]]:
    """cuBLAS's int8 product, which wants more than 16 rows."""
    codes_IO = codes.codes_OI.t()
    scales_O, bias_O = codes.scales_OG.float().flatten(), _float(codes.bias_O)

    def product(x: Tensor) -> Tensor:
        codes_TI, scales_T1 = round_tokens(x)
        rows = codes_TI.shape[0]
        exact = torch._int_mm(F.pad(codes_TI, (0, 0, 0, max(0, 17 - rows))), codes_IO).narrow(0, 0, rows)
        return _finished(exact * scales_T1 * scales_O, bias_O, x)

    return product, _present(codes.codes_OI, scales_O, bias_O)


def cuda_fp8(codes: Codes, dtype: torch.dtype) -> tuple[Product, tuple[Tensor, ...]]:
    """cuBLAS's product of 8-bit floats, a scale for each row and column; it answers in bf16."""
    scales_1O, bias_O = codes.scales_OG.float().t().contiguous(), _float(codes.bias_O)

    def product(x: Tensor) -> Tensor:
        x_TI = x.flatten(0, -2).float()
        scales_T1 = fp8.scales_of(x_TI)
        exact = torch._scaled_mm(
            fp8.coded(x_TI / scales_T1), codes.codes_OI.t(), scales_T1, scales_1O, out_dtype=torch.bfloat16
        )
        return _finished(exact, bias_O, x)

    return product, _present(codes.codes_OI, scales_1O, bias_O)


def torch_int8(codes: Codes, dtype: torch.dtype) -> tuple[Product, tuple[Tensor, ...]]:
    codes_OI, scales_O = _aligned(codes.codes_OI), codes.scales_OG.flatten().to(dtype)
    bias_O = _float(codes.bias_O)

    def product(x: Tensor) -> Tensor:
        return _finished(torch._weight_int8pack_mm(x.flatten(0, -2), codes_OI, scales_O), bias_O, x)

    return product, _present(codes_OI, scales_O, bias_O)


def _aligned(codes_OI: Tensor) -> Tensor:
    """Torch's product of some rows loads 16 codes as one, from whole multiples of 16: of a tensor that begins anywhere in a mapped file,
    as safetensors has them, the process would die."""
    codes_OI = codes_OI.contiguous()
    return codes_OI.clone() if codes_OI.data_ptr() % 16 else codes_OI


def torch_int4(codes: Codes, dtype: torch.dtype) -> tuple[Product, tuple[Tensor, ...]]:
    group = codes.shape[1] // codes.shape[2]
    unsigned_OI = codes.codes_OI.int() + 8
    scales_GO = codes.scales_OG.t().to(dtype)
    zeros_GO = torch.zeros_like(scales_GO) if codes.zeros_OG is None else -codes.zeros_OG.t().to(dtype) * scales_GO
    table_GO2 = torch.stack([scales_GO, zeros_GO], -1).contiguous()
    bias_O = _float(codes.bias_O)
    on_cpu = unsigned_OI.device.type == "cpu"
    if on_cpu:
        packed = torch._convert_weight_to_int4pack_for_cpu(unsigned_OI, 1)
    else:  # two inputs a byte, the first in the upper half; 8 is the inner tiling that every width below allows
        first_OP, second_OP = unsigned_OI.unflatten(1, (-1, 2)).unbind(-1)
        packed = torch._convert_weight_to_int4pack(((first_OP << 4) | second_OP).to(torch.uint8), 8)
    multiply = torch._weight_int4pack_mm_for_cpu if on_cpu else torch._weight_int4pack_mm

    def product(x: Tensor) -> Tensor:
        return _finished(multiply(x.flatten(0, -2), packed, group, table_GO2), bias_O, x)

    return product, _present(packed, table_GO2, bias_O)


def round_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8 codes `[T, I]` and their scales `[T, 1]`: `int8.round_tokens`, in fp32."""
    x_TI = x.flatten(0, -2).float()
    scales_T1 = x_TI.abs().amax(-1, keepdim=True) / 127.5
    scales_T1 = torch.where(scales_T1 == 0, 1.0, scales_T1)
    return (x_TI / scales_T1).round().clamp(-128, 127).to(torch.int8), scales_T1


def _finished(product_TO: Tensor, bias_O: Tensor | None, x: Tensor) -> Tensor:
    answer = product_TO if bias_O is None else product_TO + bias_O
    return answer.to(x.dtype).view(*x.shape[:-1], answer.shape[-1])


def _float(bias_O: Tensor | None) -> Tensor | None:
    return None if bias_O is None else bias_O.detach().float().contiguous()


def _present(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor is not None)


def _on(codes: Codes, kind: str) -> bool:
    return codes.codes_OI.device.type == kind


def _is_w8a8(codes: Codes) -> bool:
    return codes.rounds_inputs and not codes.floats and codes.shape[2] == 1 and codes.zeros_OG is None


def _is_symmetric(codes: Codes) -> bool:
    return not codes.rounds_inputs and codes.zeros_OG is None


def _fits_native(codes: Codes, dtype: torch.dtype) -> bool:
    return _on(codes, "cpu") and _is_symmetric(codes) and native.fits_weights(codes) and native.has_weights()


def _fits_onednn(codes: Codes, dtype: torch.dtype) -> bool:
    # Without AMX torch 2.13's product of signed activations is oneDNN's reference: two hundred times slower.
    return _on(codes, "cpu") and _is_w8a8(codes) and torch.cpu._is_amx_tile_supported()


def _fits_cuda_w8a8(codes: Codes, dtype: torch.dtype) -> bool:
    return _on(codes, "cuda") and _is_w8a8(codes) and codes.shape[0] % 8 == 0 and codes.shape[1] % 8 == 0


def _fits_cuda_fp8(codes: Codes, dtype: torch.dtype) -> bool:
    """From Ada (8.9) on; both sides must be whole runs of 16."""
    even = codes.shape[0] % 16 == 0 and codes.shape[1] % 16 == 0
    fits = _on(codes, "cuda") and codes.floats and dtype == torch.bfloat16 and even
    return fits and device.capability(codes.codes_OI.device) >= (8, 9)


def _fits_torch_int8(codes: Codes, dtype: torch.dtype) -> bool:
    known = _on(codes, "cpu") or _on(codes, "cuda")
    return (
        known and dtype == torch.bfloat16 and _is_symmetric(codes) and codes.shape[2] == 1 and codes.shape[1] % 16 == 0
    )


def _fits_torch_int4(codes: Codes, dtype: torch.dtype) -> bool:
    outputs, inputs, groups = codes.shape
    tiled = outputs % 16 == 0 if _on(codes, "cpu") else _on(codes, "cuda") and outputs % 8 == 0 and inputs % 128 == 0
    fits = dtype == torch.bfloat16 and codes.bits <= 4 and not codes.rounds_inputs
    return bool(tiled and fits and inputs // groups in AVX_GROUPS)


FORMS: Mapping[str, Kernel] = {
    "dense": Kernel(lambda codes, dtype: True, dense),
    "native w8a8": Kernel(
        lambda codes, dtype: _on(codes, "cpu") and _is_w8a8(codes) and native.has_w8a8(), native_w8a8
    ),
    "onednn w8a8": Kernel(_fits_onednn, onednn_w8a8),
    "cuda w8a8": Kernel(_fits_cuda_w8a8, cuda_w8a8),
    "cuda fp8": Kernel(_fits_cuda_fp8, cuda_fp8),
    "native weights": Kernel(_fits_native, native_weights),
    "torch int8": Kernel(_fits_torch_int8, torch_int8),
    "torch int4": Kernel(_fits_torch_int4, torch_int4),
}
