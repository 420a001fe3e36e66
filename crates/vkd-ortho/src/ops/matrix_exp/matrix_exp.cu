// What surrounds the products of the thin exponential, all of it in f64; the parameter and the frame in their own type.
//
// With L the strict lower part: K = U Wᵀ, U = [L, -sE], W = [E, L/s], N = WᵀU of size m = 2k, and Q = E + U φ₁(N) WᵀE. How
// often the argument is halved is decided for each matrix on the device: `state` holds 2^-d and d of every matrix.
#include "../matrices.cuh"
#include "tiles.cuh"

namespace vkd {

template <typename T>
__device__ __forceinline__ void matrix_exp_unpack(const T* raw, double* lower, unsigned batch, unsigned n, unsigned k) {
    each_entry_of(batch, n, k, [=](size_t, unsigned i, unsigned j, size_t at) {
        // What stands on and above the diagonal is never read.
        lower[at] = i > j ? double(widen(raw[at])) : 0.0;
    });
}

// E + L Y₁ - s E Y₂ from L Y₁ and the 2k rows of Y.
template <typename T>
__device__ __forceinline__ void matrix_exp_frame(const double* product, const double* y, const double* balance, T* q,
                                                 unsigned batch, unsigned n, unsigned k) {
    each_entry_of(batch, n, k, [=](size_t b, unsigned i, unsigned j, size_t at) {
        double entry = product[at] + (i == j ? 1.0 : 0.0);
        if (i < k) entry -= balance[b] * y[(b * 2 * k + k + i) * k + j];
        q[at] = narrow<T>(Sum<T>(entry));
    });
}

// The gradient of the parameter from G Y₁ᵀ, L (H + Hᵀ)/s, and those of N and of WᵀE; zero on and above the diagonal.
template <typename T>
__device__ __forceinline__ void matrix_exp_gradient(const double* direct, const double* through, const double* of_n,
                                                    const double* of_start, const double* balance, T* grad, unsigned batch,
                                                    unsigned n, unsigned k) {
    each_entry_of(batch, n, k, [=](size_t b, unsigned i, unsigned j, size_t at) {
        double entry = 0;
        if (i > j) {
            entry = direct[at] + through[at];
            const double* own = of_n + b * 4 * k * k;
            if (i < k) {
                entry += own[size_t(i) * 2 * k + j] - own[size_t(k + j) * 2 * k + k + i];
                entry += of_start[(b * 2 * k + k + j) * k + i] / balance[b];
            }
        }
        grad[at] = narrow<T>(Sum<T>(entry));
    });
}

}  // namespace vkd

// s = max(1, ‖L‖) from LᵀL, by a block a matrix: it makes U and W about as large.
extern "C" __global__ void __launch_bounds__(256)
    matrix_exp_balance(const double* gram, double* balance, unsigned batch, unsigned k) {
    for (size_t b = blockIdx.x; b < batch; b += gridDim.x) {
        double sum = 0;
        for (unsigned i = threadIdx.x; i < k; i += blockDim.x) sum += gram[(b * k + i) * k + i];
        sum = vkd::block_sum(sum);
        // NaN stays.
        if (threadIdx.x == 0) balance[b] = sum <= 1 ? 1.0 : sqrt(sum);
    }
}
VKD_EXPORT(matrix_exp_balance)

// N = [[L₁, -sI], [LᵀL/s, -L₁ᵀ]], or its transpose.
extern "C" __global__ void __launch_bounds__(256)
    matrix_exp_inner(const double* lower, const double* gram, const double* balance, double* inner, unsigned batch, unsigned n,
                     unsigned k, unsigned turned) {
    vkd::each_entry_of(batch, 2 * k, 2 * k, [=](size_t b, unsigned row, unsigned column, size_t at) {
        const unsigned i = turned ? column : row, j = turned ? row : column;
        double entry;
        if (i < k)
            entry = j < k ? lower[(b * n + i) * k + j] : j - k == i ? -balance[b] : 0.0;
        else
            entry = j < k ? gram[(b * k + i - k) * k + j] / balance[b] : -lower[(b * n + j - k) * k + i - k];
        inner[at] = entry;
    });
}
VKD_EXPORT(matrix_exp_inner)

