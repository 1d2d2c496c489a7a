// Products with a matrix of weights: x [rows, depth] times W [columns, depth], transposed.
//
// The weights lie in panels, a few registers wide and as deep as W: what the inner loop reads next
// comes next in memory.  A panel is taken a block of its depth at a time.  A tile is a few rows of x
// times one block, with its sums in registers; all tiles of a block follow one another while its
// weights are in the nearest cache, and meanwhile they ask for the block that comes next.  So a
// decode step reads every weight from memory once, and multiplies while it waits.
//
// Panels, blocks and tiles are those of Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication", ACM TOMS 34(3), 2008.
//
// Weights in bf16 are turned into floats on the way into the registers.  In a panel the columns of
// two registers lie one by one in turns, so that 32 bits hold a weight for each: a shift makes the
// one, and a mask the other.

#include <vector>

#include "vectors.h"

// As many sums as registers can hold beside the weights: there are 32 with AVX-512, else 16.
constexpr int MOST_SUMS = LANES == 16 ? 24 : 12;
// Registers that one row of a panel fills.  Weights in bf16 are turned into floats, once for all
// rows of a tile; so fewer weights and more rows are better there.
template <typename T>
constexpr int REGISTERS = sizeof(T) == sizeof(float) ? 3 : 2;
template <typename T>
constexpr int COLUMNS = REGISTERS<T> * LANES;
template <typename T>
constexpr int MOST_ROWS = MOST_SUMS / REGISTERS<T>;
#define UNROLLED _Pragma("GCC unroll 12")

// A block has as many bytes as the nearest cache, and as much of the depth as fits.
constexpr int64_t BLOCK = 32 << 10;
template <typename T>
constexpr int64_t DEPTH_AT_ONCE = BLOCK / (sizeof(T) * COLUMNS<T>);
// Rows of x that all panels are multiplied with before the next ones: they stay in a core's cache.
constexpr int64_t ROWS_AT_ONCE = 96;
// Below that many multiplications a second thread costs more than it brings.
constexpr int64_t WORTH_A_THREAD = 1 << 16;

// Kept in step with library.py, field by field.
struct Product {
    const void* x;       // [rows, depth], dense, of the type of the weights
    const void* weights; // [panels, depth, COLUMNS<T>], zeros behind the last column; bf16 in turns
    const float* bias;   // [columns], or null
    void* out;           // [rows, columns], dense, of that type too
    int64_t rows, depth, columns, num_threads;
};

// The weights of a panel at one number of the depth.
inline void load_columns(const float* from, Vec (&to)[REGISTERS<float>]) {
    UNROLLED for (int c = 0; c < REGISTERS<float>; c++) to[c] = load(from + c * LANES);
}

inline void load_columns(const BFloat16* from, Vec (&to)[REGISTERS<BFloat16>]) {
    Ints both;
    std::memcpy(&both, from, sizeof both);
    to[0] = Vec(both << 16);
    to[1] = Vec(both & ~0xFFFF);
}

// Some rows of x from `row` on, times a block of a panel.
template <typename T>
struct Tile {
    int64_t row, column;  // the first of each in the result
    int64_t from, to;     // the block's part of the depth
    const T* weights;     // of the block
    const T* soon;        // weights to ask for meanwhile,
    int64_t step;         // and how many of them at each number of the depth
};

// `sums_so_far` [ROWS, COLUMNS<T>] is what the blocks before came to, and takes what this one does;
// after the last one the sums are the result.
template <int ROWS, typename T>
static void multiply_tile(const Product& a, const Tile<T>& tile, float* sums_so_far) {
    constexpr int WIDTH = REGISTERS<T>;
    const float* x = static_cast<const float*>(a.x) + tile.row * a.depth + tile.from;
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
        Vec weight[WIDTH];
        load_columns(tile.weights + i * COLUMNS<T>, weight);
        __builtin_prefetch(tile.soon + i * tile.step);
        UNROLLED for (int r = 0; r < ROWS; r++) {
            UNROLLED for (int c = 0; c < WIDTH; c++) sums[r][c] += weight[c] * x[r * a.depth + i];
        }
    }
    if (tile.to < a.depth) return each_sum([](Vec& sum, float* place) { put(sum, place); });
    for (int c = 0; c < WIDTH && tile.column + c * LANES < a.columns; c++) {
        const int64_t column = tile.column + c * LANES, there = a.columns - column;
        const Vec bias = a.bias ? load(a.bias + column, there) : all(0.0f);
        T* out = static_cast<T*>(a.out) + tile.row * a.columns + column;
        for (int r = 0; r < ROWS; r++) put(sums[r][c] + bias, out + r * a.columns, there);
    }
}

