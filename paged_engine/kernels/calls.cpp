// Kernels one after the other, without Python in between.
//
// A decode step calls some three hundred of them, and between two calls Python takes as long as a
// short one does.  What a step called can be called again, with other numbers in the same memory, as
// a CUDA graph is: kernels/tape.py.

#include "team.h"

struct Call {
    int64_t (*kernel)(const void*);
    const void* argument;
};

// Stops at the first that does not return 0, and returns what it did.
//
// All threads go down the list, each on its own: so they come together once for all calls.
extern "C" int64_t run_calls(const Call* calls, int64_t count, int64_t num_threads) {
    return together(num_threads, [&](Team&) -> int64_t {
        for (int64_t i = 0; i < count; i++) {
            if (const int64_t failed = calls[i].kernel(calls[i].argument)) return failed;
        }
        return 0;
    });
}
