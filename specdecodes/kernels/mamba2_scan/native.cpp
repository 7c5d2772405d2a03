// The Mamba-2 recurrence over a tree, for one token and along a path, as in naive.py; README.md derives the formulas.
// Letters: B rows, T nodes, H heads, P head dim, G groups, N state dim, D path length.
#include <cmath>
#include <vector>

#include "../native.h"

namespace {
// Turn LANES vectors by their diagonal: swap the off-diagonal blocks of 1, 2, 4, ... lanes.
struct Swap {
    Integers low, high;
    explicit Swap(int width) {
        for (int lane = 0; lane < LANES; lane++) {
            low[lane] = lane & width ? LANES + lane - width : lane;
            high[lane] = lane & width ? LANES + lane : lane + width;
        }
    }
};

template <int WIDTH> void transpose(Vector *rows) {
    static const Swap swap(WIDTH);
    const Integers low = swap.low, high = swap.high;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & WIDTH)) {
            const Vector a = rows[i], b = rows[i + WIDTH];
            rows[i] = __builtin_shuffle(a, b, low);
            rows[i + WIDTH] = __builtin_shuffle(a, b, high);
        }
    if constexpr (2 * WIDTH < LANES) transpose<2 * WIDTH>(rows);
}

// y [count, P] += state [P, N] C^T * factors: the state's rows go into lanes, so that a node costs N multiply-adds a block
void carry(const float *state, int64_t P, int64_t N, const float *C, int64_t stride, const float *factors,
           float *y, int64_t y_stride, int64_t count, float *columns) {
    constexpr int64_t TOGETHER = 6;
    for (int64_t p = 0; p < P; p += LANES) {
        const int64_t left = P - p;
        for (int64_t n = 0; n < N; n += LANES) {
            Vector block[LANES];
            for (int i = 0; i < LANES; i++) block[i] = i < left ? load_some(state + (p + i) * N + n, N - n) : Vector{};
            transpose<1>(block);
            for (int i = 0; i < LANES && n + i < N; i++) store(columns + (n + i) * LANES, block[i]);
        }
        for (int64_t node = 0; node < count; node += TOGETHER) {
            const int64_t some = count - node < TOGETHER ? count - node : TOGETHER;
            Vector sums[TOGETHER] = {};
            if (some == TOGETHER) // with a fixed number the sums stay in registers
                for (int64_t n = 0; n < N; n++)
#pragma GCC unroll 6
                    for (int64_t i = 0; i < TOGETHER; i++) sums[i] += load(columns + n * LANES) * C[(node + i) * stride + n];
            else
                for (int64_t i = 0; i < some; i++)
                    for (int64_t n = 0; n < N; n++) sums[i] += load(columns + n * LANES) * C[(node + i) * stride + n];
            for (int64_t i = 0; i < some; i++) {
                float *out = y + (node + i) * y_stride + p;
                store_some(out, load_some(out, left) + sums[i] * factors[node + i], left);
            }
        }
    }
}

void add(float *y, const float *x, float factor, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES)
        store_some(y + i, load_some(y + i, count - i) + load_some(x + i, count - i) * factor, count - i);
}

// state [P, N] = whole * state + sum over d of factors[d] x_d B_d^T; x [length, P] and B [length, N] lie `stride` apart
template <int TOGETHER>
int64_t advance_some(float *line, float whole, const float *x, const float *B, const float *factors, int64_t stride,
                     int64_t length, int64_t n, int64_t N) {
    for (; n + TOGETHER * LANES <= N; n += TOGETHER * LANES) {
        Vector next[TOGETHER]; // in registers, with a fixed number of them
        for (int i = 0; i < TOGETHER; i++) next[i] = load(line + n + i * LANES) * whole;
        for (int64_t d = 0; d < length; d++) {
            const float factor = x[d * stride] * factors[d];
            for (int i = 0; i < TOGETHER; i++) next[i] += load(B + d * stride + n + i * LANES) * factor;
        }
        for (int i = 0; i < TOGETHER; i++) store(line + n + i * LANES, next[i]);
    }
    return n;
}

void advance(float *state, float whole, const float *x, const float *B, const float *factors, int64_t stride,
             int64_t length, int64_t P, int64_t N) {
    for (int64_t p = 0; p < P; p++) {
        float *line = state + p * N;
        int64_t n = advance_some<4>(line, whole, x + p, B, factors, stride, length, 0, N);
        n = advance_some<1>(line, whole, x + p, B, factors, stride, length, n, N);
        for (; n < N; n++) {
            float next = line[n] * whole;
            for (int64_t d = 0; d < length; d++) next += B[d * stride + n] * (x[d * stride + p] * factors[d]);
            line[n] = next;
        }
    }
}

