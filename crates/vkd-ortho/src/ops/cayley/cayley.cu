// What surrounds the products of the thin Cayley transform, all of it in f64; the parameter and the frame in their own type.
#include "../inverse.cuh"
#include "../matrices.cuh"

namespace vkd {

// The parameter (batch, n, k) to its rows below the first k, and to I - B/2.
template <typename T>
__device__ __forceinline__ void cayley_unpack(const T* raw, double* tall, double* core, unsigned batch, unsigned n,
                                              unsigned k) {
    each_entry_of(batch, n, k, [=](size_t b, unsigned i, unsigned j, size_t) {
        const T* own = raw + b * n * k;
        if (i >= k) {
            tall[(b * (n - k) + i - k) * k + j] = widen(own[i * k + j]);
        } else {
            double entry = 1;
            // What stands on and above the diagonal is never read.
            if (i > j) entry = -0.5 * double(widen(own[i * k + j]));
            if (i < j) entry = 0.5 * double(widen(own[j * k + i]));
            core[(b * k + i) * k + j] = entry;
        }
    });
}

// M and C M to the frame [2M - I; C M].
template <typename T>
__device__ __forceinline__ void cayley_frame(const double* m, const double* below, T* q, unsigned batch, unsigned n,
                                             unsigned k) {
    each_entry_of(batch, n, k, [=](size_t b, unsigned i, unsigned j, size_t at) {
        const double entry =
            i < k ? 2 * m[(b * k + i) * k + j] - (i == j ? 1.0 : 0.0) : below[(b * (n - k) + i - k) * k + j];
        q[at] = narrow<T>(Sum<T>(entry));
    });
}

// The gradient of the parameter from that of B, and for the rows of C from G Mᵀ and C (B̄ + B̄ᵀ)/2; zero on and above the
// diagonal.
template <typename T>
__device__ __forceinline__ void cayley_gradient(const double* of_b, const double* direct, const double* through, T* grad,
                                                unsigned batch, unsigned n, unsigned k) {
    each_entry_of(batch, n, k, [=](size_t b, unsigned i, unsigned j, size_t at) {
        double entry = 0;
        if (i >= k) {
            const size_t below = (b * (n - k) + i - k) * k + j;
            entry = direct[below] - through[below];
        } else if (i > j) {
            entry = of_b[(b * k + i) * k + j] - of_b[(b * k + j) * k + i];
        }
        grad[at] = narrow<T>(Sum<T>(entry));
    });
}

}  // namespace vkd

// S = core + CᵀC/4, and the first pivot tile of its inverse.
extern "C" __global__ void __launch_bounds__(256)
    cayley_start(const double* core, const double* gram, double* a, double* pivot, unsigned batch, unsigned k) {
    auto at = [=](unsigned b, unsigned i, unsigned j) {
        const size_t entry = (size_t(b) * k + i) * k + j;
        return gram ? core[entry] + 0.25 * gram[entry] : core[entry];
    };
    vkd::inverse_start(at, a, pivot, batch, k);
}
VKD_EXPORT(cayley_start)

// G₁ + CᵀG₂/2 from the rows of G and CᵀG₂, which is null where there are none below.
extern "C" __global__ void __launch_bounds__(256)
    cayley_inner(const double* grad, const double* across, double* inner, unsigned batch, unsigned n, unsigned k) {
    vkd::each_entry_of(batch, k, k, [=](size_t b, unsigned i, unsigned j, size_t at) {
        const double top = grad[(b * n + i) * k + j];
        inner[at] = across ? top + 0.5 * across[at] : top;
    });
}
VKD_EXPORT(cayley_inner)

// (B̄ + B̄ᵀ)/2
extern "C" __global__ void __launch_bounds__(256)
    cayley_mean(const double* of_b, double* mean, unsigned batch, unsigned k) {
    vkd::each_entry_of(batch, k, k, [=](size_t b, unsigned i, unsigned j, size_t at) {
        mean[at] = 0.5 * (of_b[at] + of_b[(b * k + j) * k + i]);
    });
}
VKD_EXPORT(cayley_mean)

#define KERNELS(T, S)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        cayley_unpack_##S(const T* raw, double* tall, double* core, unsigned batch, unsigned n, unsigned k) {             \
        vkd::cayley_unpack<T>(raw, tall, core, batch, n, k);                                                              \
    }                                                                                                                     \
    VKD_EXPORT(cayley_unpack_##S)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        cayley_frame_##S(const double* m, const double* below, T* q, unsigned batch, unsigned n, unsigned k) {            \
        vkd::cayley_frame<T>(m, below, q, batch, n, k);                                                                   \
    }                                                                                                                     \
    VKD_EXPORT(cayley_frame_##S)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        cayley_gradient_##S(const double* of_b, const double* direct, const double* through, T* grad, unsigned batch,     \
                            unsigned n, unsigned k) {                                                                     \
        vkd::cayley_gradient<T>(of_b, direct, through, grad, batch, n, k);                                                \
    }                                                                                                                     \
    VKD_EXPORT(cayley_gradient_##S)

VKD_EACH_FLOAT(KERNELS)
