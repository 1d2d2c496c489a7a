// Attention over the blocks of a paged cache, without gathering them first.
//
// One piece of work is a few query tokens of one sequence with one KV head, or with all of them:
// `rows` = tokens times the query heads that share one (GQA).  It goes over the keys a register of
// lanes at a time, in the order of the block table, and keeps for each row the running maximum, the
// running sum and the weighted values so far; a new maximum rescales what was gathered before.  That
// is the online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) as FlashAttention uses it
// (Dao et al. 2022, arXiv 2205.14135); reading through a block table is PagedAttention (Kwon et al.
// 2023, arXiv 2309.06180).
//
// A decoded token, a chunk of a prompt and a whole prompt are the same work here.  Where there is a
// unit for small matrices, unit_attention.cpp does what it can do in its place.

#include "attention.h"

#include <algorithm>

constexpr int64_t AHEAD = 2 * LANES;  // memory is asked for so many tokens before its use
// Columns of values that are added to at once: their sums for all rows stay in registers.
constexpr int COLUMNS_AT_ONCE = LANES == 16 ? 4 : 2;
// Loops over few sums, which then stay in registers; GCC does not see by itself that it pays.
#define UNROLLED _Pragma("GCC unroll 4")
// A function of its own: GCC keeps the sums of a loop in registers where there is nothing else.
#define ALONE __attribute__((noinline))

static int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// Rows are computed four at a time, so that the processor never waits for one sum; what is added
// to get there is zero.
constexpr int ROWS = 4;
static int64_t padded_rows(int64_t n) { return (n + ROWS - 1) / ROWS * ROWS; }

static int64_t scratch_rows(int64_t most_rows, int64_t num_kv_heads) {
    return std::max(padded_rows(most_rows), num_kv_heads * ROWS);
}

// Where a thread keeps what it works on.
struct Scratch {
    float *queries, *keys, *gathered, *weights, *maximum, *total;

    Scratch(float* memory, const Attention& a) {
        const int64_t rows = scratch_rows(a.most_rows, a.num_kv_heads);
        auto take = [&](int64_t n) { float* here = memory; memory += padded(n); return here; };
        queries = take(rows * padded(a.head_dim));   // [rows, head_dim], scaled, then zeros
        keys = take(padded(a.head_dim) * LANES);     // [head_dim, LANES]: transposed
        gathered = take(rows * padded(a.value_dim)); // [rows, value_dim]
        weights = take(rows * LANES);                // [rows, LANES]
        maximum = take(rows);
        total = take(rows);
    }

    // What begins with row `row`.
    Scratch from(const Attention& a, int64_t row) const {
        Scratch later = *this;
        later.queries += row * padded(a.head_dim);
        later.gathered += row * padded(a.value_dim);
        later.weights += row * LANES;
        later.maximum += row;
        later.total += row;
        return later;
    }
};

// Floats that one thread needs.
extern "C" int64_t paged_attention_scratch_size(int64_t most_rows, int64_t num_kv_heads,
                                                int64_t head_dim, int64_t value_dim) {
    const int64_t rows = scratch_rows(most_rows, num_kv_heads);
    const int64_t here = rows * padded(head_dim) + padded(head_dim) * LANES +
                         rows * padded(value_dim) + rows * LANES + 2 * padded(rows);
    return std::max(here, unit_attention_scratch_size(most_rows, num_kv_heads, head_dim, value_dim));
}

// Where LANES tokens in a row lie, which may be in several blocks; `count` of them are there, and
// behind the last one comes slot 0.
struct Chunk {
    int64_t slot[LANES] = {};
    int64_t count;

    Chunk(const Attention& a, const int64_t* table, int64_t first, int64_t end) {
        count = std::clamp<int64_t>(end - first, 0, LANES);
        int64_t entry = first / a.block_size, offset = first % a.block_size;
        for (int64_t i = 0; i < count; i++) {
            slot[i] = table[entry] * a.num_kv_heads * a.block_size + offset;
            if (++offset == a.block_size) offset = 0, entry++;
        }
    }
};

// A chunk and a later one.  Whoever reads the first asks for the memory of the other, number by
// number, so that it comes while something is computed, and never more at once than a core can
// wait for.
struct Chunks {
    Chunk now, later;

