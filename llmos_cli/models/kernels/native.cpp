// Products of activations with int8 and int4 codes on CPUs with AVX-512: each code is read once, and scaled after it was summed.
//
// Letters: M rows (tokens), N outputs, K inputs, G groups of inputs that share a scale.
// Outputs stand in blocks of 64, four registers of 16 lanes. A register of codes, 64 bytes, holds for each of 16 outputs
//   w8a8: 4 inputs as int8, multiplied with 4 unsigned activations by VNNI's dpbusd;
//   int4: 8 inputs as nibbles (the j-th pair of inputs in nibble j of either half), int8: 4 inputs as bytes (in order 0 2 1 3).
// The two last are looked up as bf16, which holds every code exactly, and multiplied by dpbf16ps with fp32 sums:
// `vpermw` reads the low 5 bits of each 16-bit lane, so that a table given twice needs no mask. An int8 code is two nibbles.
// `kernels/native.py` lays the codes out so, compiles this file, and tells what the operators take.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <immintrin.h>
#include <torch/library.h>

#include <cmath>
#include <memory>
#include <vector>

namespace {

constexpr int64_t BLOCK = 64, ROWS = 4;  // 4 x 4 sums; with 5 rows or 6 gcc runs out of registers, and half the speed is gone
constexpr int64_t WORK = 1 << 19;        // multiplications that repay waking a thread

__m512 read16(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
__m512 read16(const at::BFloat16* from, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}
void write16(float* to, __m512 value, __mmask16 mask) { _mm512_mask_storeu_ps(to, mask, value); }
void write16(at::BFloat16* to, __m512 value, __mmask16 mask) {  // round to nearest even; NaN stays NaN, which it would not by the addition
  __m512i bits = _mm512_castps_si512(value), one = _mm512_set1_epi32(1);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  up = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), up, _mm512_set1_epi32(0x7fc00000));
  _mm256_mask_storeu_epi16(to, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
}
__mmask16 lanes(int64_t left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : (1 << left) - 1; }

// One row as unsigned bytes, its code + 128, by its own scale: the largest magnitude / 127.5.
template <class T> float round_row(const T* x, int64_t K, uint8_t* to) {
  __m512 most = _mm512_setzero_ps();
  __mmask16 nan = 0;
  for (int64_t k = 0; k < K; k += 16) {
    __m512 value = read16(x + k, lanes(K - k));
    most = _mm512_max_ps(_mm512_abs_ps(value), most);
    nan |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  }
  float scale = _mm512_reduce_max_ps(most) / 127.5f;
  if (scale == 0) scale = 1;
  if (nan) scale = NAN;  // codes hold no NaN: the row's answer shall
  __m512 by = _mm512_set1_ps(scale);
  for (int64_t k = 0; k < K; k += 16) {
    __m512i code = _mm512_cvtps_epi32(_mm512_div_ps(read16(x + k, lanes(K - k)), by));
    code = _mm512_add_epi32(_mm512_min_epi32(code, _mm512_set1_epi32(127)), _mm512_set1_epi32(128));
    _mm_mask_storeu_epi8(to + k, lanes(K - k), _mm512_cvtusepi32_epi8(_mm512_max_epi32(code, _mm512_setzero_si512())));
  }
  return scale;
}

template <class T> struct Out { T* y; int64_t N; const float* bias; };

template <int R, class T>
void w8a8_rows(const uint8_t* x, int64_t quads, const int8_t* w, const float* scales, const int32_t* shifts, const float* row_scales,
               Out<T> out, int64_t n) {
  __m512i sum[R][4];
  for (auto& row : sum) for (auto& s : row) s = _mm512_setzero_si512();
  for (int64_t q = 0; q < quads; q++, w += 256) {
    __m512i codes[4];
    for (int j = 0; j < 4; j++) codes[j] = _mm512_loadu_si512(w + 64 * j);
    for (int r = 0; r < R; r++) {
      __m512i four = _mm512_set1_epi32(reinterpret_cast<const int32_t*>(x)[r * quads + q]);
      for (int j = 0; j < 4; j++) sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], four, codes[j]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int j = 0; j < 4; j++) {
      int64_t at = n + 16 * j;
      __mmask16 mask = lanes(out.N - at);
      __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[r][j], _mm512_loadu_si512(shifts + at)));
      __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(scales + at), _mm512_set1_ps(row_scales[r]));
      __m512 bias = out.bias ? read16(out.bias + at, mask) : _mm512_setzero_ps();
      write16(out.y + r * out.N + at, _mm512_fmadd_ps(exact, scale, bias), mask);
    }
}

