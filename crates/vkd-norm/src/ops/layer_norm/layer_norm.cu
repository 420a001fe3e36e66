// Layer norm over rows: one block a row. A row of up to `cached` entries is read from memory once and kept in shared memory.
#include "common.cuh"

namespace vkd {

template <typename T>
__device__ __forceinline__ void layer_norm(const T* xs, const T* weight, const T* bias, T* ys, unsigned rows,
                                           unsigned channels, unsigned cached, double eps) {
    VKD_DYNAMIC_SHARED(Sum<T>, cache);
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const size_t start = size_t(row) * channels;
        Row<T> x = load_row(xs + start, cache, channels, channels <= cached);
        RowStats<Sum<T>> stats = row_stats<Sum<T>>(x, channels, eps);
        for (unsigned i = thread_index(); i < channels; i += thread_count()) {
            Sum<T> y = stats.apply(x(i));
            if (weight) y = y * widen(weight[i]) + widen(bias[i]);
            ys[start + i] = narrow<T>(y);
        }
    }
}

// With h the normalised row and p the incoming gradient times the gain: rstd * (p - mean(p) - h * mean(p h)).
// `stats` takes pivot, shift and rstd of every row where it is not null.
template <typename T>
__device__ __forceinline__ void layer_norm_backward(const T* xs, const T* weight, const T* grad, T* dxs, Sum<T>* kept,
                                                    unsigned rows, unsigned channels, unsigned cached, double eps) {
    VKD_DYNAMIC_SHARED(Sum<T>, cache);
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const size_t start = size_t(row) * channels;
        Row<T> x = load_row(xs + start, cache, channels, channels <= cached);
        RowStats<Sum<T>> stats = row_stats<Sum<T>>(x, channels, eps);
        Sum<T> sum = 0, along = 0;
        for (unsigned i = thread_index(); i < channels; i += thread_count()) {
            Sum<T> p = widen(grad[start + i]);
            if (weight) p *= widen(weight[i]);
            sum += p;
            along += p * stats.apply(x(i));
        }
        sum = block_sum(sum) / Sum<T>(channels);
        along = block_sum(along) / Sum<T>(channels);
        for (unsigned i = thread_index(); i < channels; i += thread_count()) {
            Sum<T> p = widen(grad[start + i]);
            if (weight) p *= widen(weight[i]);
            dxs[start + i] = narrow<T>(stats.rstd * ((p - sum) - stats.apply(x(i)) * along));
        }
        if (kept && thread_index() == 0) {
            kept[size_t(row) * 3] = stats.pivot;
            kept[size_t(row) * 3 + 1] = stats.shift;
            kept[size_t(row) * 3 + 2] = stats.rstd;
        }
    }
}

// Sums over the rows of a chunk of g h and of g, a column a thread of x: parts (chunks, 2, channels).
template <typename T>
__device__ __forceinline__ void layer_norm_affine(const T* xs, const T* grad, const Sum<T>* kept, Sum<T>* parts,
                                                  unsigned rows, unsigned channels, unsigned per_chunk) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned first = blockIdx.y * per_chunk;
    const unsigned end = rows - first < per_chunk ? rows : first + per_chunk;
    if (column >= channels) return;
    Sum<T> gain = 0, level = 0;
    for (unsigned row = first; row < end; row++) {
        const Sum<T>* k = kept + size_t(row) * 3;
        RowStats<Sum<T>> stats = {k[0], k[1], k[2]};
        const size_t at = size_t(row) * channels + column;
        Sum<T> g = widen(grad[at]);
        gain += g * stats.apply(widen(xs[at]));
        level += g;
    }
    parts[(size_t(blockIdx.y) * 2) * channels + column] = gain;
    parts[(size_t(blockIdx.y) * 2 + 1) * channels + column] = level;
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                   \
        layer_norm_##S(const T* xs, const T* weight, const T* bias, T* ys, unsigned rows, unsigned channels,            \
                       unsigned cached, double eps) {                                                                   \
        vkd::layer_norm<T>(xs, weight, bias, ys, rows, channels, cached, eps);                                          \
    }                                                                                                                   \
    VKD_EXPORT(layer_norm_##S)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                   \
        layer_norm_backward_##S(const T* xs, const T* weight, const T* grad, T* dxs, vkd::Sum<T>* kept, unsigned rows,  \
                                unsigned channels, unsigned cached, double eps) {                                       \
        vkd::layer_norm_backward<T>(xs, weight, grad, dxs, kept, rows, channels, cached, eps);                          \
    }                                                                                                                   \
    VKD_EXPORT(layer_norm_backward_##S)                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                   \
        layer_norm_affine_##S(const T* xs, const T* grad, const vkd::Sum<T>* kept, vkd::Sum<T>* parts, unsigned rows,   \
                              unsigned channels, unsigned per_chunk) {                                                  \
        vkd::layer_norm_affine<T>(xs, grad, kept, parts, rows, channels, per_chunk);                                    \
    }                                                                                                                   \
    VKD_EXPORT(layer_norm_affine_##S)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                   \
        layer_norm_join_##S(const vkd::Sum<T>* parts, T* sums, unsigned chunks, unsigned width) {                       \
        vkd::join_parts<T>(parts, sums, chunks, width);                                                                 \
    }                                                                                                                   \
    VKD_EXPORT(layer_norm_join_##S)

VKD_EACH_FLOAT(KERNELS)
