// CUDA on a CPU, as much of it as katlib's kernels use: compiles their real sources, unchanged, with g++.
//
// A block's threads are fibers of one CPU thread. Each runs until it meets a barrier or a shuffle and goes on when all those that have
// to meet there have come. The order in which they run is chosen from outside: a missing __syncthreads() shows, every time, as a result
// that depends on it. Blocks run one after the other. Shared memory holds NaN when a block starts. A barrier that some threads never
// reach, or a shuffle in an incomplete warp, is an error.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared_memory")))
extern char __start_shared_memory[] __attribute__((weak, visibility("hidden"))), __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

struct Dim { unsigned x, y, z; };
inline Dim gridDim, blockDim, blockIdx, threadIdx;
using std::fabs, std::size_t;

namespace emulator {
enum State { RUNNING, AT_BARRIER, AT_SHUFFLE, DONE };
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    State state;
    uint64_t slot;                                  // what this thread hands to the others of its warp
    static constexpr size_t STACK = 1 << 16;
};
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned current;
inline void (*body)();

inline void wait(State state) {
    const unsigned me = current;
    fibers[me].state = state;
    swapcontext(&fibers[me].context, &scheduler);
}
inline void start() {
    body();
    wait(DONE);
}

inline void run_block(bool backwards) {
    const unsigned threads = blockDim.x;
    if (__start_shared_memory) memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
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
    for (;;) {
        for (unsigned i = 0; i < threads; i++) {
            const unsigned t = backwards ? threads - 1 - i : i;
            if (fibers[t].state != RUNNING) continue;
            current = t;
            threadIdx = {t, 0, 0};
            swapcontext(&scheduler, &fibers[t].context);
        }
        unsigned done = 0, waiting = 0;
        bool progress = false;
        for (unsigned warp = 0; warp < threads; warp += 32) {
            unsigned shuffling = 0;
            for (unsigned t = warp; t < warp + 32 && t < threads; t++) {
                done += fibers[t].state == DONE, waiting += fibers[t].state == AT_BARRIER, shuffling += fibers[t].state == AT_SHUFFLE;
            }
            if (shuffling < 32) continue;
            for (unsigned t = warp; t < warp + 32; t++) fibers[t].state = RUNNING;
            progress = true;
        }
        if (done == threads) return;
        if (waiting == threads) for (unsigned t = 0; t < threads; t++) fibers[t].state = RUNNING, progress = true;
        if (!progress) throw std::runtime_error("deadlock: not all threads reach a barrier or a shuffle");
    }
}

// Calls a kernel with arguments that lie in memory one after the other, as in the parameter buffer of cuLaunchKernel.
template <typename... A> void call(void (*kernel)(A...), const char *parameters, size_t size) {
    size_t at = 0;
    auto next = [&]<typename T>(T *) {
        at = (at + alignof(T) - 1) / alignof(T) * alignof(T);
        T value;
        if (at + sizeof(T) > size) throw std::runtime_error("the kernel takes more arguments than it was given");
        memcpy(&value, parameters + at, sizeof(T));
        at += sizeof(T);
        return value;
    };
    static std::tuple<A...> arguments;              // in braces, the arguments are taken from left to right
    arguments = std::tuple<A...>{next((A *)nullptr)...};
    if (at != size) throw std::runtime_error("the kernel takes fewer arguments than it was given");
    static void (*function)(A...);
    function = kernel;
    body = [] { std::apply(function, arguments); };
}

template <typename T> T exchange(T value, unsigned mask, int other) {
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
template <typename T> T __shfl_down_sync(unsigned mask, T value, int by) { return emulator::exchange(value, mask, threadIdx.x % 32 + by); }
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int by) { return emulator::exchange(value, mask, threadIdx.x % 32 ^ by); }
template <typename T> T atomicAdd(T *address, T value) {
    const T old = *address;
    *address = old + value;                         // one CPU thread: nothing comes between
    return old;
}
inline float __fdividef(float a, float b) { return a / b; }

// The two half types: rounded to the nearest, ties to even, as the hardware does.
inline uint32_t bits_of(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
inline float float_of(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }

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
        if (!(z < 65520)) bits = sign | (f != f ? 0x7fff : 0x7c00);                                     // NaN, infinity
        else if (z < 0x1p-14f) bits = sign | uint32_t(std::nearbyint(z * 0x1p24f));                     // subnormal
        else {
            const uint32_t u = bits_of(z);
            bits = sign | (((u + 0xfff + (u >> 13 & 1)) >> 13) - (112 << 10));
        }
    }
    operator float() const {
        const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
        const float z = exponent == 31 ? (fraction ? NAN : INFINITY)
                      : exponent ? float_of((exponent + 112) << 23 | fraction << 13) : fraction * 0x1p-24f;
        return bits & 0x8000 ? -z : z;
    }
};

// One entry for Python: runs the kernel of that name; returns an error message or null.
#define KERNEL(kernel) if (name == #kernel) emulator::call(kernel, parameters, size); else
#define EMULATOR_ENTRY(...) \
    extern "C" const char *emulate(const char *kernel, unsigned grid_x, unsigned grid_y, unsigned block, int backwards, \
                                   const char *parameters, size_t size) { \
        static std::string message; \
        try { \
            const std::string name = kernel; \
            __VA_ARGS__ throw std::runtime_error("no such kernel"); \
            gridDim = {grid_x, grid_y, 1}, blockDim = {block, 1, 1}; \
            for (unsigned y = 0; y < grid_y; y++) for (unsigned x = 0; x < grid_x; x++) { \
                blockIdx = backwards ? Dim{grid_x - 1 - x, grid_y - 1 - y, 0} : Dim{x, y, 0}; \
                emulator::run_block(backwards); \
            } \
            return nullptr; \
        } catch (const std::exception &error) { \
            message = error.what(); \
            return message.c_str(); \
        } \
    }