// WᵀE = [I; L₁ᵀ/s]
extern "C" __global__ void __launch_bounds__(256)
    matrix_exp_right(const double* lower, const double* balance, double* right, unsigned batch, unsigned n, unsigned k) {
    vkd::each_entry_of(batch, 2 * k, k, [=](size_t b, unsigned i, unsigned j, size_t at) {
        right[at] = i < k ? (i == j ? 1.0 : 0.0) : lower[(b * n + j) * k + i - k] / balance[b];
    });
}
VKD_EXPORT(matrix_exp_right)

// UᵀG = [LᵀG; -s G₁] from LᵀG and the rows of G.
extern "C" __global__ void __launch_bounds__(256)
    matrix_exp_left(const double* product, const double* grad, const double* balance, double* left, unsigned batch, unsigned n,
                    unsigned k) {
    vkd::each_entry_of(batch, 2 * k, k, [=](size_t b, unsigned i, unsigned j, size_t at) {
        left[at] = i < k ? product[(b * k + i) * k + j] : -balance[b] * grad[(b * n + i - k) * k + j];
    });
}
VKD_EXPORT(matrix_exp_left)

// Sums of the absolute values of a row of N³ and of N⁴, by a block a row: sums (batch, m, 2).
extern "C" __global__ void __launch_bounds__(256)
    matrix_exp_rows(const double* third, const double* fourth, double* sums, unsigned batch, unsigned m) {
    for (size_t b = blockIdx.y; b < batch; b += gridDim.y) {
        const size_t row = b * m + blockIdx.x;
        double three = 0, four = 0;
        for (unsigned j = threadIdx.x; j < m; j += blockDim.x) {
            three += fabs(third[row * m + j]);
            four += fabs(fourth[row * m + j]);
        }
        three = vkd::block_sum(three);
        four = vkd::block_sum(four);
        if (threadIdx.x == 0) {
            sums[row * 2] = three;
            sums[row * 2 + 1] = four;
        }
    }
}
VKD_EXPORT(matrix_exp_rows)

// Halvings after which every power from the sixth on of the argument is below the same power of 1/2, by a block a matrix: each
// such power is a product of third and fourth ones (Al-Mohy and Higham, SIAM J. Matrix Anal. Appl. 31(3), 2009, theorem 4.2).
// More than `most`, or NaN: nothing that could be taken for a result.
extern "C" __global__ void __launch_bounds__(256)
    matrix_exp_state(const double* sums, double* state, unsigned batch, unsigned m, unsigned most) {
    for (size_t b = blockIdx.x; b < batch; b += gridDim.x) {
        double three = 0, four = 0;
        for (unsigned i = threadIdx.x; i < m; i += blockDim.x) {
            three = vkd::Larger()(three, sums[(b * m + i) * 2]);
            four = vkd::Larger()(four, sums[(b * m + i) * 2 + 1]);
        }
        three = vkd::over_block(three, 0.0, vkd::Larger());
        four = vkd::over_block(four, 0.0, vkd::Larger());
        if (threadIdx.x == 0) {
            const double size = 2 * vkd::Larger()(cbrt(three), sqrt(sqrt(four)));
            const double halvings = size <= 1 ? 0.0 : ceil(log2(size));
            const bool served = halvings <= most;
            state[b * 2] = served ? ldexp(1.0, -int(halvings)) : nan("");
            state[b * 2 + 1] = served ? halvings : 0.0;
        }
    }
}
VKD_EXPORT(matrix_exp_state)

