// What emulator.h tells races.cpp, which finds races. Without WATCH_RACES nothing is watched.
#pragma once
#include <cstddef>

namespace races {
#ifdef WATCH_RACES
// For the emulator's own code, which runs within kernels but is no part of them.
#define UNWATCHED __attribute__((no_sanitize("thread")))
void start_launch(const void *shared_start, const void *shared_end);
void start_block();
void pass_barrier();
// This thread of the block runs from here on, with its stack, until `pause`.
void resume(unsigned thread, const void *stack, size_t stack_size);
void pause();
void touch_atomically(const void *address, size_t size);
// What was found, or an empty text.
const char *found();
#else
#define UNWATCHED
inline void start_launch(const void *, const void *) {}
inline void start_block() {}
inline void pass_barrier() {}
inline void resume(unsigned, const void *, size_t) {}
inline void pause() {}
inline void touch_atomically(const void *, size_t) {}
inline const char *found() { return ""; }
#endif
}
