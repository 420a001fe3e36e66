// Sums of squares of many tensors at once, in f64. Tensors go along y, and the blocks along x walk over each.
#include "common.cuh"

namespace vkd {

// Words of a tensor in the table: its address and number of entries.
enum Word : unsigned { FROM, COUNT, WORDS };

// Parts (tensors, blocks along x).
template <typename T>
__device__ __forceinline__ void squares(const uint64_t* table, double* parts) {
    const uint64_t* words = table + size_t(blockIdx.y) * WORDS;
    const T* from = address<const T>(words[FROM]);
    const size_t count = words[COUNT], step = size_t(gridDim.x) * blockDim.x;
    double sum = 0;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        const double x = double(widen(from[i]));
        sum += x * x;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[size_t(blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

// The sum of each row of parts, a block a row.
__device__ __forceinline__ void join(const double* parts, double* sums, unsigned blocks) {
    double sum = 0;
    for (unsigned i = threadIdx.x; i < blocks; i += blockDim.x) sum += parts[size_t(blockIdx.x) * blocks + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) squares_##S(const uint64_t* table, double* parts) {       \
        vkd::squares<T>(table, parts);                                                                          \
    }                                                                                                           \
    VKD_EXPORT(squares_##S)

VKD_EACH_FLOAT(KERNELS)

extern "C" __global__ void __launch_bounds__(256) squares_join(const double* parts, double* sums, unsigned blocks) {
    vkd::join(parts, sums, blocks);
}
VKD_EXPORT(squares_join)
