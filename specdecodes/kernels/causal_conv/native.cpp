// The depthwise causal convolution of one token and of a tree, as in naive.py; channels go into lanes.
#include "../native.h"

namespace {
Vector activated(Vector y, int64_t with_silu) { return with_silu ? silu(y) : y; }
} // namespace

// x: rows of `channels` floats, the next node's `stride` on, the next batch row's `batch_stride` on.
// window [rows, channels, taps]; index [rows, count, taps] into window and nodes; weight [channels, taps];
// bias [channels] or null; y [rows, count, channels]
extern "C" void tree_conv(const float *x, const float *window, const int64_t *index, const float *weight,
                          const float *bias, float *y, int64_t stride, int64_t batch_stride, int64_t with_silu,
                          int64_t rows, int64_t count, int64_t channels, int64_t taps) {
    const int64_t blocks = (channels + LANES - 1) / LANES;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t c = block * LANES, left = channels - c;
            Vector above[taps], factors[taps];
            for (int64_t tap = 0; tap < taps; tap++) {
                above[tap] = load_some(window + (row * channels + c) * taps + tap, left, taps);
                factors[tap] = load_some(weight + c * taps + tap, left, taps);
            }
            const Vector added = bias ? load_some(bias + c, left) : Vector{};
            for (int64_t node = 0; node < count; node++) {
                const int64_t *places = index + (row * count + node) * taps;
                Vector sum = added;
                for (int64_t tap = 0; tap < taps; tap++) {
                    const int64_t place = places[tap];
                    sum += factors[tap] * (place < taps ? above[place]
                                                        : load_some(x + row * batch_stride + (place - taps) * stride + c, left));
                }
                store_some(y + (row * count + node) * channels + c, activated(sum, with_silu), left);
            }
        }
}

// window [rows, channels, taps], shifted in place; x [rows, channels], the next row's `stride` on; y [rows, channels]
extern "C" void step_conv(float *window, const float *x, const float *weight, const float *bias, float *y,
                          int64_t stride, int64_t with_silu, int64_t rows, int64_t channels, int64_t taps) {
    const int64_t blocks = (channels + LANES - 1) / LANES;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t c = block * LANES, left = channels - c;
            float *past = window + (row * channels + c) * taps;
            Vector sum = bias ? load_some(bias + c, left) : Vector{};
            for (int64_t tap = 0; tap < taps; tap++) {
                const Vector value = tap + 1 < taps ? load_some(past + tap + 1, left, taps)
                                                    : load_some(x + row * stride + c, left);
                store_some(past + tap, value, left, taps);
                sum += value * load_some(weight + c * taps + tap, left, taps);
            }
            store_some(y + row * channels + c, activated(sum, with_silu), left);
        }
}
