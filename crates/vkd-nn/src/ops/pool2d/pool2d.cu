// Pools over channels-last images, a thread an entry of what is written: a pixel of the result forward, of the image backward.
// So a gradient is gathered, in the order of the windows.
#include "common.cuh"

namespace vkd {

// Along one axis: pixels of the image, windows, and a window's size, step and padding.
struct Axis {
    unsigned size, windows, kernel, stride, padding;

    // First pixel and end of a window, inside the image.
    __device__ __forceinline__ unsigned first(unsigned window) const {
        const unsigned start = window * stride;
        return start > padding ? start - padding : 0;
    }
    __device__ __forceinline__ unsigned end(unsigned window) const {
        const unsigned end = window * stride + kernel;
        return end <= padding ? 0 : (end - padding < size ? end - padding : size);
    }

    // First window over a pixel, and the end of those.
    __device__ __forceinline__ unsigned first_over(unsigned pixel) const {
        const unsigned past = pixel + padding + 1;
        return past > kernel ? (past - kernel + stride - 1) / stride : 0;
    }
    __device__ __forceinline__ unsigned end_over(unsigned pixel) const {
        const unsigned last = (pixel + padding) / stride + 1;
        return last < windows ? last : windows;
    }

    // Pixels that an average counts: with the padding, but never what lies beyond it.
    __device__ __forceinline__ unsigned counted(unsigned window, bool count_padding) const {
        if (!count_padding) return end(window) - first(window);
        const unsigned left = size + 2 * padding - window * stride;
        return kernel < left ? kernel : left;
    }
};

struct Pool {
    Axis rows, cols;
    unsigned channels;

    // Image, row, column and channel of an entry of an image of so many rows and columns.
    struct Place {
        size_t image;
        unsigned row, col, channel;
    };
    __device__ __forceinline__ Place place(unsigned entry, unsigned of_rows, unsigned of_cols) const {
        const unsigned pixel = entry / channels, line = pixel / of_cols;
        return {line / of_rows, line % of_rows, pixel % of_cols, entry % channels};
    }
    // Where an entry of the image is, and of the result.
    __device__ __forceinline__ size_t at(const Place& p, unsigned row, unsigned col) const {
        return ((p.image * rows.size + row) * cols.size + col) * channels + p.channel;
    }
    __device__ __forceinline__ size_t window_at(const Place& p, unsigned y, unsigned x) const {
        return ((p.image * rows.windows + y) * cols.windows + x) * channels + p.channel;
    }
    template <typename A>
    __device__ __forceinline__ A share(unsigned y, unsigned x, bool count_padding) const {
        return A(1. / (double(rows.counted(y, count_padding)) * double(cols.counted(x, count_padding))));
    }
};

__device__ __forceinline__ unsigned own_entry() { return blockIdx.x * blockDim.x + threadIdx.x; }

template <typename T>
__device__ __forceinline__ void max_pool(const T* xs, T* ys, unsigned count, Pool pool) {
    const unsigned entry = own_entry();
    if (entry >= count) return;
    const Pool::Place p = pool.place(entry, pool.rows.windows, pool.cols.windows);
    const unsigned row_end = pool.rows.end(p.row), col_end = pool.cols.end(p.col);
    Sum<T> best = -Sum<T>(INFINITY);
    for (unsigned row = pool.rows.first(p.row); row < row_end; row++)
        for (unsigned col = pool.cols.first(p.col); col < col_end; col++) {
            const Sum<T> x = widen(xs[pool.at(p, row, col)]);
            // False for a NaN in `best`, which therefore stays.
            best = x > best || x != x ? x : best;
        }
    ys[entry] = narrow<T>(best);
}

template <typename A>
__device__ __forceinline__ bool same(A x, A y) {
    return x == y || (x != x && y != y);
}

// Each maximum's gradient goes to the first pixel that holds it: whether one before this does is only looked up where this one
// holds it too.
template <typename T>
__device__ __forceinline__ void max_pool_backward(const T* xs, const T* ys, const T* grad, T* dxs, unsigned count, Pool pool) {
    const unsigned entry = own_entry();
    if (entry >= count) return;
    const Pool::Place p = pool.place(entry, pool.rows.size, pool.cols.size);
    const unsigned y_end = pool.rows.end_over(p.row), x_end = pool.cols.end_over(p.col);
    const Sum<T> own = widen(xs[entry]);
    Sum<T> sum = 0;
    for (unsigned y = pool.rows.first_over(p.row); y < y_end; y++)
        for (unsigned x = pool.cols.first_over(p.col); x < x_end; x++) {
            const size_t window = pool.window_at(p, y, x);
            if (!same(own, widen(ys[window]))) continue;
            const unsigned first_col = pool.cols.first(x), col_end = pool.cols.end(x);
            bool first = true;
            for (unsigned row = pool.rows.first(y); row <= p.row && first; row++) {
                const unsigned end = row == p.row ? p.col : col_end;
                for (unsigned col = first_col; col < end && first; col++)
                    first = !same(own, widen(xs[pool.at(p, row, col)]));
            }
            if (first) sum += widen(grad[window]);
        }
    dxs[entry] = narrow<T>(sum);
}

template <typename T>
__device__ __forceinline__ void avg_pool(const T* xs, T* ys, unsigned count, Pool pool, bool count_padding) {
    const unsigned entry = own_entry();
    if (entry >= count) return;
    const Pool::Place p = pool.place(entry, pool.rows.windows, pool.cols.windows);
    const unsigned row_end = pool.rows.end(p.row), col_end = pool.cols.end(p.col);
    Sum<T> sum = 0;
    for (unsigned row = pool.rows.first(p.row); row < row_end; row++)
        for (unsigned col = pool.cols.first(p.col); col < col_end; col++) sum += widen(xs[pool.at(p, row, col)]);
    ys[entry] = narrow<T>(sum * pool.share<Sum<T>>(p.row, p.col, count_padding));
}

template <typename T>
__device__ __forceinline__ void avg_pool_backward(const T* grad, T* dxs, unsigned count, Pool pool, bool count_padding) {
    const unsigned entry = own_entry();
    if (entry >= count) return;
    const Pool::Place p = pool.place(entry, pool.rows.size, pool.cols.size);
    const unsigned y_end = pool.rows.end_over(p.row), x_end = pool.cols.end_over(p.col);
    Sum<T> sum = 0;
    for (unsigned y = pool.rows.first_over(p.row); y < y_end; y++)
        for (unsigned x = pool.cols.first_over(p.col); x < x_end; x++)
            sum += widen(grad[pool.window_at(p, y, x)]) * pool.share<Sum<T>>(y, x, count_padding);
    dxs[entry] = narrow<T>(sum);
}

}  // namespace vkd

