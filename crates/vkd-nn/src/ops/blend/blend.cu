// a = keep a + take b of many tensors at once, in place. Tensors go along y, and the blocks along x walk over each.
#include "common.cuh"

namespace vkd {

// Words of a tensor in the table: addresses of what is written and of what is taken in, number of entries, and both factors.
enum Word : unsigned { TO, FROM, COUNT, KEEP, TAKE, WORDS };

template <typename T>
__device__ __forceinline__ void blend(const uint64_t* table) {
    using A = Sum<T>;
    const uint64_t* words = table + size_t(blockIdx.y) * WORDS;
    A* to = address<A>(words[TO]);
    const T* from = address<const T>(words[FROM]);
    const size_t count = words[COUNT], step = size_t(gridDim.x) * blockDim.x;
    const A keep = A(number(words[KEEP])), take = A(number(words[TAKE]));
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
        to[i] = keep * to[i] + take * widen(from[i]);
}

}  // namespace vkd

#define KERNELS(T, S)                                                                          \
    extern "C" __global__ void __launch_bounds__(256) blend_##S(const uint64_t* table) {       \
        vkd::blend<T>(table);                                                                  \
    }                                                                                          \
    VKD_EXPORT(blend_##S)

VKD_EACH_FLOAT(KERNELS)
