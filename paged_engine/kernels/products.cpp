// Products with a matrix of weights: x [rows, depth] times W [columns, depth], transposed.
//
// The weights lie in panels, a few registers wide and as deep as W: what the inner loop reads next
// comes next in memory.  A panel is taken a block of its depth at a time.  A tile is a few rows of x
// times one block, with its sums in registers; all tiles of a block follow one another while its
// weights are in a near cache, and meanwhile they ask for the block that comes next.  So a decode
// step reads every weight from memory once, and multiplies while it waits.
//
// Panels, blocks and tiles are those of Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication", ACM TOMS 34(3), 2008.
//
// Weights in bf16 lie in pairs: 32 bits hold a column's at one number of the depth and at the next.
// Some processors multiply pairs with pairs and add up both products in one instruction, which may
// be twice as much as they do with floats.  Elsewhere pairs become floats on their way into the
// registers: a shift makes the one, and a mask the other.

#include "matrix_unit.h"
#include "team.h"
#include "vectors.h"

// As many sums as registers can hold beside the weights: there are 32 with AVX-512, else 16.
constexpr int MOST_SUMS = LANES == 16 ? 24 : 12;
#define UNROLLED _Pragma("GCC unroll 12")

// Two numbers of bf16, the first in the lower half.
typedef int32_t Pair;
inline Vec first_of(Ints pairs) { return Vec(pairs << 16); }
inline Vec second_of(Ints pairs) { return Vec(pairs & ~0xFFFF); }

// The ways to multiply.  Each goes down the depth in steps of some numbers; a row of a panel holds a
// step's weights, as many registers of them as are said here.

struct Floats {
    typedef float Number;  // what x and the result are made of
    typedef float Factor;  // what the numbers of x are turned into
    typedef float OfX;     // what is multiplied at once: one of them, or a pair
    typedef float Weight;  // a column's weights at a step
    typedef Vec Weights;   // a register of them
    static constexpr int REGISTERS = 3;
    static constexpr int NUMBERS = 1;  // of the depth, at a step
    static constexpr int PARTS = 1;    // multiplications that a step takes
    // Rows of a tile, and of those that all panels are multiplied with before the next ones: they
    // stay in a core's second cache.
    static constexpr int MOST_ROWS = MOST_SUMS / REGISTERS, ROWS_AT_ONCE = 96;

    static bool has_instructions() { return true; }
    static Vec part(Vec weights, int) { return weights; }
    static Vec added(Vec sum, Vec weights, float x) { return sum + weights * x; }
};

// Turned into floats, first the one half of each pair and then the other, so that registers do for
// both.  It is done once for all rows of a tile; so fewer weights and more rows are better than with
// floats.
struct WidenedPairs {
    typedef BFloat16 Number;
    typedef float Factor, OfX;
    typedef Pair Weight;
    typedef Ints Weights;
    static constexpr int REGISTERS = 2, NUMBERS = 2, PARTS = 2;
    static constexpr int MOST_ROWS = MOST_SUMS / REGISTERS, ROWS_AT_ONCE = 96;

    static bool has_instructions() { return true; }
    static Vec part(Ints weights, int i) { return i ? second_of(weights) : first_of(weights); }
    static Vec added(Vec sum, Vec weights, float x) { return sum + weights * x; }
};

// By the processor's own instruction; where it has none, by what stands for it here.
struct Dots {
    typedef BFloat16 Number, Factor;
    typedef Pair OfX, Weight;
    typedef Ints Weights;
    static constexpr int REGISTERS = 2, NUMBERS = 2, PARTS = 1;
    static constexpr int MOST_ROWS = MOST_SUMS / REGISTERS, ROWS_AT_ONCE = 96;

