// Memory that notices: unreachable pages around every region, poison inside, canaries in the slack between the two.
#pragma once

#include <cstddef>

namespace emulated {

constexpr int kPoison = 0xff;  // NaN as bf16, fp16 and float32, -1 as an integer

struct Region {
    char* mapped;  // what may be touched: whole pages
    std::size_t mapped_bytes;
    char* start;  // what belongs to the buffer, 16-byte aligned
    std::size_t bytes;
    bool contains(const void* address, std::size_t count) const {
        const auto* byte = static_cast<const char*>(address);
        return byte >= start && byte + count <= start + bytes;
    }
};

// At the back of its pages the first byte past the region faults, at the front the last byte before it.
Region allocate_region(std::size_t bytes, bool at_back);
void free_region(const Region& region);

// The first byte of the slack that is no longer its canary, or null.
const char* damaged_byte(const Region& region);

}  // namespace emulated
