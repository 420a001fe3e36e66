// Resampling of channels-last images and its adjoint, a thread an entry of what is written. Where a result lies between pixels is
// found in f64, with the roundings of cpu.rs, so both read the same pixels.
#include "common.cuh"

namespace vkd {

// As `Mode` of cpu.rs.
enum Mode : unsigned { NEAREST, EDGES, CORNERS };

// The two pixels that a result lies between, and the share of the second.
struct Tap {
    unsigned low, high;
    double share;
};

// Along one axis: pixels of the image and of the result, and the image's pixels for one of the result's.
struct Axis {
    unsigned from, to, mode;
    double scale;

    __device__ __forceinline__ Tap tap(unsigned i) const {
        if (mode == NEAREST) {
            const unsigned pixel = unsigned(uint64_t(i) * from / to);
            return {pixel, pixel, 0};
        }
        double position = mode == EDGES ? product_alone(i + 0.5, scale) - 0.5 : product_alone(double(i), scale);
        if (position < 0) position = 0;
        unsigned low = unsigned(position);
        if (low > from - 1) low = from - 1;
        const unsigned high = low + 1 < from ? low + 1 : low;
        return {low, high, high > low ? position - low : 0.};
    }

    // First result whose second pixel is `pixel` or comes after it, or else the number of results; pixels never fall.
    __device__ __forceinline__ unsigned first(unsigned pixel) const {
        unsigned low = 0, high = to;
        while (low < high) {
            const unsigned middle = low + (high - low) / 2;
            if (tap(middle).high >= pixel) high = middle;
            else low = middle + 1;
        }
        return low;
    }
    // First result whose first pixel comes after `pixel`.
    __device__ __forceinline__ unsigned end(unsigned pixel) const {
        unsigned low = 0, high = to;
        while (low < high) {
            const unsigned middle = low + (high - low) / 2;
            if (tap(middle).low > pixel) high = middle;
            else low = middle + 1;
        }
        return low;
    }
};

__device__ __forceinline__ double weight(const Tap& tap, unsigned pixel) {
    return tap.low == pixel ? 1 - tap.share : (tap.high == pixel ? tap.share : 0.);
}

template <typename T>
__device__ __forceinline__ void resample(const T* xs, T* ys, unsigned count, Axis rows, Axis cols, unsigned channels) {
    const unsigned entry = blockIdx.x * blockDim.x + threadIdx.x;
    if (entry >= count) return;
    const unsigned channel = entry % channels, pixel = entry / channels, line = pixel / cols.to;
    const Tap y = rows.tap(line % rows.to), x = cols.tap(pixel % cols.to);
    const T* image = xs + size_t(line / rows.to) * rows.from * cols.from * channels + channel;
    Sum<T> sum = 0;
#pragma unroll
    for (unsigned i = 0; i < 2; i++)
#pragma unroll
        for (unsigned j = 0; j < 2; j++) {
            const double share = (i ? y.share : 1 - y.share) * (j ? x.share : 1 - x.share);
            // What has no share is not read, so an infinite pixel stays alone.
            if (share != 0)
                sum += widen(image[(size_t(i ? y.high : y.low) * cols.from + (j ? x.high : x.low)) * channels]) * Sum<T>(share);
        }
    ys[entry] = narrow<T>(sum);
}

// Bounds (rows + columns of the image, 2): the results that each row and then each column has a share in, first and end.
__device__ __forceinline__ void bounds(unsigned* bounds, Axis rows, Axis cols) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows.from + cols.from) return;
    const bool is_row = i < rows.from;
    const Axis axis = is_row ? rows : cols;
    const unsigned pixel = is_row ? i : i - rows.from;
    bounds[2 * size_t(i)] = axis.first(pixel);
    bounds[2 * size_t(i) + 1] = axis.end(pixel);
}

template <typename T>
__device__ __forceinline__ void resample_backward(const T* grad, const unsigned* bounds, T* dxs, unsigned count, Axis rows,
                                                  Axis cols, unsigned channels) {
    const unsigned entry = blockIdx.x * blockDim.x + threadIdx.x;
    if (entry >= count) return;
    const unsigned channel = entry % channels, pixel = entry / channels, line = pixel / cols.from;
    const unsigned row = line % rows.from, col = pixel % cols.from;
    const unsigned *of_row = bounds + 2 * size_t(row), *of_col = bounds + 2 * (size_t(rows.from) + col);
    const T* image = grad + size_t(line / rows.from) * rows.to * cols.to * channels + channel;
    const unsigned y_end = of_row[1], x_first = of_col[0], x_end = of_col[1];
    Sum<T> sum = 0;
    for (unsigned y = of_row[0]; y < y_end; y++) {
        const double down = weight(rows.tap(y), row);
        for (unsigned x = x_first; x < x_end; x++) {
            const double share = down * weight(cols.tap(x), col);
            if (share != 0) sum += widen(image[(size_t(y) * cols.to + x) * channels]) * Sum<T>(share);
        }
    }
    dxs[entry] = narrow<T>(sum);
}

}  // namespace vkd

#define AXES \
    unsigned h, unsigned to_h, double scale_h, unsigned w, unsigned to_w, double scale_w, unsigned mode, unsigned channels
#define ROWS \
    { h, to_h, mode, scale_h }
#define COLS \
    { w, to_w, mode, scale_w }

#define KERNELS(T, S)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256) upsample2d_##S(const T* xs, T* ys, unsigned count, AXES) {     \
        vkd::resample<T>(xs, ys, count, ROWS, COLS, channels);                                                       \
    }                                                                                                                \
    VKD_EXPORT(upsample2d_##S)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                                \
        upsample2d_backward_##S(const T* grad, const unsigned* bounds, T* dxs, unsigned count, AXES) {               \
        vkd::resample_backward<T>(grad, bounds, dxs, count, ROWS, COLS, channels);                                   \
    }                                                                                                                \
    VKD_EXPORT(upsample2d_backward_##S)

VKD_EACH_FLOAT(KERNELS)

extern "C" __global__ void __launch_bounds__(256)
    upsample2d_bounds(unsigned* bounds, unsigned h, unsigned to_h, double scale_h, unsigned w, unsigned to_w, double scale_w,
                      unsigned mode) {
    vkd::bounds(bounds, ROWS, COLS);
}
VKD_EXPORT(upsample2d_bounds)
