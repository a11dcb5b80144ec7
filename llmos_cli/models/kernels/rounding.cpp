// Rounding weights one after another, each making up for those before it, and the search for the scales they are rounded on.
//
// Letters: I inputs (rows here), O outputs, G groups of g inputs that share a scale, C scales that are tried for each.
// Written in the compiler's own vectors, so for any processor. Sums run in the order of the rows: same inputs, same bits, for any
// number of threads. `kernels/rounding.py` compiles this file and says what the two functions compute.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t LANES = 16, WIDE = 4, TILE = LANES * WIDE, ROWS = 4, MOST = 128;
typedef float Lanes __attribute__((vector_size(64)));
typedef float Loose __attribute__((vector_size(64), aligned(4)));  // anywhere in memory

inline Lanes all(float value) { return Lanes{} + value; }
inline Lanes load(const float* from, int64_t left) {
  if (left >= LANES) return *reinterpret_cast<const Loose*>(from);
  Lanes read{};
  if (left > 0) std::memcpy(&read, from, left * sizeof(float));
  return read;
}
inline void store(float* to, Lanes value, int64_t left) {
  if (left >= LANES) *reinterpret_cast<Loose*>(to) = value;
  else if (left > 0) std::memcpy(to, &value, left * sizeof(float));
}
// To the nearest whole number between the ends, which are whole; halves to even; NaN stays.
inline Lanes rounded(Lanes value, Lanes low, Lanes high) {
  value = value < low ? low : value;
  value = value > high ? high : value;
  const Lanes shift = all(12582912.f);  // 1.5 * 2^23: fp32 holds no fractions from there on
  return (value + shift) - shift;
}

struct Turn {
  const float *wanted, *start, *carry, *keep, *scale, *inverse, *low, *high;
  const int64_t* group;
  float *steps, *left;
  int64_t rows, outputs, stride;
  float least, most;
};

// Row j of a tile, given all that the rows before it add.
inline void finish(const Turn& t, int64_t j, int64_t at, Lanes* sum, Lanes (*left)[WIDE]) {
  for (int64_t l = 0, o = at; l < WIDE; l++, o += LANES) {
    int64_t here = j * t.outputs + o, grouped = t.group[j] * t.outputs + o, rest = t.outputs - o;
    Lanes low = t.low ? load(t.low + grouped, rest) : all(t.least), high = t.high ? load(t.high + grouped, rest) : all(t.most);
    Lanes step = rounded(sum[l] * load(t.inverse + grouped, rest), low, high);
    if (t.keep) step *= load(t.keep + here, rest);
    left[j][l] = load(t.start + here, rest) - step * load(t.scale + grouped, rest);
    store(t.steps + here, step, rest);
    store(t.left + here, left[j][l], rest);
  }
}

void tile(const Turn& t, int64_t at) {
  Lanes left[MOST][WIDE];
  for (int64_t first = 0; first < t.rows; first += ROWS) {
    int64_t now = std::min(ROWS, t.rows - first);
    Lanes sum[ROWS][WIDE];
    const float* carry[ROWS];
    for (int64_t r = 0; r < ROWS; r++) {
      int64_t row = first + std::min(r, now - 1);
      carry[r] = t.carry + row * t.stride;
      for (int64_t l = 0; l < WIDE; l++) sum[r][l] = load(t.wanted + row * t.outputs + at + l * LANES, t.outputs - at - l * LANES);
    }
    for (int64_t i = 0; i < first; i++)
      for (int64_t r = 0; r < ROWS; r++)
        for (int64_t l = 0; l < WIDE; l++) sum[r][l] += carry[r][i] * left[i][l];
    for (int64_t r = 0; r < now; r++) {
      for (int64_t i = first; i < first + r; i++)
        for (int64_t l = 0; l < WIDE; l++) sum[r][l] += carry[r][i] * left[i][l];
      finish(t, first + r, at, sum[r], left);
    }
  }
}

}  // namespace

// Row j of wanted [rows, O] plus the carry [rows, stride] (below the diagonal) of what rows before it left, to the nearest step of
// its group's scale [G, O]; left = start - step * scale. At most 128 rows. keep [rows, O], low and high [G, O] may be absent.
extern "C" void llmos_in_turn(const float* wanted, const float* start, const float* carry, const float* keep, const float* scale,
                              const float* inverse, const float* low, const float* high, const int64_t* group, float* steps, float* left,
                              int64_t rows, int64_t outputs, int64_t stride, float least, float most, int64_t threads) {
  Turn t{wanted, start, carry, keep, scale, inverse, low, high, group, steps, left, rows, outputs, stride, least, most};
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t at = 0; at < outputs; at += TILE) tile(t, at);
}

// Of the C scales [groups, C] tried for each group of g weights (C a multiple of 16), the first of least error, each weight's square weighed by
// importance [G, g], where group r is the (r modulo G)th of its output. low and high [groups, C] may be absent.
extern "C" void llmos_search(const float* weight, const float* importance, const float* scale, const float* low, const float* high, int32_t* best,
                             int64_t groups, int64_t G, int64_t g, int64_t C, float least, float most, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t r = 0; r < groups; r++) {
    const float *w = weight + r * g, *weighed = importance + r % G * g;
    float least_error = __builtin_inff();
    best[r] = 0;
    for (int64_t c = 0; c < C; c += LANES) {
      int64_t here = r * C + c;
      Lanes by = load(scale + here, LANES), inverse = 1.f / by, error{};
      Lanes from = low ? load(low + here, LANES) : all(least), to = high ? load(high + here, LANES) : all(most);
      for (int64_t i = 0; i < g; i++) {
        Lanes exact = w[i] * inverse, off = rounded(exact, from, to) - exact;
        error += weighed[i] * (off * off);
      }
      error *= by * by;
      for (int64_t l = 0; l < LANES; l++)
        if (error[l] < least_error) least_error = error[l], best[r] = int32_t(c + l);
    }
  }
}
