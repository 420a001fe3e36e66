// The base of a trivialisation where it is: whether it has been overwritten, and if so its reflectors anew.
//
// Off the CPU nobody can ask at every step, without waiting, whether a base still is what its reflectors were made of. So the
// device compares by itself, and one block makes them anew where they differ. That is slow, and happens once for a checkpoint that
// is loaded behind the weight's back; in all other steps the block looks at the parts and returns.
#include "common.cuh"

namespace vkd {

// Words of the table.
constexpr unsigned STORED = 0, VECTORS = 1, CORE = 2, SIGNS = 3, STATE = 4;

template <typename T>
__device__ __forceinline__ void base_compare(const T* now, const T* stored, unsigned* parts, unsigned count) {
    unsigned differs = 0;
    // NaN differs from all.
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x)
        differs += now[i] == stored[i] ? 0 : 1;
    differs = over_block(differs, 0u, Add());
    if (threadIdx.x == 0) parts[blockIdx.x] = differs;
}

// The largest of |QᵀQ - I|, NaN if there is one. All threads must come here.
__device__ __forceinline__ double residual_of(const double* q, unsigned n, unsigned k) {
    double worst = 0;
    for (size_t at = threadIdx.x; at < size_t(k) * k; at += blockDim.x) {
        const unsigned a = at / k, b = at % k;
        if (a > b) continue;
        double sum = a == b ? -1 : 0;
        for (unsigned i = 0; i < n; i++) sum += q[size_t(i) * k + a] * q[size_t(i) * k + b];
        worst = Larger()(worst, fabs(sum));
    }
    return over_block(worst, 0.0, Larger());
}

// Householder's reflectors of the columns of v (n, k), each of length one and with a positive head, in their place, and the signs
// of what stays of the columns. All threads must come here.
__device__ __forceinline__ void reflectors_of(double* v, double* signs, unsigned n, unsigned k) {
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) signs[i] = 1;
    __syncthreads();
    for (unsigned j = 0; j < k; j++) {
        double squares = 0;
        for (unsigned i = j + threadIdx.x; i < n; i += blockDim.x) squares += v[size_t(i) * k + j] * v[size_t(i) * k + j];
        const double norm = sqrt(block_sum(squares)), head = v[size_t(j) * k + j];
        const double sign = head < 0 ? -1 : 1, length = sqrt(2 * norm * (norm + fabs(head)));
        // The head has been read by all.
        __syncthreads();
        for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
            double& x = v[size_t(i) * k + j];
            x = i < j ? 0.0 : (i == j ? norm + fabs(head) : sign * x) / length;
        }
        if (threadIdx.x == 0) signs[j] = -sign;
        __syncthreads();
        for (unsigned c = j + 1 + threadIdx.x; c < k; c += blockDim.x) {
            double along = 0;
            for (unsigned i = j; i < n; i++) along += v[size_t(i) * k + j] * v[size_t(i) * k + c];
            along *= 2;
            for (unsigned i = j; i < n; i++) v[size_t(i) * k + c] -= along * v[size_t(i) * k + j];
        }
        __syncthreads();
    }
}

// T of the product I - V T Vᵀ of reflectors: the inverse of the upper triangle of VᵀV with half its diagonal, which goes to
// `upper` first. All threads must come here.
__device__ __forceinline__ void core_of(const double* v, double* upper, double* t, unsigned n, unsigned k) {
    for (size_t at = threadIdx.x; at < size_t(k) * k; at += blockDim.x) {
        const unsigned a = at / k, b = at % k;
        double sum = 0;
        if (a <= b)
            for (unsigned i = 0; i < n; i++) sum += v[size_t(i) * k + a] * v[size_t(i) * k + b];
        upper[at] = a == b ? 0.5 * sum : sum;
    }
    __syncthreads();
    for (unsigned c = threadIdx.x; c < k; c += blockDim.x) {
        for (unsigned r = c + 1; r < k; r++) t[size_t(r) * k + c] = 0;
        for (unsigned r = c + 1; r-- > 0;) {
            double sum = r == c ? 1 : 0;
            for (unsigned m = r + 1; m <= c; m++) sum -= upper[size_t(r) * k + m] * t[size_t(m) * k + c];
            t[size_t(r) * k + c] = sum / upper[size_t(r) * k + r];
        }
    }
}

// All of the base from `now`, in place, if any part differs; by one block. In `state` 1 where it is orthonormal to `rounding`, else
// 0, and 1 where it is so to `limit`, else NaN.
template <typename T>
__device__ __forceinline__ void base_renew(const T* now, const unsigned* parts, const uint64_t* table, double* upper, unsigned n,
                                           unsigned k, unsigned count, double rounding, double limit) {
    unsigned differs = 0;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) differs += parts[i] != 0 ? 1 : 0;
    if (over_block(differs, 0u, Add()) == 0) return;
    T* stored = address<T>(table[STORED]);
    double *v = address<double>(table[VECTORS]), *state = address<double>(table[STATE]);
    for (size_t i = threadIdx.x; i < size_t(n) * k; i += blockDim.x) {
        stored[i] = now[i];
        v[i] = double(now[i]);
    }
    __syncthreads();
    const double residual = residual_of(v, n, k);
    if (threadIdx.x == 0) {
        state[0] = residual <= rounding ? 1 : 0;
        state[1] = residual <= limit ? 1 : nan("");
    }
    __syncthreads();
    reflectors_of(v, address<double>(table[SIGNS]), n, k);
    core_of(v, upper, address<double>(table[CORE]), n, k);
}

}  // namespace vkd

#define KERNELS(T, S)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                                         \
        base_compare_##S(const T* now, const T* stored, unsigned* parts, unsigned count) {                                    \
        vkd::base_compare<T>(now, stored, parts, count);                                                                      \
    }                                                                                                                         \
    VKD_EXPORT(base_compare_##S)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                         \
        base_renew_##S(const T* now, const unsigned* parts, const uint64_t* table, double* upper, unsigned n, unsigned k,     \
                       unsigned count, double rounding, double limit) {                                                       \
        vkd::base_renew<T>(now, parts, table, upper, n, k, count, rounding, limit);                                           \
    }                                                                                                                         \
    VKD_EXPORT(base_renew_##S)

KERNELS(float, f32)
KERNELS(double, f64)
