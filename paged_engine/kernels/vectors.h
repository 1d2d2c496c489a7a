// Sixteen floats that are computed with at once, on any processor.
//
// The compiler turns a `Vec` into one AVX-512 register, two of AVX2 or four of SSE and NEON; so one
// source serves them all, and reads like the formula it computes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

constexpr int LANES = 16;
typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

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

inline Vec load(const BFloat16* from) {
#ifdef __AVX512F__
    // one instruction, which GCC 12 does not find for the lines below
    Ints wide = Ints(_mm512_cvtepu16_epi32(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#else
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    Ints wide = __builtin_convertvector(halves, Ints);
#endif
    Ints bits = wide << 16;
    Vec result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void put(Vec value, float* to) { std::memcpy(to, &value, sizeof value); }

// As `store` does, sixteen at once.
inline void put(Vec value, BFloat16* to) {
    Ints bits;
    std::memcpy(&bits, &value, sizeof bits);
    Ints rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    rounded = value == value ? rounded : Ints{} + 0x7FC0;
    Halves halves = __builtin_convertvector(rounded, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

// The first `count` of sixteen; the rest are zero, and are not read.
template <typename T>
inline Vec load(const T* from, int64_t count) {
    if (count >= LANES) return load(from);
    Vec result = {};
    for (int64_t i = 0; i < count; i++) result[i] = to_float(from[i]);
    return result;
}

template <typename T>
inline void put(Vec value, T* to, int64_t count) {
    if (count >= LANES) return put(value, to);
    for (int64_t i = 0; i < count; i++) store(value[i], to + i);
}

inline Vec all(float value) { return Vec{} + value; }

// Lane i is a's or b's, as `Pick` says: 0 to 15 are a's lanes, 16 to 31 are b's.
typedef Ints Pick;

inline Vec shuffled(Vec a, Vec b, Pick pick) {
#ifdef __clang__
    Vec result;
    for (int i = 0; i < LANES; i++) result[i] = pick[i] < LANES ? a[pick[i]] : b[pick[i] - LANES];
    return result;
#else
    return __builtin_shuffle(a, b, pick);
#endif
}

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// Folds sixteen lanes into one: eight onto eight, four onto four, and so on.
#define FOLD(v, combine)                                                                   \
    {                                                                                      \
        v = combine(v, shuffled(v, v, Pick{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7})); \
        v = combine(v, shuffled(v, v, Pick{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11})); \
        v = combine(v, shuffled(v, v, Pick{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13})); \
        v = combine(v, shuffled(v, v, Pick{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14})); \
    }

inline Vec added(Vec a, Vec b) { return a + b; }

inline float largest(Vec v) {
    FOLD(v, larger)
    return v[0];
}

inline float sum(Vec v) {
    FOLD(v, added)
    return v[0];
}

// Turns sixteen rows of sixteen into columns.
//
// Four times the upper eight rows are dealt between the lower eight like two halves of a pack of
// cards: each time one bit of a number's row becomes a bit of its column.
inline void transpose(Vec rows[LANES]) {
    const Pick low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const Pick high = low + 8;
    for (int round = 0; round < 4; round++) {
        Vec dealt[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            dealt[2 * i] = shuffled(rows[i], rows[i + LANES / 2], low);
            dealt[2 * i + 1] = shuffled(rows[i], rows[i + LANES / 2], high);
        }
        std::memcpy(rows, dealt, sizeof dealt);
    }
}

// The sums of sixteen rows, one in each lane.
//
// Dealt as in `transpose`; but what lies side by side afterwards belongs to two rows and is added up
// at once, so that each round leaves half as many.
inline Vec sums(Vec rows[LANES]) {
    const Pick low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const Pick high = low + 8;
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            Vec a = rows[i], b = rows[i + half];
            rows[i] = shuffled(a, b, low) + shuffled(a, b, high);
        }
    }
    return rows[0];
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