// Calls `rows` with the number of rows as a constant, for all M rows in runs of nearly equal length.
template <class F> void in_runs(int64_t M, F rows) {
  for (int64_t m = 0, runs = (M + ROWS - 1) / ROWS; runs > 0; runs--) {
    int64_t now = (M - m + runs - 1) / runs;
    switch (now) {
      case 1: rows(std::integral_constant<int, 1>(), m); break;
      case 2: rows(std::integral_constant<int, 2>(), m); break;
      case 3: rows(std::integral_constant<int, 3>(), m); break;
      default: rows(std::integral_constant<int, 4>(), m);
    }
    m += now;
  }
}

int64_t grain(int64_t M, int64_t K) { return std::max<int64_t>(1, WORK / (M * K * BLOCK + 1)); }

template <class T>
void w8a8(const T* x, int64_t M, int64_t K, const int8_t* codes, int64_t quads, const float* scales, const int32_t* shifts, Out<T> out) {
  std::vector<uint8_t> rounded(M * quads * 4, 128);
  std::vector<float> row_scales(M);
  at::parallel_for(0, M, std::max<int64_t>(1, WORK / (4 * K)), [&](int64_t from, int64_t to) {
    for (int64_t m = from; m < to; m++) row_scales[m] = round_row(x + m * K, K, &rounded[m * quads * 4]);
  });
  at::parallel_for(0, (out.N + BLOCK - 1) / BLOCK, grain(M, K), [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; b++)
      in_runs(M, [&](auto R, int64_t m) {
        w8a8_rows<R()>(&rounded[m * quads * 4], quads, codes + b * quads * 256, scales, shifts, &row_scales[m],
                       Out<T>{out.y + m * out.N, out.N, out.bias}, b * BLOCK);
      });
  });
}

#ifdef __AVX512BF16__
__m512bh bf(__m512i bits) { return (__m512bh)bits; }
__m512i both(int32_t pair) { return _mm512_set1_epi32(pair); }

// bf16 of the values first, first + step, ... 16 of them (sixteen = 0) or 8 and then 8 from `second` on, twice over.
__m512i table(int first, int second, int step) {
  alignas(64) uint16_t values[32];
  for (int i = 0; i < 32; i++) values[i] = c10::BFloat16(float((i % 16 < 8 ? first : second) + step * (i % 8))).x;
  return _mm512_load_si512(values);
}

// Two rows of 16 fp32 values as pairs of bf16, rounded.
__m512i joined(__m512 even, __m512 odd) {
  __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(0xffff0000);
  __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
  return _mm512_or_si512(low, _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(odd), half), upper));
}

// A register of codes of BITS: its four planes of nibbles as bf16, which pair of inputs each belongs to, and all its pairs of
// inputs times their outputs' scales, as a dense bf16 model has them.
template <int BITS> struct Codes;
template <> struct Codes<4> {
  static constexpr int INPUTS = 8;
  __m512i of = table(-8, 0, 1);  // a nibble is its code + 8
  __m512i plane(__m512i v, int i) const { return _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 4 * i), of); }
  static constexpr int pair(int i) { return i; }
  __m512i dense(__m512i v, int i, __m512 scale) const {
    __m512i both = plane(v, i);
    __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16)), odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)));
    return joined(_mm512_mul_ps(even, scale), _mm512_mul_ps(odd, scale));
  }
};
template <> struct Codes<8> {
  static constexpr int INPUTS = 4;
  __m512i low = table(0, 8, 1), high = table(0, -128, 16);
  __m512i plane(__m512i v, int i) const { return _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 4 * i), i % 2 ? high : low); }
  static constexpr int pair(int i) { return i / 2; }
  __m512i dense(__m512i v, int i, __m512 scale) const {
    __m512i even = _mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * i), 24), odd = _mm512_srai_epi32(_mm512_slli_epi32(v, 8 - 8 * i), 24);
    return joined(_mm512_mul_ps(_mm512_cvtepi32_ps(even), scale), _mm512_mul_ps(_mm512_cvtepi32_ps(odd), scale));
  }
};