    Chunks(const Attention& a, const int64_t* table, int64_t first, int64_t end)
        : now(a, table, first, end), later(a, table, first + AHEAD, end) {}

    template <typename T>
    const T* at(const T* cache, int64_t key, int64_t width) const {
        return cache + now.slot[key] * width;
    }

    template <typename T>
    void ask(const T* cache, int64_t key, int64_t width, int64_t i) const {
        __builtin_prefetch(cache + later.slot[key] * width + i, 0, 1);
    }
};

// Calls `what` with a number of rows that the compiler knows: 1, 2, 3 or ROWS.
template <typename What>
static void with_rows(int64_t rows, What what) {
    static_assert(ROWS == 4);
    switch (rows) {
        case 1: return what(std::integral_constant<int, 1>());
        case 2: return what(std::integral_constant<int, 2>());
        case 3: return what(std::integral_constant<int, 3>());
        default: return what(std::integral_constant<int, ROWS>());
    }
}

// LANES keys as columns: [head_dim, LANES].
template <typename T>
static void load_keys(const T* cache, const Chunks& chunk, int64_t d, float* keys) {
    for (int64_t i = 0; i < d; i += LANES) {
        Vec tile[LANES] = {};
        for (int64_t key = 0; key < chunk.now.count; key++) {
            tile[key] = load(chunk.at(cache, key, d) + i, d - i);
            chunk.ask(cache, key, d, i);
        }
        transpose(tile);
        for (int row = 0; row < LANES; row++) put(tile[row], keys + (i + row) * LANES);
    }
}

// Scores of four rows against a chunk of keys.  Two sums a row, so that none waits for itself.
static void score(const float* queries, const float* keys, int64_t d, float* out) {
    Vec even[ROWS] = {}, odd[ROWS] = {};
    for (int64_t i = 0; i < d; i += 2) {
        Vec key = load(keys + i * LANES), next = load(keys + (i + 1) * LANES);
        UNROLLED for (int row = 0; row < ROWS; row++) {
            even[row] += key * queries[row * padded(d) + i];
            odd[row] += next * queries[row * padded(d) + i + 1];
        }
    }
    for (int row = 0; row < ROWS; row++) put(even[row] + odd[row], out + row * LANES);
}

// The same for the few rows of a decoded token, for which turning keys into columns would take
// longer than multiplying: two keys at a time, lane by lane; the lanes are added up at the end.
template <int FEW, typename T>
ALONE static void score_few(const float* queries, const T* cache, const Chunks& chunk, int64_t d,
                            float* out) {
    const int64_t width = padded(d);
    Vec products[FEW][LANES];
    for (int64_t key = 0; key < LANES; key += 2) {
        // behind the last key comes the last one again: its score is not looked at
        const T* one = chunk.at(cache, std::min(key, chunk.now.count - 1), d);
        const T* other = chunk.at(cache, std::min(key + 1, chunk.now.count - 1), d);
        Vec dots[FEW][2] = {};
        const auto add = [&](int64_t i, Vec part, Vec next) {
            UNROLLED for (int row = 0; row < FEW; row++) {
                Vec query = load(queries + row * width + i);
                dots[row][0] += part * query;
                dots[row][1] += next * query;
            }
        };
        int64_t i = 0;
        for (; i + LANES <= d; i += LANES) {
            add(i, load(one + i), load(other + i));
            chunk.ask(cache, key, d, i);
            chunk.ask(cache, key + 1, d, i);
        }
        if (i < d) add(i, load(one + i, d - i), load(other + i, d - i));
        UNROLLED for (int row = 0; row < FEW; row++) {
            products[row][key] = dots[row][0];
            products[row][key + 1] = dots[row][1];
        }
    }
    for (int row = 0; row < FEW; row++) put(sums(products[row]), out + row * LANES);
}

