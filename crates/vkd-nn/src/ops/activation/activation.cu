// Pointwise activations: values, and slopes times the incoming gradient.
#include "common.cuh"

namespace vkd {

// As `Activation` of mod.rs.
enum Kind : unsigned { IDENTITY, GELU, GELU_TANH, RELU, RELU6, SILU };

__device__ __forceinline__ float error_function(float x) { return erff(x); }
__device__ __forceinline__ double error_function(double x) { return erf(x); }

template <typename A>
__device__ __forceinline__ A logistic(A x) {
    return A(1) / (A(1) + exponential(-x));
}

// (1 + tanh u) / 2 of GELU's u is the logistic function of 2u, which is x (a + b x²).
constexpr double TANH_A = 1.5957691216057308, TANH_B = TANH_A * 0.044715;

template <typename A>
__device__ __forceinline__ A value(unsigned kind, A x) {
    switch (kind) {
        case GELU: return x * (A(0.5) * (A(1) + error_function(x * A(0.70710678118654752440))));
        case GELU_TANH: return x * logistic(x * (A(TANH_A) + A(TANH_B) * (x * x)));
        // Comparisons that are false for NaN, which stays.
        case RELU: return x < A(0) ? A(0) : x;
        case RELU6: return x < A(0) ? A(0) : (x > A(6) ? A(6) : x);
        case SILU: return x * logistic(x);
        default: return x;
    }
}

template <typename A>
__device__ __forceinline__ A slope(unsigned kind, A x) {
    switch (kind) {
        case GELU: {
            const A density = A(0.39894228040143267794) * exponential(A(-0.5) * x * x);
            return A(0.5) * (A(1) + error_function(x * A(0.70710678118654752440))) + x * density;
        }
        case GELU_TANH: {
            const A square = x * x, gate = logistic(x * (A(TANH_A) + A(TANH_B) * square));
            // Far out the gate is 0 or 1 and its slope 0, however large the other factor: not 0 times infinity.
            const A rest = gate * (A(1) - gate);
            return gate + (rest == A(0) ? A(0) : x * rest * (A(TANH_A) + A(3) * A(TANH_B) * square));
        }
        case RELU: return x > A(0) ? A(1) : A(0);
        case RELU6: return x > A(0) && x < A(6) ? A(1) : A(0);
        case SILU: {
            const A gate = logistic(x);
            return gate * (A(1) + x * (A(1) - gate));
        }
        default: return A(1);
    }
}

template <typename T>
__device__ __forceinline__ void activation(const T* xs, T* ys, unsigned count, unsigned kind) {
    const size_t step = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
        ys[i] = narrow<T>(value<Sum<T>>(kind, widen(xs[i])));
}

template <typename T>
__device__ __forceinline__ void activation_backward(const T* xs, const T* grad, T* dxs, unsigned count, unsigned kind) {
    const size_t step = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
        dxs[i] = narrow<T>(widen(grad[i]) * slope<Sum<T>>(kind, widen(xs[i])));
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        activation_##S(const T* xs, T* ys, unsigned count, unsigned kind) {                                    \
        vkd::activation<T>(xs, ys, count, kind);                                                               \
    }                                                                                                          \
    VKD_EXPORT(activation_##S)                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        activation_backward_##S(const T* xs, const T* grad, T* dxs, unsigned count, unsigned kind) {           \
        vkd::activation_backward<T>(xs, grad, dxs, count, kind);                                               \
    }                                                                                                          \
    VKD_EXPORT(activation_backward_##S)

VKD_EACH_FLOAT(KERNELS)