// With z = 2^-d: c₀ I + c₁ z A + c₂ z² A² + c₃ z³ A³ + c₄ z⁴ A⁴ + z^power (P + R); what is null is left out.
extern "C" __global__ void __launch_bounds__(256)
    matrix_exp_terms(const double* p, const double* r, const double* a1, const double* a2, const double* a3, const double* a4,
                     const double* state, double* out, unsigned batch, unsigned m, unsigned power, double c0, double c1,
                     double c2, double c3, double c4) {
    vkd::each_entry_of(batch, m, m, [=](size_t b, unsigned i, unsigned j, size_t at) {
        const double z = state[b * 2];
        double sum = 0, factor = 1;
        if (a4) sum = c4 * z * a4[at];
        if (a3) sum = z * (c3 * a3[at] + sum);
        if (a2) sum = z * (c2 * a2[at] + sum);
        if (a1) sum = z * (c1 * a1[at] + sum);
        for (unsigned step = 0; step < power; step++) factor *= z;
        if (p) sum += factor * p[at];
        if (r) sum += factor * r[at];
        out[at] = i == j ? c0 + sum : sum;
    });
}
VKD_EXPORT(matrix_exp_terms)

// Doubling number `turn`, φ₁(2z) = (e^z + 1) φ₁(z)/2 and e^2z = e^z e^z, from products that stand already; a matrix that needs
// no more keeps what it has. `more` are second parts of the products, or null.
extern "C" __global__ void __launch_bounds__(256)
    matrix_exp_double(const double* product, const double* more_product, const double* phi, const double* square,
                      const double* more_square, const double* exp, const double* state, double* phi_out, double* exp_out,
                      unsigned batch, unsigned m, unsigned turn) {
    vkd::each_entry_of(batch, m, m, [=](size_t b, unsigned, unsigned, size_t at) {
        double next_phi = phi[at], next_exp = exp[at];
        if (turn < state[b * 2 + 1]) {
            next_phi = 0.5 * (product[at] + (more_product ? more_product[at] : 0.0) + next_phi);
            next_exp = square[at] + (more_square ? more_square[at] : 0.0);
        }
        phi_out[at] = next_phi;
        exp_out[at] = next_exp;
    });
}
VKD_EXPORT(matrix_exp_double)

// The same with its products, for the turns that few parameters need: a matrix that needs no more writes nothing and costs
// nothing. Tiles of the four results stand side by side along x; the tangents `dphi` and `dexp` may be null, then there are two.
extern "C" __global__ void __launch_bounds__(256, 2)
    matrix_exp_double_far(const double* phi, const double* exp, const double* dphi, const double* dexp, const double* state,
                          double* phi_out, double* exp_out, double* dphi_out, double* dexp_out, unsigned batch, unsigned m,
                          unsigned turn) {
    __shared__ vkd::Tile left, right;
    const unsigned tiles = (m + vkd::TILE - 1) / vkd::TILE;
    const unsigned which = blockIdx.x / tiles, tile_j = blockIdx.x % tiles, tile_i = blockIdx.y;
    const bool of_phi = which % 2 == 0, tangent = which >= 2;
    for (size_t b = blockIdx.z; b < batch; b += gridDim.z) {
        if (!(turn < state[b * 2 + 1])) continue;
        const size_t start = b * m * m;
        // exp times the value itself, and for a tangent dexp times the value that belongs to it.
        const double* own = tangent ? (of_phi ? dphi : dexp) : (of_phi ? phi : exp);
        vkd::Quarter sum = {0, 0, 0, 0};
        for (unsigned part = 0; part < (tangent ? 2u : 1u); part++) {
            const double* a = (part == 0 ? exp : dexp) + start;
            const double* c = (part == 0 ? own : of_phi ? phi : exp) + start;
            for (unsigned step = 0; step < tiles; step++) {
                auto load = [&](const double* from, unsigned ti, unsigned tj) {
                    return vkd::each_entry([&](unsigned row, unsigned column) {
                        const unsigned i = ti * vkd::TILE + row, j = tj * vkd::TILE + column;
                        return i < m && j < m ? from[size_t(i) * m + j] : 0.0;
                    });
                };
                vkd::put(left, load(a, tile_i, step));
                vkd::put(right, load(c, step, tile_j));
                __syncthreads();
                vkd::Quarter q = vkd::product(left, right);
                sum = {sum.v00 + q.v00, sum.v01 + q.v01, sum.v10 + q.v10, sum.v11 + q.v11};
                __syncthreads();
            }
        }
        if (of_phi) {
            vkd::Quarter q = vkd::each_entry([&](unsigned row, unsigned column) {
                const unsigned i = tile_i * vkd::TILE + row, j = tile_j * vkd::TILE + column;
                return i < m && j < m ? own[start + size_t(i) * m + j] : 0.0;
            });
            sum = {0.5 * (sum.v00 + q.v00), 0.5 * (sum.v01 + q.v01), 0.5 * (sum.v10 + q.v10), 0.5 * (sum.v11 + q.v11)};
        }
        double* out = tangent ? (of_phi ? dphi_out : dexp_out) : (of_phi ? phi_out : exp_out);
        vkd::store(out + start, sum, tile_i, tile_j, m);
    }
}
VKD_EXPORT(matrix_exp_double_far)

