// Attention in bf16 by the unit for small matrices: what paged_attention.cpp does, 32 keys by 32 rows
// at a time.
//
// Scores are products of keys and queries: keys lie in their block as the unit wants its rows, and
// queries are laid out as its columns, once.  So a register of scores has one key's for 16 rows, and
// a softmax goes from register to register, never across the lanes of one.  Then weights, turned
// round, are the rows, and values, in pairs of keys, the columns.
//
// Rows of several KV heads can share a softmax: in a head's columns, those of the other heads are
// zero, so that their sums are the heads' own.  Sums of weighted values are computed for all rows
// with each head's values; only a head's own rows are looked at.

#include "attention.h"
#include "matrix_unit.h"

#ifdef __AMX_BF16__
#include <algorithm>

namespace {

static_assert(LANES == UNIT_ROWS, "a register of scores is a row of sums");
constexpr int ROWS = UNIT_COLUMNS;  // of a set: it has sums, and a maximum, of its own
constexpr int KEYS = UNIT_NUMBERS;  // of a step, which the unit takes at once
// Of a chunk, between two looks at the maximum: so many that steps need not wait for one another.
constexpr int MOST_STEPS = 4, MOST_KEYS = MOST_STEPS * KEYS;
typedef int32_t Pair;  // two numbers of bf16

// As many numbers of bf16 as a register has, and how the halves of two are dealt into one another.
typedef int16_t Numbers __attribute__((vector_size(UNIT_BYTES)));
template <int... I>
constexpr Numbers dealt_from(int first, std::integer_sequence<int, I...>) {
    return Numbers{int16_t(first + I / 2 + I % 2 * UNIT_COLUMNS)...};
}
constexpr auto EACH = std::make_integer_sequence<int, UNIT_COLUMNS>{};
constexpr Numbers FIRST_HALVES = dealt_from(0, EACH);
constexpr Numbers SECOND_HALVES = dealt_from(UNIT_COLUMNS / 2, EACH);

inline void put_dealt(Numbers one, Numbers other, Numbers how, Pair* to) {
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(__m512i(one), __m512i(how), __m512i(other)));
}

int64_t sets_of(int64_t rows) { return (rows + ROWS - 1) / ROWS; }

// KV heads whose rows, of one token, fit into the upper half of a set.
int64_t heads_together(int64_t group, int64_t num_kv_heads) {
    return std::clamp<int64_t>(UNIT_ROWS / group, 1, num_kv_heads);
}

// Where a thread keeps what it works on.  Either one head has several sets, or several heads share
// one: so a head's part of a set has their sum as its number.
struct Scratch {
    static constexpr int64_t STEP = ROWS * KEYS / 2;  // weights of one
    int64_t d, e;
    Pair *queries, *weights, *values;
    float *gathered, *scores, *maximum, *total;
    int32_t* positions;
    int64_t size = 0;  // of it all, in floats

    Scratch(float* memory, int64_t sets, int64_t heads, int64_t head_dim, int64_t value_dim)
        : d(head_dim), e(value_dim) {
        const int64_t parts = std::max(sets, heads);
        auto take = [&](int64_t n) { size += n; return memory + size - n; };
        auto pairs = [&](int64_t n) { return reinterpret_cast<Pair*>(take(n)); };
        queries = pairs(parts * d / 2 * ROWS);      // [parts, d / 2, ROWS]
        weights = pairs(sets * MOST_STEPS * STEP);  // [sets, MOST_STEPS, ROWS, KEYS / 2]
        values = pairs(MOST_KEYS / 2 * e);          // [e / 32, MOST_KEYS / 2, 32]
        gathered = take(parts * ROWS * e);          // [parts, ROWS, e]
        scores = take(MOST_KEYS * ROWS);            // [MOST_KEYS, ROWS]
        maximum = take(sets * ROWS);
        total = take(sets * ROWS);
        positions = pairs(sets * ROWS);
    }

    Pair* queries_of(int64_t part) const { return queries + part * d / 2 * ROWS; }
    Pair* weights_of(int64_t set) const { return weights + set * MOST_STEPS * STEP; }
    float* gathered_of(int64_t part) const { return gathered + part * ROWS * e; }
};

// Where a chunk's keys lie, 16 in a row.
typedef std::array<int64_t, MOST_KEYS / UNIT_ROWS> Slots;