// window [channels, taps]: the last inputs along the path enter, the oldest leave; inputs [T, channels]
void shift(float *window, const float *inputs, const int64_t *nodes, int64_t length, int64_t channels, int64_t taps) {
    const int64_t kept = length < taps ? taps - length : 0;
    for (int64_t c = 0; c < channels; c++) {
        float *past = window + c * taps;
        for (int64_t tap = 0; tap < kept; tap++) past[tap] = past[tap + length];
        for (int64_t tap = kept; tap < taps; tap++) past[tap] = inputs[nodes[length + tap - taps] * channels + c];
    }
}

float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }
} // namespace

// x [B, T, H, P], Bs and Cs [B, T, G, N]: contiguous but for the distances between nodes and between batch rows;
// dt [B, T, H] step sizes; A [H]; D [H] or null; state [B, H, P, N]; ancestors [B, T, T] bytes; y [B, T, H, P]
extern "C" void mamba2_tree_scan(const float *x, const float *dt, const float *A, const float *Bs, const float *Cs,
                                 const float *D, const float *state, const uint8_t *ancestors, float *y,
                                 int64_t x_stride, int64_t x_row, int64_t B_stride, int64_t B_row, int64_t C_stride,
                                 int64_t C_row, int64_t rows, int64_t T, int64_t H, int64_t P, int64_t G, int64_t N) {
    const int64_t padded = (T + LANES - 1) / LANES * LANES;
    std::vector<float> scores(rows * G * T * padded); // C_i B_j where j is i or above it, else 0
#pragma omp parallel
    {
        std::vector<float> decay(padded), factors(padded), weights(padded), steps(padded);
        std::vector<float> columns(N * LANES);
#pragma omp for schedule(static) collapse(3)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t g = 0; g < G; g++)
                for (int64_t i = 0; i < T; i++)
                    for (int64_t j = 0; j < T; j++)
                        if (ancestors[(row * T + i) * T + j])
                            scores[((row * G + g) * T + i) * padded + j] = dot(
                                Cs + row * C_row + i * C_stride + g * N, Bs + row * B_row + j * B_stride + g * N, N);
#pragma omp for schedule(static) collapse(2)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t h = 0; h < H; h++) {
                const int64_t g = h / (H / G);
                const float *mine = x + row * x_row + h * P;
                float *out = y + (row * T * H + h) * P;
                for (int64_t i = 0; i < T; i++) {
                    const uint8_t *above = ancestors + (row * T + i) * T;
                    steps[i] = dt[(row * T + i) * H + h];
                    decay[i] = 0;
                    for (int64_t j = 0; j < T; j++)
                        if (above[j]) decay[i] += dt[(row * T + j) * H + h] * A[h];
                }
                for (int64_t i = 0; i < T; i += LANES) store(&factors[i], exponential(load(&decay[i])));
                for (int64_t i = 0; i < T; i++) {
                    const float *score = &scores[((row * G + g) * T + i) * padded];
                    const uint8_t *above = ancestors + (row * T + i) * T;
                    for (int64_t j = 0; j < T; j += LANES)
                        store(&weights[j], exponential(decay[i] - load(&decay[j])) * load(score + j) * load(&steps[j]));
                    float *line = out + i * H * P;
                    for (int64_t p = 0; p < P; p++) line[p] = D ? D[h] * mine[i * x_stride + p] : 0.0f;
                    for (int64_t j = 0; j < T; j++)
                        if (above[j]) add(line, mine + j * x_stride, weights[j], P);
                }
                carry(state + (row * H + h) * P * N, P, N, Cs + row * C_row + g * N, C_stride, factors.data(), out,
                      H * P, T, columns.data());
            }
    }
}

// state [R, H, P, N], advanced in place; x [R, H, P]; dt [R, H]; A [H]; Bs, Cs [R, G, N]; D [H] or null; y [R, H, P];
// x, Bs and Cs are contiguous but for the distances between rows
extern "C" void mamba2_step(float *state, const float *x, const float *dt, const float *A, const float *Bs,
                            const float *Cs, const float *D, float *y, int64_t x_stride, int64_t B_stride,
                            int64_t C_stride, int64_t rows, int64_t H, int64_t P, int64_t G, int64_t N) {
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t h = 0; h < H; h++) {
            const float step = dt[row * H + h], decay = expf(step * A[h]);
            const float *mine = x + row * x_stride + h * P, *B = Bs + row * B_stride + h / (H / G) * N;
            const float *C = Cs + row * C_stride + h / (H / G) * N;
            for (int64_t p = 0; p < P; p++) {
                float *line = state + ((row * H + h) * P + p) * N;
                Vector sum = {};
                for (int64_t n = 0; n < N; n += LANES) {
                    const Vector next = load_some(line + n, N - n) * decay + load_some(B + n, N - n) * (step * mine[p]);
                    store_some(line + n, next, N - n);
                    sum += next * load_some(C + n, N - n);
                }
                y[(row * H + h) * P + p] = sum_of(sum) + (D ? D[h] * mine[p] : 0.0f);
            }
        }
}

