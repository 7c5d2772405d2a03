// What the C++ kernels share: a vector of the processor's width, its exponential, its sigmoid.
#pragma once
#include <cstdint>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
// Unaligned and of GCC's vector extensions: the compiler picks the instructions, and splits what is too wide.
typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4), aligned(4)));

static inline Vector load(const float *p) { return *(const Vector *)p; }
static inline void store(float *p, Vector v) { *(Vector *)p = v; }

// exp(x) = 2^k exp(r) with |r| <= ln(2) / 2 and a polynomial of degree 6 (error below 2 units in the last place).
// Arguments are cut to [-87, 88]; nan stays nan, since a comparison with it is false.
static inline Vector exponential(Vector x) {
    x = x < -87.0f ? Vector{} - 87.0f : x;
    x = x > 88.0f ? Vector{} + 88.0f : x;
    const Vector magic = Vector{} + 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    const Vector k = (x * 1.44269504088896341f + magic) - magic;
    const Vector r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    Vector p = r * 1.38888889e-3f + 8.33333377e-3f;
    p = p * r + 4.16666679e-2f;
    p = p * r + 1.66666672e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Integers power = (__builtin_convertvector(k, Integers) + 127) << 23;
    return p * (Vector)power;
}

static inline Vector silu(Vector x) { return x / (1.0f + exponential(-x)); }

// Lanes beyond `count` read as 0 and are not written; the strided forms take every `step`-th float.
static inline Vector load_some(const float *p, int64_t count, int64_t step = 1) {
    if (count >= LANES && step == 1) return load(p);
    float lanes[LANES] = {};
    if (count >= LANES) // a fixed number of turns is unrolled
        for (int i = 0; i < LANES; i++) lanes[i] = p[i * step];
    else
        for (int i = 0; i < count; i++) lanes[i] = p[i * step];
    return load(lanes);
}

static inline void store_some(float *p, Vector v, int64_t count, int64_t step = 1) {
    if (count >= LANES && step == 1) return store(p, v);
    float lanes[LANES];
    store(lanes, v);
    for (int i = 0; i < LANES && i < count; i++) p[i * step] = lanes[i];
}

static inline float sum_of(Vector v) {
    float lanes[LANES];
    store(lanes, v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

static inline float dot(const float *a, const float *b, int64_t count) {
    Vector sum = {};
    for (int64_t i = 0; i < count; i += LANES) sum += load_some(a + i, count - i) * load_some(b + i, count - i);
    return sum_of(sum);
}
