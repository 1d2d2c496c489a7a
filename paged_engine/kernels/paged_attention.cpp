// Attention over the blocks of a paged cache, without gathering them first.
//
// One piece of work is a few query tokens of one sequence with one KV head: `rows` = tokens times
// the query heads that share it (GQA).  It goes over the keys sixteen at a time, in the order of
// the block table, and keeps for each row the running maximum, the running sum and the weighted
// values so far; a new maximum rescales what was gathered before.  That is the online softmax
// (Milakov and Gimelshein 2018, arXiv 1805.02867) as FlashAttention uses it (Dao et al. 2022,
// arXiv 2205.14135); reading through a block table is PagedAttention (Kwon et al. 2023,
// arXiv 2309.06180).
//
// A decoded token, a chunk of a prompt and a whole prompt are the same work here.

#include "vectors.h"

#include <algorithm>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <limits>

constexpr float NEVER = -std::numeric_limits<float>::infinity();

// Kept in step with library.py, field by field.
struct Attention {
    const void* q;               // [T, num_heads, head_dim], any stride for token and head
    void* out;                   // [T, num_heads, value_dim], dense
    const void* k_cache;         // of this layer: [num_blocks, num_kv_heads, block_size, head_dim]
    const void* v_cache;         // likewise, with value_dim
    const int64_t* block_tables; // [S, table_width]
    const int64_t* work;         // [num_work, 4]: sequence, first row in q, position of it, tokens
    const float* sinks;          // [num_heads], or null
    float* scratch;              // [num_threads, paged_attention_scratch_size(...)]
    int64_t q_token_stride, q_head_stride;
    int64_t num_work, table_width;
    int64_t num_heads, num_kv_heads, head_dim, value_dim, block_size;
    int64_t window;              // a query at i sees j with i - j < window; 0: all
    int64_t num_threads;
    int64_t most_rows;           // of one piece of work: its tokens times num_heads / num_kv_heads
    float scale, soft_cap;       // soft_cap 0: none
};

static int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// Where a thread keeps what it works on.
struct Scratch {
    float *queries, *keys, *values, *gathered, *weights, *maximum, *total;

    Scratch(float* memory, const Attention& a) {
        int64_t rows = a.most_rows, d = a.head_dim, e = padded(a.value_dim);
        auto take = [&](int64_t n) { float* here = memory; memory += padded(n); return here; };
        queries = take(rows * d);             // [rows, head_dim], scaled
        keys = take(d * LANES);               // [head_dim, 16]: transposed
        values = take(LANES * e);             // [16, value_dim]
        gathered = take(rows * e);            // [rows, value_dim]
        weights = take(rows * LANES);         // [rows, 16]
        maximum = take(rows);
        total = take(rows);
    }
};

// Floats that one thread needs.
extern "C" int64_t paged_attention_scratch_size(int64_t rows, int64_t head_dim, int64_t value_dim) {
    int64_t e = padded(value_dim);
    return padded(rows * head_dim) + head_dim * LANES + LANES * e + rows * e + rows * LANES +
           2 * padded(rows);
}

// Scores of `N` rows against sixteen keys at once.
template <int N>
static void score(const float* queries, const float* keys, int64_t d, float* out) {
    Vec sums[N] = {};
    for (int64_t i = 0; i < d; i++) {
        Vec key = load(keys + i * LANES);
        for (int row = 0; row < N; row++) sums[row] += key * queries[row * d + i];
    }
    for (int row = 0; row < N; row++) put(sums[row], out + row * LANES);
}

// Adds to `N` rows the values of sixteen keys, weighted.
template <int N>
static void add_values(const float* weights, const float* values, int64_t e, float* gathered) {
    for (int64_t column = 0; column < e; column += LANES) {
        Vec sums[N];
        for (int row = 0; row < N; row++) sums[row] = load(gathered + row * e + column);
        for (int key = 0; key < LANES; key++) {
            Vec value = load(values + key * e + column);
            for (int row = 0; row < N; row++) sums[row] += value * weights[row * LANES + key];
        }
        for (int row = 0; row < N; row++) put(sums[row], gathered + row * e + column);
    }
}

// Runs `step` for four rows at a time, and for those that are left.
#define FOR_ROWS(rows, step4, step1)                    \
    {                                                   \
        int64_t row = 0;                                \
        for (; row + 4 <= (rows); row += 4) { step4; }  \
        for (; row < (rows); row++) { step1; }          \
    }

template <typename T>
static void load_keys(const T* from, int64_t count, int64_t d, float* keys) {
    for (int64_t i = 0; i < d; i++) {
        for (int64_t key = 0; key < count; key++) keys[i * LANES + key] = to_float(from[key * d + i]);
        for (int64_t key = count; key < LANES; key++) keys[i * LANES + key] = 0;
    }
}

// What lies behind the last key may be NaN: zero times it would be NaN as well.
template <typename T>
static void load_values(const T* from, int64_t count, int64_t d, int64_t e, float* values) {
    for (int64_t key = 0; key < LANES; key++) {
        for (int64_t i = 0; i < d; i++) {
            values[key * e + i] = key < count ? to_float(from[key * d + i]) : 0;
        }
        for (int64_t i = d; i < e; i++) values[key * e + i] = 0;
    }
}

