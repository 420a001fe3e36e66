// A bit of a word for values that are not where they must be. A bit that is set twice is set: the order of threads is no matter.
#include "common.cuh"

namespace vkd {

__device__ __forceinline__ double number(unsigned x) { return x; }
template <typename T>
__device__ __forceinline__ double number(T x) {
    return double(widen(x));
}

template <typename T>
__device__ __forceinline__ void outside(const T* xs, unsigned* word, unsigned count, double low, double high, unsigned bit) {
    bool found = false;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
        const double x = number(xs[i]);
        // Negated: NaN is found too.
        found |= !(x >= low && x <= high);
    }
    if (found) atomicOr(word, bit);
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                                        \
        outside_##S(const T* xs, unsigned* word, unsigned count, double low, double high, unsigned bit) {    \
        vkd::outside<T>(xs, word, count, low, high, bit);                                                    \
    }                                                                                                        \
    VKD_EXPORT(outside_##S)

VKD_EACH_FLOAT(KERNELS)
KERNELS(unsigned, u32)