// One piece of work with some KV heads.
struct Piece {
    const Attention& a;
    const Scratch& s;
    const int64_t sequence, first, position, tokens;
    const int64_t first_head, heads;
    const int64_t group, rows_of_head, rows;
    const int64_t* table;
    const int64_t end;  // keys that the last token sees

    Piece(const Attention& a, const Scratch& s, const int64_t* work, int64_t first_head,
          int64_t heads)
        : a(a), s(s), sequence(work[0]), first(work[1]), position(work[2]), tokens(work[3]),
          first_head(first_head), heads(heads), group(a.num_heads / a.num_kv_heads),
          rows_of_head(tokens * group), rows(heads * rows_of_head),
          table(a.block_tables + sequence * a.table_width), end(position + tokens) {}

    // Calls `what` with each row's number, its head, token, and query head.
    template <typename What>
    void each_row(What what) const {
        for (int64_t row = 0; row < rows; row++) {
            const int64_t head = row / rows_of_head, in_head = row % rows_of_head;
            what(row, head, in_head / group, (first_head + head) * group + in_head % group);
        }
    }

    void begin() const {
        const int64_t parts = std::max(sets_of(rows), heads), half = a.head_dim / 2;
        std::fill_n(s.queries, parts * half * ROWS, 0);
        std::fill_n(s.gathered, parts * ROWS * a.value_dim, 0.0f);
        std::fill_n(s.maximum, sets_of(rows) * ROWS, NEVER);
        std::fill_n(s.total, sets_of(rows) * ROWS, 0.0f);
        std::fill_n(s.positions, sets_of(rows) * ROWS, int32_t(position));
        each_row([&](int64_t row, int64_t head, int64_t token, int64_t query_head) {
            const BFloat16* from = static_cast<const BFloat16*>(a.q) +
                                   (first + token) * a.q_token_stride + query_head * a.q_head_stride;
            Pair* to = s.queries_of(head + row / ROWS) + row % ROWS;
            for (int64_t i = 0; i < half; i++) std::memcpy(to + i * ROWS, from + 2 * i, sizeof *to);
            s.positions[row] = int32_t(position + token);
        });
    }

    // Where a chunk of keys from `key` on lie, each 16 of them, as numbers of a cache's rows for the
    // first head.  Behind the last block comes that one again: what is read there is not looked at.
    Slots slots(int64_t key) const {
        Slots result;
        for (int64_t& slot : result) {
            const int64_t there = std::min(key, (end - 1) / UNIT_ROWS * UNIT_ROWS);
            slot = (table[there / a.block_size] * a.num_kv_heads + first_head) * a.block_size +
                   there % a.block_size;
            key += UNIT_ROWS;
        }
        return result;
    }

    void score(int64_t set, int step, const Slots& now, const Slots& later) const {
        const int64_t d = a.head_dim;
        const Half half{true, rows - set * ROWS > UNIT_ROWS};
        clear_sums(half);
        for (int64_t head = 0; head < heads; head++) {
            const BFloat16* keys = static_cast<const BFloat16*>(a.k_cache) + head * a.block_size * d;
            const BFloat16 *upper = keys + now[2 * step] * d, *lower = keys + now[2 * step + 1] * d;
            const Pair* queries = s.queries_of(head + set);
            for (int64_t i = 0; i < d; i += UNIT_NUMBERS) {
                add_products(upper + i, lower + i, d * sizeof(BFloat16), queries + i / 2 * ROWS,
                             half);
                for (int64_t row = 0; set == 0 && row < UNIT_ROWS; row++) {
                    __builtin_prefetch(keys + (later[2 * step] + row) * d + i, 0, 2);
                    __builtin_prefetch(keys + (later[2 * step + 1] + row) * d + i, 0, 2);
                }
            }
        }
        put_sums(s.scores + step * KEYS * ROWS, ROWS, half);
    }