// Rows, then columns: pixels, windows, size, step and padding of a window.
#define POOL                                                                                                          \
    unsigned h, unsigned out_h, unsigned kernel_h, unsigned stride_h, unsigned padding_h, unsigned w, unsigned out_w, \
        unsigned kernel_w, unsigned stride_w, unsigned padding_w, unsigned channels
#define OWN_POOL                                                                                                  \
    {                                                                                                             \
        {h, out_h, kernel_h, stride_h, padding_h}, {w, out_w, kernel_w, stride_w, padding_w}, channels            \
    }

#define KERNELS(T, S)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) max_pool2d_##S(const T* xs, T* ys, unsigned count, POOL) {    \
        vkd::max_pool<T>(xs, ys, count, OWN_POOL);                                                                  \
    }                                                                                                               \
    VKD_EXPORT(max_pool2d_##S)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        max_pool2d_backward_##S(const T* xs, const T* ys, const T* grad, T* dxs, unsigned count, POOL) {            \
        vkd::max_pool_backward<T>(xs, ys, grad, dxs, count, OWN_POOL);                                              \
    }                                                                                                               \
    VKD_EXPORT(max_pool2d_backward_##S)                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        avg_pool2d_##S(const T* xs, T* ys, unsigned count, POOL, unsigned count_padding) {                          \
        vkd::avg_pool<T>(xs, ys, count, OWN_POOL, count_padding != 0);                                              \
    }                                                                                                               \
    VKD_EXPORT(avg_pool2d_##S)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        avg_pool2d_backward_##S(const T* grad, T* dxs, unsigned count, POOL, unsigned count_padding) {              \
        vkd::avg_pool_backward<T>(grad, dxs, count, OWN_POOL, count_padding != 0);                                  \
    }                                                                                                               \
    VKD_EXPORT(avg_pool2d_backward_##S)

VKD_EACH_FLOAT(KERNELS)
