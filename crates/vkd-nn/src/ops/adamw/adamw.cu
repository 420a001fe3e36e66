// One step of AdamW on many parameters at once, in place: a pass over value, gradient and both moments of each. Parameters go along y,
// and the blocks along x walk over each.
#include "common.cuh"

namespace vkd {

// Words of a parameter in the table: addresses of value, gradient, moments and master, which only a half type has; number of
// entries; what weight decay leaves of the value; size of the step.
enum Word : unsigned { VALUE, GRAD, FIRST, SECOND, MASTER, COUNT, KEEP, STEP_SIZE, WORDS };

// `clip` is one more factor of the gradients, made on the device, or null. Where it is NaN there is no step: nothing is written.
template <typename T>
__device__ __forceinline__ void adamw(const uint64_t* table, double beta1, double beta2, double scale, double root, double eps,
                                      const double* clip) {
    using A = Sum<T>;
    if (clip) scale *= *clip;
    if (isnan(scale)) return;
    const uint64_t* words = table + size_t(blockIdx.y) * WORDS;
    T* values = address<T>(words[VALUE]);
    const A* grads = address<const A>(words[GRAD]);
    A *firsts = address<A>(words[FIRST]), *seconds = address<A>(words[SECOND]), *masters = address<A>(words[MASTER]);
    const size_t count = words[COUNT], step = size_t(gridDim.x) * blockDim.x;
    const A keep = A(number(words[KEEP])), step_size = A(number(words[STEP_SIZE]));
    const A b1 = A(beta1), b2 = A(beta2), c1 = A(1) - b1, c2 = A(1) - b2;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        A value = widen(values[i]);
        // A value that was set from outside is where its master goes on.
        if (masters && widen(narrow<T>(masters[i])) == value) value = masters[i];
        const A g = grads[i] * A(scale);
        const A m = b1 * firsts[i] + c1 * g, v = b2 * seconds[i] + c2 * g * g;
        firsts[i] = m;
        seconds[i] = v;
        value = keep * value - step_size * m / (square_root(v) * A(root) + A(eps));
        values[i] = narrow<T>(value);
        if (masters) masters[i] = value;
    }
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        adamw_##S(const uint64_t* table, double beta1, double beta2, double scale, double root, double eps,               \
                  const double* clip) {                                                                                   \
        vkd::adamw<T>(table, beta1, beta2, scale, root, eps, clip);                                                       \
    }                                                                                                                     \
    VKD_EXPORT(adamw_##S)

VKD_EACH_FLOAT(KERNELS)
