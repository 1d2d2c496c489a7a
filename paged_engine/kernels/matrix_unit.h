// The unit for small matrices that some processors have (Intel's AMX).
//
// It has eight registers of 16 rows, 64 bytes each.  One instruction multiplies 16 rows of 32 numbers
// in bf16 with 16 columns of as many, and adds the products to 16 x 16 sums in fp32.  The numbers of
// the columns lie in pairs: a row of the register holds two of each column, one after the other.
//
// We use all eight at once: 0 to 3 are the sums of 32 rows and 32 columns, 4 and 5 the rows, 6 and 7
// the columns.  So every number that is loaded is used twice.
//
// Intel, "Architecture Instruction Set Extensions Programming Reference", chapter 3.
#pragma once

#ifdef __AMX_BF16__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <utility>

constexpr int UNIT_ROWS = 16;     // of a register; as many columns of sums
constexpr int UNIT_NUMBERS = 32;  // that one instruction multiplies for each sum
constexpr int UNIT_COLUMNS = 32;  // of all sums
constexpr int UNIT_BYTES = 64;    // of a register's row

// Which part of each register counts, as the processor wants to be told.
struct alignas(64) Shapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

constexpr Shapes shapes_for(int rows) {
    Shapes shapes;
    const int upper = rows < UNIT_ROWS ? rows : UNIT_ROWS, lower = rows - upper;
    const int of_each[8] = {upper, upper, lower, lower, upper, lower, UNIT_ROWS, UNIT_ROWS};
    for (int i = 0; i < 8; i++) {
        shapes.rows[i] = uint8_t(of_each[i]);
        shapes.row_bytes[i] = of_each[i] ? UNIT_BYTES : 0;
    }
    return shapes;
}

template <int... ROWS>
constexpr std::array<Shapes, sizeof...(ROWS)> shapes_of(std::integer_sequence<int, ROWS...>) {
    return {shapes_for(ROWS)...};
}
inline constexpr auto SHAPES = shapes_of(std::make_integer_sequence<int, 2 * UNIT_ROWS + 1>{});

// Linux lets only those use it who ask: its registers are 8 KB more of a thread's state.
inline bool may_use_unit() {
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    static const bool may = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return may;
}

// A thread's use of the unit, for 1 to 32 rows: it begins with zeros.  When it is over, the processor
// no longer saves the registers where threads take turns.
struct UnitInUse {
    explicit UnitInUse(int64_t rows) { _tile_loadconfig(&SHAPES[rows]); }
    ~UnitInUse() { _tile_release(); }
};

// Which of the sums are computed: all of [32, UNIT_COLUMNS], or the upper half, or the left one.
struct Half {
    bool lower = true, right = true;
};

inline void clear_sums(Half half) {
    _tile_zero(0);
    if (half.right) _tile_zero(1);
    if (half.lower) _tile_zero(2);
    if (half.lower && half.right) _tile_zero(3);
}

inline void load_sums(const float* from, int64_t width, Half half) {
    const int64_t stride = width * sizeof(float);
    const float* lower = from + UNIT_ROWS * width;
    _tile_loadd(0, from, stride);
    if (half.right) _tile_loadd(1, from + UNIT_ROWS, stride);
    if (half.lower) _tile_loadd(2, lower, stride);
    if (half.lower && half.right) _tile_loadd(3, lower + UNIT_ROWS, stride);
}

inline void put_sums(float* to, int64_t width, Half half) {
    const int64_t stride = width * sizeof(float);
    float* lower = to + UNIT_ROWS * width;
    _tile_stored(0, to, stride);
    if (half.right) _tile_stored(1, to + UNIT_ROWS, stride);
    if (half.lower) _tile_stored(2, lower, stride);
    if (half.lower && half.right) _tile_stored(3, lower + UNIT_ROWS, stride);
}

// Adds the products of UNIT_NUMBERS numbers of each row and column.  `columns` is
// [UNIT_NUMBERS / 2, UNIT_COLUMNS] pairs, dense; rows lie `stride` bytes apart.
inline void add_products(const void* upper_rows, const void* lower_rows, int64_t stride,
                         const void* columns, Half half) {
    constexpr int64_t PAIRS_STRIDE = UNIT_COLUMNS * sizeof(int32_t);
    _tile_loadd(6, columns, PAIRS_STRIDE);
    if (half.right) _tile_loadd(7, static_cast<const char*>(columns) + UNIT_BYTES, PAIRS_STRIDE);
    _tile_loadd(4, upper_rows, stride);
    _tile_dpbf16ps(0, 4, 6);
    if (half.right) _tile_dpbf16ps(1, 4, 7);
    if (half.lower) {
        _tile_loadd(5, lower_rows, stride);
        _tile_dpbf16ps(2, 5, 6);
        if (half.right) _tile_dpbf16ps(3, 5, 7);
    }
}
#endif