// Few rows: codes looked up as they are needed. `x` are pairs of bf16; `groups` of `length` registers of codes each.
template <int BITS, int R>
void direct_rows(const Codes<BITS>& look, const int32_t* x, int64_t pairs, const uint8_t* w, int64_t groups, int64_t length,
                 const float* scales, int64_t stride, float* total) {
  __m512 sum[R][4], all[R][4];
  for (auto& row : all) for (auto& s : row) s = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; g++) {
    for (auto& row : sum) for (auto& s : row) s = _mm512_setzero_ps();
    for (int64_t q = 0; q < length; q++, w += 256, x += look.INPUTS / 2)
      for (int j = 0; j < 4; j++) {
        __m512i codes = _mm512_loadu_si512(w + 64 * j);
        for (int i = 0; i < 4; i++) {
          __m512bh values = bf(look.plane(codes, i));
          for (int r = 0; r < R; r++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], values, bf(both(x[r * pairs + look.pair(i)])));
        }
      }
    for (int r = 0; r < R; r++)
      for (int j = 0; j < 4; j++) all[r][j] = _mm512_fmadd_ps(sum[r][j], _mm512_loadu_ps(scales + g * stride + 16 * j), all[r][j]);
  }
  for (int r = 0; r < R; r++) for (int j = 0; j < 4; j++) _mm512_storeu_ps(total + r * BLOCK + 16 * j, all[r][j]);
}

constexpr int64_t PANEL = 256;  // pairs of inputs: 64 KiB for 64 outputs

template <int R> void panel_rows(const int32_t* x, int64_t stride, const __m512i* panel, int64_t pairs, float* total) {
  __m512 sum[R][4];
  for (int r = 0; r < R; r++) for (int j = 0; j < 4; j++) sum[r][j] = _mm512_loadu_ps(total + r * BLOCK + 16 * j);
  for (int64_t p = 0; p < pairs; p++, panel += 4)
    for (int r = 0; r < R; r++)
      for (int j = 0; j < 4; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], bf(panel[j]), bf(both(x[r * stride + p])));
  for (int r = 0; r < R; r++) for (int j = 0; j < 4; j++) _mm512_storeu_ps(total + r * BLOCK + 16 * j, sum[r][j]);
}

// Many rows: the codes are looked up and scaled once, a panel at a time.
template <int BITS>
void by_panels(const Codes<BITS>& look, const int32_t* x, int64_t M, int64_t pairs, const uint8_t* w, int64_t registers, int64_t length,
               const float* scales, int64_t stride, __m512i* panel, float* total) {
  constexpr int64_t EACH = Codes<BITS>::INPUTS / 2;
  std::fill_n(total, M * BLOCK, 0.f);
  for (int64_t at = 0; at < registers; at += PANEL / EACH) {
    int64_t now = std::min(registers - at, PANEL / EACH);
    for (int64_t q = 0; q < now; q++)
      for (int j = 0; j < 4; j++) {
        __m512i v = _mm512_loadu_si512(w + (at + q) * 256 + 64 * j);
        __m512 scale = _mm512_loadu_ps(scales + (at + q) / length * stride + 16 * j);
        for (int i = 0; i < EACH; i++) panel[(q * EACH + i) * 4 + j] = look.dense(v, i, scale);
      }
    in_runs(M, [&](auto R, int64_t m) { panel_rows<R()>(x + m * pairs + at * EACH, pairs, panel, now * EACH, total + m * BLOCK); });
  }
}

