// Lists of calls in which one thread holds a piece for long; see test_team.py.

#include "team.h"

#include <chrono>

typedef std::chrono::steady_clock Clock;

// Kept in step with test_team.py, field by field.
struct Probe {
    const int64_t* counts;  // pieces of each call
    int64_t* made;          // of each call: how often a piece was made, and given
    int64_t* given;
    int64_t* values;        // what the last call gave, for each piece
    int64_t num_calls, num_threads, most_pieces;
    int64_t slow_call, slow_piece;  // which is held when it is made first; -1: none
    int64_t twice;                  // whether pieces may be done twice
    int64_t milliseconds;           // that the piece is held at most
    int64_t finished_meanwhile;     // calls that the others got through while it was held,
    int64_t given_meanwhile;        // and pieces of that call that they gave
};

static void count(int64_t* place) { __atomic_fetch_add(place, 1, __ATOMIC_SEQ_CST); }

// Holds the piece until the others have done all calls, or for so long.  A piece that is done only
// once is held until all others of its call are done, and then a while longer.
static void hold(Probe& p, std::atomic<int64_t>& finished) {
    const auto end = Clock::now() + std::chrono::milliseconds(p.milliseconds);
    const int64_t& given = p.given[p.slow_call];
    const auto others_are_done = [&] {
        if (p.twice) return finished == p.num_calls;
        return __atomic_load_n(&given, __ATOMIC_SEQ_CST) == p.counts[p.slow_call] - 1;
    };
    while (!others_are_done() && Clock::now() < end) std::this_thread::yield();
    p.given_meanwhile = given;
    if (!p.twice) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    p.finished_meanwhile = finished;
}

// Each call gives, for each piece, something that depends on all that the call before gave.  Two
// rooms take turns, so what is given late would spoil a later call.
extern "C" int64_t probe(Probe* given) {
    Probe& p = *given;
    std::vector<int64_t> rooms[2];
    for (auto& room : rooms) room.assign(p.most_pieces, 1);
    std::atomic<int64_t> finished{0};  // calls that some thread is through with
    std::atomic<bool> held{false};
    const int64_t result = together(p.num_threads, [&](Team& team) -> int64_t {
        for (int64_t call = 0; call < p.num_calls; call++) {
            const auto &from = rooms[call % 2];
            auto &to = rooms[(call + 1) % 2];
            const int64_t before = call ? p.counts[call - 1] : 0;
            int64_t made = 0;
            const auto make = [&](int64_t piece) {
                count(&p.made[call]);
                const bool slow = call == p.slow_call && piece == p.slow_piece;
                made = 1 + call * piece;
                for (int64_t i = 0; i < before; i++) made = (made * 31 + from[i]) % 1000003;
                if (slow && !held.exchange(true)) hold(p, finished);
            };
            const auto give = [&](int64_t piece) {
                count(&p.given[call]);
                to[piece] = made;
            };
            if (p.twice) team.each_once_or_twice(p.counts[call], make, give);
            else team.each(p.counts[call], false, call % 2 ? Order::QUEUE : Order::PARTS,
                           [&](int64_t piece) { make(piece), give(piece); });
            for (int64_t seen = finished; seen <= call;) {
                if (finished.compare_exchange_weak(seen, call + 1)) break;
            }
        }
        return p.num_calls;
    });
    const auto& last = rooms[p.num_calls % 2];
    for (int64_t i = 0; i < p.most_pieces; i++) p.values[i] = last[i];
    return result;
}
