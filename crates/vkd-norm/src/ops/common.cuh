// What the kernels of vkd share: element types, and sums over the threads of a block.
//
// Plain enough for nvcc and for a host's compiler: in tests VKD_HOST is defined and a header that maps threads of a block
// to threads of the host is included first. Blocks are whole warps of at most 1024 threads. Memory is read and written in
// the element type, arithmetic is in `Sum<T>`: f64 for f64, f32 for all others. Sums have a fixed order, and no kernel uses
// atomics but to set the bits of a check, whose order is no matter: equal input gives equal bits.
#pragma once

#ifndef VKD_HOST
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#define VKD_EXPORT(name)
#define VKD_DYNAMIC_SHARED(T, name)                     \
    extern __shared__ __align__(16) unsigned char vkd_dynamic_shared[]; \
    T* name = reinterpret_cast<T*>(vkd_dynamic_shared)
#endif

// Stamps a kernel for every element type: MACRO(type, suffix of its name).
#define VKD_EACH_FLOAT(MACRO) MACRO(float, f32) MACRO(double, f64) MACRO(__half, f16) MACRO(__nv_bfloat16, bf16)

namespace vkd {

constexpr unsigned WARP = 32;
constexpr unsigned ALL = 0xffffffffu;

// The type of a thread's arithmetic.
template <typename T>
struct SumOf {
    using type = float;
};
template <>
struct SumOf<double> {
    using type = double;
};
template <typename T>
using Sum = typename SumOf<T>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
struct Narrow;
template <>
struct Narrow<float> {
    static __device__ __forceinline__ float from(double x) { return float(x); }
    static __device__ __forceinline__ float from(float x) { return x; }
};
template <>
struct Narrow<double> {
    static __device__ __forceinline__ double from(double x) { return x; }
};
template <>
struct Narrow<__half> {
    static __device__ __forceinline__ __half from(float x) { return __float2half(x); }
};
template <>
struct Narrow<__nv_bfloat16> {
    static __device__ __forceinline__ __nv_bfloat16 from(float x) { return __float2bfloat16(x); }
};
template <typename T, typename A>
__device__ __forceinline__ T narrow(A x) {
    return Narrow<T>::from(x);
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ float log_one_plus(float x) { return log1pf(x); }
__device__ __forceinline__ double log_one_plus(double x) { return log1p(x); }
__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }
__device__ __forceinline__ float magnitude(float x) { return fabsf(x); }
__device__ __forceinline__ double magnitude(double x) { return fabs(x); }
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

// What words of a table stand for.
template <typename T>
__device__ __forceinline__ T* address(uint64_t word) {
    return reinterpret_cast<T*>(word);
}
__device__ __forceinline__ double number(uint64_t word) {
#ifdef VKD_HOST
    double x;
    memcpy(&x, &word, sizeof(x));
    return x;
#else
    return __longlong_as_double((long long)word);
#endif
}

// A product that no sum is joined with into one rounding, as a device's compiler likes to: where a place is found, that is another one.
__device__ __forceinline__ double product_alone(double a, double b) {
#ifdef VKD_HOST
    return a * b;
#else
    return __dmul_rn(a, b);
#endif
}

// Neither NaN nor infinite.
template <typename A>
__device__ __forceinline__ bool finite(A x) {
    return x - x == A(0);
}

__device__ __forceinline__ unsigned thread_index() { return threadIdx.x + blockDim.x * threadIdx.y; }
__device__ __forceinline__ unsigned thread_count() { return blockDim.x * blockDim.y; }

struct Add {
    template <typename A>
    __device__ __forceinline__ A operator()(A a, A b) const {
        return a + b;
    }
};

// NaN passes: the comparison is false for it on either side.
struct Larger {
    template <typename A>
    __device__ __forceinline__ A operator()(A a, A b) const {
        return a != a ? a : (b > a || b != b ? b : a);
    }
};

template <typename A, typename Join>
__device__ __forceinline__ A over_warp(A x, Join join) {
#pragma unroll
    for (unsigned step = WARP / 2; step > 0; step /= 2) x = join(x, __shfl_xor_sync(ALL, x, step));
    return x;
}

// Joins one number a thread over the block; every thread gets the result. `rest` leaves every number as it is. All threads
// must come here.
template <typename A, typename Join>
__device__ __forceinline__ A over_block(A x, A rest, Join join) {
    __shared__ A parts[WARP];
    unsigned index = thread_index(), warps = thread_count() / WARP;
    x = over_warp(x, join);
    if (warps == 1) return x;
    if (index % WARP == 0) parts[index / WARP] = x;
    __syncthreads();
    // Every warp joins the parts, in the same order.
    x = over_warp(index % WARP < warps ? parts[index % WARP] : rest, join);
    // The parts may be overwritten from here on.
    __syncthreads();
    return x;
}

template <typename A>
__device__ __forceinline__ A block_sum(A x) {
    return over_block(x, A(0), Add());
}

// Mean and deviation of a row: its normalised value is ((x - pivot) - shift) * rstd, which keeps a mean far above the
// deviation from costing digits.
template <typename A>
struct RowStats {
    A pivot, shift, rstd;
    __device__ __forceinline__ A apply(A x) const { return ((x - pivot) - shift) * rstd; }
};

// The variance of a row whose squares leave f32, as f64 sees it.
template <typename A, typename At>
__device__ __noinline__ RowStats<A> careful_stats(At at, unsigned length, double eps) {
    double pivot = double(at(0)), sum = 0, squares = 0;
    for (unsigned i = thread_index(); i < length; i += thread_count()) sum += double(at(i)) - pivot;
    double mean = block_sum(sum) / length;
    for (unsigned i = thread_index(); i < length; i += thread_count()) {
        double d = (double(at(i)) - pivot) - mean;
        squares += d * d;
    }
    double variance = block_sum(squares) / length;
    A near = A(pivot + mean);
    return {near, A(pivot + mean - double(near)), A(1 / sqrt(variance + eps))};
}

// Statistics of a row, by a whole block; `at(i)` is its entry i. Two walks, relative to the first entry and then to the
// mean; a third in f64 where the squares leave the type.
template <typename A, typename At>
__device__ __forceinline__ RowStats<A> row_stats(At at, unsigned length, double eps) {
    A pivot = at(0), sum = 0, rest = 0, squares = 0;
    for (unsigned i = thread_index(); i < length; i += thread_count()) sum += at(i) - pivot;
    A shift = block_sum(sum) / A(length);
    for (unsigned i = thread_index(); i < length; i += thread_count()) {
        A d = (at(i) - pivot) - shift;
        rest += d;
        squares += d * d;
    }
    // What rounding of the shift leaves over.
    A left = block_sum(rest) / A(length);
    A variance = block_sum(squares) / A(length) - left * left;
    if (!finite(variance)) return careful_stats<A>(at, length, eps);
    variance = variance < A(0) ? A(0) : variance;
    return {pivot, shift + left, A(1) / square_root(variance + A(eps))};
}

// Entries of one row in the type of the arithmetic.
template <typename T>
struct Row {
    const T* values;
    const Sum<T>* cache;
    __device__ __forceinline__ Sum<T> operator()(unsigned i) const { return cache ? cache[i] : widen(values[i]); }
};

// Every thread comes back to the entries that it has put into the cache itself, but for the first, which all read.
template <typename T>
__device__ __forceinline__ Row<T> load_row(const T* values, Sum<T>* cache, unsigned length, bool fits) {
    if (!fits) return {values, nullptr};
    // The row before may still be read.
    __syncthreads();
    for (unsigned i = thread_index(); i < length; i += thread_count()) cache[i] = widen(values[i]);
    __syncthreads();
    return {values, cache};
}

// Sums of `parts` (chunks, width) over the chunks.
template <typename T>
__device__ __forceinline__ void join_parts(const Sum<T>* parts, T* sums, unsigned chunks, unsigned width) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    double sum = 0;
    for (unsigned chunk = 0; chunk < chunks; chunk++) sum += parts[size_t(chunk) * width + column];
    sums[column] = narrow<T>(Sum<T>(sum));
}

// The sum of `parts` over `divisor`, by one block.
template <typename T>
__device__ __forceinline__ void join_sum(const double* parts, T* sum, unsigned count, double divisor) {
    double own = 0;
    for (unsigned i = thread_index(); i < count; i += thread_count()) own += parts[i];
    own = block_sum(own);
    if (thread_index() == 0) *sum = T(own / divisor);
}

}  // namespace vkd
