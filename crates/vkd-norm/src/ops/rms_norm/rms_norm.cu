// Division of rows by their root mean square: one block a row. A row of up to `cached` entries is read from memory once.
#include "common.cuh"

namespace vkd {

template <typename T>
__device__ __forceinline__ Sum<T> inverse_of_row(Row<T> x, unsigned length, double eps) {
    Sum<T> squares = 0;
    for (unsigned i = thread_index(); i < length; i += thread_count()) squares += x(i) * x(i);
    squares = block_sum(squares);
    if (finite(squares)) return Sum<T>(1) / square_root(squares / Sum<T>(length) + Sum<T>(eps));
    // The squares leave f32.
    double wide = 0;
    for (unsigned i = thread_index(); i < length; i += thread_count()) wide += double(x(i)) * double(x(i));
    return Sum<T>(1 / sqrt(block_sum(wide) / length + eps));
}

template <typename T>
__device__ __forceinline__ void rms_norm(const T* xs, const T* weight, T* ys, unsigned rows, unsigned channels,
                                         unsigned cached, double eps) {
    VKD_DYNAMIC_SHARED(Sum<T>, cache);
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const size_t start = size_t(row) * channels;
        Row<T> x = load_row(xs + start, cache, channels, channels <= cached);
        const Sum<T> inverse = inverse_of_row<T>(x, channels, eps);
        for (unsigned i = thread_index(); i < channels; i += thread_count())
            ys[start + i] = narrow<T>((x(i) * inverse) * widen(weight[i]));
    }
}

// With h the normalised row and p the incoming gradient times the gain: (p - h * mean(p h)) / rms. `kept` takes 1 / rms.
template <typename T>
__device__ __forceinline__ void rms_norm_backward(const T* xs, const T* weight, const T* grad, T* dxs, Sum<T>* kept,
                                                  unsigned rows, unsigned channels, unsigned cached, double eps) {
    VKD_DYNAMIC_SHARED(Sum<T>, cache);
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const size_t start = size_t(row) * channels;
        Row<T> x = load_row(xs + start, cache, channels, channels <= cached);
        const Sum<T> inverse = inverse_of_row<T>(x, channels, eps);
        Sum<T> along = 0;
        for (unsigned i = thread_index(); i < channels; i += thread_count())
            along += (x(i) * inverse) * (widen(grad[start + i]) * widen(weight[i]));
        along = block_sum(along) / Sum<T>(channels);
        for (unsigned i = thread_index(); i < channels; i += thread_count()) {
            Sum<T> p = widen(grad[start + i]) * widen(weight[i]);
            dxs[start + i] = narrow<T>(inverse * (p - (x(i) * inverse) * along));
        }
        if (thread_index() == 0) kept[row] = inverse;
    }
}

// Sums over the rows of a chunk of g h, a column a thread: parts (chunks, channels).
template <typename T>
__device__ __forceinline__ void rms_norm_gain(const T* xs, const T* grad, const Sum<T>* kept, Sum<T>* parts, unsigned rows,
                                              unsigned channels, unsigned per_chunk) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned first = blockIdx.y * per_chunk;
    const unsigned end = rows - first < per_chunk ? rows : first + per_chunk;
    if (column >= channels) return;
    Sum<T> gain = 0;
    for (unsigned row = first; row < end; row++) {
        const size_t at = size_t(row) * channels + column;
        gain += widen(grad[at]) * (widen(xs[at]) * kept[row]);
    }
    parts[size_t(blockIdx.y) * channels + column] = gain;
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        rms_norm_##S(const T* xs, const T* weight, T* ys, unsigned rows, unsigned channels, unsigned cached,           \
                     double eps) {                                                                                     \
        vkd::rms_norm<T>(xs, weight, ys, rows, channels, cached, eps);                                                 \
    }                                                                                                                  \
    VKD_EXPORT(rms_norm_##S)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        rms_norm_backward_##S(const T* xs, const T* weight, const T* grad, T* dxs, vkd::Sum<T>* kept, unsigned rows,   \
                              unsigned channels, unsigned cached, double eps) {                                        \
        vkd::rms_norm_backward<T>(xs, weight, grad, dxs, kept, rows, channels, cached, eps);                           \
    }                                                                                                                  \
    VKD_EXPORT(rms_norm_backward_##S)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        rms_norm_gain_##S(const T* xs, const T* grad, const vkd::Sum<T>* kept, vkd::Sum<T>* parts, unsigned rows,      \
                          unsigned channels, unsigned per_chunk) {                                                     \
        vkd::rms_norm_gain<T>(xs, grad, kept, parts, rows, channels, per_chunk);                                       \
    }                                                                                                                  \
    VKD_EXPORT(rms_norm_gain_##S)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        rms_norm_join_##S(const vkd::Sum<T>* parts, T* sums, unsigned chunks, unsigned width) {                        \
        vkd::join_parts<T>(parts, sums, chunks, width);                                                                \
    }                                                                                                                  \
    VKD_EXPORT(rms_norm_join_##S)

VKD_EACH_FLOAT(KERNELS)