// The same for a number of rows that is known only now.
template <typename T, int ROWS = MOST_ROWS<T>>
static void multiply_rows(const Product& a, int64_t rows, const Tile<T>& tile, float* sums_so_far) {
    if (rows == ROWS) return multiply_tile<ROWS>(a, tile, sums_so_far);
    if constexpr (ROWS > 1) multiply_rows<T, ROWS - 1>(a, rows, tile, sums_so_far);
}

// Part `i` of `parts` begins here, if `whole` is cut as evenly as can be.
static int64_t part(int64_t whole, int64_t i, int64_t parts) { return whole * i / parts; }

static int64_t pieces_of(int64_t whole, int64_t most) { return (whole + most - 1) / most; }

// `rows` rows of x from `first` on, times one panel.
template <typename T>
static void multiply_panel(const Product& a, int64_t first, int64_t rows, int64_t panel) {
    constexpr int WIDE = COLUMNS<T>;
    float sums_so_far[ROWS_AT_ONCE * WIDE];
    const T* weights = static_cast<const T*>(a.weights) + panel * WIDE * a.depth;
    const int64_t blocks = pieces_of(a.depth, DEPTH_AT_ONCE<T>), tiles = pieces_of(rows, MOST_ROWS<T>);
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t from = part(a.depth, block, blocks), to = part(a.depth, block + 1, blocks);
        const T* here = weights + from * WIDE;
        const T* next = weights + to * WIDE;  // behind the last block comes the next panel
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t begin = part(rows, tile, tiles), end = part(rows, tile + 1, tiles);
            // each asks for its share
            const T* soon = next + part((to - from) * WIDE, tile, tiles);
            multiply_rows<T>(a, end - begin,
                             {first + begin, panel * WIDE, from, to, here, soon, WIDE / tiles},
                             sums_so_far + begin * WIDE);
        }
    }
}

static int threads_for(int64_t numbers, const Product& a) {
    return numbers < WORTH_A_THREAD ? 1 : int(a.num_threads);
}

// The rows of x as floats: themselves, or in memory that is kept for the next call.
static const float* floats_of(const float* x, const Product&) { return x; }

static const float* floats_of(const BFloat16* x, const Product& a) {
    static thread_local std::vector<float> kept;
    if (int64_t(kept.size()) < a.rows * a.depth) kept.resize(a.rows * a.depth);
    float* floats = kept.data();
#pragma omp parallel for num_threads(threads_for(a.rows * a.depth, a))
    for (int64_t row = 0; row < a.rows; row++) {
        for (int64_t i = row * a.depth; i < (row + 1) * a.depth; i += LANES) {
            const int64_t there = (row + 1) * a.depth - i;
            put(load(x + i, there), floats + i, there);
        }
    }
    return floats;
}

template <typename T>
static int64_t multiply(Product a) {
    const int64_t panels = pieces_of(a.columns, COLUMNS<T>), groups = pieces_of(a.rows, ROWS_AT_ONCE);
    a.x = floats_of(static_cast<const T*>(a.x), a);
#pragma omp parallel for collapse(2) num_threads(threads_for(a.rows * a.depth * a.columns, a))
    for (int64_t group = 0; group < groups; group++) {
        for (int64_t panel = 0; panel < panels; panel++) {
            const int64_t first = part(a.rows, group, groups);
            multiply_panel<T>(a, first, part(a.rows, group + 1, groups) - first, panel);
        }
    }
    return 0;
}

extern "C" int64_t panel_columns_float() { return COLUMNS<float>; }
extern "C" int64_t panel_columns_bfloat16() { return COLUMNS<BFloat16>; }
FOR_BOTH(multiply, Product)
