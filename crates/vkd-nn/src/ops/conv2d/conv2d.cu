// Convolutions of channels-last images around products of matrices: windows to columns and back; and channels that see only
// themselves. A thread an entry of what is written, so a gradient is gathered, in the order of the windows.
#include "common.cuh"

namespace vkd {

// Along one axis: pixels of the image, windows, and a window's taps, step, padding and distance of taps. Of the windows that have
// one pixel under a tap, each is `period` windows and `back` taps from the one before.
struct Axis {
    unsigned size, windows, kernel, stride, padding, dilation, period, back;

    // The pixel under a tap: `size` or more where it lies outside of the image.
    __device__ __forceinline__ unsigned pixel(unsigned window, unsigned tap) const {
        return window * stride + tap * dilation - padding;
    }

    // The windows with a pixel under a tap: the first, its tap, and the end of those.
    struct Over {
        unsigned first, tap, end;
    };
    __device__ __forceinline__ Over over(unsigned pixel) const {
        const unsigned at = pixel + padding, reach = (kernel - 1) * dilation, past = at / stride + 1;
        const unsigned end = past < windows ? past : windows;
        unsigned first = at > reach ? (at - reach + stride - 1) / stride : 0;
        // Between two taps lies the pixel of some windows, and of none after a whole period of those.
        for (unsigned left = period; first < end && (at - first * stride) % dilation != 0; first++)
            if (--left == 0) return {end, 0, end};
        return {first, first < end ? (at - first * stride) / dilation : 0, end};
    }
};

__device__ __forceinline__ unsigned own_entry() { return blockIdx.x * blockDim.x + threadIdx.x; }

// Sixteen bytes that travel together.
struct alignas(16) Sixteen {
    uint64_t low, high;
};

// Columns (groups, images, windows, taps, run) of images whose rows are of `cols.size` pixels of `pixel` units; a group along y. It
// only copies, so a unit is as many bytes as divide every run, whatever the type.
template <typename U>
__device__ __forceinline__ void windows(
    const U* xs, U* columns, unsigned count, Axis rows, Axis cols, unsigned pixel, unsigned run) {
    const unsigned entry = own_entry();
    if (entry >= count) return;
    const unsigned tap = entry / run, line = tap / cols.kernel, place = line / rows.kernel, y = place / cols.windows;
    const unsigned row = rows.pixel(y % rows.windows, line % rows.kernel);
    const unsigned col = cols.pixel(place % cols.windows, tap % cols.kernel);
    const size_t image = y / rows.windows, group = blockIdx.y;
    U value = {};
    if (row < rows.size && col < cols.size)
        value = xs[((image * rows.size + row) * cols.size + col) * pixel + group * run + entry % run];
    columns[group * count + entry] = value;
}

// The adjoint, of columns with so many channels a group: every pixel adds up what the windows over it have for it.
template <typename T>
__device__ __forceinline__ void fold(
    const T* columns, const T* bias, T* xs, unsigned count, Axis rows, Axis cols, unsigned channels, unsigned depth) {
    const unsigned entry = own_entry();
    if (entry >= count) return;
    const unsigned pixel = entry / channels, channel = entry % channels, line = pixel / cols.size;
    const Axis::Over down = rows.over(line % rows.size), across = cols.over(pixel % cols.size);
    const size_t image = line / rows.size, images = count / channels / cols.size / rows.size;
    // A group's columns start at its windows of the first image.
    const size_t start = (size_t(channel / depth) * images + image) * rows.windows;
    Sum<T> sum = bias ? widen(bias[channel]) : Sum<T>(0);
    for (unsigned y = down.first, i = down.tap; y < down.end; y += rows.period, i -= rows.back)
        for (unsigned x = across.first, j = across.tap; x < across.end; x += cols.period, j -= cols.back) {
            const size_t place = (start + y) * cols.windows + x;
            sum += widen(columns[((place * rows.kernel + i) * cols.kernel + j) * depth + channel % depth]);
        }
    xs[entry] = narrow<T>(sum);
}

// Zero for what is below; NaN stays.
template <typename A>
__device__ __forceinline__ A rectified(A x, bool relu) {
    return relu && x < A(0) ? A(0) : x;
}

// Groups (groups, rows, depth) side by side: (rows, channels), with what follows a product.
template <typename T>
__device__ __forceinline__ void join(
    const T* groups, const T* bias, T* ys, unsigned count, unsigned rows, unsigned channels, unsigned depth, bool relu) {
    const unsigned entry = own_entry();
    if (entry >= count) return;
    const unsigned row = entry / channels, channel = entry % channels, group = channel / depth;
    Sum<T> y = widen(groups[(size_t(group) * rows + row) * depth + (channel - group * depth)]);
    if (bias) y += widen(bias[channel]);
    ys[entry] = narrow<T>(rectified(y, relu));
}

// The gradient that a ReLU with the result `ys` lets through.
template <typename T>
__device__ __forceinline__ void relu_backward(const T* ys, const T* grad, T* dxs, unsigned count) {
    const unsigned entry = own_entry();
    if (entry >= count) return;
    dxs[entry] = widen(ys[entry]) > Sum<T>(0) ? grad[entry] : narrow<T>(Sum<T>(0));
}

// The end of a block's rows, of which `per_chunk` are for each block along y.
__device__ __forceinline__ unsigned chunk_end(unsigned first, unsigned rows, unsigned per_chunk) {
    return rows - first < per_chunk ? rows : first + per_chunk;
}

// Sums of columns over a chunk of the rows each.
template <typename T>
__device__ __forceinline__ void column_sums(const T* xs, Sum<T>* parts, unsigned rows, unsigned columns, unsigned per_chunk) {
    const unsigned column = own_entry(), first = blockIdx.y * per_chunk;
    if (column >= columns) return;
    const unsigned end = chunk_end(first, rows, per_chunk);
    Sum<T> sum = 0;
    for (unsigned row = first; row < end; row++) sum += widen(xs[size_t(row) * columns + column]);
    parts[size_t(blockIdx.y) * columns + column] = sum;
}

// A channel by itself: its filter has a row of taps in `filters`.
template <typename T>
__device__ __forceinline__ void depthwise(
    const T* xs, const T* filters, const T* bias, T* ys, unsigned count, Axis rows, Axis cols, unsigned channels, bool relu) {
    const unsigned entry = own_entry();
    if (entry >= count) return;
    const unsigned place = entry / channels, channel = entry % channels, line = place / cols.windows;
    const unsigned x = place % cols.windows, y = line % rows.windows;
    const size_t image = line / rows.windows;
    const T* own = filters + size_t(channel) * rows.kernel * cols.kernel;
    Sum<T> sum = bias ? widen(bias[channel]) : Sum<T>(0);
    for (unsigned i = 0; i < rows.kernel; i++) {
        const unsigned row = rows.pixel(y, i);
        if (row >= rows.size) continue;
        for (unsigned j = 0; j < cols.kernel; j++) {
            const unsigned col = cols.pixel(x, j);
            if (col >= cols.size) continue;
            sum += widen(xs[((image * rows.size + row) * cols.size + col) * channels + channel]) * widen(own[i * cols.kernel + j]);
        }
    }
    ys[entry] = narrow<T>(rectified(sum, relu));
}

// Its adjoint in the images.
template <typename T>
__device__ __forceinline__ void depthwise_images(
    const T* ys, const T* filters, const T* bias, T* xs, unsigned count, Axis rows, Axis cols, unsigned channels) {
    const unsigned entry = own_entry();
    if (entry >= count) return;
    const unsigned pixel = entry / channels, channel = entry % channels, line = pixel / cols.size;
    const Axis::Over down = rows.over(line % rows.size), across = cols.over(pixel % cols.size);
    const size_t image = line / rows.size;
    const T* own = filters + size_t(channel) * rows.kernel * cols.kernel;
    Sum<T> sum = bias ? widen(bias[channel]) : Sum<T>(0);
    for (unsigned y = down.first, i = down.tap; y < down.end; y += rows.period, i -= rows.back)
        for (unsigned x = across.first, j = across.tap; x < across.end; x += cols.period, j -= cols.back)
            sum += widen(ys[((image * rows.windows + y) * cols.windows + x) * channels + channel]) *
                   widen(own[i * cols.kernel + j]);
    xs[entry] = narrow<T>(sum);
}

// Its adjoint in the filters: sums (chunks, taps, channels) over a chunk of the `places` windows of all images each, a tap along z.
template <typename T>
__device__ __forceinline__ void depthwise_filters(
    const T* xs, const T* ys, Sum<T>* parts, unsigned places, unsigned per_chunk, Axis rows, Axis cols, unsigned channels) {
    const unsigned channel = own_entry(), first = blockIdx.y * per_chunk, tap = blockIdx.z;
    if (channel >= channels) return;
    const unsigned end = chunk_end(first, places, per_chunk), i = tap / cols.kernel, j = tap % cols.kernel;
    unsigned x = first % cols.windows, y = first / cols.windows % rows.windows;
    size_t image = first / cols.windows / rows.windows;
    Sum<T> sum = 0;
    for (unsigned place = first; place < end; place++) {
        const unsigned row = rows.pixel(y, i), col = cols.pixel(x, j);
        if (row < rows.size && col < cols.size)
            sum += widen(xs[((image * rows.size + row) * cols.size + col) * channels + channel]) *
                   widen(ys[size_t(place) * channels + channel]);
        if (++x < cols.windows) continue;
        x = 0;
        if (++y < rows.windows) continue;
        y = 0;
        image++;
    }
    parts[(size_t(blockIdx.y) * gridDim.z + tap) * channels + channel] = sum;
}

}  // namespace vkd

