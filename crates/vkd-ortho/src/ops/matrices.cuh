// What the kernels of the three maps share: a thread for each entry of a batch of matrices, and the last step of a frame in f64.
#pragma once
#include "common.cuh"

namespace vkd {

// Calls f(matrix, row, column, entry of the batch): a thread of x for each entry of a matrix, matrices along y. A matrix has
// less than 2^32 entries: a division of that width costs a device far less than a wider one.
template <typename F>
__device__ __forceinline__ void each_entry_of(unsigned batch, unsigned rows, unsigned columns, F f) {
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x, size = rows * columns;
    if (at >= size) return;
    const unsigned i = at / columns, j = at % columns;
    for (size_t b = blockIdx.y; b < batch; b += gridDim.y) f(b, i, j, b * size + at);
}

}  // namespace vkd

// A step of Newton's iteration for the nearest orthonormal matrix, (3 Q - Q QᵀQ)/2: it squares what is missing.
extern "C" __global__ void __launch_bounds__(256)
    frame_polish(const double* q, const double* turned, double* out, unsigned batch, unsigned n, unsigned k) {
    vkd::each_entry_of(batch, n, k, [=](size_t, unsigned, unsigned, size_t at) {
        out[at] = 1.5 * q[at] - 0.5 * turned[at];
    });
}
VKD_EXPORT(frame_polish)
