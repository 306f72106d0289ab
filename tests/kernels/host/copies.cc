// Asynchronous copies that are as late as they may be: until they are waited for, the destination is poison.
#include <algorithm>
#include <cstring>

#include "runtime.h"

namespace emulated {
namespace {

void land(Copy& copy) {
    if (copy.done) return;
    for (int i = 0; i < 16; ++i) {
        if (static_cast<unsigned char>(copy.shared[i]) != kPoison) {
            fail("shared memory + %td was written while an asynchronous copy to it was in flight",
                 copy.shared - launch.current->block->shared.start);
        }
    }
    if (copy.valid) {
        std::memcpy(copy.shared, copy.global, 16);
    } else {
        std::memset(copy.shared, 0, 16);
    }
    copy.done = true;
}

}  // namespace

void check_aligned(const void* pointer, unsigned bytes, const char* name, int line) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % bytes != 0) {
        launch.fault_address = pointer;
        fail("%s at line %d: the address is not %u-byte aligned", name, line, bytes);
    }
}

void before_load_16(const void* pointer, const char* name, int line) {
    check_aligned(pointer, 16, name, line);
    read_16(*launch.current, pointer, name, line, false);
}

void before_store_16(const void* pointer, const char* name, int line) {
    check_aligned(pointer, 16, name, line);
    wrote_16(*launch.current, pointer, name, line);
}

void copy_async(void* shared, const void* global, bool valid, int line) {
    step();
    Thread& self = *launch.current;
    auto* destination = static_cast<char*>(shared);
    const Region& own = self.block->shared;
    const std::ptrdiff_t offset = destination - own.start;
    if (offset % 16 != 0) {
        fail("copy_async_16 at line %d: shared memory + %td is not 16-byte aligned", line, offset);
    }
    if (!own.contains(destination, 16)) {
        fail("copy_async_16 at line %d: to shared memory + %td of %zu bytes", line, offset, own.bytes);
    }
    if (valid) {
        check_aligned(global, 16, "copy_async_16", line);
        if (own.contains(global, 1)) fail("copy_async_16 at line %d: the source is in shared memory", line);
        // A wrong source faults here, where the line is known, not when the copy lands.
        static_cast<void>(*static_cast<const volatile char*>(global));
    }
    wrote_16(self, destination, "copy_async_16", line);
    std::memset(destination, kPoison, 16);
    self.copies.push_back({destination, static_cast<const char*>(global), self.groups, valid, false});
}

void commit_copies() {
    step();
    ++launch.current->groups;
}

void wait_for_copies(unsigned groups_in_flight, int line) {
    step();
    Thread& self = *launch.current;
    const auto waited_for = [&](const Copy& copy) { return copy.group + groups_in_flight < self.groups; };
    const auto end = std::find_if_not(self.copies.begin(), self.copies.end(), waited_for);
    std::for_each(self.copies.begin(), end, [&](Copy& copy) {
        land(copy);
        wrote_16(self, copy.shared, "copy_async_wait", line);  // no one else may look before a barrier after this
    });
    self.copies.erase(self.copies.begin(), end);
}

void land_one_early() {
    auto& copies = launch.current->copies;
    land(copies[launch.random.below(copies.size())]);
}

}  // namespace emulated
