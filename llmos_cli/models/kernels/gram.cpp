// Sums of products over rows, X^T Y, of bf16 values with fp32 sums: what torch computes on CPUs only after widening both to fp32.
//
// Letters: N rows, I columns of X and of Y. Rows are taken in pairs, as AVX-512's dpbf16ps multiplies them: a matrix is packed once into
// panels of 64 columns, [I/64, N/2, 64] pairs. A 64 x 64 tile of the result is one thread's, its sums in the order of the rows: same
// inputs, same bits, for any number of threads. `kernels/gram.py` compiles this file.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <memory>

namespace {

constexpr int64_t TILE = 64, ROWS = 4, DEEP = 256;  // pairs: two panels of 64 KiB stay in the second cache

struct Free { void operator()(uint32_t* p) const { _mm_free(p); } };
using Pairs = std::unique_ptr<uint32_t[], Free>;

Pairs packed(const uint16_t* x, int64_t N, int64_t I, int64_t threads) {
  int64_t pairs = (N + 1) / 2, panels = (I + TILE - 1) / TILE;
  Pairs to(static_cast<uint32_t*>(_mm_malloc(panels * pairs * TILE * sizeof(uint32_t), 64)));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t panel = 0; panel < panels; panel++)
    for (int64_t p = 0; p < pairs; p++)
      for (int64_t l = 0; l < TILE; l += 16) {
        int64_t at = panel * TILE + l, left = I - at;
        __mmask16 mask = left >= 16 ? 0xffff : left <= 0 ? 0 : (1 << left) - 1, second = 2 * p + 1 < N ? mask : 0;
        __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x + 2 * p * I + at));
        __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, x + (2 * p + 1) * I + at));
        _mm512_store_si512(&to[(panel * pairs + p) * TILE + l], _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
  return to;
}

void four_rows(const uint32_t* x, const uint32_t* y, int64_t pairs, float* sum) {
  __m512 total[ROWS][4];
  for (int64_t r = 0; r < ROWS; r++) for (int64_t l = 0; l < 4; l++) total[r][l] = _mm512_load_ps(sum + r * TILE + 16 * l);
  for (int64_t p = 0; p < pairs; p++, x += TILE, y += TILE)
    for (int64_t r = 0; r < ROWS; r++) {
      __m512bh row = (__m512bh)_mm512_set1_epi32(x[r]);
      for (int64_t l = 0; l < 4; l++) total[r][l] = _mm512_dpbf16_ps(total[r][l], row, (__m512bh)_mm512_load_si512(y + 16 * l));
    }
  for (int64_t r = 0; r < ROWS; r++) for (int64_t l = 0; l < 4; l++) _mm512_store_ps(sum + r * TILE + 16 * l, total[r][l]);
}

}  // namespace

// sum [I, I] += X^T Y; without y X^T X, of which only the tiles on and below the diagonal are multiplied out.
extern "C" void llmos_gram(const uint16_t* x, const uint16_t* y, float* sum, int64_t N, int64_t I, int64_t threads) {
  int64_t pairs = (N + 1) / 2, panels = (I + TILE - 1) / TILE;
  Pairs of_x = packed(x, N, I, threads), of_y = y ? packed(y, N, I, threads) : Pairs();
  const uint32_t* right = y ? of_y.get() : of_x.get();
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t unit = 0; unit < panels * panels; unit++) {
    int64_t i = unit / panels * TILE, j = unit % panels * TILE;
    if (!y && j > i) continue;
    alignas(64) float tile[TILE * TILE] = {};
    for (int64_t first = 0; first < pairs; first += DEEP)
      for (int64_t r = 0; r < TILE; r += ROWS)
        four_rows(&of_x[i * pairs + first * TILE + r], right + j * pairs + first * TILE, std::min(DEEP, pairs - first), tile + r * TILE);
    for (int64_t r = 0; r < std::min(TILE, I - i); r++)
      for (int64_t c = 0; c < std::min(TILE, I - j); c++) {
        float& here = sum[(i + r) * I + j + c];
        here += tile[r * TILE + c];
        if (!y && j < i) sum[(j + c) * I + i + r] = here;
      }
  }
}
