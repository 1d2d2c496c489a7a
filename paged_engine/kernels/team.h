// Threads that do the same calls together, each a part of every call's work.
//
// All of them go down the same list of calls.  A call's work is cut into pieces: a thread takes those
// of its own part, then what is left of the others', and nobody goes on before all pieces are done.
// Threads wait for pieces, not for each other: when the system gives a core to a browser for some
// milliseconds, the others take the rest of that thread's part, and where a piece can be done twice
// they do the one that it holds, too: the backup tasks of Dean and Ghemawat, "MapReduce: simplified
// data processing on large clusters", OSDI 2004, section 3.6.  Whoever comes late finds that its
// piece is no longer wanted, and catches up.  A thread may thus still read what a call was given
// when others are several calls further; what it makes of it is thrown away.
//
// Calls are numbered, and every word that threads share carries the number of the call it is about.
// So nothing is ever reset, and who is late cannot disturb a later call.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

inline int64_t this_thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

inline int64_t threads_here() {
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

// How pieces are handed out: each thread has a part of its own, or all take the next one.
enum class Order { PARTS, QUEUE };

class Team {
    typedef std::atomic<uint64_t> Word;
    // The number of a call, and so many pieces.
    static constexpr int BITS = 24;
    static constexpr uint64_t COUNT = (uint64_t(1) << BITS) - 1;
    struct alignas(64) Line {  // of a core's cache: threads would pull it to and fro
        Word word{0};
    };

public:
    // Pieces that can be done twice, of one call.
    static constexpr int64_t MOST_TWICE = 8192;

    // What the threads share; it serves one list of calls after the other.
    struct Shared {
        Line done;                // pieces of the call that is on
        std::vector<Line> taken;  // pieces of each thread's part
        std::vector<Word> given;  // for each piece, the last call to which somebody gave it
        uint64_t calls = 0;       // that were made so far

        explicit Shared(int64_t num_threads) : taken(num_threads), given(MOST_TWICE) {}
    };

    // Kept for the next calls of a thread that makes calls.
    static Shared& shared_of_this_thread(int64_t num_threads) {
        static thread_local std::unique_ptr<Shared> kept;
        if (!kept || int64_t(kept->taken.size()) < num_threads) {
            kept = std::make_unique<Shared>(num_threads);
        }
        return *kept;
    }

    Team(Shared& shared, int64_t size) : s(shared), me(this_thread()), size(size), call(s.calls) {}

    // The one that this thread is in, or null.
    static Team*& current() {
        static thread_local Team* team = nullptr;
        return team;
    }

    uint64_t number_of_call() const { return call; }

    // `act(piece)` for each of `count` pieces; by one thread alone if they are not worth more.
    template <typename Act>
    void each(int64_t count, bool alone, Order order, Act act) {
        begin(alone && count ? 1 : count, order);
        for (int64_t piece; (piece = next()) >= 0; add_done()) {
            if (!alone) act(piece);
            else for (int64_t i = 0; i < count; i++) act(i);
        }
        for (int64_t waited = 0; !is_over(); waited++) wait(waited);
    }

    // The same for pieces that may be done twice: `make(piece)` keeps what it makes to itself, and
    // `give(piece)` puts it where all can see it.
    template <typename Make, typename Give>
    void each_once_or_twice(int64_t count, Make make, Give give) {
        const auto act = [&](int64_t piece) {
            make(piece);
            if (!is_first_with(piece)) return;
            give(piece);
            add_done();
        };
        begin(count, Order::PARTS);
        for (int64_t piece; (piece = next()) >= 0;) act(piece);
        for (int64_t waited = 0; !is_over(); waited++) {
            wait(waited);
            if (waited < PATIENCE) continue;
            for (int64_t i = 0; i < count && !is_over(); i++) {
                const int64_t piece = (i + me * count / size) % count;  // not all the same one
                if (s.given[piece] < call) act(piece);
            }
        }
    }

private:
    // Looks at a word before somebody's core is taken to be at something else, and before the
    // waiting thread's own is given to whoever wants it: some 20 and 100 microseconds.
    static constexpr int64_t PATIENCE = 1000, LONG = 4000;

    Shared& s;
    const int64_t me, size;
    uint64_t call;
    int64_t count = 0, parts = 1, tried = 0;

    void begin(int64_t its_count, Order order) {
        call++;
        count = its_count;
        parts = order == Order::PARTS ? size : 1;
        tried = 0;
    }

    // A piece that nobody has taken, or -1.
    int64_t next() {
        for (; tried < parts; tried++) {
            const int64_t part = (me + tried) % parts;
            const int64_t first = count * part / parts, end = count * (part + 1) / parts;
            Word& taken = s.taken[part].word;
            for (uint64_t seen = taken; first + of_this_call(seen) < end;) {
                const uint64_t more = call << BITS | uint64_t(of_this_call(seen) + 1);
                if (taken.compare_exchange_weak(seen, more)) return first + (more & COUNT) - 1;
            }
        }
        return -1;
    }

    // How many a word says of the call that this thread is at: all of them if others are further.
    int64_t of_this_call(uint64_t word) const {
        const uint64_t its = word >> BITS;
        return its > call ? count : its == call ? int64_t(word & COUNT) : 0;
    }

    bool is_over() const { return of_this_call(s.done.word) >= count; }

    void add_done() {
        uint64_t seen = s.done.word;
        while (!s.done.word.compare_exchange_weak(
            seen, call << BITS | uint64_t(of_this_call(seen) + 1))) {}
    }

    bool is_first_with(int64_t piece) {
        uint64_t last = s.given[piece];
        return last < call && s.given[piece].compare_exchange_strong(last, call);
    }

    static void wait(int64_t waited) {
        if (waited > LONG) return std::this_thread::yield();
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }
};

// What `calls(team)` returns, and all threads of a team go through it: of the team that this thread
// is in, or else of one that comes together for it.
template <typename Calls>
int64_t together(int64_t num_threads, Calls calls) {
    if (Team* team = Team::current()) return calls(*team);
    Team::Shared& shared = Team::shared_of_this_thread(num_threads);
    int64_t result = 0;
    uint64_t last_call = 0;
#pragma omp parallel num_threads(int(num_threads))
    {
        Team team(shared, threads_here());
        Team::current() = &team;
        const int64_t its_result = calls(team);
        Team::current() = nullptr;
        if (this_thread() == 0) {
            result = its_result;
            last_call = team.number_of_call();
        }
    }
    shared.calls = last_call;
    return result;
}

// `act(i)` for each `i` below `count`; by one thread alone if they are not worth more.
template <typename Act>
int64_t each(int64_t count, int64_t num_threads, bool alone, Act act) {
    return together(alone ? 1 : num_threads, [&](Team& team) -> int64_t {
        team.each(count, alone, Order::PARTS, act);
        return 0;
    });
}
