// y [rows, out] = x [rows, in] W^T + b for few rows: every weight is read once, from blocks laid out for that.
// README.md says why. Each element is summed in an order that does not depend on the number of rows.
#include <vector>

#include "../native.h"

#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TILES
#endif

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

// Weights that bfloat16 holds exactly: [out / WIDE, in / DEEP, BLOCKS, DEEP / 2, SIDE, 2], padded with zeros. A chunk of
// DEEP inputs and SIDE outputs is what a tile register takes, and 32-bit lanes of two neighbouring inputs otherwise.
namespace {
typedef uint16_t Half;
constexpr int64_t AHEAD = 4; // chunks that lie ahead of the sums, on their way into the second cache
constexpr int SIDE = 16, DEEP = 32, BLOCKS = 3, WIDE = BLOCKS * SIDE;
constexpr int64_t CHUNK = SIDE * DEEP;

struct Halves { // what all forms are given: group by group of WIDE outputs
    const float *x;
    const Half *w;
    const float *bias;
    float *y;
    int64_t rows, in, out;

    int64_t steps() const { return (in + DEEP - 1) / DEEP; }
    int64_t groups() const { return (out + WIDE - 1) / WIDE; }
    const Half *weights(int64_t group) const { return w + group * steps() * BLOCKS * CHUNK; }
    // sums [rows, SIDE] of the outputs from `first` on
    void put(const float *sums, int64_t row, int64_t count, int64_t first) const {
        const int64_t width = out - first < SIDE ? out - first : SIDE;
        for (int64_t i = 0; i < width; i += LANES) {
            const Vector added = bias ? load_some(bias + first + i, width - i) : Vector{};
            for (int64_t t = 0; t < count; t++)
                store_some(y + (row + t) * out + first + i, load(sums + t * SIDE + i) + added, width - i);
        }
    }
};

// Without tile registers: a bfloat16 is the upper half of a float.
constexpr int PARTS = SIDE / LANES, HALF_TILE = PARTS == 1 ? 13 : 5;

template <int ROWS> void half_tile(const Halves &all, int64_t row, const Half *w, int64_t first) {
    Vector sums[ROWS][PARTS] = {};
    for (int64_t step = 0; step < all.steps(); step++) {
        const int64_t k = step * DEEP, pairs = all.in - k < DEEP ? (all.in - k) / 2 : DEEP / 2;
        const Half *pair = w + step * BLOCKS * CHUNK;
        const auto add = [&](int64_t at, bool odd) {
            for (int part = 0; part < PARTS; part++) {
                const Integers both = *(const Integers *)(pair + 2 * part * LANES);
                const Integers bits = odd ? both & -65536 : both << 16;
#pragma GCC unroll 16
                for (int t = 0; t < ROWS; t++) sums[t][part] += (Vector)bits * all.x[(row + t) * all.in + at];
            }
        };
        for (int64_t p = 0; p < pairs; p++, pair += 2 * SIDE) {
            __builtin_prefetch(pair + 8 * BLOCKS * CHUNK, 0, 2);
            add(k + 2 * p, false);
            add(k + 2 * p + 1, true);
        }
        if (2 * pairs < DEEP && (all.in - k) % 2) add(k + 2 * pairs, false);
    }
    float found[ROWS * SIDE];
    for (int t = 0; t < ROWS; t++)
        for (int part = 0; part < PARTS; part++) store(found + t * SIDE + part * LANES, sums[t][part]);
    all.put(found, row, ROWS, first);
}

template <int ROWS> void half_some(int64_t rows, const Halves &all, int64_t row, const Half *w, int64_t first) {
    if (rows == ROWS) return half_tile<ROWS>(all, row, w, first);
    if constexpr (ROWS > 1) half_some<ROWS - 1>(rows, all, row, w, first);
}

void half_vectors(const Halves &all) {
    const int64_t tiles = (all.rows + HALF_TILE - 1) / HALF_TILE, each = all.rows ? (all.rows + tiles - 1) / tiles : 1;
#pragma omp parallel for schedule(static)
    for (int64_t group = 0; group < all.groups(); group++)
        for (int64_t row = 0; row < all.rows; row += each)
            for (int block = 0; block < BLOCKS; block++)
                half_some<HALF_TILE>(all.rows - row < each ? all.rows - row : each, all, row,
                                     all.weights(group) + block * CHUNK, group * WIDE + block * SIDE);
}

#ifdef TILES
// The kernel lets a process use the tile registers only after it has asked.
bool tiles_permitted() {
    static const bool permitted = syscall(SYS_arch_prctl, 0x1023, 18) == 0; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return permitted;
}

struct __attribute__((aligned(64))) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
    // 0 to 2: sums [count, SIDE]; 3 to 5: weights [DEEP / 2, SIDE, 2]; 6 and 7: a part of x [count, DEEP]
    explicit TileConfig(int64_t count) {
        for (int tile = 0; tile < 8; tile++) bytes[tile] = 64, rows[tile] = tile >= 3 && tile <= 5 ? DEEP / 2 : count;
    }
};

