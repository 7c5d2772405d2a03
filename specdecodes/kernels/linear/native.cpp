// y [rows, out] = x [rows, in] W^T + b for few rows: every weight is read once, from blocks laid out for that.
// README.md says why. Each element is summed over `in` in order, whatever the number of rows.
#include "../native.h"

namespace {
constexpr int BLOCK = 2 * LANES; // outputs of a block
#if defined(__AVX512F__)
constexpr int TILE = 13; // rows of a tile: 26 sums, 2 weights and a factor fit 32 registers
#else
constexpr int TILE = 6; // of 16 registers
#endif
constexpr int64_t NEAR = 32, FAR = 512; // rows of a block that lie ahead of the sums: into the first cache, the second

template <int ROWS>
void tile(const float *__restrict x, int64_t in, const float *__restrict w, const float *bias, float *__restrict y,
          int64_t out, int64_t width) {
    Vector low[ROWS] = {}, high[ROWS] = {};
    for (int64_t k = 0; k < in; k++, w += BLOCK) {
        const Vector a = load(w), b = load(w + LANES);
        for (int part = 0; part < BLOCK; part += 16) {
            __builtin_prefetch(w + NEAR * BLOCK + part, 0, 3);
            __builtin_prefetch(w + FAR * BLOCK + part, 0, 2);
        }
#pragma GCC unroll 16
        for (int t = 0; t < ROWS; t++) {
            low[t] += a * x[t * in + k];
            high[t] += b * x[t * in + k];
        }
    }
    for (int t = 0; t < ROWS; t++) {
        float sums[BLOCK];
        store(sums, low[t]);
        store(sums + LANES, high[t]);
        for (int64_t i = 0; i < width; i++) y[t * out + i] = bias ? sums[i] + bias[i] : sums[i];
    }
}

template <int ROWS>
void some(int64_t rows, const float *x, int64_t in, const float *w, const float *bias, float *y, int64_t out,
          int64_t width) {
    if (rows == ROWS) return tile<ROWS>(x, in, w, bias, y, out, width);
    if constexpr (ROWS > 1) some<ROWS - 1>(rows, x, in, w, bias, y, out, width);
}
} // namespace

extern "C" int64_t linear_block() { return BLOCK; }

// x [rows, in]; w [out / BLOCK, in, BLOCK], padded with zeros; bias [out] or null; y [rows, out]
extern "C" void linear(const float *x, const float *w, const float *bias, float *y, int64_t rows, int64_t in,
                       int64_t out) {
    const int64_t blocks = (out + BLOCK - 1) / BLOCK;
    const int64_t tiles = (rows + TILE - 1) / TILE, each = rows ? (rows + tiles - 1) / tiles : 1;
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t start = block * BLOCK, width = out - start < BLOCK ? out - start : BLOCK;
        for (int64_t row = 0; row < rows; row += each)
            some<TILE>(rows - row < each ? rows - row : each, x + row * in, in, w + start * in,
                       bias ? bias + start : nullptr, y + row * out + start, out, width);
    }
}
