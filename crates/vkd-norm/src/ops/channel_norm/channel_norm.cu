// Batch norm and group norm of channels-last tensors: samples along z, chunks of a sample's rows along y, a column a
// thread. Statistics belong to a sample's group of `width` neighbouring columns; of a batch there is one sample.
#include "moments.cuh"

namespace vkd {

// Stats (samples, groups, 2) of parts (samples, chunks, 3, channels): mean and 1 / deviation, a set a thread. Moments (2, samples,
// groups) are mean and biased variance.
__device__ __forceinline__ void channel_stats(const double* parts, double* stats, double* moments, unsigned sets,
                                              unsigned chunks, unsigned channels, unsigned width, double eps) {
    const unsigned set = blockIdx.x * blockDim.x + threadIdx.x;
    if (set >= sets) return;
    const unsigned groups = channels / width, sample = set / groups, first = (set % groups) * width;
    double count = 0, mean = 0, squares = 0;
    for (unsigned chunk = 0; chunk < chunks; chunk++) {
        const double* part = parts + (size_t(sample) * chunks + chunk) * 3 * channels + first;
        for (unsigned column = 0; column < width; column++) {
            const double n = part[column], own = part[size_t(channels) + column];
            const double apart = own - mean, all = count + n;
            mean = count == 0 ? own : mean + apart * (n / all);
            squares += part[2 * size_t(channels) + column] + (count == 0 ? 0 : apart * apart * (count * n / all));
            count = all;
        }
    }
    const double variance = squares / count;
    stats[2 * size_t(set)] = mean;
    stats[2 * size_t(set) + 1] = 1 / sqrt(variance + eps);
    moments[set] = mean;
    moments[size_t(sets) + set] = variance;
}

// Stats (sets, 2) of given means and variances. What is none, negative or not finite, makes its set NaN.
template <typename T>
__device__ __forceinline__ void channel_given(const T* mean, const T* variance, double* stats, unsigned sets, double eps) {
    const unsigned set = blockIdx.x * blockDim.x + threadIdx.x;
    if (set >= sets) return;
    const double m = double(widen(mean[set])), v = double(widen(variance[set]));
    stats[2 * size_t(set)] = m;
    stats[2 * size_t(set) + 1] = finite(m) && finite(v) && v >= 0 ? 1 / sqrt(v + eps) : double(NAN);
}

// The normalised value of one column.
template <typename A>
struct Column {
    A mean, shift, inverse;
    __device__ __forceinline__ Column(const double* stats, size_t set)
        : mean(A(stats[2 * set])), shift(A(stats[2 * set] - double(mean))), inverse(A(stats[2 * set + 1])) {}
    __device__ __forceinline__ A operator()(A x) const { return ((x - mean) - shift) * inverse; }
};

struct Place {
    Chunk chunk;
    // The column's set, and the first entry of its sample.
    size_t set, start;
};

__device__ __forceinline__ Place own_place(unsigned rows, unsigned channels, unsigned width, unsigned per_chunk) {
    const Chunk chunk = own_chunk(rows, per_chunk);
    return {chunk, size_t(blockIdx.z) * (channels / width) + chunk.column / width, size_t(blockIdx.z) * rows * channels};
}

template <typename T>
__device__ __forceinline__ void channel_norm(const T* xs, const T* weight, const T* bias, const double* stats, T* ys,
                                             unsigned rows, unsigned channels, unsigned width, unsigned per_chunk) {
    const Place place = own_place(rows, channels, width, per_chunk);
    if (place.chunk.column >= channels) return;
    const Column<Sum<T>> column(stats, place.set);
    const Sum<T> w = widen(weight[place.chunk.column]), b = widen(bias[place.chunk.column]);
    for (unsigned row = place.chunk.first; row < place.chunk.end; row++) {
        const size_t at = place.start + size_t(row) * channels + place.chunk.column;
        ys[at] = narrow<T>(column(widen(xs[at])) * w + b);
    }
}

// Parts (samples, chunks, 2, channels): sums of g and of g h.
template <typename T>
__device__ __forceinline__ void channel_sums(const T* xs, const T* grad, const double* stats, double* parts, unsigned rows,
                                             unsigned channels, unsigned width, unsigned per_chunk) {
    const Place place = own_place(rows, channels, width, per_chunk);
    if (place.chunk.column >= channels) return;
    const Column<Sum<T>> column(stats, place.set);
    Sum<T> sum = 0, along = 0;
    for (unsigned row = place.chunk.first; row < place.chunk.end; row++) {
        const size_t at = place.start + size_t(row) * channels + place.chunk.column;
        const Sum<T> g = widen(grad[at]);
        sum += g;
        along += g * column(widen(xs[at]));
    }
    double* part = parts + (size_t(blockIdx.z) * gridDim.y + blockIdx.y) * 2 * channels + place.chunk.column;
    part[0] = sum;
    part[channels] = along;
}

// Gradients of gain and bias: sums (2, channels) over all samples and chunks.
template <typename T>
__device__ __forceinline__ void channel_affine(const double* parts, T* sums, unsigned count, unsigned channels) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= channels) return;
    double gain = 0, level = 0;
    for (unsigned part = 0; part < count; part++) {
        level += parts[size_t(part) * 2 * channels + column];
        gain += parts[(size_t(part) * 2 + 1) * channels + column];
    }
    sums[column] = narrow<T>(Sum<T>(gain));
    sums[channels + column] = narrow<T>(Sum<T>(level));
}

