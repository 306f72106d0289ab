// What the parts of the emulator know of one another: threads, warps, blocks, and the launch that is running.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "fibers.h"
#include "intrinsics.cuh"
#include "memory.h"

namespace emulated {

constexpr unsigned kWarp = 32;
constexpr unsigned kMostResidentBlocks = 4;

struct Block;
struct Warp;

struct Copy {
    char* shared;
    const char* global;
    unsigned group;
    bool valid;
    bool done;
};

struct Thread {
    Context context;
    Block* block = nullptr;
    Warp* warp = nullptr;
    unsigned index = 0;
    std::uint64_t steps = 0;
    const char* waits_in = nullptr;  // the collective, or null
    int line = 0;
    std::vector<Copy> copies;  // issued and not yet waited for, oldest first
    unsigned groups = 0;       // committed so far
};

// Who last wrote or read 16 bytes of shared memory through an intrinsic, and which barriers lay before.
struct Access {
    Thread* thread = nullptr;
    std::uint64_t warp_barriers = 0;
    std::uint64_t block_barriers = 0;
    bool whole_warp = false;  // by a collective: its lanes go on together, so the warp's own later writes follow it
};

struct Warp {
    unsigned size = 0;
    std::uint64_t barriers = 0;  // completed
    unsigned returned = 0;
    unsigned arrived = 0;
    void (*complete)(void**) = nullptr;
    Thread* order[kWarp] = {};  // of arrival
    void* lanes[kWarp] = {};    // what each lane brought
};

struct Block {
    Index index = {};
    bool resident = false;
    unsigned returned = 0;
    std::uint64_t barriers = 0;  // completed
    Region shared = {};
    std::vector<Access> writes, reads;  // an entry for each 16 bytes of shared memory
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<Thread*> at_barrier;
};

struct Random {
    std::uint64_t state;
    std::uint64_t next() {  // splitmix64
        std::uint64_t z = (state += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    std::uint64_t below(std::uint64_t limit) { return (next() >> 32) * limit >> 32; }
};

// What the launcher hands back when a launch fails.
struct Report {
    char message[1000];
    std::uint64_t address;  // 0: none
    std::int32_t has_thread;
    std::uint32_t block[3];
    std::uint32_t thread;
};

struct Launch {
    void (*invoke)(void**);
    void** arguments;
    unsigned threads;
    std::uint64_t step_limit;
    Random random;
    // Schedule: how far down the stack of ready threads the next one is drawn, calls between preemptions on average,
    // and one copy in how many lands before it is waited for (0: none).
    std::size_t window;
    unsigned calls_between_preemptions;
    unsigned early_copies;

    Context launcher;
    Thread* current;
    std::vector<Thread*> ready;
    std::vector<Block> blocks;  // resident
    std::uint64_t idle_steps;   // since a collective completed or a thread returned
    unsigned until_preemption;
    volatile std::uint64_t progress;  // for the watchdog
    const void* fault_address;        // to be named by the caller
};

extern Launch launch;

// Ends the launch with a message; never returns.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

void step();           // counts a call of the current thread, and may let another go on
void wait_for_turn();  // the current thread goes on when someone has put it among the ready
void return_from_kernel();
void land_one_early();  // of the current thread's copies

// A warp's lanes meet; the last to arrive runs `complete` on what all brought.
void meet(const char* name, int line, void (*complete)(void**), void* lane);

// Shared memory between threads without a barrier: `wrote` and `read` fail where another thread's access to the same 16
// bytes is not ordered before this one. Addresses outside the block's shared memory are let pass.
void wrote_16(Thread& thread, const void* pointer, const char* name, int line);
void read_16(Thread& thread, const void* pointer, const char* name, int line, bool by_whole_warp);

void run_grid();

}  // namespace emulated