    static bool has_instructions() {
#ifdef __AVX512BF16__
        return true;
#else
        return false;
#endif
    }
    static Ints part(Ints weights, int) { return weights; }
    static Vec added(Vec sum, Ints weights, Pair x) {
#ifdef __AVX512BF16__
        return Vec(_mm512_dpbf16_ps(__m512(sum), __m512bh(weights), __m512bh(Ints{} + x)));
#else
        const Ints both = Ints{} + x;
        return sum + first_of(weights) * first_of(both) + second_of(weights) * second_of(both);
#endif
    }
};

// By the unit for small matrices; where there is none, its place is taken by dots.
#ifdef __AMX_BF16__
struct Matrices {
    struct Pairs {  // of one row or column, at a step
        Pair pairs[UNIT_NUMBERS / 2];
    };
    typedef BFloat16 Number, Factor;
    typedef Pairs OfX, Weight;
    static constexpr int REGISTERS = UNIT_COLUMNS / LANES, NUMBERS = UNIT_NUMBERS, PARTS = 1;
    static constexpr int MOST_ROWS = 2 * UNIT_ROWS, ROWS_AT_ONCE = 256;

    static bool has_instructions() { return may_use_unit(); }
};
#else
struct Matrices : Dots {
    static bool has_instructions() { return false; }
};
#endif

template <typename Way>
constexpr int COLUMNS = Way::REGISTERS * LANES;

// Bytes of a block, and as much of the depth as fits: little beside a core's second cache, and enough
// that sums are seldom put away and fetched again.
constexpr int64_t BLOCK = 64 << 10;
template <typename Way>
constexpr int64_t DEPTH_AT_ONCE = BLOCK / (sizeof(typename Way::Weight) * COLUMNS<Way>);
// Below that many multiplications a second thread costs more than it brings.
constexpr int64_t WORTH_A_THREAD = 1 << 16;

// Kept in step with library.py, field by field.
struct Product {
    const void* x;        // [rows, depth], dense
    const void* weights;  // [panels, steps, COLUMNS<Way>], zeros behind the last column and number
    const float* bias;    // [columns], or null
    void* out;            // [rows, columns], dense
    void* prepared;       // room for x as the inner loop reads it, unless that is as it lies there:
                          // [rows, steps], each of Way::NUMBERS numbers of type Way::Factor
    int64_t rows, depth, columns, num_threads;
};

// One that is under way: its x as the inner loop reads it.
template <typename Way>
struct Work : Product {
    const typename Way::OfX* of_x;  // [rows, steps, Way::PARTS]
    int64_t steps;
};

// Into a core's second cache: the first one is full of what is multiplied now.
inline void ask_for(const void* memory) { __builtin_prefetch(memory, 0, 2); }

// Some rows of x from `row` on, times a block of a panel.
template <typename Way>
struct Tile {
    int64_t row;          // the first
    int64_t from, to;     // the block's part of the steps
    const typename Way::Weight* weights;  // of the block
    const typename Way::Weight* soon;     // weights to ask for meanwhile,
    int64_t stride;                       // and how many of them at each step
};

// `sums_so_far` [ROWS, COLUMNS<Way>] is what the blocks before came to, and takes what this one does.
template <typename Way, int ROWS>
static void multiply_tile(const Work<Way>& a, const Tile<Way>& tile, float* sums_so_far) {
    constexpr int WIDTH = Way::REGISTERS;
    constexpr int PARTS = Way::PARTS;
    const typename Way::OfX* x = a.of_x + (tile.row * a.steps + tile.from) * PARTS;
    Vec sums[ROWS][WIDTH] = {};
    const auto each_sum = [&](auto what) {
        UNROLLED for (int r = 0; r < ROWS; r++) {
            UNROLLED for (int c = 0; c < WIDTH; c++) {
                what(sums[r][c], sums_so_far + (r * WIDTH + c) * LANES);
            }
        }
    };
    if (tile.from > 0) each_sum([](Vec& sum, float* place) { sum = load(place); });
    for (int64_t i = 0; i < tile.to - tile.from; i++) {
        typename Way::Weights weights[WIDTH];
        UNROLLED for (int c = 0; c < WIDTH; c++) {
            const auto from = tile.weights + i * COLUMNS<Way> + c * LANES;
            std::memcpy(&weights[c], from, sizeof weights[c]);  // GCC would spill all of them at once
            ask_for(tile.soon + i * tile.stride + c * LANES);
        }
        UNROLLED for (int p = 0; p < PARTS; p++) {
            UNROLLED for (int r = 0; r < ROWS; r++) {
                const auto of_x = x[(r * a.steps + i) * PARTS + p];
                UNROLLED for (int c = 0; c < WIDTH; c++) {
                    sums[r][c] = Way::added(sums[r][c], Way::part(weights[c], p), of_x);
                }
            }
        }
    }
    each_sum([](Vec& sum, float* place) { put(sum, place); });
}

