// Products with a matrix of weights: x [rows, depth] times W [columns, depth], transposed.
//
// The weights lie in panels, COLUMNS outputs wide and as deep as W: what the inner loop reads next
// comes next in memory.  A tile is a few rows of x times one panel, whose sums stay in registers
// from the first number of the depth to the last; all tiles of a panel follow one another, while its
// weights are in the nearest caches.  So a decode step reads every weight from memory once, and
// otherwise only multiplies (Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication", ACM TOMS 34(3), 2008, with a single level of blocks, for few rows).

#include "vectors.h"

constexpr int REGISTERS = 2;  // that one row of a panel fills
constexpr int COLUMNS = REGISTERS * LANES;
// As many sums as registers can hold beside the weights: there are 32 with AVX-512, else 16.
constexpr int MOST_ROWS = LANES == 16 ? 12 : 6;
#define UNROLLED _Pragma("GCC unroll 12")

// Rows of x that all panels are multiplied with before the next ones: they stay in a core's cache.
constexpr int64_t ROWS_AT_ONCE = 96;
// Below that many multiplications a second thread costs more than it brings.
constexpr int64_t WORTH_A_THREAD = 1 << 16;

// Kept in step with library.py, field by field.
struct Product {
    const float* x;      // [rows, depth], dense
    const void* weights; // [panels, depth, COLUMNS], zeros behind the last column
    const float* bias;   // [columns], or null
    void* out;           // [rows, columns], dense, of the type of the weights
    int64_t rows, depth, columns, num_threads;
};

// ROWS rows from `row` on, times panel `panel`.
template <int ROWS, typename T>
static void multiply_tile(const Product& a, int64_t row, int64_t panel) {
    const int64_t first = panel * COLUMNS;
    const T* weights = static_cast<const T*>(a.weights) + first * a.depth;
    const float* x = a.x + row * a.depth;
    Vec sums[ROWS][REGISTERS] = {};
    for (int64_t i = 0; i < a.depth; i++) {
        Vec weight[REGISTERS];
        UNROLLED for (int c = 0; c < REGISTERS; c++) weight[c] = load(weights + i * COLUMNS + c * LANES);
        UNROLLED for (int r = 0; r < ROWS; r++) {
            UNROLLED for (int c = 0; c < REGISTERS; c++) sums[r][c] += weight[c] * x[r * a.depth + i];
        }
    }
    for (int c = 0; c < REGISTERS && first + c * LANES < a.columns; c++) {
        const int64_t column = first + c * LANES, there = a.columns - column;
        const Vec bias = a.bias ? load(a.bias + column, there) : all(0.0f);
        for (int r = 0; r < ROWS; r++) {
            put(sums[r][c] + bias, static_cast<T*>(a.out) + (row + r) * a.columns + column, there);
        }
    }
}

// The same for a number of rows that is known only now.
template <typename T, int ROWS = MOST_ROWS>
static void multiply_rows(const Product& a, int64_t row, int64_t rows, int64_t panel) {
    if (rows == ROWS) return multiply_tile<ROWS, T>(a, row, panel);
    if constexpr (ROWS > 1) multiply_rows<T, ROWS - 1>(a, row, rows, panel);
}

// Part `i` of `parts` begins here, if `whole` is cut as evenly as can be.
static int64_t part(int64_t whole, int64_t i, int64_t parts) { return whole * i / parts; }

static int64_t pieces_of(int64_t whole, int64_t most) { return (whole + most - 1) / most; }

template <typename T>
static void multiply(const Product& a) {
    const int64_t panels = pieces_of(a.columns, COLUMNS), groups = pieces_of(a.rows, ROWS_AT_ONCE);
    const bool is_worth_it = a.rows * a.depth * a.columns >= WORTH_A_THREAD;
#pragma omp parallel for collapse(2) num_threads(is_worth_it ? int(a.num_threads) : 1)
    for (int64_t group = 0; group < groups; group++) {
        for (int64_t panel = 0; panel < panels; panel++) {
            const int64_t first = part(a.rows, group, groups);
            const int64_t rows = part(a.rows, group + 1, groups) - first;
            const int64_t tiles = pieces_of(rows, MOST_ROWS);
            for (int64_t tile = 0; tile < tiles; tile++) {
                const int64_t begin = part(rows, tile, tiles);
                multiply_rows<T>(a, first + begin, part(rows, tile + 1, tiles) - begin, panel);
            }
        }
    }
}

extern "C" int64_t panel_columns() { return COLUMNS; }
extern "C" void multiply_float(const Product* a) { multiply<float>(*a); }
extern "C" void multiply_bfloat16(const Product* a) { multiply<BFloat16>(*a); }
