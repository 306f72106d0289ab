// What -fsanitize finds in a kernel's own expressions, in this emulator's words. The compiler calls these by name and
// hands over its records; only the fields that are read here are declared.
#include <cstring>

#include "runtime.h"

namespace emulated {
namespace {

struct Place {
    const char* file;
    std::uint32_t line;
    std::uint32_t column;
};
struct TypeName {
    std::uint16_t kind;
    std::uint16_t info;
    char name[1];
};
struct BadAddress {
    Place place;
    const TypeName* type;
    unsigned char alignment_log2;
    unsigned char access;
};
struct BadIndex {
    Place place;
    const TypeName* array;
    const TypeName* index;
};

// Lines of the kernel's text are quoted by the caller; those of a header are not its.
const char* word_for_line(const Place& place) { return std::strstr(place.file, ".cuh") == nullptr ? "line" : "header line"; }

}  // namespace

extern "C" {

[[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(BadAddress* data, std::uintptr_t address) {
    launch.fault_address = reinterpret_cast<const void*>(address);
    fail("%s %u: the address of %s is not %u-byte aligned", word_for_line(data->place), data->place.line, data->type->name,
         1u << data->alignment_log2);
}

[[noreturn]] void __ubsan_handle_out_of_bounds_abort(BadIndex* data, std::uintptr_t index) {
    fail("%s %u: index %lld is outside %s", word_for_line(data->place), data->place.line, static_cast<long long>(index),
         data->array->name);
}

[[noreturn]] void __ubsan_handle_shift_out_of_bounds_abort(Place* place, std::uintptr_t, std::uintptr_t distance) {
    fail("%s %u: a shift by %lld bits", word_for_line(*place), place->line, static_cast<long long>(distance));
}

}  // extern "C"

}  // namespace emulated