// The result after the last doubling that a matrix needed: its first `near` ones end in `first`, later ones in `odd` and `even`
// in turn.
extern "C" __global__ void __launch_bounds__(256)
    matrix_exp_pick(const double* first, const double* odd, const double* even, const double* state, double* out, unsigned batch,
                    unsigned m, unsigned near) {
    vkd::each_entry_of(batch, m, m, [=](size_t b, unsigned, unsigned, size_t at) {
        const unsigned turns = unsigned(state[b * 2 + 1]);
        out[at] = turns <= near ? first[at] : (turns - near) % 2 ? odd[at] : even[at];
    });
}
VKD_EXPORT(matrix_exp_pick)

// (H + Hᵀ)/s with H the gradient of LᵀL/s, the lower left quarter of that of N.
extern "C" __global__ void __launch_bounds__(256)
    matrix_exp_both(const double* of_n, const double* balance, double* both, unsigned batch, unsigned k) {
    vkd::each_entry_of(batch, k, k, [=](size_t b, unsigned i, unsigned j, size_t at) {
        const double* own = of_n + b * 4 * k * k;
        both[at] = (own[size_t(k + i) * 2 * k + j] + own[size_t(k + j) * 2 * k + i]) / balance[b];
    });
}
VKD_EXPORT(matrix_exp_both)

#define KERNELS(T, S)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        matrix_exp_unpack_##S(const T* raw, double* lower, unsigned batch, unsigned n, unsigned k) {                      \
        vkd::matrix_exp_unpack<T>(raw, lower, batch, n, k);                                                               \
    }                                                                                                                     \
    VKD_EXPORT(matrix_exp_unpack_##S)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        matrix_exp_frame_##S(const double* product, const double* y, const double* balance, T* q, unsigned batch,         \
                             unsigned n, unsigned k) {                                                                    \
        vkd::matrix_exp_frame<T>(product, y, balance, q, batch, n, k);                                                    \
    }                                                                                                                     \
    VKD_EXPORT(matrix_exp_frame_##S)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        matrix_exp_gradient_##S(const double* direct, const double* through, const double* of_n, const double* of_start,  \
                                const double* balance, T* grad, unsigned batch, unsigned n, unsigned k) {                 \
        vkd::matrix_exp_gradient<T>(direct, through, of_n, of_start, balance, grad, batch, n, k);                         \
    }                                                                                                                     \
    VKD_EXPORT(matrix_exp_gradient_##S)

VKD_EACH_FLOAT(KERNELS)