// The same for a number of rows that is known only now.
template <typename Way, int ROWS = Way::MOST_ROWS>
static void multiply_rows(const Work<Way>& a, int64_t rows, const Tile<Way>& tile,
                          float* sums_so_far) {
    if (rows == ROWS) return multiply_tile<Way, ROWS>(a, tile, sums_so_far);
    if constexpr (ROWS > 1) multiply_rows<Way, ROWS - 1>(a, rows, tile, sums_so_far);
}

#ifdef __AMX_BF16__
template <>
void multiply_rows<Matrices>(const Work<Matrices>& a, int64_t rows, const Tile<Matrices>& tile,
                             float* sums_so_far) {
    constexpr int WIDE = COLUMNS<Matrices>;
    const UnitInUse unit(rows);
    const Half half{rows > UNIT_ROWS, true};
    const auto x = a.of_x + tile.row * a.steps + tile.from;
    if (tile.from > 0) load_sums(sums_so_far, WIDE, half);
    for (int64_t i = 0; i < tile.to - tile.from; i++) {
        for (int64_t l = 0; l < tile.stride; l++) ask_for(tile.soon + i * tile.stride + l);
        add_products(x + i, x + UNIT_ROWS * a.steps + i, a.steps * sizeof *x,
                     tile.weights + i * WIDE, half);
    }
    put_sums(sums_so_far, WIDE, half);
}
#endif

// Part `i` of `parts` begins here, if `whole` is cut as evenly as can be.
static int64_t part(int64_t whole, int64_t i, int64_t parts) { return whole * i / parts; }

static int64_t pieces_of(int64_t whole, int64_t most) { return (whole + most - 1) / most; }

// Some rows of x, from `row` on, and a panel.
struct Piece {
    int64_t row, rows, panel;
};

// The product of a piece, into `sums` [rows, COLUMNS<Way>].
template <typename Way>
static void multiply_piece(const Work<Way>& a, const Piece& piece, float* sums) {
    constexpr int WIDE = COLUMNS<Way>;
    auto weights = static_cast<const typename Way::Weight*>(a.weights) + piece.panel * WIDE * a.steps;
    const int64_t blocks = pieces_of(a.steps, DEPTH_AT_ONCE<Way>);
    const int64_t tiles = pieces_of(piece.rows, Way::MOST_ROWS);
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t from = part(a.steps, block, blocks), to = part(a.steps, block + 1, blocks);
        const auto here = weights + from * WIDE;
        const auto next = weights + to * WIDE;  // behind the last block comes the next panel
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t begin = part(piece.rows, tile, tiles);
            const int64_t end = part(piece.rows, tile + 1, tiles);
            // each asks for its share
            const auto soon = next + part((to - from) * WIDE, tile, tiles);
            multiply_rows<Way>(a, end - begin, {piece.row + begin, from, to, here, soon, WIDE / tiles},
                               sums + begin * WIDE);
        }
    }
}

