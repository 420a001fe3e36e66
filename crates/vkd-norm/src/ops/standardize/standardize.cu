// Standardisation of channels over rows. A thread has a column; along y the blocks have chunks of rows. A row whose place
// in `mask` is zero is not read; without a mask all count.
#include "moments.cuh"

namespace vkd {

// Stats (3, channels) of parts: mean, 1 / denominator, number of rows. Chan, Golub and LeVeque's joining.
__device__ __forceinline__ void join_moments(const double* parts, double* stats, unsigned chunks, unsigned channels,
                                             unsigned unbiased, double eps) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= channels) return;
    double count = 0, mean = 0, squares = 0;
    for (unsigned chunk = 0; chunk < chunks; chunk++) {
        const double* part = parts + size_t(chunk) * 3 * channels + column;
        const double n = part[0];
        if (n == 0) continue;
        const double apart = part[channels] - mean, all = count + n;
        mean = count == 0 ? part[channels] : mean + apart * (n / all);
        squares += part[2 * size_t(channels)] + (count == 0 ? 0 : apart * apart * (count * n / all));
        count = all;
    }
    const double divisor = unbiased ? count - 1 : count;
    const double variance = count > 1 ? squares / divisor : 0;
    const double squared = variance + variance * (eps * eps) + (eps * mean) * (eps * mean);
    stats[column] = mean;
    stats[channels + column] = squared == 0 ? 0 : 1 / sqrt(squared);
    stats[2 * size_t(channels) + column] = count;
}

// What one column is shifted by and multiplied with. `wide` where the arithmetic of the type can't carry it out.
template <typename A>
struct Channel {
    double exact_mean, exact_inverse;
    A mean, shift, inverse;
    bool wide;

    __device__ __forceinline__ Channel(const double* stats, unsigned channels, unsigned column)
        : exact_mean(stats[column]), exact_inverse(stats[channels + column]), mean(A(exact_mean)),
          shift(A(exact_mean - double(mean))), inverse(A(exact_inverse)) {
        wide = sizeof(A) == 4 && !(exact_inverse == 0 || (inverse >= A(1.1754944e-38f) && finite(inverse) && finite(mean)));
    }
    __device__ __forceinline__ A value(A x) const {
        return wide ? A((double(x) - exact_mean) * exact_inverse) : ((x - mean) - shift) * inverse;
    }
};

template <typename T>
__device__ __forceinline__ void standardize(const T* xs, const uint8_t* mask, const double* stats, T* ys, unsigned rows,
                                            unsigned channels, unsigned per_chunk) {
    const Chunk chunk = own_chunk(rows, per_chunk);
    if (chunk.column >= channels) return;
    const Channel<Sum<T>> channel(stats, channels, chunk.column);
    for (unsigned row = chunk.first; row < chunk.end; row++) {
        const size_t at = size_t(row) * channels + chunk.column;
        ys[at] = narrow<T>(counts(mask, row) ? channel.value(widen(xs[at])) : Sum<T>(0));
    }
}

// Parts (chunks, 2, channels): sums of g and of g y.
template <typename T>
__device__ __forceinline__ void standardize_sums(const T* xs, const T* grad, const uint8_t* mask, const double* stats,
                                                 double* parts, unsigned rows, unsigned channels, unsigned per_chunk) {
    const Chunk chunk = own_chunk(rows, per_chunk);
    if (chunk.column >= channels) return;
    const Channel<Sum<T>> channel(stats, channels, chunk.column);
    Sum<T> sum = 0, along = 0;
    for (unsigned row = chunk.first; row < chunk.end; row++)
        if (counts(mask, row)) {
            const size_t at = size_t(row) * channels + chunk.column;
            const Sum<T> g = widen(grad[at]);
            sum += g;
            along += g * channel.value(widen(xs[at]));
        }
    parts[size_t(blockIdx.y) * 2 * channels + chunk.column] = sum;
    parts[(size_t(blockIdx.y) * 2 + 1) * channels + chunk.column] = along;
}

