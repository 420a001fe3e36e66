// Softmax and log-softmax over rows: one block a row. A row of up to `cached` entries is read from memory once.
#include "common.cuh"

namespace vkd {

template <typename T>
__device__ __forceinline__ void softmax(const T* xs, T* ys, unsigned rows, unsigned classes, unsigned cached, unsigned log) {
    VKD_DYNAMIC_SHARED(Sum<T>, cache);
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const size_t start = size_t(row) * classes;
        Row<T> x = load_row(xs + start, cache, classes, classes <= cached);
        Sum<T> largest = x(0), sum = 0;
        for (unsigned i = thread_index(); i < classes; i += thread_count()) largest = Larger()(largest, x(i));
        largest = over_block(largest, x(0), Larger());
        for (unsigned i = thread_index(); i < classes; i += thread_count()) sum += exponential(x(i) - largest);
        sum = block_sum(sum);
        const Sum<T> logarithm_of_sum = logarithm(sum), inverse = Sum<T>(1) / sum;
        for (unsigned i = thread_index(); i < classes; i += thread_count()) {
            Sum<T> d = x(i) - largest;
            ys[start + i] = narrow<T>(log ? d - logarithm_of_sum : exponential(d) * inverse);
        }
    }
}

// From the output: g - p sum(g) for the logarithm of p, p (g - sum(p g)) for p itself.
template <typename T>
__device__ __forceinline__ void softmax_backward(const T* ys, const T* grad, T* dxs, unsigned rows, unsigned classes,
                                                 unsigned log) {
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const size_t start = size_t(row) * classes;
        Sum<T> sum = 0;
        for (unsigned i = thread_index(); i < classes; i += thread_count()) {
            Sum<T> g = widen(grad[start + i]);
            sum += log ? g : g * widen(ys[start + i]);
        }
        sum = block_sum(sum);
        for (unsigned i = thread_index(); i < classes; i += thread_count()) {
            Sum<T> g = widen(grad[start + i]), y = widen(ys[start + i]);
            dxs[start + i] = narrow<T>(log ? g - exponential(y) * sum : y * (g - sum));
        }
    }
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        softmax_##S(const T* xs, T* ys, unsigned rows, unsigned classes, unsigned cached, unsigned log) {              \
        vkd::softmax<T>(xs, ys, rows, classes, cached, log);                                                           \
    }                                                                                                                  \
    VKD_EXPORT(softmax_##S)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        softmax_backward_##S(const T* ys, const T* grad, T* dxs, unsigned rows, unsigned classes, unsigned log) {      \
        vkd::softmax_backward<T>(ys, grad, dxs, rows, classes, log);                                                   \
    }                                                                                                                  \
    VKD_EXPORT(softmax_backward_##S)

VKD_EACH_FLOAT(KERNELS)
