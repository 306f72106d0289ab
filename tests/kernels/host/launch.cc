// The way in from Python: one launch, with whatever stops it turned into a report.
#include <fenv.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/time.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "runtime.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace emulated {

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGVTALRM};
constexpr int kSignalCount = sizeof kSignals / sizeof *kSignals;
constexpr int kStillTicks = 10;  // of a tenth of a second of processor time each

sigjmp_buf exit_point;
pthread_t launching_thread;
char message[sizeof(Report::message)];
struct {
    int signal;
    const void* address;
    bool is_write;
} fault;
std::uint64_t progress_at_tick;
int still_ticks;
Region shared_regions[kMostResidentBlocks];

void on_signal(int signal, siginfo_t* info, void* context) {
    if (!pthread_equal(pthread_self(), launching_thread)) {
        if (signal == SIGVTALRM) {
            pthread_kill(launching_thread, signal);
        } else {
            ::signal(signal, SIG_DFL);  // not ours: it happens again and ends the process
        }
        return;
    }
    if (signal == SIGVTALRM) {
        still_ticks = launch.progress == progress_at_tick ? still_ticks + 1 : 0;
        progress_at_tick = launch.progress;
        if (still_ticks < kStillTicks) return;
    }
    fault = {signal, nullptr, false};
    if (signal == SIGSEGV || signal == SIGBUS) fault.address = info->si_addr;
#if defined(__x86_64__) && defined(__linux__)
    fault.is_write = (static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2) != 0;
#else
    static_cast<void>(context);
#endif
    siglongjmp(exit_point, 1);
}

// Signals, their stack, the watchdog's timer and the float mode, for as long as it lives.
class Surroundings {
  public:
    Surroundings() {
        static char signal_stack[64 * 1024];
        stack_t stack = {};
        stack.ss_sp = signal_stack;
        stack.ss_size = sizeof signal_stack;
        sigaltstack(&stack, &stack_before_);
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &action, &actions_before_[i]);
        const itimerval every_tenth = {{0, 100000}, {0, 100000}};
        setitimer(ITIMER_VIRTUAL, &every_tenth, &timer_before_);
        fegetenv(&floats_before_);
#if defined(__x86_64__)
        _mm_setcsr(_mm_getcsr() | 0x8040);  // flush denormal results to zero and take denormal inputs as zero
#endif
    }
    ~Surroundings() {
        fesetenv(&floats_before_);
        setitimer(ITIMER_VIRTUAL, &timer_before_, nullptr);
        for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &actions_before_[i], nullptr);
        sigaltstack(&stack_before_, nullptr);
    }
    Surroundings(const Surroundings&) = delete;
    Surroundings& operator=(const Surroundings&) = delete;

  private:
    stack_t stack_before_;
    struct sigaction actions_before_[kSignalCount];
    itimerval timer_before_;
    fenv_t floats_before_;
};

void describe_fault() {
    const auto write = [](const char* format, auto... values) { std::snprintf(message, sizeof message, format, values...); };
    const char* verb = fault.is_write ? "write" : "read";
    if (fault.signal == SIGFPE) return write("divided an integer by zero");
    if (fault.signal == SIGILL) return write("executed a trap");
    if (fault.signal == SIGVTALRM) return write("hang: a loop that calls no intrinsic does not end");
    if (reinterpret_cast<std::uintptr_t>(fault.address) < 4096) return write("bad %s through a null pointer", verb);
    if (is_below_a_stack(fault.address)) return write("its local variables outgrew the stack");
    for (const Block& block : launch.blocks) {
        const Region& shared = block.shared;
        const auto* byte = static_cast<const char*>(fault.address);
        if (byte >= shared.start - (1 << 20) && byte < shared.start + shared.bytes + (1 << 20)) {
            return write("bad %s at shared memory + %td of %zu bytes", verb, byte - shared.start, shared.bytes);
        }
    }
    write("bad %s at %p", verb, fault.address);
    launch.fault_address = fault.address;
}

void prepare_blocks(unsigned shared_bytes, unsigned resident) {
    launch.blocks.resize(resident);
    for (unsigned slot = 0; slot < resident; ++slot) {
        Region& region = shared_regions[slot];
        // At the back of its pages in one launch, at the front in another: reads before the start fault too.
        if (region.mapped != nullptr) free_region(region);
        region = allocate_region(shared_bytes, launch.random.below(4) != 0);
        Block& block = launch.blocks[slot];
        block.resident = false;
        block.shared = region;
        block.threads.resize(launch.threads);
        block.warps.resize((launch.threads + kWarp - 1) / kWarp);
        block.at_barrier.reserve(launch.threads);
        for (unsigned i = 0; i < launch.threads; ++i) {
            Thread& thread = block.threads[i];
            thread.block = &block;
            thread.index = i;
            thread.warp = &block.warps[i / kWarp];
            thread.waits_in = nullptr;
            thread.line = 0;
        }
        for (unsigned i = 0; i < block.warps.size(); ++i) block.warps[i].size = std::min(launch.threads - i * kWarp, kWarp);
    }
    launch.ready.clear();
    launch.ready.reserve(std::size_t{launch.threads} * resident);
}

void choose_schedule() {
    constexpr std::size_t kWindows[] = {1, 8, 32, 1 << 20};
    constexpr unsigned kPreemptions[] = {4, 32, 256};
    launch.window = kWindows[launch.random.below(4)];
    launch.calls_between_preemptions = kPreemptions[launch.random.below(3)];
    launch.early_copies = launch.random.below(4) == 0 ? 8 : 0;
}

}  // namespace

void fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    std::vsnprintf(message, sizeof message, format, values);
    va_end(values);
    fault.signal = 0;
    siglongjmp(exit_point, 1);
}

extern "C" int emulator_launch(void (*invoke)(void**), void** arguments, const unsigned* grid, unsigned threads,
                               unsigned shared_bytes, std::uint64_t seed, std::uint64_t step_limit, Report* report) {
    launch.invoke = invoke;
    launch.arguments = arguments;
    launch.threads = threads;
    launch.step_limit = step_limit;
    launch.random.state = seed;
    launch.idle_steps = 0;
    launch.current = nullptr;
    launch.fault_address = nullptr;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    choose_schedule();
    prepare_blocks(shared_bytes, 1 + static_cast<unsigned>(launch.random.below(kMostResidentBlocks)));
    launching_thread = pthread_self();
    still_ticks = 0;
    const Surroundings surroundings;
    if (sigsetjmp(exit_point, 1) == 0) {
        run_grid();
        return 1;
    }
    if (fault.signal != 0) describe_fault();
    std::memcpy(report->message, message, sizeof message);
    report->address = reinterpret_cast<std::uintptr_t>(launch.fault_address);
    report->has_thread = launch.current != nullptr;
    if (launch.current != nullptr) {
        const Index& block = launch.current->block->index;
        const unsigned index[] = {block.x, block.y, block.z};
        std::copy_n(index, 3, report->block);
        report->thread = launch.current->index;
    }
    return 0;
}

}  // namespace emulated