// Its sums to where they belong, with the bias.
template <typename Way>
static void put_results(const Work<Way>& a, const Piece& piece, const float* sums) {
    const int64_t column = piece.panel * COLUMNS<Way>, there = a.columns - column;
    Vec bias[Way::REGISTERS] = {};
    for (int c = 0; a.bias && c < Way::REGISTERS; c++) {
        bias[c] = load(a.bias + column + c * LANES, there - c * LANES);
    }
    auto out = static_cast<typename Way::Number*>(a.out) + piece.row * a.columns + column;
    for (int64_t r = 0; r < piece.rows; r++, out += a.columns, sums += COLUMNS<Way>) {
        const auto result = [&](int c) { return load(sums + c * LANES) + bias[c]; };
        int c = 0;
        for (; c + 1 < Way::REGISTERS && there >= (c + 2) * LANES; c += 2) {
            put(result(c), result(c + 1), out + c * LANES);
        }
        for (; c < Way::REGISTERS; c++) put(result(c), out + c * LANES, there - c * LANES);
    }
}

// x as the inner loop reads it: where it lies, or where it is prepared.
template <typename Way>
static const typename Way::OfX* read_as(const Product& a, int64_t steps, Team& team, bool alone) {
    typedef typename Way::OfX OfX;
    typedef typename Way::Number Number;
    const Number* x = static_cast<const Number*>(a.x);
    if (sizeof(Number) == sizeof(typename Way::Factor) && a.depth % Way::NUMBERS == 0) {
        return reinterpret_cast<const OfX*>(x);
    }
    OfX* rows = static_cast<OfX*>(a.prepared);
    const int64_t width = steps * Way::PARTS;
    team.each(a.rows, alone, Order::PARTS, [&](int64_t row) {
        std::memset(rows + (row + 1) * width - 1, 0, sizeof(OfX));  // behind an odd depth
        auto to = reinterpret_cast<typename Way::Factor*>(rows + row * width);
        for (int64_t i = 0; i < a.depth; i += LANES) {
            const int64_t there = a.depth - i;
            put(load(x + row * a.depth + i, there), to + i, there);
        }
    });
    return rows;
}

template <typename Way>
static int64_t multiply(const void* call) {
    const Product& product = *static_cast<const Product*>(call);
    const int64_t steps = pieces_of(product.depth, Way::NUMBERS);
    const int64_t panels = pieces_of(product.columns, COLUMNS<Way>);
    const int64_t groups = pieces_of(product.rows, Way::ROWS_AT_ONCE);
    const int64_t pieces = groups * panels;
    const bool little_of_x = product.rows * product.depth < WORTH_A_THREAD;
    const bool alone = product.rows * product.depth * product.columns < WORTH_A_THREAD;
    return together(alone ? 1 : product.num_threads, [&](Team& team) -> int64_t {
        const Work<Way> a{product, read_as<Way>(product, steps, team, little_of_x), steps};
        float sums[Way::ROWS_AT_ONCE * COLUMNS<Way>];
        const auto piece = [&](int64_t i) -> Piece {
            const int64_t row = part(a.rows, i / panels, groups);
            return {row, part(a.rows, i / panels + 1, groups) - row, i % panels};
        };
        const auto make = [&](int64_t i) { multiply_piece(a, piece(i), sums); };
        const auto give = [&](int64_t i) { put_results(a, piece(i), sums); };
        if (!alone && pieces <= Team::MOST_TWICE) {
            team.each_once_or_twice(pieces, make, give);
        } else {
            team.each(pieces, alone, Order::PARTS, [&](int64_t i) { make(i), give(i); });
        }
        return 0;
    });
}

#define FOR_EACH_WAY(NAME, WAY)                                                         \
    extern "C" int64_t panel_columns_##NAME() { return COLUMNS<WAY>; }                  \
    extern "C" int64_t panel_numbers_##NAME() { return WAY::NUMBERS; }                  \
    extern "C" int64_t has_instructions_##NAME() { return WAY::has_instructions(); }    \
    extern "C" int64_t multiply_##NAME(const void* call) { return multiply<WAY>(call); }
FOR_EACH_WAY(floats, Floats)
FOR_EACH_WAY(widened_pairs, WidenedPairs)
FOR_EACH_WAY(dots, Dots)
FOR_EACH_WAY(matrices, Matrices)