    // Turns the scores of a chunk into weights, and rescales what was gathered where the maximum
    // grew.
    void weigh(int64_t set, int64_t key, int steps) const {
        const int count = steps * KEYS;
        const bool all_see_all = key + count <= position + 1 && a.window == 0;
        for (int64_t row = set * ROWS; row < std::min(rows, (set + 1) * ROWS); row += LANES) {
            Vec weights[MOST_KEYS];
            Vec most = load(s.maximum + row);
            const Vec before = most;
            Ints at;
            std::memcpy(&at, s.positions + row, sizeof at);
            for (int i = 0; i < count; i++) {
                Vec score = load(s.scores + i * ROWS + row % ROWS) * a.scale;
                if (a.soft_cap > 0) score = capped(score);
                if (!all_see_all) score = sees(at, int(key + i)) ? score : all(NEVER);
                most = score > most ? score : most;
                weights[i] = score;
            }
            const Vec top = most == all(NEVER) ? all(0.0f) : most;  // no infinity less another
            const Vec rescale = exp_of(before - top);
            Vec total = load(s.total + row) * rescale;
            for (int i = 0; i < count; i++) {
                weights[i] = exp_of(weights[i] - top);
                total += weights[i];
            }
            put(total, s.total + row);
            put(most, s.maximum + row);
            Pair* to = s.weights_of(set) + row % ROWS * KEYS / 2;
            for (int step = 0; step < steps; step++) {
                put_weights(weights + step * KEYS, to + step * Scratch::STEP);
            }
            for (int i = 0; i < LANES && row + i < rows; i++) {
                if (most[i] == before[i]) continue;
                const int64_t part = (row + i) / rows_of_head + set;
                float* gathered = s.gathered_of(part) + (row + i) % ROWS * a.value_dim;
                for (int64_t c = 0; c < a.value_dim; c++) gathered[c] *= rescale[i];
            }
        }
    }

    Vec capped(Vec score) const {
        for (int i = 0; i < LANES; i++) score[i] = a.soft_cap * std::tanh(score[i] / a.soft_cap);
        return score;
    }

    // All bits set where a token at that position sees the key.
    Ints sees(Ints at, int key) const {
        const Ints before = key <= at;
        return a.window > 0 ? before & (at - key < int(a.window)) : before;
    }

    // [KEYS, LANES] to [LANES, KEYS / 2] pairs of bf16.
    static void put_weights(const Vec weights[KEYS], Pair* to) {
        const auto rounded = [](Vec weight) {
            const Ints bits = Ints(weight);
            return bits + 0x7FFF + ((bits >> 16) & 1);
        };
        Vec pairs[LANES];
        for (int i = 0; i < LANES; i++) {
            const Ints even = rounded(weights[2 * i]), odd = rounded(weights[2 * i + 1]);
            pairs[i] = Vec(((even >> 16) & 0xFFFF) | (odd & ~0xFFFF));
        }
        transpose(pairs);
        std::memcpy(to, pairs, sizeof pairs);
    }

    // Values as columns.  What lies behind the last key is not read: it may be NaN, and zero times
    // NaN is NaN.
    void load_values(int64_t head, int64_t key, int steps, const Slots& now,
                     const Slots& later) const {
        const int64_t e = a.value_dim, count = end - key;
        const BFloat16* values = static_cast<const BFloat16*>(a.v_cache) + head * a.block_size * e;
        for (int64_t first = 0; first < steps * KEYS; first += UNIT_ROWS) {
            const BFloat16* here = values + now[first / UNIT_ROWS] * e;
            const BFloat16* soon = values + later[first / UNIT_ROWS] * e;
            for (int64_t i = 0; i < e; i += UNIT_COLUMNS) {
                Pair* to = s.values + i * MOST_KEYS / 2 + first / 2 * UNIT_COLUMNS;
                for (int64_t row = 0; row < UNIT_ROWS; row += 2, to += UNIT_COLUMNS) {
                    Numbers one = {}, other = {};
                    if (first + row < count) std::memcpy(&one, here + row * e + i, sizeof one);
                    if (first + row + 1 < count) {
                        std::memcpy(&other, here + (row + 1) * e + i, sizeof other);
                    }
                    put_dealt(one, other, FIRST_HALVES, to);
                    put_dealt(one, other, SECOND_HALVES, to + UNIT_COLUMNS / 2);
                    __builtin_prefetch(soon + row * e + i, 0, 2);
                    __builtin_prefetch(soon + (row + 1) * e + i, 0, 2);
                }
            }
        }
    }