// Layers L of one shape, along a path, in place: windows [L, B, channels, taps], states [L, B, H, P, N].
// inputs [L, B, T, channels] raw conv inputs; dt [L, B, T, H] raw step sizes; path [B, D], padded with -1;
// weight [taps, L, H P + G N]; bias [L, H P + G N] or null; A [L, H]; dt_bias [L, H] or null
extern "C" void mamba2_jump(float *windows, float *states, const float *inputs, const float *dt, const int64_t *path,
                            const float *weight, const float *bias, const float *A, const float *dt_bias,
                            int64_t with_softplus, int64_t with_silu, int64_t layers, int64_t rows, int64_t T,
                            int64_t D, int64_t H, int64_t P, int64_t G, int64_t N, int64_t channels, int64_t taps) {
    const int64_t needed = H * P + G * N, blocks = (needed + LANES - 1) / LANES;
    std::vector<float> mixed(layers * rows * D * needed); // x and B after the conv, along the path
    std::vector<int64_t> lengths(rows);
    for (int64_t row = 0; row < rows; row++)
        while (lengths[row] < D && path[row * D + lengths[row]] >= 0) lengths[row]++;
#pragma omp parallel
    {
#pragma omp for schedule(static) collapse(3)
        for (int64_t layer = 0; layer < layers; layer++)
            for (int64_t row = 0; row < rows; row++)
                for (int64_t block = 0; block < blocks; block++) {
                    const int64_t base = layer * rows + row, c = block * LANES, left = needed - c;
                    Vector above[taps], factors[taps];
                    for (int64_t tap = 0; tap < taps; tap++) {
                        above[tap] = load_some(windows + (base * channels + c) * taps + tap, left, taps);
                        factors[tap] = load_some(weight + (tap * layers + layer) * needed + c, left);
                    }
                    const Vector added = bias ? load_some(bias + layer * needed + c, left) : Vector{};
                    for (int64_t d = 0; d < lengths[row]; d++) {
                        Vector sum = added;
                        for (int64_t tap = 0; tap < taps; tap++) {
                            const int64_t from = d + tap + 1 - taps; // negative: above the root
                            sum += factors[tap] *
                                   (from < 0 ? above[taps + from]
                                             : load_some(inputs + (base * T + path[row * D + from]) * channels + c, left));
                        }
                        store_some(&mixed[(base * D + d) * needed + c], with_silu ? silu(sum) : sum, left);
                    }
                }
        // Behind the barrier: nobody reads the windows any more.
#pragma omp for schedule(static) collapse(3) nowait
        for (int64_t layer = 0; layer < layers; layer++)
            for (int64_t row = 0; row < rows; row++)
                for (int64_t h = 0; h < H; h++) {
                    const int64_t base = layer * rows + row, length = lengths[row];
                    float decay[D + 1], factors[D];
                    decay[0] = 0;
                    for (int64_t d = 0; d < length; d++) {
                        float step = dt[(base * T + path[row * D + d]) * H + h] + (dt_bias ? dt_bias[layer * H + h] : 0.0f);
                        step = with_softplus ? softplus(step) : step;
                        decay[d + 1] = decay[d] + step * A[layer * H + h];
                        factors[d] = step;
                    }
                    for (int64_t d = 0; d < length; d++) factors[d] *= expf(decay[length] - decay[d + 1]);
                    const float *x = &mixed[base * D * needed + h * P];
                    const float *B = &mixed[base * D * needed + H * P + h / (H / G) * N];
                    advance(states + (base * H + h) * P * N, expf(decay[length]), x, B, factors, needed, length, P, N);
                }
#pragma omp for schedule(static) collapse(2)
        for (int64_t layer = 0; layer < layers; layer++)
            for (int64_t row = 0; row < rows; row++)
                shift(windows + (layer * rows + row) * channels * taps, inputs + (layer * rows + row) * T * channels,
                      path + row * D, lengths[row], channels, taps);
    }
}
