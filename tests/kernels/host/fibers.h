// Fibers: a stack and a place to go on from, switched by hand.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulated {

#if defined(__x86_64__)
using Context = void*;  // the stack pointer; what must survive a call lies on the stack
#else
using Context = ucontext_t;
#endif

// Saves where we are in `from` and goes on in `to`.
void switch_context(Context& from, Context& to);

// `start` must not return.
void prepare_context(Context& context, char* stack, std::size_t bytes, void (*start)());

struct Stack {
    char* memory;
    std::size_t bytes;
};

// The stack with this number; the same one each time. Below every stack lie pages that no one may touch.
Stack stack_number(std::size_t number);

bool is_below_a_stack(const void* address);

}  // namespace emulated
