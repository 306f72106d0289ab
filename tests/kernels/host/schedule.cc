// Who runs next: fibers of the resident blocks, meetings of a block or warp, the end of a thread.
#include <algorithm>
#include <cstdio>
#include <string>

#include "runtime.h"

emulated::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

Launch launch;
char* shared_memory;

namespace {

void make_ready(Thread* thread) {
    thread->waits_in = nullptr;
    launch.ready.push_back(thread);
}

Thread* next_ready() {
    auto& ready = launch.ready;
    const std::size_t depth = launch.random.below(std::min(ready.size(), launch.window));
    std::swap(ready[ready.size() - 1 - depth], ready.back());
    Thread* next = ready.back();
    ready.pop_back();
    return next;
}

void enter(Thread* thread) {
    launch.current = thread;
    threadIdx = {thread->index, 0, 0};
    blockIdx = thread->block->index;
    shared_memory = thread->block->shared.start;
    ++launch.progress;
}

void draw_preemption() { launch.until_preemption = 1 + launch.random.below(2 * launch.calls_between_preemptions); }

// Another thread goes on; the current one is put somewhere among the ready.
void preempt() {
    draw_preemption();
    auto& ready = launch.ready;
    if (ready.empty()) return;
    ready.push_back(launch.current);
    std::swap(ready[launch.random.below(ready.size())], ready.back());
    wait_for_turn();
}

void run_thread() {
    launch.invoke(launch.arguments);
    return_from_kernel();
}

void start_block(Block& block, std::size_t slot, std::uint64_t number) {
    block.resident = true;
    block.returned = 0;
    block.at_barrier.clear();
    block.writes.assign((block.shared.bytes + 15) / 16, {});
    block.reads.assign(block.writes.size(), {});
    block.index = {static_cast<unsigned>(number % gridDim.x), static_cast<unsigned>(number / gridDim.x % gridDim.y),
                   static_cast<unsigned>(number / gridDim.x / gridDim.y)};
    std::fill_n(block.shared.start, block.shared.bytes, static_cast<char>(kPoison));
    const std::size_t first = launch.ready.size();
    for (unsigned i = 0; i < launch.threads; ++i) {
        Thread& thread = block.threads[i];
        thread.steps = 0;
        thread.groups = 0;
        thread.copies.clear();
        const Stack stack = stack_number(slot * launch.threads + i);
        prepare_context(thread.context, stack.memory, stack.bytes, run_thread);
        make_ready(&thread);
    }
    for (Warp& warp : block.warps) warp.returned = warp.arrived = 0;
    auto& ready = launch.ready;
    for (std::size_t i = ready.size() - 1; i > first; --i) {
        std::swap(ready[i], ready[first + launch.random.below(i - first + 1)]);
    }
}

[[noreturn]] void report_deadlock() {
    std::string where;
    int places = 0;
    for (const Block& block : launch.blocks) {
        if (!block.resident) continue;
        std::vector<const Thread*> seen;
        for (const Thread& thread : block.threads) {
            const auto same = [&](const Thread* other) {
                return other->line == thread.line && other->waits_in == thread.waits_in;
            };
            if (thread.waits_in == nullptr || std::any_of(seen.begin(), seen.end(), same) || ++places > 4) continue;
            seen.push_back(&thread);
            const auto count = std::count_if(block.threads.begin(), block.threads.end(),
                                             [&](const Thread& other) { return same(&other) && other.waits_in; });
            char text[200];
            std::snprintf(text, sizeof text, "; %d from thread %u of block (%u, %u, %u) on in %s at line %d", int(count),
                          thread.index, block.index.x, block.index.y, block.index.z, thread.waits_in, thread.line);
            where += text;
        }
    }
    launch.current = nullptr;
    fail("deadlock: every thread waits for others%s", where.c_str());
}

}  // namespace

unsigned lane_index() { return launch.current->index % kWarp; }

void step() {
    Thread& self = *launch.current;
    ++launch.progress;
    const auto limit = static_cast<unsigned long long>(launch.step_limit);
    if (++self.steps > limit) fail("hang: this thread alone took %llu steps", limit);
    // Spinning threads together would take long to reach that one by one.
    if (++launch.idle_steps > limit) fail("hang: %llu steps of all threads, and none met others or returned", limit);
    if (launch.early_copies != 0 && !self.copies.empty() && launch.random.below(launch.early_copies) == 0) {
        land_one_early();
    }
    if (--launch.until_preemption == 0) preempt();
}