// Turns scores into weights, and rescales what was gathered where the maximum grew.
// `sees` is how many of the sixteen keys the row sees at most, `from` which is the first.
static void weigh(const Attention& a, Scratch& s, int64_t row, int64_t from, int64_t sees) {
    static const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float* place = s.weights + row * LANES;
    Vec scores = load(place);
    if (a.soft_cap > 0) {
        for (int i = 0; i < LANES; i++) scores[i] = a.soft_cap * std::tanh(scores[i] / a.soft_cap);
    }
    Ints visible = (lane >= int32_t(from)) & (lane < int32_t(sees));
    if (!(sum(visible ? scores * 0.0f : all(0.0f)) == 0)) {  // comparisons would lose a NaN
        s.total[row] = std::numeric_limits<float>::quiet_NaN();
        return put(all(0.0f), place);
    }
    scores = visible ? scores : all(NEVER);
    float before = s.maximum[row];
    float now = std::max(before, largest(scores));
    if (now == NEVER) return put(all(0.0f), place);
    Vec weights = exp_of(scores - now);
    put(weights, place);
    if (now > before) {
        float rescale = before == NEVER ? 0.0f : std::exp(before - now);
        s.maximum[row] = now;
        s.total[row] *= rescale;
        float* gathered = s.gathered + row * padded(a.value_dim);
        for (int64_t i = 0; i < padded(a.value_dim); i++) gathered[i] *= rescale;
    }
    s.total[row] += sum(weights);
}

template <typename T>
static void attend(const Attention& a, Scratch& s, const int64_t* work, int64_t kv_head) {
    const int64_t sequence = work[0], first = work[1], position = work[2], tokens = work[3];
    const int64_t d = a.head_dim, e = padded(a.value_dim), group = a.num_heads / a.num_kv_heads;
    const int64_t rows = tokens * group, first_head = kv_head * group;
    const T* q = static_cast<const T*>(a.q);
    for (int64_t row = 0; row < rows; row++) {
        const T* from = q + (first + row / group) * a.q_token_stride +
                        (first_head + row % group) * a.q_head_stride;
        for (int64_t i = 0; i < d; i++) s.queries[row * d + i] = to_float(from[i]) * a.scale;
        s.maximum[row] = NEVER;
        s.total[row] = 0;
    }
    std::fill(s.gathered, s.gathered + rows * e, 0.0f);

    const int64_t end = position + tokens;  // keys that the last token sees
    int64_t begin = a.window > 0 ? std::max<int64_t>(0, position - a.window + 1) : 0;
    begin -= begin % a.block_size;
    const int64_t* table = a.block_tables + sequence * a.table_width;
    for (int64_t block_begin = begin; block_begin < end; block_begin += a.block_size) {
        const int64_t block = table[block_begin / a.block_size];
        const int64_t cell = (block * a.num_kv_heads + kv_head) * a.block_size;
        const int64_t in_block = std::min(a.block_size, end - block_begin);
        for (int64_t offset = 0; offset < in_block; offset += LANES) {
            const int64_t key = block_begin + offset;
            const int64_t count = std::min<int64_t>(LANES, in_block - offset);
            load_keys(static_cast<const T*>(a.k_cache) + (cell + offset) * d, count, d, s.keys);
            load_values(static_cast<const T*>(a.v_cache) + (cell + offset) * a.value_dim, count,
                        a.value_dim, e, s.values);
            FOR_ROWS(rows, score<4>(s.queries + row * d, s.keys, d, s.weights + row * LANES),
                     score<1>(s.queries + row * d, s.keys, d, s.weights + row * LANES))
            for (int64_t row = 0; row < rows; row++) {
                const int64_t at = position + row / group;
                const int64_t from = a.window > 0 ? at - a.window + 1 - key : 0;
                weigh(a, s, row, std::clamp<int64_t>(from, 0, LANES),
                      std::clamp<int64_t>(at + 1 - key, 0, count));
            }
            FOR_ROWS(rows,
                     add_values<4>(s.weights + row * LANES, s.values, e, s.gathered + row * e),
                     add_values<1>(s.weights + row * LANES, s.values, e, s.gathered + row * e))
        }
    }
    T* out = static_cast<T*>(a.out);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t head = first_head + row % group;
        float total = s.total[row], rescale = 1;
        if (a.sinks) {  // a score that takes part in the softmax and has no value
            float top = std::max(s.maximum[row], a.sinks[head]);
            rescale = std::exp(s.maximum[row] - top);
            total = total * rescale + std::exp(a.sinks[head] - top);
        }
        T* to = out + ((first + row / group) * a.num_heads + head) * a.value_dim;
        for (int64_t i = 0; i < a.value_dim; i++) {
            store(s.gathered[row * e + i] * rescale / total, to + i);
        }
    }
}

template <typename T>
static void attend_all(const Attention& a) {
    const int64_t size = paged_attention_scratch_size(a.most_rows, a.head_dim, a.value_dim);
    const int64_t pieces = a.num_work * a.num_kv_heads;
#pragma omp parallel num_threads(int(a.num_threads))
    {
        int64_t thread = 0;
#ifdef _OPENMP
        thread = omp_get_thread_num();
#endif
        Scratch scratch(a.scratch + thread * size, a);
#pragma omp for schedule(dynamic, 1)
        for (int64_t piece = 0; piece < pieces; piece++) {
            attend<T>(a, scratch, a.work + piece / a.num_kv_heads * 4, piece % a.num_kv_heads);
        }
    }
}

extern "C" void paged_attention_float(const Attention* a) { attend_all<float>(*a); }
extern "C" void paged_attention_bfloat16(const Attention* a) { attend_all<BFloat16>(*a); }
