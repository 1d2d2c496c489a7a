// As many floats as one register of the processor holds, which it computes with at once.
//
// The compiler turns a `Vec` into a register of AVX-512, AVX2, or SSE and NEON; so one source serves
// them all, and reads like the formula it computes.  Wider ones would work too, but GCC moves the
// lanes of what is wider than a register one by one.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

// Makes a kernel of `KERNEL<T>(CALL)` for each type of numbers.  All kernels have the same
// signature, so that they can be listed and called one after the other; see calls.cpp.
#define FOR_BOTH(KERNEL, CALL)                                      \
    extern "C" int64_t KERNEL##_float(const void* call) {           \
        return KERNEL<float>(*static_cast<const CALL*>(call));      \
    }                                                               \
    extern "C" int64_t KERNEL##_bfloat16(const void* call) {        \
        return KERNEL<BFloat16>(*static_cast<const CALL*>(call));   \
    }

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
    // one instruction, which GCC 12 does not find for the last lines
#if defined(__AVX512F__)
    Ints wide = Ints(_mm512_cvtepu16_epi32(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__AVX2__)
    Ints wide = Ints(_mm256_cvtepu16_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
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

// As `store` does, all at once.  The processor's own instruction takes what is too small for a normal
// number for zero.
inline void put(Vec value, BFloat16* to) {
#ifdef __AVX512BF16__
    const __m256bh halves = _mm512_cvtneps_pbh(__m512(value));
    std::memcpy(to, &halves, sizeof halves);
#else
    Ints bits;
    std::memcpy(&bits, &value, sizeof bits);
    Ints rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    rounded = value == value ? rounded : Ints{} + 0x7FC0;
    Halves halves = __builtin_convertvector(rounded, Halves);
    std::memcpy(to, &halves, sizeof halves);
#endif
}

// Two registers to places that follow one another.
inline void put(Vec first, Vec second, float* to) {
    put(first, to);
    put(second, to + LANES);
}

// At once where that is possible: a line of the cache that is written whole is not read before.
inline void put(Vec first, Vec second, BFloat16* to) {
#ifdef __AVX512BF16__
    const __m512bh halves = _mm512_cvtne2ps_pbh(__m512(second), __m512(first));
    std::memcpy(to, &halves, sizeof halves);
#else
    put(first, to);
    put(second, to + LANES);
#endif
}

// The first `count` lanes; the rest are zero, and are not read.
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

// In lane i what `of(i)` says.
template <typename Of, int... LANE>
constexpr Ints lanes_of(Of of, std::integer_sequence<int, LANE...>) {
    return Ints{of(LANE)...};
}
template <typename Of>
constexpr Ints lanes_of(Of of) {
    return lanes_of(of, std::make_integer_sequence<int, LANES>{});
}

// Lane i is a's or b's, as `pick` says: below LANES they are a's, from there on b's.
inline Vec shuffled(Vec a, Vec b, Ints pick) {
#ifdef __clang__
    Vec result;
    for (int i = 0; i < LANES; i++) result[i] = pick[i] < LANES ? a[pick[i]] : b[pick[i] - LANES];
    return result;
#else
    return __builtin_shuffle(a, b, pick);
#endif
}

// Folds all lanes into each: one half onto the other, then quarters, and so on.
template <int STEP = LANES / 2, typename Combine>
inline Vec folded(Vec v, Combine combine) {
    constexpr Ints other = lanes_of([](int i) { return i ^ STEP; });
    v = combine(v, shuffled(v, v, other));
    if constexpr (STEP > 1) v = folded<STEP / 2>(v, combine);
    return v;
}

inline float largest(Vec v) {
    return folded(v, [](Vec a, Vec b) { return a > b ? a : b; })[0];
}

inline float sum(Vec v) {
    return folded(v, [](Vec a, Vec b) { return a + b; })[0];
}

// Two rows dealt into one another like the halves of a pack of cards, and what they make: two rows.
constexpr Ints LOW = lanes_of([](int i) { return i / 2 + i % 2 * LANES; });
constexpr Ints HIGH = lanes_of([](int i) { return i / 2 + i % 2 * LANES + LANES / 2; });

// Turns as many rows as there are lanes into columns.
//
// Again and again the upper half of the rows is dealt between the lower half: each time one bit of a
// number's row becomes a bit of its column.
inline void transpose(Vec rows[LANES]) {
    for (int round = 1; round < LANES; round *= 2) {
        Vec dealt[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            dealt[2 * i] = shuffled(rows[i], rows[i + LANES / 2], LOW);
            dealt[2 * i + 1] = shuffled(rows[i], rows[i + LANES / 2], HIGH);
        }
        std::memcpy(rows, dealt, sizeof dealt);
    }
}

// The sums of as many rows as there are lanes, that of row i in lane i.
//
// A round makes one row of two: where bit HALF of a lane's number is 0 it goes on with the first of
// them, else with the second, and adds up their lanes with that bit 0 and 1.
template <int HALF = LANES / 2>
inline Vec sums(Vec rows[]) {
    constexpr Ints low = lanes_of([](int i) { return (i & HALF ? i - HALF + LANES : i); });
    for (int i = 0; i < HALF; i++) {
        Vec a = rows[i], b = rows[i + HALF];
        rows[i] = shuffled(a, b, low) + shuffled(a, b, low + HALF);
    }
    if constexpr (HALF > 1) return sums<HALF / 2>(rows);
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