// Adds to a few rows the values of a chunk of keys, weighted; `COLUMNS` times LANES numbers of each.
//
// What lies behind the last key is not read: it may be NaN, and zero times NaN is NaN.
template <int FEW, int COLUMNS, typename T>
ALONE static void add_columns(const float* weights, const T* cache, const Chunks& chunk, int64_t e,
                              int64_t begin, float* gathered) {
    Vec sums[FEW][COLUMNS];
    for (int row = 0; row < FEW; row++) {
        UNROLLED for (int c = 0; c < COLUMNS; c++) {
            sums[row][c] = load(gathered + row * padded(e) + begin + c * LANES);
        }
    }
    for (int64_t key = 0; key < chunk.now.count; key++) {
        const T* from = chunk.at(cache, key, e) + begin;
        chunk.ask(cache, key, e, begin);
        UNROLLED for (int c = 0; c < COLUMNS; c++) {
            Vec value = COLUMNS > 1 ? load(from + c * LANES) : load(from, e - begin);
            UNROLLED for (int row = 0; row < FEW; row++) {
                sums[row][c] += value * weights[row * LANES + key];
            }
        }
    }
    for (int row = 0; row < FEW; row++) {
        UNROLLED for (int c = 0; c < COLUMNS; c++) {
            put(sums[row][c], gathered + row * padded(e) + begin + c * LANES);
        }
    }
}

template <int FEW, typename T>
static void add_values(const float* weights, const T* cache, const Chunks& chunk, int64_t e,
                       float* gathered) {
    int64_t begin = 0;
    constexpr int AT_ONCE = COLUMNS_AT_ONCE;
    for (; begin + AT_ONCE * LANES <= e; begin += AT_ONCE * LANES) {
        add_columns<FEW, AT_ONCE>(weights, cache, chunk, e, begin, gathered);
    }
    for (; begin < e; begin += LANES) add_columns<FEW, 1>(weights, cache, chunk, e, begin, gathered);
}

