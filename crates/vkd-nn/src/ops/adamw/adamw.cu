// One step of AdamW on one parameter: a pass over value, gradient and both moments.
#include "common.cuh"

namespace vkd {

template <typename A>
__device__ __forceinline__ void adamw(const A* values, const A* grads, const A* firsts, const A* seconds, A* new_values,
                                      A* new_firsts, A* new_seconds, unsigned count, double beta1, double beta2, double scale,
                                      double keep, double step_size, double root, double eps) {
    const size_t step = size_t(gridDim.x) * blockDim.x;
    const A b1 = A(beta1), b2 = A(beta2), c1 = A(1) - b1, c2 = A(1) - b2;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        const A g = grads[i] * A(scale);
        const A m = b1 * firsts[i] + c1 * g, v = b2 * seconds[i] + c2 * g * g;
        new_firsts[i] = m;
        new_seconds[i] = v;
        new_values[i] = A(keep) * values[i] - A(step_size) * m / (square_root(v) * A(root) + A(eps));
    }
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        adamw_##S(const T* values, const T* grads, const T* firsts, const T* seconds, T* new_values, T* new_firsts,    \
                  T* new_seconds, unsigned count, double beta1, double beta2, double scale, double keep,               \
                  double step_size, double root, double eps) {                                                         \
        vkd::adamw<T>(values, grads, firsts, seconds, new_values, new_firsts, new_seconds, count, beta1, beta2, scale, \
                      keep, step_size, root, eps);                                                                     \
    }                                                                                                                  \
    VKD_EXPORT(adamw_##S)

// A half type is updated as its f32 master.
KERNELS(float, f32)
KERNELS(double, f64)
