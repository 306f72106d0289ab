#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <new>

namespace emulated {
namespace {

constexpr std::size_t kPageBytes = 4096;
// A wrong index is rarely wrong by a little: the wider the gap, the fewer reach another buffer across it.
constexpr std::size_t kGapBytes = 16 << 20;
constexpr unsigned char kCanary = 0xa5;

std::map<char*, Region> buffers;  // by start

void paint_slack(const Region& region) {
    std::fill(region.mapped, region.start, static_cast<char>(kCanary));
    std::fill(region.start + region.bytes, region.mapped + region.mapped_bytes, static_cast<char>(kCanary));
}

}  // namespace

Region allocate_region(std::size_t bytes, bool at_back) {
    const std::size_t usable = std::max<std::size_t>((bytes + kPageBytes - 1) / kPageBytes, 1) * kPageBytes;
    void* gap = mmap(nullptr, usable + 2 * kGapBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (gap == MAP_FAILED) throw std::bad_alloc();
    char* mapped = static_cast<char*>(gap) + kGapBytes;
    if (mprotect(mapped, usable, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    char* start = at_back ? mapped + usable - (bytes + 15) / 16 * 16 : mapped;
    std::memset(start, kPoison, bytes);
    const Region region = {mapped, usable, start, bytes};
    paint_slack(region);
    return region;
}

void free_region(const Region& region) { munmap(region.mapped - kGapBytes, region.mapped_bytes + 2 * kGapBytes); }

const char* damaged_byte(const Region& region) {
    const auto differs = [](char byte) { return static_cast<unsigned char>(byte) != kCanary; };
    const char* before = std::find_if(region.mapped, region.start, differs);
    if (before != region.start) return before;
    const char* end = region.mapped + region.mapped_bytes;
    const char* after = std::find_if(region.start + region.bytes, region.mapped + region.mapped_bytes, differs);
    return after == end ? nullptr : after;
}

extern "C" {

void* emulator_allocate(std::size_t bytes, int at_back) try {
    const Region region = allocate_region(bytes, at_back != 0);
    buffers.emplace(region.start, region);
    return region.start;
} catch (const std::bad_alloc&) {
    return nullptr;
}

void emulator_free(void* start) {
    const auto found = buffers.find(static_cast<char*>(start));
    if (found == buffers.end()) return;
    free_region(found->second);
    buffers.erase(found);
}

// The address of a canary byte that a kernel overwrote beside any buffer, or null; the canaries are whole afterwards.
const void* emulator_damage() {
    const void* first = nullptr;
    for (const auto& [start, region] : buffers) {
        const char* byte = damaged_byte(region);
        if (byte == nullptr) continue;
        if (first == nullptr) first = byte;
        paint_slack(region);
    }
    return first;
}

}  // extern "C"

}  // namespace emulated
