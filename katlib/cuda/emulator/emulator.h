// As much of CUDA on a CPU as katlib's kernels use, so that g++ compiles their sources unchanged.
//
// The threads of a block are fibers of one CPU thread. Each runs until it reaches a barrier or a
// shuffle, and continues when all threads that must meet there have arrived. The caller chooses the
// order in which they run, so a missing __syncthreads() always shows: the result depends on that
// order. Blocks run one after the other. Shared memory holds NaN when a block starts. A barrier
// that some threads never reach is an error, and so is a shuffle in an incomplete warp. With
// WATCH_RACES, races.cpp also keeps who touched which address.
#pragma once
#include <ucontext.h>
#ifdef __SSE2__
#include <xmmintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "races.h"

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared_memory")))
#define LINKER_SYMBOL __attribute__((weak, visibility("hidden")))
extern char __start_shared_memory[] LINKER_SYMBOL, __stop_shared_memory[] LINKER_SYMBOL;

struct Dim { unsigned x, y, z; };
inline Dim gridDim, blockDim, blockIdx, threadIdx;
using std::fabs, std::size_t;

namespace emulator {
enum State { RUNNING, AT_BARRIER, AT_SHUFFLE, DONE };
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    State state;
    // what this thread shows to the other threads of its warp
    uint64_t slot;
    static constexpr size_t STACK = 1 << 16;
};
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned current;
inline void (*body)();
// the atomic additions of a launch: [0] to global memory, [1] to shared memory
inline unsigned long long atomics[2];

UNWATCHED inline void wait(State state) {
    const unsigned me = current;
    fibers[me].state = state;
    swapcontext(&fibers[me].context, &scheduler);
}
inline void start() {
    body();
    wait(DONE);
}

// All bits set is NaN in every floating-point type.
inline void fill_shared_memory_with_nan() {
    if (!__start_shared_memory) return;
    memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
}

inline void create_fibers(unsigned threads) {
    if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
    for (unsigned t = 0; t < threads; t++) {
        Fiber &fiber = fibers[t];
        fiber.state = RUNNING;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = Fiber::STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, start, 0);
    }
}

// Runs every thread that can run, until it waits or is done.
inline void run_fibers(unsigned threads, bool backwards) {
    for (unsigned i = 0; i < threads; i++) {
        const unsigned t = backwards ? threads - 1 - i : i;
        if (fibers[t].state != RUNNING) continue;
        current = t;
        threadIdx = {t, 0, 0};
        races::resume(t, fibers[t].stack.get(), Fiber::STACK);
        swapcontext(&scheduler, &fibers[t].context);
        races::pause();
    }
}

// How many of the threads from `first` to before `last` are in this state.
inline unsigned count(State state, unsigned first, unsigned last) {
    unsigned found = 0;
    for (unsigned t = first; t < last; t++) found += fibers[t].state == state;
    return found;
}

// Lets those threads run again that have all met: the lanes of a warp at a shuffle, and all threads
// at a barrier. Returns whether there were any.
inline bool release_fibers(unsigned threads) {
    bool released = false;
    for (unsigned warp = 0; warp + 32 <= threads; warp += 32) {
        if (count(AT_SHUFFLE, warp, warp + 32) < 32) continue;
        for (unsigned t = warp; t < warp + 32; t++) fibers[t].state = RUNNING;
        released = true;
    }
    if (count(AT_BARRIER, 0, threads) == threads) {
        for (unsigned t = 0; t < threads; t++) fibers[t].state = RUNNING;
        races::pass_barrier();
        released = true;
    }
    return released;
}

inline void run_block(bool backwards) {
    const unsigned threads = blockDim.x;
    fill_shared_memory_with_nan();
    create_fibers(threads);
    races::start_block();
    for (;;) {
        run_fibers(threads, backwards);
        if (count(DONE, 0, threads) == threads) return;
        if (!release_fibers(threads))
            throw std::runtime_error("deadlock: not all threads reach a barrier or a shuffle");
    }
}

// Calls a kernel with arguments that lie in memory one after the other, as in the parameter buffer
// of cuLaunchKernel.
template <typename... A> void call(void (*kernel)(A...), const char *parameters, size_t size) {
    size_t at = 0;
    auto next = [&]<typename T>(T *) {
        at = (at + alignof(T) - 1) / alignof(T) * alignof(T);
        T value;
        if (at + sizeof(T) > size)
            throw std::runtime_error("the kernel takes more arguments than it was given");
        memcpy(&value, parameters + at, sizeof(T));
        at += sizeof(T);
        return value;
    };
    static std::tuple<A...> arguments;
    // the braces matter: inside them, the arguments are evaluated from left to right
    arguments = std::tuple<A...>{next((A *)nullptr)...};
    if (at != size)
        throw std::runtime_error("the kernel takes fewer arguments than it was given");
    static void (*function)(A...);
    function = kernel;
    body = [] { std::apply(function, arguments); };
}