// Rows, then columns.
#define AXES                                                                                                              \
    unsigned h, unsigned out_h, unsigned kernel_h, unsigned stride_h, unsigned padding_h, unsigned dilation_h,            \
        unsigned period_h, unsigned back_h, unsigned w, unsigned out_w, unsigned kernel_w, unsigned stride_w,             \
        unsigned padding_w, unsigned dilation_w, unsigned period_w, unsigned back_w
#define OWN_AXES                                                                     \
    {h, out_h, kernel_h, stride_h, padding_h, dilation_h, period_h, back_h}, {       \
        w, out_w, kernel_w, stride_w, padding_w, dilation_w, period_w, back_w        \
    }

#define COPIES(U, BYTES)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                      \
        conv2d_windows_##BYTES(const U* xs, U* columns, unsigned count, AXES, unsigned pixel, unsigned run) {              \
        vkd::windows<U>(xs, columns, count, OWN_AXES, pixel, run);                                                         \
    }                                                                                                                      \
    VKD_EXPORT(conv2d_windows_##BYTES)

COPIES(uint16_t, 2)
COPIES(uint32_t, 4)
COPIES(uint64_t, 8)
COPIES(vkd::Sixteen, 16)

#define KERNELS(T, S)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) conv2d_fold_##S(                                                      \
        const T* columns, const T* bias, T* xs, unsigned count, AXES, unsigned channels, unsigned depth) {                  \
        vkd::fold<T>(columns, bias, xs, count, OWN_AXES, channels, depth);                                                  \
    }                                                                                                                       \
    VKD_EXPORT(conv2d_fold_##S)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) conv2d_join_##S(                                                      \
        const T* groups, const T* bias, T* ys, unsigned count, unsigned rows, unsigned channels, unsigned depth, unsigned relu) { \
        vkd::join<T>(groups, bias, ys, count, rows, channels, depth, relu != 0);                                            \
    }                                                                                                                       \
    VKD_EXPORT(conv2d_join_##S)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                       \
        conv2d_relu_backward_##S(const T* ys, const T* grad, T* dxs, unsigned count) {                                      \
        vkd::relu_backward<T>(ys, grad, dxs, count);                                                                        \
    }                                                                                                                       \
    VKD_EXPORT(conv2d_relu_backward_##S)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                                       \
        conv2d_sums_##S(const T* xs, vkd::Sum<T>* parts, unsigned rows, unsigned columns, unsigned per_chunk) {             \
        vkd::column_sums<T>(xs, parts, rows, columns, per_chunk);                                                           \
    }                                                                                                                       \
    VKD_EXPORT(conv2d_sums_##S)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                       \
        conv2d_sums_join_##S(const vkd::Sum<T>* parts, T* sums, unsigned chunks, unsigned width) {                          \
        vkd::join_parts<T>(parts, sums, chunks, width);                                                                     \
    }                                                                                                                       \
    VKD_EXPORT(conv2d_sums_join_##S)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256) depthwise2d_##S(                                                      \
        const T* xs, const T* filters, const T* bias, T* ys, unsigned count, AXES, unsigned channels, unsigned relu) {      \
        vkd::depthwise<T>(xs, filters, bias, ys, count, OWN_AXES, channels, relu != 0);                                     \
    }                                                                                                                       \
    VKD_EXPORT(depthwise2d_##S)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) depthwise2d_images_##S(                                               \
        const T* ys, const T* filters, const T* bias, T* xs, unsigned count, AXES, unsigned channels) {                     \
        vkd::depthwise_images<T>(ys, filters, bias, xs, count, OWN_AXES, channels);                                         \
    }                                                                                                                       \
    VKD_EXPORT(depthwise2d_images_##S)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) depthwise2d_filters_##S(                                              \
        const T* xs, const T* ys, vkd::Sum<T>* parts, unsigned places, unsigned per_chunk, AXES, unsigned channels) {       \
        vkd::depthwise_filters<T>(xs, ys, parts, places, per_chunk, OWN_AXES, channels);                                    \
    }                                                                                                                       \
    VKD_EXPORT(depthwise2d_filters_##S)

VKD_EACH_FLOAT(KERNELS)
