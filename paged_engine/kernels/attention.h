// What a call for attention says, to paged_attention.cpp and to unit_attention.cpp.
#pragma once

#include "team.h"
#include "vectors.h"

#include <limits>

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

// A score that no other is below, and whose weight is zero.
constexpr float NEVER = -std::numeric_limits<float>::infinity();

// A decoded token is one piece of work with all KV heads if there are so many pieces for a thread:
// a block's heads lie one after the other, and memory is fastest when it is read in one go.
constexpr int64_t MANY = 4;

// By the unit for small matrices: whether it does this call, the call, and the floats that a thread
// needs for it.
bool unit_attends(const Attention& a);
int64_t unit_attention(const Attention& a);
int64_t unit_attention_scratch_size(int64_t most_rows, int64_t num_kv_heads, int64_t head_dim,
                                    int64_t value_dim);
