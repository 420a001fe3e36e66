// Runs CUDA kernels on the host: every thread of a block is a thread here, blocks run one after the other.
//
// A kernel's source includes this in place of the CUDA headers, so that the sanitizers of the host's compiler see its every
// access. It serves what our kernels use: shared memory, __syncthreads, shuffles and ballots over whole warps, one, two or three
// dimensions, f16 and bf16 as storage, atomicOr. Threads that part ways at a barrier are an error, as they are on a device.
//
// The program reads a script from its first argument, see `Program::script` of vkd-norm: one line a buffer, table or launch.
#pragma once
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <tuple>

#define VKD_HOST 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
};

namespace vkd_host {

constexpr unsigned WARP = 32, MOST = 1024;

[[noreturn]] inline void fail(const char* what, const char* detail) {
    fprintf(stderr, "kernel host: %s: %s\n", what, detail);
    exit(3);
}

// A barrier that notices threads which wait at different kinds of it.
struct Barrier {
    pthread_barrier_t inner;
    unsigned count = 0;
    std::atomic<uint64_t> kinds[2];

    void reset(unsigned threads) {
        if (count != 0) pthread_barrier_destroy(&inner);
        pthread_barrier_init(&inner, nullptr, threads);
        count = threads;
        kinds[0] = kinds[1] = 0;
    }

    // `turn` is the calling thread's own count of waits here.
    void wait(uint64_t kind, unsigned& turn) {
        auto& sum = kinds[turn++ & 1];
        sum.fetch_add(kind);
        if (pthread_barrier_wait(&inner) == PTHREAD_BARRIER_SERIAL_THREAD) {
            if (sum.load() != kind * count) fail("barrier", "the threads of a block wait at different places");
            sum.store(0);
        }
    }
};

inline Barrier block_barrier, warp_barriers[MOST / WARP];
// Two sets in turn: what a shuffle reads is overwritten only when all have come to the one after the next.
inline uint64_t slots[2][MOST];
inline unsigned char* dynamic_shared = nullptr;
inline thread_local unsigned index_in_block, block_turn, warp_turn;

enum Kind : uint64_t { SYNC = 1, END = 3, SHUFFLE = 5, BALLOT = 7 };

}  // namespace vkd_host

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

inline unsigned atomicOr(unsigned* word, unsigned bits) { return __atomic_fetch_or(word, bits, __ATOMIC_RELAXED); }

inline void __syncthreads() { vkd_host::block_barrier.wait(vkd_host::SYNC, vkd_host::block_turn); }

template <typename T>
T vkd_host_exchange(T value, unsigned from) {
    using namespace vkd_host;
    static_assert(sizeof(T) <= 8, "a shuffle moves at most eight bytes");
    unsigned warp = index_in_block / WARP;
    uint64_t* set = slots[warp_turn & 1];
    memcpy(&set[index_in_block], &value, sizeof(T));
    warp_barriers[warp].wait(SHUFFLE, warp_turn);
    T got;
    memcpy(&got, &set[warp * WARP + from % WARP], sizeof(T));
    return got;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, unsigned lane_mask) {
    if (mask != 0xffffffffu) vkd_host::fail("shuffle", "only whole warps are served");
    return vkd_host_exchange(value, (vkd_host::index_in_block % vkd_host::WARP) ^ lane_mask);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, unsigned lane) {
    if (mask != 0xffffffffu) vkd_host::fail("shuffle", "only whole warps are served");
    return vkd_host_exchange(value, lane);
}

// One bit a thread of the warp.
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    using namespace vkd_host;
    if (mask != 0xffffffffu) fail("ballot", "only whole warps are served");
    unsigned warp = index_in_block / WARP, bits = 0;
    uint64_t* set = slots[warp_turn & 1];
    set[index_in_block] = predicate != 0;
    warp_barriers[warp].wait(BALLOT, warp_turn);
    for (unsigned i = 0; i < WARP; i++) bits |= unsigned(set[warp * WARP + i]) << i;
    return bits;
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }

struct __nv_bfloat16 {
    uint16_t bits;
};

