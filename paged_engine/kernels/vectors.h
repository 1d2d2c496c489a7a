// Sixteen floats that are computed with at once, on any processor.
//
// The compiler turns a `Vec` into one AVX-512 register, two of AVX2 or four of SSE and NEON; so one
// source serves them all, and reads like the formula it computes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

constexpr int LANES = 16;
typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));

// A number of 16 bits: the upper half of a float.
struct BFloat16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void store(float value, float* place) { *place = value; }

// Rounds to the nearest, ties to even, and keeps NaN a NaN, as torch does.
inline void store(float value, BFloat16* place) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (std::isnan(value)) {
        place->bits = 0x7FC0;
    } else {
        place->bits = uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    }
}

inline Vec load(const float* from) {
    Vec result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

inline void put(Vec value, float* to) { std::memcpy(to, &value, sizeof value); }

inline Vec all(float value) { return Vec{} + value; }

inline float largest(Vec v) {
    float best = v[0];
    for (int i = 1; i < LANES; i++) best = v[i] > best ? v[i] : best;
    return best;
}

inline float sum(Vec v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

// e to the power of each lane, for lanes of at most 0, to about two units in the last place.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; a polynomial gives e^r, and n goes into the exponent's bits
// (the method of Cephes' expf).
inline Vec exp_of(Vec x) {
    Vec clipped = x < all(-87.0f) ? all(-87.0f) : x;
    Vec scaled = clipped * 1.44269504088896341f - 0.5f;  // minus: towards zero then rounds down
    Ints n = __builtin_convertvector(scaled, Ints);
    Vec whole = __builtin_convertvector(n, Vec);
    Vec r = clipped - whole * 0.693359375f + whole * 2.12194440e-4f;
    Vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Ints bits = (n + 127) << 23;
    Vec power;
    std::memcpy(&power, &bits, sizeof power);
    Vec result = p * power;
    return x < all(-87.0f) ? all(0.0f) : result;
}
