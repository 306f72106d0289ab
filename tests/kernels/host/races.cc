// Shared memory that one thread writes and another reads without a barrier between: seen for the intrinsics of 16 bytes,
// in whatever order the threads happened to run.
#include "runtime.h"

namespace emulated {
namespace {

std::size_t chunk_of(const Block& block, const void* pointer) {
    return static_cast<std::size_t>(static_cast<const char*>(pointer) - block.shared.start) / 16;
}

bool ordered_for_others(const Access& before, const Thread& thread) {
    if (before.thread == nullptr) return true;
    if (before.block_barriers < thread.block->barriers) return true;
    if (before.thread->warp != thread.warp) return false;
    return before.whole_warp || before.warp_barriers < thread.warp->barriers;
}

bool ordered(const Access& before, const Thread& thread) {
    return before.thread == &thread || ordered_for_others(before, thread);
}

[[noreturn]] void report(const Block& block, const void* pointer, const char* name, int line, const char* deed,
                         const Access& before) {
    fail("%s at line %d: shared memory + %td was %s by thread %u, and no barrier lies between", name, line,
         static_cast<const char*>(pointer) - block.shared.start, deed, before.thread->index);
}

Access access_of(Thread& thread, bool whole_warp) {
    return {&thread, thread.warp->barriers, thread.block->barriers, whole_warp};
}

}  // namespace

void wrote_16(Thread& thread, const void* pointer, const char* name, int line) {
    Block& block = *thread.block;
    if (!block.shared.contains(pointer, 16)) return;
    const std::size_t chunk = chunk_of(block, pointer);
    if (!ordered(block.writes[chunk], thread)) report(block, pointer, name, line, "written", block.writes[chunk]);
    if (!ordered(block.reads[chunk], thread)) report(block, pointer, name, line, "read", block.reads[chunk]);
    block.writes[chunk] = access_of(thread, false);
}

void read_16(Thread& thread, const void* pointer, const char* name, int line, bool by_whole_warp) {
    Block& block = *thread.block;
    if (!block.shared.contains(pointer, 16)) return;
    const std::size_t chunk = chunk_of(block, pointer);
    const Access& write = block.writes[chunk];
    // A matrix load hands bytes of a row to lanes that did not write it, so the writer's own view is not enough.
    const bool unseen = by_whole_warp ? !ordered_for_others(write, thread) : !ordered(write, thread);
    if (unseen) report(block, pointer, name, line, "written", write);
    block.reads[chunk] = access_of(thread, by_whole_warp);
}

}  // namespace emulated