struct __half {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

inline __nv_bfloat16 __float2bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return {uint16_t((bits >> 16) | 0x40)};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline float __half2float(__half h) {
    int exponent = (h.bits >> 10) & 31, fraction = h.bits & 1023;
    float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                 : exponent == 0 ? ldexpf(float(fraction), -24)
                                 : ldexpf(float(fraction + 1024), exponent - 25);
    return h.bits & 0x8000 ? -size : size;
}

inline __half __float2half(float x) {
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    float size = fabsf(x);
    if (x != x) return {uint16_t(sign | 0x7e00)};
    if (size >= 65520.f) return {uint16_t(sign | 0x7c00)};
    int exponent;
    frexpf(size, &exponent);
    // Steps of the type at this size; nearbyint rounds half to even.
    int step = exponent - 11 < -24 ? -24 : exponent - 11;
    float scaled = nearbyintf(ldexpf(size, -step));
    float rounded = ldexpf(scaled, step);
    if (rounded == 0.f) return {sign};
    frexpf(rounded, &exponent);
    if (exponent < -13) return {uint16_t(sign | uint16_t(ldexpf(rounded, 24)))};
    return {uint16_t(sign | ((exponent + 14) << 10) | (uint16_t(ldexpf(rounded, 11 - exponent)) - 1024))};
}

namespace vkd_host {

// One argument as the script gives it.
struct Argument {
    char kind;
    void* pointer;
    double number;
};

template <typename A>
struct Convert {
    static A from(const Argument& a) {
        if (a.kind == 'p') fail("argument", "expected a number, got a buffer");
        return A(a.number);
    }
};
template <typename P>
struct Convert<P*> {
    static P* from(const Argument& a) {
        if (a.kind != 'p') fail("argument", "expected a buffer, got a number");
        return static_cast<P*>(a.pointer);
    }
};

struct Kernel {
    virtual unsigned arity() const = 0;
    virtual void call(const Argument* arguments) const = 0;
};

template <typename... A>
struct Typed : Kernel {
    void (*function)(A...);
    explicit Typed(void (*f)(A...)) : function(f) {}
    unsigned arity() const override { return sizeof...(A); }
    template <size_t... I>
    void spread(const Argument* a, std::index_sequence<I...>) const {
        function(Convert<A>::from(a[I])...);
    }
    void call(const Argument* a) const override { spread(a, std::index_sequence_for<A...>()); }
};

struct Entry {
    const char* name;
    const Kernel* kernel;
    Entry* next;
};
inline Entry* entries = nullptr;

struct Register {
    template <typename... A>
    Register(const char* name, void (*function)(A...)) {
        entries = new Entry{name, new Typed<A...>(function), entries};
    }
};

inline const Kernel* kernel = nullptr;
inline const Argument* kernel_arguments = nullptr;

// The threads of a block, which stay for the next launch with as many: to make them takes far longer than most launches do.
// All wait at the gate, the main thread too, before a launch and after it.
inline pthread_barrier_t gate;
inline pthread_t handles[MOST];
inline unsigned waiting = 0;

inline void* thread_main(void* index) {
    index_in_block = unsigned(reinterpret_cast<uintptr_t>(index));
    while (true) {
        pthread_barrier_wait(&gate);
        // No kernel: no launch with as many follows.
        if (!kernel) return nullptr;
        block_turn = warp_turn = 0;
        unsigned rest = index_in_block;
        threadIdx = {rest % blockDim.x, rest / blockDim.x % blockDim.y, rest / (blockDim.x * blockDim.y)};
        for (unsigned z = 0; z < gridDim.z; z++)
            for (unsigned y = 0; y < gridDim.y; y++)
                for (unsigned x = 0; x < gridDim.x; x++) {
                    blockIdx = {x, y, z};
                    kernel->call(kernel_arguments);
                    block_barrier.wait(END, block_turn);
                }
        pthread_barrier_wait(&gate);
    }
}

inline void dismiss_threads() {
    if (waiting == 0) return;
    kernel = nullptr;
    pthread_barrier_wait(&gate);
    for (unsigned i = 0; i < waiting; i++) pthread_join(handles[i], nullptr);
    pthread_barrier_destroy(&gate);
    waiting = 0;
}

inline void call_threads(unsigned threads) {
    if (waiting == threads) return;
    dismiss_threads();
    pthread_barrier_init(&gate, nullptr, threads + 1);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 256 * 1024);
    for (uintptr_t i = 0; i < threads; i++)
        if (pthread_create(&handles[i], &small, thread_main, reinterpret_cast<void*>(i))) fail("thread", "not made");
    waiting = threads;
}

inline void launch(const char* name, dim3 grid, dim3 block, unsigned shared, const Argument* arguments, unsigned count) {
    const Kernel* found = nullptr;
    for (Entry* e = entries; e; e = e->next)
        if (!strcmp(e->name, name)) found = e->kernel;
    if (!found) fail("no such kernel", name);
    if (found->arity() != count) fail("another number of arguments", name);
    unsigned threads = block.x * block.y * block.z;
    if (threads == 0 || threads > MOST || threads % WARP) fail("threads are not whole warps up to 1024", name);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) fail("grid", name);
    if (shared > 48 * 1024) fail("more than 48 KiB of shared memory", name);
    call_threads(threads);
    kernel = found;
    blockDim = block;
    gridDim = grid;
    kernel_arguments = arguments;
    // Of its exact size on the heap, so that a step outside is seen; never zero, as it isn't on a device.
    dynamic_shared = static_cast<unsigned char*>(malloc(shared ? shared : 1));
    memset(dynamic_shared, 0xff, shared);
    block_barrier.reset(threads);
    for (unsigned w = 0; w < threads / WARP; w++) warp_barriers[w].reset(WARP);
    pthread_barrier_wait(&gate);
    pthread_barrier_wait(&gate);
    free(dynamic_shared);
}

