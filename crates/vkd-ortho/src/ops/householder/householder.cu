// What surrounds the products of the compact WY form, all of it in f64; the parameter and the frame in their own type.
#include "../inverse.cuh"
#include "../matrices.cuh"

namespace vkd {

// Sums of squares below the diagonal over chunks of rows, a column a thread of x: parts (batch, chunks, k).
template <typename T>
__device__ __forceinline__ void householder_squares(const T* raw, double* parts, unsigned batch, unsigned n, unsigned k,
                                                    unsigned chunks, unsigned per_chunk) {
    const unsigned j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= k) return;
    const unsigned first = blockIdx.y * per_chunk, end = n - first < per_chunk ? n : first + per_chunk;
    for (unsigned b = blockIdx.z; b < batch; b += gridDim.z) {
        const T* own = raw + size_t(b) * n * k;
        double sum = 0;
        for (unsigned i = first > j ? first : j + 1; i < end; i++) {
            const double x = widen(own[size_t(i) * k + j]);
            sum += x * x;
        }
        parts[(size_t(b) * chunks + blockIdx.y) * k + j] = sum;
    }
}

// The reflectors at unit length.
template <typename T>
__device__ __forceinline__ void householder_unit(const T* raw, const double* factors, double* u, unsigned batch, unsigned n,
                                                 unsigned k) {
    each_entry_of(batch, n, k, [=](size_t b, unsigned i, unsigned j, size_t at) {
        const double factor = factors[b * k + j];
        double entry = i == j ? factor : 0;
        // What stands on and above the diagonal is never read.
        if (i > j) entry = factor * double(widen(raw[at]));
        u[at] = entry;
    });
}

// E - U Z
template <typename T>
__device__ __forceinline__ void householder_frame(const double* product, T* q, unsigned batch, unsigned n, unsigned k) {
    each_entry_of(batch, n, k, [=](size_t, unsigned i, unsigned j, size_t at) {
        q[at] = narrow<T>(Sum<T>((i == j ? 1.0 : 0.0) - product[at]));
    });
}

// With W negated as it comes: (-G Zᵀ + [Wᵀ; 0] + U (N + Nᵀ)) over the lengths; zero on and above the diagonal.
template <typename T>
__device__ __forceinline__ void householder_gradient(const double* gz, const double* un, const double* w,
                                                     const double* factors, T* grad, unsigned batch, unsigned n, unsigned k) {
    each_entry_of(batch, n, k, [=](size_t b, unsigned i, unsigned j, size_t at) {
        double entry = 0;
        if (i > j) {
            entry = un[at] - gz[at];
            if (i < k) entry -= w[(b * k + j) * k + i];
            entry *= factors[b * k + j];
        }
        grad[at] = narrow<T>(Sum<T>(entry));
    });
}

}  // namespace vkd

// One over the lengths of the reflectors, whose own entry is one.
extern "C" __global__ void __launch_bounds__(256)
    householder_factors(const double* parts, double* factors, unsigned batch, unsigned k, unsigned chunks) {
    vkd::each_entry_of(batch, 1, k, [=](size_t b, unsigned, unsigned j, size_t at) {
        const double* own = parts + b * chunks * k + j;
        double sum = 1;
        for (unsigned chunk = 0; chunk < chunks; chunk++) sum += own[size_t(chunk) * k];
        factors[at] = 1.0 / sqrt(sum);
    });
}
VKD_EXPORT(householder_factors)

// S, the upper triangle of UᵀU with half its diagonal, and the first pivot tile of its inverse.
extern "C" __global__ void __launch_bounds__(256)
    householder_start(const double* gram, double* a, double* pivot, unsigned batch, unsigned k) {
    auto at = [=](unsigned b, unsigned i, unsigned j) {
        const double entry = gram[(size_t(b) * k + i) * k + j];
        return i < j ? entry : i == j ? 0.5 * entry : 0.0;
    };
    vkd::inverse_start(at, a, pivot, batch, k);
}
VKD_EXPORT(householder_start)

// N + Nᵀ with N the upper triangle and half the diagonal of X.
extern "C" __global__ void __launch_bounds__(256)
    householder_both(const double* x, double* both, unsigned batch, unsigned k) {
    vkd::each_entry_of(batch, k, k, [=](size_t b, unsigned i, unsigned j, size_t at) {
        both[at] = i <= j ? x[at] : x[(b * k + j) * k + i];
    });
}
VKD_EXPORT(householder_both)

#define KERNELS(T, S)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        householder_squares_##S(const T* raw, double* parts, unsigned batch, unsigned n, unsigned k, unsigned chunks,     \
                                unsigned per_chunk) {                                                                     \
        vkd::householder_squares<T>(raw, parts, batch, n, k, chunks, per_chunk);                                          \
    }                                                                                                                     \
    VKD_EXPORT(householder_squares_##S)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        householder_unit_##S(const T* raw, const double* factors, double* u, unsigned batch, unsigned n, unsigned k) {    \
        vkd::householder_unit<T>(raw, factors, u, batch, n, k);                                                           \
    }                                                                                                                     \
    VKD_EXPORT(householder_unit_##S)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        householder_frame_##S(const double* product, T* q, unsigned batch, unsigned n, unsigned k) {                      \
        vkd::householder_frame<T>(product, q, batch, n, k);                                                               \
    }                                                                                                                     \
    VKD_EXPORT(householder_frame_##S)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        householder_gradient_##S(const double* gz, const double* un, const double* w, const double* factors, T* grad,     \
                                 unsigned batch, unsigned n, unsigned k) {                                                \
        vkd::householder_gradient<T>(gz, un, w, factors, grad, batch, n, k);                                              \
    }                                                                                                                     \
    VKD_EXPORT(householder_gradient_##S)

VKD_EACH_FLOAT(KERNELS)