template <int BITS, class T>
void weights(const T* x, int64_t M, int64_t K, const uint8_t* codes, int64_t padded, const float* scales, int64_t groups, Out<T> out) {
  Codes<BITS> look;
  constexpr int64_t INPUTS = Codes<BITS>::INPUTS;
  int64_t pairs = padded / 2, registers = padded / INPUTS, length = registers / groups, blocks = (out.N + BLOCK - 1) / BLOCK;
  std::vector<int32_t> in(M * pairs, 0);
  for (int64_t m = 0; m < M; m++)
    for (int64_t k = 0; k < K; k += 16)
      write16(reinterpret_cast<at::BFloat16*>(&in[m * pairs]) + k, read16(x + m * K + k, lanes(K - k)), lanes(K - k));
  at::parallel_for(0, blocks, grain(M, K), [&](int64_t from, int64_t to) {
    std::vector<float> total(M * BLOCK);
    std::unique_ptr<__m512i[]> panel(M > ROWS ? new __m512i[PANEL * 4] : nullptr);
    for (int64_t b = from; b < to; b++) {
      const uint8_t* w = codes + b * registers * 256;
      const float* scale = scales + b * BLOCK;
      if (M > ROWS)
        by_panels<BITS>(look, in.data(), M, pairs, w, registers, length, scale, blocks * BLOCK, panel.get(), total.data());
      else
        in_runs(M, [&](auto R, int64_t m) {
          direct_rows<BITS, R()>(look, &in[m * pairs], pairs, w, groups, length, scale, blocks * BLOCK, &total[m * BLOCK]);
        });
      for (int64_t m = 0; m < M; m++)
        for (int j = 0; j < 4; j++) {
          int64_t n = b * BLOCK + 16 * j;
          __mmask16 mask = lanes(out.N - n);
          __m512 bias = out.bias ? read16(out.bias + n, mask) : _mm512_setzero_ps();
          write16(out.y + m * out.N + n, _mm512_add_ps(_mm512_loadu_ps(&total[m * BLOCK + 16 * j]), bias), mask);
        }
    }
  });
}
#endif

at::Tensor output(const at::Tensor& x, int64_t outputs) {
  auto shape = x.sizes().vec();
  shape.back() = outputs;
  return at::empty(shape, x.options());
}

template <class T> Out<T> out_of(at::Tensor& y, const std::optional<at::Tensor>& bias) {
  return {y.mutable_data_ptr<T>(), y.size(-1), bias ? bias->const_data_ptr<float>() : nullptr};
}

// x [..., K] fp32 or bf16; codes int8 [N/64, K/4, 64, 4]; scales fp32 [N up to 64]; shifts int32, 128 times each output's sum of codes.
at::Tensor w8a8_op(const at::Tensor& given, const at::Tensor& codes, const at::Tensor& scales, const at::Tensor& shifts,
                   const std::optional<at::Tensor>& bias, int64_t outputs) {
  at::Tensor x = given.contiguous(), y = output(x, outputs);
  int64_t K = x.size(-1), M = K ? x.numel() / K : 0;
  auto run = [&]<class T>(T) {
    w8a8(x.const_data_ptr<T>(), M, K, codes.const_data_ptr<int8_t>(), codes.size(1), scales.const_data_ptr<float>(),
         shifts.const_data_ptr<int32_t>(), out_of<T>(y, bias));
  };
  x.scalar_type() == at::kBFloat16 ? run(at::BFloat16()) : run(float());
  return y;
}

#ifdef __AVX512BF16__
// x [..., K] fp32 (rounded to bf16) or bf16; codes uint8 [N/64, K/8 (int4) or K/4 (int8), 256]; scales fp32 [G, N up to 64].
at::Tensor weights_op(const at::Tensor& given, const at::Tensor& codes, const at::Tensor& scales, const std::optional<at::Tensor>& bias,
                      int64_t bits, int64_t outputs) {
  at::Tensor x = given.contiguous(), y = output(x, outputs);
  int64_t K = x.size(-1), M = K ? x.numel() / K : 0, inputs = codes.size(1) * (bits == 4 ? 8 : 4);
  auto run = [&]<class T>(T) {
    auto kernel = bits == 4 ? weights<4, T> : weights<8, T>;
    kernel(x.const_data_ptr<T>(), M, K, codes.const_data_ptr<uint8_t>(), inputs, scales.const_data_ptr<float>(), scales.size(0), out_of<T>(y, bias));
  };
  x.scalar_type() == at::kBFloat16 ? run(at::BFloat16()) : run(float());
  return y;
}
#endif

}  // namespace

TORCH_LIBRARY(llmos, library) {
  library.def("w8a8(Tensor x, Tensor codes, Tensor scales, Tensor shifts, Tensor? bias, int outputs) -> Tensor");
  library.impl("w8a8", c10::DispatchKey::CPU, w8a8_op);
#ifdef __AVX512BF16__
  library.def("weights(Tensor x, Tensor codes, Tensor scales, Tensor? bias, int bits, int outputs) -> Tensor");
  library.impl("weights", c10::DispatchKey::CPU, weights_op);
#endif
}
