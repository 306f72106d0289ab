#include "fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace emulated {

#if defined(__x86_64__)

// The callee-saved registers of the System V ABI go on the stack; swapcontext would also save the signal mask, by a
// system call that costs more than all the rest.
extern "C" void emulated_switch(void** from, void* to);
asm(R"(
    .text
    .globl emulated_switch
    .hidden emulated_switch
    .type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulated_switch, . - emulated_switch
)");

void switch_context(Context& from, Context& to) { emulated_switch(&from, to); }

void prepare_context(Context& context, char* stack, std::size_t bytes, void (*start)()) {
    auto top = reinterpret_cast<std::uintptr_t>(stack + bytes) & ~std::uintptr_t{15};
    auto* words = reinterpret_cast<void**>(top);
    *--words = nullptr;  // a return address for `start`: the ABI wants the stack 8 bytes off 16 where a function begins
    *--words = reinterpret_cast<void*>(start);
    for (int saved = 0; saved < 6; ++saved) *--words = nullptr;
    context = words;
}

#else

void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

void prepare_context(Context& context, char* stack, std::size_t bytes, void (*start)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, start, 0);
}

#endif

namespace {

constexpr std::size_t kGuardBytes = 16 * 1024;
// Not a power of two: stacks at one distance from another would share the same few cache sets.
constexpr std::size_t kStrideBytes = 84 * 1024;
std::vector<char*> stacks;

}  // namespace

Stack stack_number(std::size_t number) {
    while (stacks.size() <= number) {
        void* memory = mmap(nullptr, kStrideBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
            std::perror("stack of a fiber");
            std::abort();
        }
        stacks.push_back(static_cast<char*>(memory));
    }
    const std::size_t colour = number * 5 % 64 * 64;
    return {stacks[number] + kGuardBytes, kStrideBytes - kGuardBytes - colour};
}

bool is_below_a_stack(const void* address) {
    const auto* byte = static_cast<const char*>(address);
    for (const char* stack : stacks) {
        if (byte >= stack && byte < stack + kGuardBytes) return true;
    }
    return false;
}

}  // namespace emulated
