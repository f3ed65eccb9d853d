// Who touched which address: finds races that the order of the threads does not show.
//
// The kernels are compiled with -fsanitize=thread, so that g++ reports every access to memory to
// the functions below. They take the place of its run-time library, which knows nothing of fibers.
//
// Two accesses race if one of them writes, they are not both atomic, and nothing orders them: they
// are by two threads of one block without a barrier in between, or by two blocks. A shuffle orders
// no memory.
#include "races.h"

#include <cstdint>
#include <cstdio>
#include <string>
#include <unordered_map>

namespace {
enum Kind { READ, WRITE, ATOMIC };
const char *const NAMES[] = {"reads", "writes", "adds to"};

struct Access {
    long block = -1, epoch = 0;
    unsigned thread = 0;
    Kind kind = READ;
};

// The last accesses to two neighbouring bytes, the size of the smallest number in a kernel. Of the
// reads since the last barrier, the first is kept, and whether there were others.
struct Shadow {
    Access change, read;
    bool other_threads = false, other_blocks = false;
};
constexpr uintptr_t GRAIN = 2;

std::unordered_map<uintptr_t, Shadow> shadows;
std::string message;
bool watching = false;
// the thread that runs; an epoch ends at a barrier
long block = 0, epoch = 0;
unsigned thread = 0;

struct Range {
    uintptr_t start = 0, end = 0;
    bool holds(uintptr_t address) const { return address >= start && address < end; }
};
Range stack, shared;

// Whether nothing orders the access `before` and one by the thread that runs.
bool unordered(const Access &before) {
    if (before.block < 0) return false;
    return before.block != block || (before.epoch == epoch && before.thread != thread);
}

void report(const Access &before, Kind kind, uintptr_t address) {
    char text[200];
    std::snprintf(
        text, sizeof text,
        "race: thread %u of block %ld %s %s memory at %#lx, and nothing orders that and what "
        "thread %u of block %ld did: it %s it",
        thread, block, NAMES[kind], shared.holds(address) ? "shared" : "global",
        (unsigned long)address, before.thread, before.block, NAMES[before.kind]);
    message = text;
}

void note_read(Shadow &shadow) {
    const Access now{block, epoch, thread, READ};
    if (shadow.read.block >= 0 && shadow.read.block != block) shadow.other_blocks = true;
    else if (shadow.read.block < 0 || shadow.read.epoch != epoch)
        shadow.read = now, shadow.other_threads = false;
    else if (shadow.read.thread != thread) shadow.other_threads = true;
}

void touch_grain(uintptr_t address, Kind kind) {
    Shadow &shadow = shadows[address];
    // every block has shared memory of its own
    if (shared.holds(address) && (shadow.change.block != block && shadow.read.block != block))
        shadow = {};
    const bool both_atomic = kind == ATOMIC && shadow.change.kind == ATOMIC;
    if (unordered(shadow.change) && !both_atomic) return report(shadow.change, kind, address);
    if (kind == READ) return note_read(shadow);
    const bool read_in_this_epoch = shadow.read.block == block && shadow.read.epoch == epoch;
    if (unordered(shadow.read) || shadow.other_blocks ||
        (shadow.other_threads && read_in_this_epoch))
        return report(shadow.read, kind, address);
    shadow.change = {block, epoch, thread, kind};
}

void touch(const void *pointer, size_t size, Kind kind) {
    const uintptr_t start = uintptr_t(pointer);
    // a thread's stack is its own
    if (!watching || !message.empty() || stack.holds(start)) return;
    for (uintptr_t at = start / GRAIN * GRAIN; at < start + size; at += GRAIN)
        touch_grain(at, kind);
}
}

namespace races {
void start_launch(const void *shared_start, const void *shared_end) {
    shadows.clear();
    message.clear();
    block = -1;
    shared = {uintptr_t(shared_start), uintptr_t(shared_end)};
}
void start_block() { block++; }
void pass_barrier() { epoch++; }
void resume(unsigned next, const void *start, size_t size) {
    thread = next;
    stack = {uintptr_t(start), uintptr_t(start) + size};
    watching = true;
}
void pause() { watching = false; }
void touch_atomically(const void *address, size_t size) { touch(address, size, ATOMIC); }
const char *found() { return message.c_str(); }
}

// What g++ calls.
#define ACCESS(size) \
    void __tsan_read##size(void *p) { touch(p, size, READ); } \
    void __tsan_write##size(void *p) { touch(p, size, WRITE); } \
    void __tsan_unaligned_read##size(void *p) { touch(p, size, READ); } \
    void __tsan_unaligned_write##size(void *p) { touch(p, size, WRITE); }
extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void *p, size_t size) { touch(p, size, READ); }
void __tsan_write_range(void *p, size_t size) { touch(p, size, WRITE); }
void __tsan_vptr_update(void **, void *) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