void wait_for_turn() {
    Thread* self = launch.current;
    if (launch.ready.empty()) {
        switch_context(self->context, launch.launcher);
        return;
    }
    Thread* next = next_ready();
    enter(next);
    if (next != self) switch_context(self->context, next->context);
}

void order_memory() { step(); }

void meet_block(int line) {
    step();
    Thread* self = launch.current;
    Block& block = *self->block;
    if (block.returned != 0) {
        fail("sync_block at line %d, but %u of the block's %u threads have returned", line, block.returned, launch.threads);
    }
    if (!block.at_barrier.empty() && block.at_barrier[0]->line != line) {
        fail("sync_block at line %d, but thread %u of the block waits in the one at line %d", line,
             block.at_barrier[0]->index, block.at_barrier[0]->line);
    }
    self->line = line;
    self->waits_in = "sync_block";
    block.at_barrier.push_back(self);
    if (block.at_barrier.size() < launch.threads) return wait_for_turn();
    launch.idle_steps = 0;
    ++block.barriers;
    self->waits_in = nullptr;
    block.at_barrier.pop_back();
    for (Thread* thread : block.at_barrier) make_ready(thread);
    block.at_barrier.clear();
}

void meet(const char* name, int line, void (*complete)(void**), void* lane) {
    step();
    Thread* self = launch.current;
    Warp& warp = *self->warp;
    if (warp.size != kWarp || warp.returned != 0) {
        fail("%s at line %d needs 32 threads; %u of the warp's %u are there", name, line, warp.size - warp.returned, warp.size);
    }
    if (warp.arrived != 0 && (warp.complete != complete || warp.order[0]->line != line)) {
        fail("%s at line %d, but thread %u of the warp waits in %s at line %d", name, line, warp.order[0]->index,
             warp.order[0]->waits_in, warp.order[0]->line);
    }
    self->line = line;
    self->waits_in = name;
    warp.complete = complete;
    warp.lanes[self->index % kWarp] = lane;
    warp.order[warp.arrived++] = self;
    if (warp.arrived < kWarp) return wait_for_turn();
    complete(warp.lanes);
    launch.idle_steps = 0;
    warp.arrived = 0;
    self->waits_in = nullptr;
    for (unsigned i = 0; i + 1 < kWarp; ++i) make_ready(warp.order[i]);
}

void return_from_kernel() {
    Thread* self = launch.current;
    Block& block = *self->block;
    Warp& warp = *self->warp;
    if (!self->copies.empty()) fail("returned, but %zu of its asynchronous copies were never waited for", self->copies.size());
    if (warp.arrived != 0) {
        fail("returned, but thread %u of its warp waits in %s at line %d", warp.order[0]->index, warp.order[0]->waits_in,
             warp.order[0]->line);
    }
    if (!block.at_barrier.empty()) {
        fail("returned, but %zu threads of its block wait in sync_block at line %d", block.at_barrier.size(),
             block.at_barrier[0]->line);
    }
    ++warp.returned;
    launch.idle_steps = 0;
    if (++block.returned < launch.threads) return wait_for_turn();
    if (const char* byte = damaged_byte(block.shared)) {
        fail("wrote to shared memory at offset %td of %zu bytes", byte - block.shared.start, block.shared.bytes);
    }
    block.resident = false;
    switch_context(self->context, launch.launcher);
}

// Runs all blocks of the grid, a few at a time, in an order of the seed's.
void run_grid() {
    std::vector<std::uint64_t> pending(std::uint64_t{gridDim.x} * gridDim.y * gridDim.z);
    for (std::size_t i = 0; i < pending.size(); ++i) pending[i] = i;
    for (std::size_t i = pending.size(); i > 1; --i) std::swap(pending[i - 1], pending[launch.random.below(i)]);
    draw_preemption();
    for (;;) {
        bool any = false;
        for (std::size_t slot = 0; slot < launch.blocks.size(); ++slot) {
            Block& block = launch.blocks[slot];
            if (!block.resident && !pending.empty()) {
                start_block(block, slot, pending.back());
                pending.pop_back();
            }
            any = any || block.resident;
        }
        if (!any) return;
        if (launch.ready.empty()) report_deadlock();
        Thread* next = next_ready();
        enter(next);
        switch_context(launch.launcher, next->context);
    }
}

}  // namespace emulated