// Turns scores into weights, and rescales what was gathered where the maximum grew.
// `sees` is how many keys of the chunk the row sees at most, `from` which is the first.
static void weigh(const Attention& a, const Scratch& s, int64_t row, int64_t from, int64_t sees) {
    constexpr Ints lane = lanes_of([](int i) { return i; });
    float* place = s.weights + row * LANES;
    Vec scores = load(place);
    if (a.soft_cap > 0) {
        for (int i = 0; i < LANES; i++) scores[i] = a.soft_cap * std::tanh(scores[i] / a.soft_cap);
    }
    Ints visible = (lane >= int32_t(from)) & (lane < int32_t(sees));
    scores = visible ? scores : all(NEVER);
    float before = s.maximum[row];
    float now = std::max(before, largest(scores));
    if (now == NEVER) {  // nothing was seen, or only NaN, which no comparison finds
        if (std::isnan(sum(scores))) s.total[row] = std::numeric_limits<float>::quiet_NaN();
        return put(all(0.0f), place);
    }
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

// Sets up the rows of a piece of work: queries scaled, nothing seen yet.
template <typename T>
static void begin_rows(const Attention& a, const Scratch& s, const T* q, int64_t rows, int64_t group) {
    const int64_t d = a.head_dim;
    for (int64_t row = 0; row < padded_rows(rows); row++) {
        const T* from = q + row / group * a.q_token_stride + row % group * a.q_head_stride;
        for (int64_t i = 0; i < padded(d); i++) {
            const bool is_there = row < rows && i < d;
            s.queries[row * padded(d) + i] = is_there ? to_float(from[i]) * a.scale : 0;
        }
        s.maximum[row] = NEVER;
        s.total[row] = 0;
    }
    std::fill(s.weights, s.weights + padded_rows(rows) * LANES, 0.0f);
    std::fill(s.gathered, s.gathered + padded_rows(rows) * padded(a.value_dim), 0.0f);
}

// Divides by the sums, and hands over the rows of one KV head.
template <typename T>
static void end_rows(const Attention& a, const Scratch& s, T* out, int64_t rows, int64_t group,
                     const float* sinks) {
    const int64_t e = a.value_dim;
    for (int64_t row = 0; row < rows; row++) {
        float total = s.total[row], rescale = 1;
        if (sinks) {  // a score that takes part in the softmax and has no value
            const float sink = sinks[row % group], top = std::max(s.maximum[row], sink);
            rescale = std::exp(s.maximum[row] - top);
            total = total * rescale + std::exp(sink - top);
        }
        T* to = out + (row / group * a.num_heads + row % group) * e;
        for (int64_t i = 0; i < e; i += LANES) {
            put(load(s.gathered + row * padded(e) + i) * (rescale / total), to + i, e - i);
        }
    }
}

// One piece of work with `num_heads` KV heads, from `first_head` on.
template <typename T>
static void attend(const Attention& a, const Scratch& scratch, const int64_t* work,
                   int64_t first_head, int64_t num_heads) {
    const int64_t sequence = work[0], first = work[1], position = work[2], tokens = work[3];
    const int64_t d = a.head_dim, e = a.value_dim, group = a.num_heads / a.num_kv_heads;
    const int64_t rows = tokens * group;
    const auto each_head = [&](auto what) {
        for (int64_t head = 0; head < num_heads; head++) {
            what(scratch.from(a, head * padded_rows(rows)), first_head + head);
        }
    };
    const auto keys_of = [&](int64_t head) {
        return static_cast<const T*>(a.k_cache) + head * a.block_size * d;
    };
    const auto values_of = [&](int64_t head) {
        return static_cast<const T*>(a.v_cache) + head * a.block_size * e;
    };
    each_head([&](const Scratch& s, int64_t head) {
        const int64_t from = first * a.q_token_stride + head * group * a.q_head_stride;
        begin_rows(a, s, static_cast<const T*>(a.q) + from, rows, group);
    });
    const int64_t* table = a.block_tables + sequence * a.table_width;
    const int64_t end = position + tokens;  // keys that the last token sees
    const int64_t begin = a.window > 0 ? std::max<int64_t>(0, position - a.window + 1) : 0;
    for (int64_t key = begin; key < end; key += LANES) {
        const Chunks chunk(a, table, key, end);
        each_head([&](const Scratch& s, int64_t head) {
            if (rows <= ROWS) {
                return with_rows(rows, [&](auto few) {
                    score_few<few()>(s.queries, keys_of(head), chunk, d, s.weights);
                });
            }
            load_keys(keys_of(head), chunk, d, s.keys);
            for (int64_t row = 0; row < rows; row += ROWS) {
                score(s.queries + row * padded(d), s.keys, padded(d), s.weights + row * LANES);
            }
        });
        each_head([&](const Scratch& s, int64_t head) {
            for (int64_t row = 0; row < rows; row++) {
                const int64_t at = position + row / group;
                const int64_t from = a.window > 0 ? at - a.window + 1 - key : 0;
                weigh(a, s, row, std::clamp<int64_t>(from, 0, LANES),
                      std::clamp<int64_t>(at + 1 - key, 0, chunk.now.count));
            }
            for (int64_t row = 0; row < rows; row += ROWS) {
                with_rows(rows - row, [&](auto few) {
                    add_values<few()>(s.weights + row * LANES, values_of(head), chunk, e,
                                      s.gathered + row * padded(e));
                });
            }
        });
    }
    each_head([&](const Scratch& s, int64_t head) {
        T* out = static_cast<T*>(a.out) + (first * a.num_heads + head * group) * e;
        end_rows(a, s, out, rows, group, a.sinks ? a.sinks + head * group : nullptr);
    });
}

template <typename T>
static int64_t paged_attention(const Attention& a) {
    if (std::is_same_v<T, BFloat16> && unit_attends(a)) return unit_attention(a);
    const int64_t size = paged_attention_scratch_size(a.most_rows, a.num_kv_heads, a.head_dim,
                                                      a.value_dim);
    const int64_t group = a.num_heads / a.num_kv_heads;
    return together(a.num_threads, [&](Team& team) -> int64_t {
        const Scratch scratch(a.scratch + this_thread() * size, a);
        team.each(a.num_work * a.num_kv_heads, false, Order::QUEUE, [&](int64_t piece) {
            const int64_t* work = a.work + piece / a.num_kv_heads * 4;
            const int64_t head = piece % a.num_kv_heads;
            if (work[3] * group > ROWS || a.num_work < MANY * a.num_threads) {
                attend<T>(a, scratch, work, head, 1);
            } else if (head == 0) {
                attend<T>(a, scratch, work, 0, a.num_kv_heads);
            }
        });
        return 0;
    });
}

FOR_BOTH(paged_attention, Attention)
