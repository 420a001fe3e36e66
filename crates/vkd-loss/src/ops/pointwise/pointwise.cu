// Losses whose entries are functions of one student and one teacher element.
#include "common.cuh"

namespace vkd {

// As `Pointwise` of mod.rs.
enum Kind : unsigned { MSE, SMOOTH_L1, L1, BCE, FOCAL };

struct Loss {
    Kind kind;
    // beta, or alpha and gamma.
    double a, b;
};

template <typename A>
__device__ __forceinline__ A entropy(A x, A t) {
    // log(1 + exp(x)) - x t, without an exponential that can overflow.
    return (x > A(0) ? x : A(0)) - x * t + log_one_plus(exponential(-magnitude(x)));
}

// Value or slope of one entry of the focal loss, in f64 as on the CPU.
__device__ __forceinline__ double focal(double x, double t, double alpha, double gamma, bool slope) {
    const double e = exp(-fabs(x)), large = 1 / (1 + e), small = e / (1 + e);
    const double p = x >= 0 ? large : small, n = x >= 0 ? small : large;
    const double cross = entropy(x, t), wrong = p * (1 - t) + n * t;
    double weight = 1, steepness = 0;
    if (gamma != 0) {
        // gamma wrong^gamma / wrong has no limit of its own where wrong underflows, but p n has one there: zero.
        weight = wrong == 0 ? 0 : (gamma == 2 ? wrong * wrong : pow(wrong, gamma));
        steepness = wrong == 0 ? 0 : gamma * (weight / wrong);
    }
    const double share = alpha * t + (1 - alpha) * (1 - t);
    return share * (slope ? (p - t) * weight + cross * steepness * p * n * (1 - 2 * t) : cross * weight);
}

template <typename A>
__device__ __forceinline__ A value(const Loss& loss, A s, A t) {
    if (loss.kind == FOCAL) return A(focal(s, t, loss.a, loss.b, false));
    if (loss.kind == BCE) return entropy(s, t);
    const A d = s - t;
    if (loss.kind == MSE) return d * d;
    const A size = magnitude(d), beta = A(loss.a);
    if (loss.kind == L1) return size;
    // min(size, beta), in the form that keeps NaN.
    const A c = size > beta ? beta : size;
    return c * A(1 / loss.a) * c * A(0.5) + (size - c);
}

template <typename A>
__device__ __forceinline__ A slope(const Loss& loss, A s, A t) {
    if (loss.kind == FOCAL) return A(focal(s, t, loss.a, loss.b, true));
    if (loss.kind == BCE) return A(1) / (A(1) + exponential(-s)) - t;
    A d = s - t;
    if (loss.kind == MSE) return A(2) * d;
    // Zero stays, and NaN.
    if (loss.kind == L1) return d > A(0) ? A(1) : (d < A(0) ? A(-1) : d);
    const A beta = A(loss.a);
    d = d > beta ? beta : d;
    d = d < -beta ? -beta : d;
    return d * A(1 / loss.a);
}

// Every block leaves the sum over its entries in `parts`.
template <typename T>
__device__ __forceinline__ void pointwise_sum(const T* student, const T* teacher, double* parts, unsigned count, Loss loss) {
    double total = 0;
    const unsigned step = gridDim.x * blockDim.x;
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step)
        total += value<Sum<T>>(loss, widen(student[i]), widen(teacher[i]));
    total = block_sum(total);
    if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

template <typename T>
__device__ __forceinline__ void pointwise(const T* student, const T* teacher, T* losses, unsigned count, Loss loss) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) losses[i] = narrow<T>(value<Sum<T>>(loss, widen(student[i]), widen(teacher[i])));
}

// `grad` has one number, for the sum over `divisor`, or one an entry where `divisor` is zero.
template <typename T>
__device__ __forceinline__ void pointwise_backward(const T* student, const T* teacher, const T* grad, T* ds, unsigned count,
                                                   Loss loss, double divisor) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const Sum<T> g = divisor != 0 ? Sum<T>(double(widen(grad[0])) / divisor) : widen(grad[i]);
    ds[i] = narrow<T>(slope<Sum<T>>(loss, widen(student[i]), widen(teacher[i])) * g);
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        pointwise_sum_##S(const T* student, const T* teacher, double* parts, unsigned count, unsigned kind, double a,  \
                          double b) {                                                                                  \
        vkd::pointwise_sum<T>(student, teacher, parts, count, {vkd::Kind(kind), a, b});                                \
    }                                                                                                                  \
    VKD_EXPORT(pointwise_sum_##S)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        pointwise_join_##S(const double* parts, T* loss, unsigned count, double divisor) {                             \
        vkd::join_sum(parts, loss, count, divisor);                                                                    \
    }                                                                                                                  \
    VKD_EXPORT(pointwise_join_##S)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        pointwise_##S(const T* student, const T* teacher, T* losses, unsigned count, unsigned kind, double a,          \
                      double b) {                                                                                      \
        vkd::pointwise<T>(student, teacher, losses, count, {vkd::Kind(kind), a, b});                                   \
    }                                                                                                                  \
    VKD_EXPORT(pointwise_##S)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        pointwise_backward_##S(const T* student, const T* teacher, const T* grad, T* ds, unsigned count,               \
                               unsigned kind, double a, double b, double divisor) {                                    \
        vkd::pointwise_backward<T>(student, teacher, grad, ds, count, {vkd::Kind(kind), a, b}, divisor);               \
    }                                                                                                                  \
    VKD_EXPORT(pointwise_backward_##S)

// Half types come as f32, as on the CPU.
KERNELS(float, f32)
KERNELS(double, f64)