// The upper halves of `bits`
void put_upper(Half *p, Integers bits, int64_t count) {
    typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
    typedef Half Upper __attribute__((vector_size(LANES * 2), aligned(2)));
    const Upper upper = __builtin_convertvector((Words)bits >> 16, Upper);
    if (count >= LANES)
        *(Upper *)p = upper;
    else
        for (int lane = 0; lane < count; lane++) p[lane] = upper[lane];
}

// x = high + middle + low, exactly: the upper 8 bits of the mantissa, the next 8, the last 8. Infinity has no rest.
void split(const float *x, int64_t count, Half *high, Half *middle, Half *low) {
    for (int64_t i = 0; i < count; i += LANES) {
        const Vector all = load_some(x + i, count - i);
        const Integers first = (Integers)all & -65536;
        const Vector left = ((Integers)all & 0x7fffffff) == 0x7f800000 ? Vector{} : all - (Vector)first;
        const Integers second = (Integers)left & -65536;
        const Integers third = (Integers)(left - (Vector)second);
        put_upper(high + i, first, count - i);
        put_upper(middle + i, second, count - i);
        put_upper(low + i, third, count - i);
    }
}

// Sums [BLOCKS][count, SIDE] of one group; the parts of x are [count, padded], `apart` elements from each other.
// Three independent sums hide most of the latency of a product of tiles.
void half_group(const Half *w, int64_t steps, const Half *x, int64_t padded, int64_t apart, float *sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int64_t step = 0; step < steps; step++, w += BLOCKS * CHUNK, x += DEEP) {
        for (int64_t line = 0; line < BLOCKS * CHUNK; line += 32) __builtin_prefetch(w + AHEAD * BLOCKS * CHUNK + line, 0, 2);
        _tile_loadd(6, x, padded * 2);
        _tile_loadd(3, w, 64);
        _tile_dpbf16ps(0, 6, 3);
        _tile_loadd(4, w + CHUNK, 64);
        _tile_dpbf16ps(1, 6, 4);
        _tile_loadd(5, w + 2 * CHUNK, 64);
        _tile_dpbf16ps(2, 6, 5);
        _tile_loadd(7, x + apart, padded * 2);
        _tile_dpbf16ps(0, 7, 3);
        _tile_dpbf16ps(1, 7, 4);
        _tile_dpbf16ps(2, 7, 5);
        _tile_loadd(6, x + 2 * apart, padded * 2);
        _tile_dpbf16ps(0, 6, 3);
        _tile_dpbf16ps(1, 6, 4);
        _tile_dpbf16ps(2, 6, 5);
    }
    _tile_stored(0, sums, SIDE * 4);
    _tile_stored(1, sums + SIDE * SIDE, SIDE * 4);
    _tile_stored(2, sums + 2 * SIDE * SIDE, SIDE * 4);
}

void half_tiles(const Halves &all) {
    const int64_t padded = all.steps() * DEEP, apart = all.rows * padded;
    static thread_local std::vector<Half> kept; // of the calling thread, all of the team read it
    if (int64_t(kept.size()) < 3 * apart) kept.resize(3 * apart);
    Half *const parts = kept.data();
    // A microsecond for a tree; in a team it would be one more barrier, which is dear where others want the processors.
#pragma omp parallel for schedule(static) if (all.rows > 2 * SIDE)
    for (int64_t row = 0; row < all.rows; row++) {
        Half *mine = parts + row * padded;
        split(all.x + row * all.in, all.in, mine, mine + apart, mine + 2 * apart);
        for (int part = 0; part < 3; part++)
            for (int64_t k = all.in; k < padded; k++) mine[part * apart + k] = 0;
    }
#pragma omp parallel
    {
        int64_t configured = 0;
#pragma omp for schedule(static) nowait
        for (int64_t group = 0; group < all.groups(); group++)
            for (int64_t row = 0; row < all.rows; row += SIDE) {
                const int64_t count = all.rows - row < SIDE ? all.rows - row : SIDE;
                if (count != configured) {
                    const TileConfig config(configured = count);
                    _tile_loadconfig(&config);
                }
                alignas(64) float sums[BLOCKS * SIDE * SIDE];
                half_group(all.weights(group), all.steps(), parts + row * padded, padded, apart, sums);
                for (int block = 0; block < BLOCKS; block++) {
                    const int64_t first = group * WIDE + block * SIDE;
                    if (first < all.out) all.put(sums + block * SIDE * SIDE, row, count, first);
                }
            }
        if (configured) _tile_release();
    }
}
#endif
} // namespace

// 1 where the processor has tile registers for bfloat16 and this process may use them
extern "C" int64_t linear_has_tiles() {
#ifdef TILES
    return tiles_permitted();
#else
    return 0;
#endif
}

// As linear, with weights in bfloat16 (see above)
extern "C" void linear_half(const float *x, const Half *w, const float *bias, float *y, int64_t rows, int64_t in,
                            int64_t out, int64_t with_tiles) {
    const Halves all{x, w, bias, y, rows, in, out};
#ifdef TILES
    if (with_tiles) return half_tiles(all);
#endif
    half_vectors(all);
}
