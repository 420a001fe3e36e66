// Smooth-L1 against rows that are layer-normed on the way: both are read once, the normed row is never written.
#include "common.cuh"

namespace vkd {

// Every block leaves the sum over its rows in `parts`.
template <typename T>
__device__ __forceinline__ void normed_smooth_l1(const T* student, const T* teacher, double* parts, unsigned rows,
                                                 unsigned channels, unsigned cached, double beta_, double eps) {
    VKD_DYNAMIC_SHARED(Sum<T>, cache);
    const Sum<T> beta = Sum<T>(beta_), over = Sum<T>(1 / beta_);
    double total = 0;
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const size_t start = size_t(row) * channels;
        Row<T> t = load_row(teacher + start, cache, channels, channels <= cached);
        const RowStats<Sum<T>> stats = row_stats<Sum<T>>(t, channels, eps);
        Sum<T> sum = 0;
        for (unsigned i = thread_index(); i < channels; i += thread_count()) {
            const Sum<T> d = magnitude(widen(student[start + i]) - stats.apply(t(i)));
            // min(d, beta), in the form that keeps NaN.
            const Sum<T> c = d > beta ? beta : d;
            sum += c * over * c * Sum<T>(0.5) + (d - c);
        }
        total += sum;
    }
    total = block_sum(total);
    if (thread_index() == 0) parts[blockIdx.x] = total;
}

// `grad` is the gradient of the mean over all entries.
template <typename T>
__device__ __forceinline__ void normed_smooth_l1_backward(const T* student, const T* teacher, const Sum<T>* grad, T* ds,
                                                          unsigned rows, unsigned channels, unsigned cached, double beta_,
                                                          double eps) {
    VKD_DYNAMIC_SHARED(Sum<T>, cache);
    const Sum<T> beta = Sum<T>(beta_), over = Sum<T>(1 / beta_);
    const Sum<T> scale = Sum<T>(double(*grad) / (double(rows) * channels));
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const size_t start = size_t(row) * channels;
        Row<T> t = load_row(teacher + start, cache, channels, channels <= cached);
        const RowStats<Sum<T>> stats = row_stats<Sum<T>>(t, channels, eps);
        for (unsigned i = thread_index(); i < channels; i += thread_count()) {
            Sum<T> d = widen(student[start + i]) - stats.apply(t(i));
            d = d > beta ? beta : d;
            d = d < -beta ? -beta : d;
            ds[start + i] = narrow<T>(d * over * scale);
        }
    }
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        normed_smooth_l1_##S(const T* student, const T* teacher, double* parts, unsigned rows, unsigned channels,      \
                             unsigned cached, double beta, double eps) {                                               \
        vkd::normed_smooth_l1<T>(student, teacher, parts, rows, channels, cached, beta, eps);                          \
    }                                                                                                                  \
    VKD_EXPORT(normed_smooth_l1_##S)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        normed_smooth_l1_join_##S(const double* parts, vkd::Sum<T>* loss, unsigned count, double divisor) {            \
        vkd::join_sum(parts, loss, count, divisor);                                                                    \
    }                                                                                                                  \
    VKD_EXPORT(normed_smooth_l1_join_##S)                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        normed_smooth_l1_backward_##S(const T* student, const T* teacher, const vkd::Sum<T>* grad, T* ds,              \
                                      unsigned rows, unsigned channels, unsigned cached, double beta, double eps) {    \
        vkd::normed_smooth_l1_backward<T>(student, teacher, grad, ds, rows, channels, cached, beta, eps);              \
    }                                                                                                                  \
    VKD_EXPORT(normed_smooth_l1_backward_##S)

VKD_EACH_FLOAT(KERNELS)
