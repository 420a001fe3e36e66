// Whitening by the covariance of the rows, all of it in f64; the rows in their own type.
//
// The products of rows are cuBLAS's. The inverse Cholesky factor comes from elimination over tiles, a launch for each pivot tile, as
// the inverse in vkd-ortho: what is left of the covariance stands right of the pivot's column, what is done of W left of it.
#include "polynomial.cuh"
#include "shrink.cuh"
#include "spectrum.cuh"
#include "tiles.cuh"

namespace vkd {

// Sums of a column over the rows of a chunk, less a row if there is one: parts (chunks, d).
template <typename T>
__device__ __forceinline__ void whiten_sums(const T* xs, const double* less, double* parts, unsigned rows, unsigned d,
                                            unsigned per_chunk) {
    const unsigned j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= d) return;
    const unsigned first = blockIdx.y * per_chunk, end = rows - first < per_chunk ? rows : first + per_chunk;
    const double level = less ? less[j] : 0.0;
    double sum = 0;
    for (unsigned i = first; i < end; i++) sum += double(widen(xs[size_t(i) * d + j])) - level;
    parts[size_t(blockIdx.y) * d + j] = sum;
}

// Rows less their mean, in two steps: their sum would be rounded to the size of the mean.
template <typename T>
__device__ __forceinline__ void whiten_centre(const T* xs, const double* mean, const double* rest, double* centred,
                                              unsigned rows, unsigned d) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= size_t(rows) * d) return;
    const unsigned j = at % d;
    centred[at] = (double(widen(xs[at])) - mean[j]) - rest[j];
}

// One matrix, or the sum of two, in the type of the rows.
template <typename T>
__device__ __forceinline__ void whiten_rows(const double* one, const double* other, T* out, unsigned rows, unsigned d) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < size_t(rows) * d) out[at] = narrow<T>(Sum<T>(other ? one[at] + other[at] : one[at]));
}

// One entry of an elimination step at pivot q of which `row` and `column` are the row and the column before it, and `root` is
// one over the root of the pivot.
__device__ __forceinline__ double halve(double v, unsigned i, unsigned j, unsigned q, double root, const double* row,
                                        const double* column) {
    if (i < q || j > i) return v;
    if (i == q) return j == q ? root : row[j] * root;
    const double left = column[i] * root;
    if (j == q) return -left * root;
    return v - left * (root * (j < q ? row[j] : column[j]));
}

// The inverse of the lower Cholesky factor of a tile of which every thread holds its quarter; NaN where a pivot is not positive.
// All threads must come here.
__device__ __forceinline__ Quarter inverse_factor_of_tile(Quarter v) {
    __shared__ double rows[2][TILE], columns[2][TILE];
    const unsigned x = tile_x(), y = tile_y();
    for (unsigned q = 0; q < TILE; q++) {
        // Two sets in turn: one barrier a pivot is enough.
        double *row = rows[q % 2], *column = columns[q % 2];
        if (y == q % SIDE) {
            row[x] = q < SIDE ? v.v00 : v.v10;
            row[x + SIDE] = q < SIDE ? v.v01 : v.v11;
        }
        if (x == q % SIDE) {
            column[y] = q < SIDE ? v.v00 : v.v01;
            column[y + SIDE] = q < SIDE ? v.v10 : v.v11;
        }
        __syncthreads();
        const double root = 1.0 / sqrt(row[q]);
        v.v00 = halve(v.v00, y, x, q, root, row, column);
        v.v01 = halve(v.v01, y, x + SIDE, q, root, row, column);
        v.v10 = halve(v.v10, y + SIDE, x, q, root, row, column);
        v.v11 = halve(v.v11, y + SIDE, x + SIDE, q, root, row, column);
    }
    return {x <= y ? v.v00 : 0.0, 0.0, v.v10, x <= y ? v.v11 : 0.0};
}

__device__ __forceinline__ Quarter minus(Quarter a, Quarter b) {
    return {a.v00 - b.v00, a.v01 - b.v01, a.v10 - b.v10, a.v11 - b.v11};
}

__device__ __forceinline__ Quarter times(Quarter a, double by) {
    return {a.v00 * by, a.v01 * by, a.v10 * by, a.v11 * by};
}

}  // namespace vkd

// Sums of the parts over `divisor`.
extern "C" __global__ void __launch_bounds__(256)
    whiten_mean(const double* parts, double* mean, unsigned chunks, unsigned d, double divisor) {
    const unsigned j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= d) return;
    double sum = 0;
    for (unsigned chunk = 0; chunk < chunks; chunk++) sum += parts[size_t(chunk) * d + j];
    mean[j] = sum / divisor;
}
VKD_EXPORT(whiten_mean)

