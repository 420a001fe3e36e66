// Losses between the softmax of logits and a fixed target: one block a row, all arithmetic in f64 as on the CPU.
//
// Every kind is the sum over classes of t (log t - log softmax(x / T)), with the first logarithm for the divergence only;
// every gradient is (softmax sum(t) - t) / T.
#include "common.cuh"

namespace vkd {

// As `Target` of mod.rs.
enum Kind : unsigned { LABELS, PROBABILITIES, LOGITS };

// Largest entry and sum of the exponentials under it, of row / temperature.
struct Norm {
    double largest, sum;
    __device__ __forceinline__ double log_sum_exp() const { return largest + log(sum); }
};

template <typename T>
__device__ __forceinline__ Norm norm_of(const T* row, unsigned classes, double temperature) {
    double largest = double(row[0]), sum = 0;
    for (unsigned k = thread_index(); k < classes; k += thread_count()) largest = Larger()(largest, double(row[k]));
    largest = over_block(largest, double(row[0]), Larger()) / temperature;
    for (unsigned k = thread_index(); k < classes; k += thread_count()) sum += exp(double(row[k]) / temperature - largest);
    return {largest, block_sum(sum)};
}

// The target distribution of one row, and its logarithm where the loss needs it.
template <typename T>
struct RowTarget {
    Kind kind;
    const T* values;
    unsigned label, classes;
    double smoothing, temperature;
    Norm norm;

    __device__ __forceinline__ double operator()(unsigned k) const {
        if (kind == LABELS) return smoothing / classes + (k == label ? 1 - smoothing : 0);
        if (kind == PROBABILITIES) return double(values[k]);
        return exp(double(values[k]) / temperature - norm.largest) / norm.sum;
    }
    __device__ __forceinline__ double logarithm(unsigned k) const {
        return kind == LOGITS ? double(values[k]) / temperature - norm.log_sum_exp() : 0;
    }
};

template <typename T>
__device__ __forceinline__ RowTarget<T> target_of(Kind kind, const T* values, const uint32_t* labels, unsigned row,
                                                  unsigned classes, double smoothing, double temperature) {
    RowTarget<T> target = {kind, nullptr, 0, classes, smoothing, temperature, {0, 1}};
    if (kind == LABELS) {
        target.label = labels[row];
    } else {
        target.values = values + size_t(row) * classes;
        if (kind == LOGITS) target.norm = norm_of(target.values, classes, temperature);
    }
    return target;
}

// The loss of every row, unscaled. A label that is no class makes its row NaN: the host can't be told without waiting.
template <typename T>
__device__ __forceinline__ void softmax_loss(const T* logits, const T* values, const uint32_t* labels, double* losses,
                                             unsigned rows, unsigned classes, unsigned kind, double smoothing,
                                             double temperature) {
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* x = logits + size_t(row) * classes;
        const RowTarget<T> target = target_of(Kind(kind), values, labels, row, classes, smoothing, temperature);
        const double norm = norm_of(x, classes, temperature).log_sum_exp();
        double sum = 0;
        for (unsigned k = thread_index(); k < classes; k += thread_count()) {
            const double t = target(k);
            // A class without weight counts nothing, even where its logit is negative infinity.
            if (t != 0) sum += t * (target.logarithm(k) - (double(x[k]) / temperature - norm));
        }
        sum = block_sum(sum);
        if (kind == LABELS && target.label >= classes) sum = double(NAN);
        // None of the losses is negative: what is below zero is rounding. NaN passes.
        if (thread_index() == 0) losses[row] = sum < 0 ? 0 : sum;
    }
}

// `grad` has one number for the mean, or one a row where `single` is zero; `scale` is the rest of the chain.
template <typename T>
__device__ __forceinline__ void softmax_loss_backward(const T* logits, const T* values, const uint32_t* labels,
                                                      const T* grad, T* ds, unsigned rows, unsigned classes, unsigned kind,
                                                      unsigned single, double smoothing, double temperature, double scale) {
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const size_t start = size_t(row) * classes;
        const T* x = logits + start;
        const RowTarget<T> target = target_of(Kind(kind), values, labels, row, classes, smoothing, temperature);
        const Norm norm = norm_of(x, classes, temperature);
        double sum = 0;
        for (unsigned k = thread_index(); k < classes; k += thread_count()) sum += target(k);
        sum = block_sum(sum);
        double share = scale * double(grad[single ? 0 : row]);
        if (kind == LABELS && target.label >= classes) share = double(NAN);
        for (unsigned k = thread_index(); k < classes; k += thread_count()) {
            const double p = exp(double(x[k]) / temperature - norm.largest) / norm.sum;
            ds[start + k] = T(share * (p * sum - target(k)));
        }
    }
}

// The losses of the rows times a factor, where they are not summed.
template <typename T>
__device__ __forceinline__ void scaled_rows(const double* losses, T* rows, unsigned count, double factor) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) rows[i] = T(losses[i] * factor);
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        softmax_loss_##S(const T* logits, const T* values, const uint32_t* labels, double* losses, unsigned rows,      \
                         unsigned classes, unsigned kind, double smoothing, double temperature) {                      \
        vkd::softmax_loss<T>(logits, values, labels, losses, rows, classes, kind, smoothing, temperature);             \
    }                                                                                                                  \
    VKD_EXPORT(softmax_loss_##S)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        softmax_loss_join_##S(const double* losses, T* loss, unsigned count, double divisor) {                         \
        vkd::join_sum(losses, loss, count, divisor);                                                                   \
    }                                                                                                                  \
    VKD_EXPORT(softmax_loss_join_##S)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        softmax_loss_rows_##S(const double* losses, T* rows, unsigned count, double factor) {                          \
        vkd::scaled_rows<T>(losses, rows, count, factor);                                                              \
    }                                                                                                                  \
    VKD_EXPORT(softmax_loss_rows_##S)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        softmax_loss_backward_##S(const T* logits, const T* values, const uint32_t* labels, const T* grad, T* ds,      \
                                  unsigned rows, unsigned classes, unsigned kind, unsigned single, double smoothing,   \
                                  double temperature, double scale) {                                                  \
        vkd::softmax_loss_backward<T>(logits, values, labels, grad, ds, rows, classes, kind, single, smoothing,        \
                                      temperature, scale);                                                             \
    }                                                                                                                  \
    VKD_EXPORT(softmax_loss_backward_##S)

// Half types come as f32, as on the CPU.
KERNELS(float, f32)
KERNELS(double, f64)