// Means (samples, groups, 2) of p and of p h over a set, p the gradient times the gain.
template <typename T>
__device__ __forceinline__ void channel_terms(const double* parts, const T* weight, double* terms, unsigned sets,
                                              unsigned chunks, unsigned channels, unsigned width, double count) {
    const unsigned set = blockIdx.x * blockDim.x + threadIdx.x;
    if (set >= sets) return;
    const unsigned groups = channels / width, sample = set / groups, first = (set % groups) * width;
    double sum = 0, along = 0;
    for (unsigned chunk = 0; chunk < chunks; chunk++) {
        const double* part = parts + (size_t(sample) * chunks + chunk) * 2 * channels + first;
        for (unsigned column = 0; column < width; column++) {
            const double w = double(widen(weight[first + column]));
            sum += w * part[column];
            along += w * part[size_t(channels) + column];
        }
    }
    terms[2 * size_t(set)] = sum / count;
    terms[2 * size_t(set) + 1] = along / count;
}

// inverse * (p - mean(p) - h * mean(p h)); without `terms` the statistics are constants.
template <typename T>
__device__ __forceinline__ void channel_norm_backward(const T* xs, const T* weight, const T* grad, const double* stats,
                                                      const double* terms, T* dxs, unsigned rows, unsigned channels,
                                                      unsigned width, unsigned per_chunk) {
    const Place place = own_place(rows, channels, width, per_chunk);
    if (place.chunk.column >= channels) return;
    const Column<Sum<T>> column(stats, place.set);
    const Sum<T> w = widen(weight[place.chunk.column]);
    const Sum<T> of_p = terms ? Sum<T>(terms[2 * place.set]) : Sum<T>(0);
    const Sum<T> of_ph = terms ? Sum<T>(terms[2 * place.set + 1]) : Sum<T>(0);
    for (unsigned row = place.chunk.first; row < place.chunk.end; row++) {
        const size_t at = place.start + size_t(row) * channels + place.chunk.column;
        dxs[at] = narrow<T>(column.inverse * ((widen(grad[at]) * w - of_p) - column(widen(xs[at])) * of_ph));
    }
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                               \
        channel_norm_moments_##S(const T* xs, double* parts, unsigned rows, unsigned channels, unsigned per_chunk) {   \
        vkd::moments<T>(xs + size_t(blockIdx.z) * rows * channels, nullptr,                                            \
                        parts + size_t(blockIdx.z) * gridDim.y * 3 * channels, rows, channels, per_chunk);             \
    }                                                                                                                  \
    VKD_EXPORT(channel_norm_moments_##S)                                                                               \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                               \
        channel_norm_##S(const T* xs, const T* weight, const T* bias, const double* stats, T* ys, unsigned rows,       \
                         unsigned channels, unsigned width, unsigned per_chunk) {                                      \
        vkd::channel_norm<T>(xs, weight, bias, stats, ys, rows, channels, width, per_chunk);                           \
    }                                                                                                                  \
    VKD_EXPORT(channel_norm_##S)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                               \
        channel_norm_sums_##S(const T* xs, const T* grad, const double* stats, double* parts, unsigned rows,           \
                              unsigned channels, unsigned width, unsigned per_chunk) {                                 \
        vkd::channel_sums<T>(xs, grad, stats, parts, rows, channels, width, per_chunk);                                \
    }                                                                                                                  \
    VKD_EXPORT(channel_norm_sums_##S)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                               \
        channel_norm_affine_##S(const double* parts, T* sums, unsigned count, unsigned channels) {                     \
        vkd::channel_affine<T>(parts, sums, count, channels);                                                          \
    }                                                                                                                  \
    VKD_EXPORT(channel_norm_affine_##S)                                                                                \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                               \
        channel_norm_terms_##S(const double* parts, const T* weight, double* terms, unsigned sets, unsigned chunks,    \
                               unsigned channels, unsigned width, double count) {                                      \
        vkd::channel_terms<T>(parts, weight, terms, sets, chunks, channels, width, count);                             \
    }                                                                                                                  \
    VKD_EXPORT(channel_norm_terms_##S)                                                                                 \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                               \
        channel_norm_backward_##S(const T* xs, const T* weight, const T* grad, const double* stats,                    \
                                  const double* terms, T* dxs, unsigned rows, unsigned channels, unsigned width,       \
                                  unsigned per_chunk) {                                                                \
        vkd::channel_norm_backward<T>(xs, weight, grad, stats, terms, dxs, rows, channels, width, per_chunk);          \
    }                                                                                                                  \
    VKD_EXPORT(channel_norm_backward_##S)                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        channel_norm_given_##S(const T* mean, const T* variance, double* stats, unsigned sets, double eps) {           \
        vkd::channel_given<T>(mean, variance, stats, sets, eps);                                                       \
    }                                                                                                                  \
    VKD_EXPORT(channel_norm_given_##S)

VKD_EACH_FLOAT(KERNELS)

extern "C" __global__ void __launch_bounds__(256)
    channel_norm_stats(const double* parts, double* stats, double* moments, unsigned sets, unsigned chunks, unsigned channels,
                       unsigned width, double eps) {
    vkd::channel_stats(parts, stats, moments, sets, chunks, channels, width, eps);
}
VKD_EXPORT(channel_norm_stats)