    void add_values(int64_t head, int steps) const {
        const int64_t e = a.value_dim;
        for (int64_t set = 0; set < sets_of(rows); set++) {
            const Half half{rows - set * ROWS > UNIT_ROWS, true};
            const Pair* upper_weights = s.weights_of(set);
            const Pair* lower_weights = upper_weights + UNIT_ROWS * KEYS / 2;
            for (int64_t i = 0; i < e; i += UNIT_COLUMNS) {
                float* gathered = s.gathered_of(head + set) + i;
                const Pair* values = s.values + i * MOST_KEYS / 2;
                load_sums(gathered, e, half);
                for (int step = 0; step < steps; step++) {
                    add_products(upper_weights + step * Scratch::STEP,
                                 lower_weights + step * Scratch::STEP, UNIT_BYTES,
                                 values + step * KEYS / 2 * UNIT_COLUMNS, half);
                }
                put_sums(gathered, e, half);
            }
        }
    }

    // Divides by the sums, and hands over the rows.
    void finish() const {
        const int64_t e = a.value_dim;
        each_row([&](int64_t row, int64_t head, int64_t token, int64_t query_head) {
            float total = s.total[row], rescale = 1;
            if (a.sinks) {  // a score that takes part in the softmax and has no value
                const float sink = a.sinks[query_head], top = std::max(s.maximum[row], sink);
                rescale = std::exp(s.maximum[row] - top);
                total = total * rescale + std::exp(sink - top);
            }
            const float* from = s.gathered_of(head + row / ROWS) + row % ROWS * e;
            BFloat16* to = static_cast<BFloat16*>(a.out) +
                           ((first + token) * a.num_heads + query_head) * e;
            for (int64_t i = 0; i < e; i += LANES) put(load(from + i) * (rescale / total), to + i);
        });
    }

    void attend() const {
        begin();
        const UnitInUse unit(2 * UNIT_ROWS);
        const int64_t seen_first = a.window > 0 ? std::max<int64_t>(0, position - a.window + 1) : 0;
        for (int64_t key = seen_first / UNIT_ROWS * UNIT_ROWS; key < end; key += MOST_KEYS) {
            const int steps = int(std::min<int64_t>(MOST_STEPS, (end - key + KEYS - 1) / KEYS));
            const Slots now = slots(key), later = slots(key + MOST_KEYS);
            for (int64_t set = 0; set < sets_of(rows); set++) {
                for (int step = 0; step < steps; step++) score(set, step, now, later);
                weigh(set, key, steps);
            }
            for (int64_t head = 0; head < heads; head++) {
                load_values(head, key, steps, now, later);
                add_values(head, steps);
            }
        }
        finish();
    }
};

}  // namespace

int64_t unit_attention_scratch_size(int64_t most_rows, int64_t num_kv_heads, int64_t head_dim,
                                    int64_t value_dim) {
    return Scratch(nullptr, sets_of(most_rows), num_kv_heads, head_dim, value_dim).size;
}

bool unit_attends(const Attention& a) {
    return a.head_dim % UNIT_NUMBERS == 0 && a.value_dim % UNIT_COLUMNS == 0 &&
           a.block_size % UNIT_ROWS == 0 && may_use_unit();
}

int64_t unit_attention(const Attention& a) {
    const int64_t size = unit_attention_scratch_size(a.most_rows, a.num_kv_heads, a.head_dim,
                                                     a.value_dim);
    const int64_t at_once = heads_together(a.num_heads / a.num_kv_heads, a.num_kv_heads);
    return together(a.num_threads, [&](Team& team) -> int64_t {
        const Scratch scratch(a.scratch + this_thread() * size, sets_of(a.most_rows),
                              a.num_kv_heads, a.head_dim, a.value_dim);
        team.each(a.num_work * a.num_kv_heads, false, Order::QUEUE, [&](int64_t piece) {
            const int64_t* work = a.work + piece / a.num_kv_heads * 4;
            const int64_t head = piece % a.num_kv_heads;
            if (work[3] > 1 || a.num_work < MANY * a.num_threads) {
                Piece(a, scratch, work, head, 1).attend();
            } else if (head % at_once == 0) {
                Piece(a, scratch, work, head, std::min(at_once, a.num_kv_heads - head)).attend();
            }
        });
        return 0;
    });
}

#else

bool unit_attends(const Attention&) { return false; }
int64_t unit_attention(const Attention&) { return 0; }
int64_t unit_attention_scratch_size(int64_t, int64_t, int64_t, int64_t) { return 0; }

#endif
