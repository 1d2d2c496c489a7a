// What a layer of a Llama-like model does between its matrix products, each in one pass over memory.
//
// In torch a norm is six operations and a rotation seven, each with a result of its own in memory;
// on a CPU they take longer than the attention between them.  Sums are in fp32, whatever the numbers
// are kept in.

#include "team.h"
#include "vectors.h"

// Below that many numbers a second thread costs more than it brings.
constexpr int64_t WORTH_A_THREAD = 16384;

static bool for_one_alone(int64_t numbers) { return numbers < WORTH_A_THREAD; }

// Root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467) of one row: weight * x / rms(x).
template <typename T>
static void normalise(const T* x, const float* weight, float epsilon, int64_t width, T* out) {
    Vec squares = {};
    for (int64_t i = 0; i < width; i += LANES) {
        Vec part = load(x + i, width - i);
        squares += part * part;
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / float(width) + epsilon);
    for (int64_t i = 0; i < width; i += LANES) {
        put(load(weight + i, width - i) * (load(x + i, width - i) * scale), out + i, width - i);
    }
}

// Kept in step with library.py, field by field, as are the other calls.
struct AddAndNorm {
    void* x;              // [rows, width], changed in place
    const void* delta;    // [rows, width], or null
    const float* weight;  // [width]
    void* out;            // [rows, width]
    int64_t rows, width, num_threads;
    float epsilon;
};

// x += delta, unless delta is null; then out = norm(x).
template <typename T>
static int64_t add_and_norm(const AddAndNorm& a) {
    return each(a.rows, a.num_threads, for_one_alone(a.rows * a.width), [&](int64_t row) {
        T* x = static_cast<T*>(a.x) + row * a.width;
        if (a.delta) {
            const T* delta = static_cast<const T*>(a.delta) + row * a.width;
            for (int64_t i = 0; i < a.width; i += LANES) {
                const int64_t n = a.width - i;
                put(load(x + i, n) + load(delta + i, n), x + i, n);
            }
        }
        normalise(x, a.weight, a.epsilon, a.width, static_cast<T*>(a.out) + row * a.width);
    });
}

// 1 / (1 + e^-x), without overflow on either side.
static Vec sigmoid(Vec x) {
    Vec small = exp_of(x < all(0.0f) ? x : -x);  // e^-|x|
    return (x < all(0.0f) ? small : all(1.0f)) / (1.0f + small);
}

struct SiluAndMultiply {
    const void* gate_and_up;  // [rows, 2 * width]
    void* out;                // [rows, width]
    int64_t rows, width, num_threads;
};

// out = silu(gate) * up, where each row of `gate_and_up` is [gate, up] (SwiGLU, arXiv 2002.05202).
template <typename T>
static int64_t silu_and_multiply(const SiluAndMultiply& a) {
    return each(a.rows, a.num_threads, for_one_alone(a.rows * a.width), [&](int64_t row) {
        const T* gate = static_cast<const T*>(a.gate_and_up) + row * 2 * a.width;
        const T* up = gate + a.width;
        T* out = static_cast<T*>(a.out) + row * a.width;
        for (int64_t i = 0; i < a.width; i += LANES) {
            const int64_t n = a.width - i;
            Vec x = load(gate + i, n);
            put(x * sigmoid(x) * load(up + i, n), out + i, n);
        }
    });
}

struct RopeAndWrite {
    void* qkv;             // [T, (num_heads + 2 * num_kv_heads) * head_dim]; q is changed in place
    void* k_cache;         // of this layer: [num_blocks, num_kv_heads, block_size, head_dim]
    void* v_cache;
    const int64_t* slots;  // [T]
    const float* cos;      // [T, head_dim], or null: no rotation
    const float* sin;
    const float* q_norm;   // [head_dim], or null: no norm of each head (Qwen3)
    const float* k_norm;
    int64_t num_tokens, num_heads, num_kv_heads, head_dim, block_size, num_slots, num_threads;
    float epsilon;
};

// Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of one head: its first half and its
// second half are the two coordinates of head_dim / 2 points, turned by an angle of the position.
template <typename T>
static void rotate(T* head, const float* cos, const float* sin, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t n = half - i;
        Vec x = load(head + i, n), y = load(head + half + i, n);
        put(x * load(cos + i, n) - y * load(sin + i, n), head + i, n);
        put(y * load(cos + half + i, n) + x * load(sin + half + i, n), head + half + i, n);
    }
}

// Norm and rotate queries and keys, and write keys and values into their slots.
// Returns how many slots are none of the cache; then nothing was written.
template <typename T>
static int64_t rope_and_write(const RopeAndWrite& a) {
    int64_t foreign = 0;
    for (int64_t token = 0; token < a.num_tokens; token++) {
        foreign += a.slots[token] < 0 || a.slots[token] >= a.num_slots;
    }
    if (foreign) return foreign;
    const int64_t d = a.head_dim, heads = a.num_heads + a.num_kv_heads;
    const int64_t width = (heads + a.num_kv_heads) * d;
    return each(a.num_tokens, a.num_threads, for_one_alone(a.num_tokens * width), [&](int64_t token) {
        T* row = static_cast<T*>(a.qkv) + token * width;
        for (int64_t head = 0; head < heads; head++) {
            const float* norm = head < a.num_heads ? a.q_norm : a.k_norm;
            if (norm) normalise(row + head * d, norm, a.epsilon, d, row + head * d);
            if (a.cos) rotate(row + head * d, a.cos + token * d, a.sin + token * d, d);
        }
        const T* key = row + a.num_heads * d;
        const int64_t block = a.slots[token] / a.block_size, offset = a.slots[token] % a.block_size;
        for (int64_t head = 0; head < a.num_kv_heads; head++) {
            const int64_t cell = ((block * a.num_kv_heads + head) * a.block_size + offset) * d;
            std::memcpy(static_cast<T*>(a.k_cache) + cell, key + head * d, d * sizeof(T));
            std::memcpy(static_cast<T*>(a.v_cache) + cell, key + (a.num_kv_heads + head) * d,
                        d * sizeof(T));
        }
    });
}

FOR_BOTH(add_and_norm, AddAndNorm)
FOR_BOTH(silu_and_multiply, SiluAndMultiply)
FOR_BOTH(rope_and_write, RopeAndWrite)