// Terms (2, channels) of the gradient, how the denominator D follows its column's entries: dD/dx = value y + guard mean / D.
__device__ __forceinline__ void standardize_terms(const double* parts, const double* stats, double* terms, unsigned chunks,
                                                  unsigned channels, unsigned unbiased, double eps) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= channels) return;
    double sum = 0, along = 0;
    for (unsigned chunk = 0; chunk < chunks; chunk++) {
        sum += parts[size_t(chunk) * 2 * channels + column];
        along += parts[(size_t(chunk) * 2 + 1) * channels + column];
    }
    const double mean = stats[column], inverse = stats[channels + column], count = stats[2 * size_t(channels) + column];
    const double weight = count > 1 ? 1 / (unbiased ? count - 1 : count) : 0, n = count > 1 ? count : 1;
    terms[column] = sum / n + along * (eps * eps / n) * mean * inverse;
    terms[channels + column] = along * (1 + eps * eps) * weight;
}

// (g - level - y slope) / D
template <typename T>
__device__ __forceinline__ void standardize_backward(const T* xs, const T* grad, const uint8_t* mask, const double* stats,
                                                     const double* terms, T* dxs, unsigned rows, unsigned channels,
                                                     unsigned per_chunk) {
    const Chunk chunk = own_chunk(rows, per_chunk);
    if (chunk.column >= channels) return;
    const Channel<Sum<T>> channel(stats, channels, chunk.column);
    const double exact_level = terms[chunk.column], exact_slope = terms[channels + chunk.column];
    const Sum<T> level = Sum<T>(exact_level), slope = Sum<T>(exact_slope);
    for (unsigned row = chunk.first; row < chunk.end; row++) {
        const size_t at = size_t(row) * channels + chunk.column;
        Sum<T> dx = 0;
        if (counts(mask, row)) {
            const Sum<T> g = widen(grad[at]), y = channel.value(widen(xs[at]));
            dx = channel.wide ? Sum<T>(((double(g) - exact_level) - double(y) * exact_slope) * channel.exact_inverse)
                              : ((g - level) - y * slope) * channel.inverse;
        }
        dxs[at] = narrow<T>(dx);
    }
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                                  \
        standardize_moments_##S(const T* xs, const uint8_t* mask, double* parts, unsigned rows, unsigned channels,     \
                                unsigned per_chunk) {                                                                  \
        vkd::moments<T>(xs, mask, parts, rows, channels, per_chunk);                                                   \
    }                                                                                                                  \
    VKD_EXPORT(standardize_moments_##S)                                                                                \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                                  \
        standardize_##S(const T* xs, const uint8_t* mask, const double* stats, T* ys, unsigned rows,                   \
                        unsigned channels, unsigned per_chunk) {                                                       \
        vkd::standardize<T>(xs, mask, stats, ys, rows, channels, per_chunk);                                           \
    }                                                                                                                  \
    VKD_EXPORT(standardize_##S)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                                  \
        standardize_sums_##S(const T* xs, const T* grad, const uint8_t* mask, const double* stats, double* parts,      \
                             unsigned rows, unsigned channels, unsigned per_chunk) {                                   \
        vkd::standardize_sums<T>(xs, grad, mask, stats, parts, rows, channels, per_chunk);                             \
    }                                                                                                                  \
    VKD_EXPORT(standardize_sums_##S)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                                  \
        standardize_backward_##S(const T* xs, const T* grad, const uint8_t* mask, const double* stats,                 \
                                 const double* terms, T* dxs, unsigned rows, unsigned channels, unsigned per_chunk) {  \
        vkd::standardize_backward<T>(xs, grad, mask, stats, terms, dxs, rows, channels, per_chunk);                    \
    }                                                                                                                  \
    VKD_EXPORT(standardize_backward_##S)

VKD_EACH_FLOAT(KERNELS)

extern "C" __global__ void __launch_bounds__(256, 4)
    standardize_join(const double* parts, double* stats, unsigned chunks, unsigned channels, unsigned unbiased, double eps) {
    vkd::join_moments(parts, stats, chunks, channels, unbiased, eps);
}
VKD_EXPORT(standardize_join)

extern "C" __global__ void __launch_bounds__(256, 4)
    standardize_terms(const double* parts, const double* stats, double* terms, unsigned chunks, unsigned channels,
                      unsigned unbiased, double eps) {
    vkd::standardize_terms(parts, stats, terms, chunks, channels, unbiased, eps);
}
VKD_EXPORT(standardize_terms)