// factor `squares` as `state` keeps it, with the ridge, and the inverse factor of its first tile. Nothing spread: the identity.
extern "C" __global__ void __launch_bounds__(256)
    whiten_start(const double* squares, const double* state, double* a, double* pivot, unsigned d, double factor) {
    const unsigned tile_j = blockIdx.x, tile_i = blockIdx.y;
    const double ridge = state[vkd::RIDGE], live = state[vkd::LIVE], kept = factor * state[vkd::KEEP];
    vkd::Quarter v = vkd::each_entry([&](unsigned r, unsigned c) {
        auto entry = [&](unsigned i, unsigned j) {
            if (live == 0) return i == j ? 1.0 : 0.0;
            const double own = kept * squares[size_t(i) * d + j];
            return i == j ? own + ridge : own;
        };
        return vkd::padded(entry, tile_i * vkd::TILE + r, tile_j * vkd::TILE + c, d);
    });
    vkd::store(a, v, tile_i, tile_j, d);
    if (tile_i == 0 && tile_j == 0) vkd::store_pivot(pivot, vkd::inverse_factor_of_tile(v));
}
VKD_EXPORT(whiten_start)

// Step p. With D the inverse factor of the pivot tile, row p of W is D times what stands there, and every row below loses
// (A_ip Dᵀ)(D Z), where Z is what stands in row p: done of W, the identity, or what is left of the covariance, whose lower
// triangle alone is kept.
extern "C" __global__ void __launch_bounds__(256, 2)
    whiten_step(const double* from, const double* pivot, const double* state, double* to, double* next, double* w, unsigned d,
                unsigned p) {
    __shared__ vkd::Tile own, left, right;
    const unsigned tile_j = blockIdx.x, tile_i = blockIdx.y;
    if (tile_i < p) return;
    auto load = [&](unsigned ti, unsigned tj) {
        return vkd::each_entry([&](unsigned r, unsigned c) {
            auto entry = [&](unsigned i, unsigned j) { return from[size_t(i) * d + j]; };
            return vkd::padded(entry, ti * vkd::TILE + r, tj * vkd::TILE + c, d);
        });
    };
    auto turned = [&](unsigned ti, unsigned tj) {
        return vkd::each_entry([&](unsigned r, unsigned c) {
            auto entry = [&](unsigned j, unsigned i) { return from[size_t(i) * d + j]; };
            return vkd::padded(entry, tj * vkd::TILE + r, ti * vkd::TILE + c, d);
        });
    };
    if (tile_j > tile_i) {
        // Above the diagonal: nothing in W.
        if (tile_i == p) vkd::store(w, {0, 0, 0, 0}, tile_i, tile_j, d);
        return;
    }
    // D Z
    vkd::put(own, vkd::each_entry([&](unsigned r, unsigned c) { return pivot[r * vkd::TILE + c]; }));
    vkd::Quarter row = vkd::each_entry([&](unsigned r, unsigned c) { return pivot[r * vkd::TILE + c]; });
    if (tile_j != p) {
        vkd::put(right, tile_j < p ? load(p, tile_j) : turned(tile_j, p));
        __syncthreads();
        row = vkd::product(own, right);
    }
    if (tile_i == p) {
        vkd::store(w, vkd::times(row, state[vkd::LIVE]), tile_i, tile_j, d);
        return;
    }
    // A_ip Dᵀ
    __syncthreads();
    vkd::put(left, load(tile_i, p));
    vkd::put(own, vkd::each_entry([&](unsigned r, unsigned c) { return pivot[c * vkd::TILE + r]; }));
    __syncthreads();
    vkd::Quarter panel = vkd::product(left, own);
    __syncthreads();
    vkd::put(left, panel);
    vkd::put(right, row);
    __syncthreads();
    vkd::Quarter out = vkd::product(left, right);
    out = tile_j == p ? vkd::times(out, -1.0) : vkd::minus(load(tile_i, tile_j), out);
    vkd::store(to, out, tile_i, tile_j, d);
    if (tile_i == p + 1 && tile_j == p + 1) vkd::store_pivot(next, vkd::inverse_factor_of_tile(out));
}
VKD_EXPORT(whiten_step)

// The lower triangle, mirrored.
extern "C" __global__ void __launch_bounds__(256) whiten_mirror(const double* x, double* out, unsigned d) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= size_t(d) * d) return;
    const size_t i = at / d, j = at % d;
    out[at] = i >= j ? x[at] : x[j * d + i];
}
VKD_EXPORT(whiten_mirror)

#define KERNELS(T, S)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        whiten_sums_##S(const T* xs, const double* less, double* parts, unsigned rows, unsigned d, unsigned per_chunk) {  \
        vkd::whiten_sums<T>(xs, less, parts, rows, d, per_chunk);                                                         \
    }                                                                                                                     \
    VKD_EXPORT(whiten_sums_##S)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        whiten_centre_##S(const T* xs, const double* mean, const double* rest, double* centred, unsigned rows,            \
                          unsigned d) {                                                                                   \
        vkd::whiten_centre<T>(xs, mean, rest, centred, rows, d);                                                          \
    }                                                                                                                     \
    VKD_EXPORT(whiten_centre_##S)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        whiten_rows_##S(const double* one, const double* other, T* out, unsigned rows, unsigned d) {                      \
        vkd::whiten_rows<T>(one, other, out, rows, d);                                                                    \
    }                                                                                                                     \
    VKD_EXPORT(whiten_rows_##S)

VKD_EACH_FLOAT(KERNELS)