template <typename T> UNWATCHED T exchange(T value, unsigned mask, int other) {
    static_assert(sizeof(T) <= 8);
    if (mask != 0xffffffff) throw std::runtime_error("a shuffle must name all lanes");
    memcpy(&fibers[current].slot, &value, sizeof(T));
    wait(AT_SHUFFLE);
    if (other < 32) memcpy(&value, &fibers[current / 32 * 32 + other].slot, sizeof(T));
    wait(AT_SHUFFLE);
    return value;
}
}

inline void __syncthreads() { emulator::wait(emulator::AT_BARRIER); }
template <typename T> T __shfl_down_sync(unsigned mask, T value, int by) {
    return emulator::exchange(value, mask, threadIdx.x % 32 + by);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int by) {
    return emulator::exchange(value, mask, threadIdx.x % 32 ^ by);
}
// There is only one CPU thread, so nothing can happen between the two lines.
template <typename T> UNWATCHED T atomicAdd(T *address, T value) {
    races::touch_atomically(address, sizeof(T));
    const char *const place = reinterpret_cast<const char *>(address);
    emulator::atomics[place >= __start_shared_memory && place < __stop_shared_memory]++;
    const T old = *address;
    *address = old + value;
    return old;
}

inline uint32_t bits_of(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
inline float float_of(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
inline uint32_t __float_as_uint(float f) { return bits_of(f); }
inline float __uint_as_float(uint32_t u) { return float_of(u); }

// The approximate quotient of CUDA's programming guide: 0 for a divisor from 2^126 to 2^128, and
// elsewhere up to one unit in the last place too large or too small, exact for powers of two.
inline float __fdividef(float a, float b) {
    if (fabs(b) > 0x1p126f) return a * std::copysign(0.f, b);
    const uint32_t bits = bits_of(b);
    const float quotient = a / b;
    const bool exact = bits << 9 == 0 || !std::isnormal(quotient);
    return exact ? quotient : float_of(bits_of(quotient) + bits * 2654435761u % 3 - 1);
}

// The two half types. Numbers are rounded to nearest, ties to even, as the hardware does.

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float f) {
        const uint32_t u = bits_of(f);
        bits = f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
    }
    operator float() const { return float_of(uint32_t(bits) << 16); }
};

struct __half {
    uint16_t bits;
    __half() = default;
    explicit __half(float f) {
        const uint32_t sign = bits_of(f) >> 16 & 0x8000;
        const float z = std::fabs(f);
        if (!(z < 65520)) {
            // NaN or infinity
            bits = sign | (f != f ? 0x7fff : 0x7c00);
        } else if (z < 0x1p-14f) {
            // subnormal
            bits = sign | uint32_t(std::nearbyint(z * 0x1p24f));
        } else {
            const uint32_t u = bits_of(z);
            bits = sign | (((u + 0xfff + (u >> 13 & 1)) >> 13) - (112 << 10));
        }
    }
    operator float() const {
        const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
        float z;
        if (exponent == 31) z = fraction ? NAN : INFINITY;
        else if (exponent) z = float_of((exponent + 112) << 23 | fraction << 13);
        else z = fraction * 0x1p-24f;
        return bits & 0x8000 ? -z : z;
    }
};

// The entry for Python, made of one KERNEL(name) for each kernel of the source. It runs the kernel
// of the given name, and returns an error message or null.
namespace emulator {
// While it exists, subnormal numbers are taken as 0, as NVRTC's --ftz=true has it. That is for
// floats alone; here it is for doubles too, whose subnormal numbers no test comes near to.
struct FlushSubnormals {
#ifdef __SSE2__
    unsigned before = _mm_getcsr();
    FlushSubnormals() { _mm_setcsr(before | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(before); }
#endif
};

inline void run_grid(unsigned grid_x, unsigned grid_y, unsigned block, bool backwards) {
    const FlushSubnormals flush;
    gridDim = {grid_x, grid_y, 1};
    blockDim = {block, 1, 1};
    emulator::atomics[0] = emulator::atomics[1] = 0;
    races::start_launch(__start_shared_memory, __stop_shared_memory);
    for (unsigned y = 0; y < grid_y; y++) {
        for (unsigned x = 0; x < grid_x; x++) {
            blockIdx = backwards ? Dim{grid_x - 1 - x, grid_y - 1 - y, 0} : Dim{x, y, 0};
            run_block(backwards);
        }
    }
    if (*races::found()) throw std::runtime_error(races::found());
}
}

#define KERNEL(kernel) if (name == #kernel) emulator::call(kernel, parameters, size); else
#define EMULATOR_ENTRY(...) \
    extern "C" unsigned long long emulated_atomics(int shared) { \
        return emulator::atomics[shared]; \
    } \
    extern "C" const char *emulate(const char *kernel, unsigned grid_x, unsigned grid_y, \
                                   unsigned block, int backwards, const char *parameters, \
                                   size_t size) { \
        static std::string message; \
        try { \
            const std::string name = kernel; \
            __VA_ARGS__ throw std::runtime_error("no such kernel"); \
            emulator::run_grid(grid_x, grid_y, block, backwards); \
            return nullptr; \
        } catch (const std::exception &error) { \
            message = error.what(); \
            return message.c_str(); \
        } \
    }