struct Buffer {
    unsigned char* data;
    size_t size;
};

inline int run(const char* path) {
    FILE* script = fopen(path, "r");
    if (!script) fail("no script", path);
    static Buffer inputs[32], buffers[32], tables[32];
    static size_t offsets[32];
    unsigned input_count = 0, buffer_count = 0, table_count = 0;
    char word[32], name[512];
    while (fscanf(script, "%31s", word) == 1) {
        if (!strcmp(word, "input")) {
            size_t size, offset;
            if (fscanf(script, "%zu %zu %511s", &size, &offset, name) != 3 || input_count == 32) fail("script", word);
            unsigned char* data = static_cast<unsigned char*>(malloc(size ? size : 1));
            FILE* file = fopen(name, "rb");
            if (!file || fread(data, 1, size, file) != size) fail("short input", name);
            fclose(file);
            offsets[input_count] = offset;
            inputs[input_count++] = {data, size};
        } else if (!strcmp(word, "buffer")) {
            size_t size;
            if (fscanf(script, "%zu", &size) != 1 || buffer_count == 32) fail("script", word);
            unsigned char* data = static_cast<unsigned char*>(malloc(size ? size : 1));
            // NaN in every float type: what a kernel forgets to write, or reads too early, is seen.
            memset(data, 0xff, size);
            buffers[buffer_count++] = {data, size};
        } else if (!strcmp(word, "table")) {
            unsigned count;
            if (fscanf(script, "%u", &count) != 1 || table_count == 32) fail("script", word);
            uint64_t* words = static_cast<uint64_t*>(malloc(count ? count * sizeof(uint64_t) : 1));
            for (unsigned i = 0; i < count; i++) {
                char kind;
                unsigned long long number;
                if (fscanf(script, " %c%llu", &kind, &number) != 2 || (kind == 'i' && number >= input_count)) fail("script", word);
                words[i] = kind == 'i' ? uint64_t(reinterpret_cast<uintptr_t>(inputs[number].data + offsets[number])) : number;
            }
            tables[table_count++] = {reinterpret_cast<unsigned char*>(words), count * sizeof(uint64_t)};
        } else if (!strcmp(word, "launch")) {
            dim3 g, b;
            unsigned shared, count;
            if (fscanf(script, "%511s %u %u %u %u %u %u %u %u", name, &g.x, &g.y, &g.z, &b.x, &b.y, &b.z, &shared, &count) != 9)
                fail("script", word);
            Argument arguments[32] = {};
            if (count > 32) fail("too many arguments", name);
            for (unsigned i = 0; i < count; i++) {
                char kind;
                if (fscanf(script, " %c", &kind) != 1) fail("script", name);
                unsigned at = 0;
                double number = 0;
                if (kind == 'i' || kind == 'b') {
                    if (fscanf(script, "%u", &at) != 1 || at >= (kind == 'i' ? input_count : buffer_count)) fail("script", name);
                    arguments[i] = {'p', kind == 'i' ? inputs[at].data + offsets[at] : buffers[at].data, 0};
                } else if (kind == 't') {
                    if (fscanf(script, "%u", &at) != 1 || at >= table_count) fail("script", name);
                    arguments[i] = {'p', tables[at].data, 0};
                } else if (kind == 'n') {
                    arguments[i] = {'p', nullptr, 0};
                } else {
                    if (fscanf(script, "%lf", &number) != 1) fail("script", name);
                    arguments[i] = {kind, nullptr, number};
                }
            }
            launch(name, g, b, shared, arguments, count);
        } else if (!strcmp(word, "output")) {
            unsigned at;
            if (fscanf(script, "%u %511s", &at, name) != 2 || at >= buffer_count) fail("script", word);
            FILE* file = fopen(name, "wb");
            if (!file || fwrite(buffers[at].data, 1, buffers[at].size, file) != buffers[at].size) fail("output", name);
            fclose(file);
        } else if (!strcmp(word, "changed")) {
            unsigned at;
            if (fscanf(script, "%u %511s", &at, name) != 2 || at >= input_count) fail("script", word);
            FILE* file = fopen(name, "wb");
            if (!file || fwrite(inputs[at].data, 1, inputs[at].size, file) != inputs[at].size) fail("output", name);
            fclose(file);
        } else {
            fail("unknown word", word);
        }
    }
    fclose(script);
    dismiss_threads();
    for (unsigned i = 0; i < input_count; i++) free(inputs[i].data);
    for (unsigned i = 0; i < buffer_count; i++) free(buffers[i].data);
    for (unsigned i = 0; i < table_count; i++) free(tables[i].data);
    return 0;
}

}  // namespace vkd_host

#define VKD_EXPORT(name) static vkd_host::Register vkd_register_##name(#name, &name);
#define VKD_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(vkd_host::dynamic_shared)

int main(int count, char** words) {
    if (count != 2) vkd_host::fail("usage", "PROGRAM SCRIPT");
    return vkd_host::run(words[1]);
}
