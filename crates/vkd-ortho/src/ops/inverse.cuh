// The inverse of k x k matrices that need no pivoting, by Gauss-Jordan elimination over tiles: a launch for each pivot tile.
//
// It serves matrices whose symmetric part is positive definite, and upper triangles. All is f64. Blocks are of 256 threads, a
// tile each; what stands outside of the matrix counts as a part of the identity. A step reads one buffer and writes the other,
// so that no tile waits for another; the block that owns the next pivot tile inverts it, so that the next step finds it done.
#pragma once
#include "tiles.cuh"

namespace vkd {

// One entry of a Gauss-Jordan step at pivot p, of which `row` and `column` are the row and the column before it.
__device__ __forceinline__ double eliminate(double v, unsigned i, unsigned j, unsigned p, double pivot, const double* row,
                                            const double* column) {
    if (i == p) return j == p ? pivot : row[j] * pivot;
    if (j == p) return -column[i] * pivot;
    return v - column[i] * (row[j] * pivot);
}

// The inverse of a tile of which every thread holds its quarter. All threads must come here.
__device__ __forceinline__ Quarter inverse_of_tile(Quarter q) {
    __shared__ double rows[2][TILE], columns[2][TILE];
    const unsigned x = tile_x(), y = tile_y();
    for (unsigned p = 0; p < TILE; p++) {
        // Two sets in turn: one barrier a pivot is enough.
        double *row = rows[p % 2], *column = columns[p % 2];
        if (y == p % SIDE) {
            row[x] = p < SIDE ? q.v00 : q.v10;
            row[x + SIDE] = p < SIDE ? q.v01 : q.v11;
        }
        if (x == p % SIDE) {
            column[y] = p < SIDE ? q.v00 : q.v01;
            column[y + SIDE] = p < SIDE ? q.v10 : q.v11;
        }
        __syncthreads();
        const double pivot = 1.0 / row[p];
        q.v00 = eliminate(q.v00, y, x, p, pivot, row, column);
        q.v01 = eliminate(q.v01, y, x + SIDE, p, pivot, row, column);
        q.v10 = eliminate(q.v10, y + SIDE, x, p, pivot, row, column);
        q.v11 = eliminate(q.v11, y + SIDE, x + SIDE, p, pivot, row, column);
    }
    return q;
}

// Writes the matrices whose entry is at(batch, i, j), and the inverse of the first pivot tile of each.
template <typename At>
__device__ __forceinline__ void inverse_start(At at, double* a, double* pivot, unsigned batch, unsigned k) {
    const unsigned tile_j = blockIdx.x, tile_i = blockIdx.y;
    for (unsigned b = blockIdx.z; b < batch; b += gridDim.z) {
        Quarter q = each_entry([&](unsigned r, unsigned c) {
            auto entry = [&](unsigned i, unsigned j) { return at(b, i, j); };
            return padded(entry, tile_i * TILE + r, tile_j * TILE + c, k);
        });
        store(a + size_t(b) * k * k, q, tile_i, tile_j, k);
        if (tile_i == 0 && tile_j == 0) {
            store_pivot(pivot + size_t(b) * TILE_ENTRIES, inverse_of_tile(q));
            __syncthreads();
        }
    }
}

// Step p of the elimination: with D the inverse of the pivot tile, row p becomes D A_p, column p becomes -A_p D, and
// all else loses A_ip D A_pj.
__device__ __forceinline__ void inverse_step(const double* from, const double* pivot, double* to, double* next, unsigned batch,
                                             unsigned k, unsigned p) {
    __shared__ Tile left, right, d;
    const unsigned tile_j = blockIdx.x, tile_i = blockIdx.y;
    for (unsigned b = blockIdx.z; b < batch; b += gridDim.z) {
        const double* a = from + size_t(b) * k * k;
        auto load = [&](unsigned ti, unsigned tj) {
            return each_entry([&](unsigned r, unsigned c) {
                auto entry = [&](unsigned i, unsigned j) { return a[size_t(i) * k + j]; };
                return padded(entry, ti * TILE + r, tj * TILE + c, k);
            });
        };
        const double* own = pivot + size_t(b) * TILE_ENTRIES;
        put(d, each_entry([&](unsigned r, unsigned c) { return own[r * TILE + c]; }));
        if (tile_i != p) put(left, load(tile_i, p));
        if (tile_j != p) put(right, load(p, tile_j));
        __syncthreads();
        Quarter out;
        if (tile_i == p && tile_j == p) {
            out = each_entry([&](unsigned r, unsigned c) { return d[r][c]; });
        } else if (tile_i == p) {
            out = product(d, right);
        } else if (tile_j == p) {
            Quarter q = product(left, d);
            out = {-q.v00, -q.v01, -q.v10, -q.v11};
        } else {
            Quarter row = product(d, right);
            __syncthreads();
            put(d, row);
            __syncthreads();
            Quarter a_ij = load(tile_i, tile_j), q = product(left, d);
            out = {a_ij.v00 - q.v00, a_ij.v01 - q.v01, a_ij.v10 - q.v10, a_ij.v11 - q.v11};
        }
        store(to + size_t(b) * k * k, out, tile_i, tile_j, k);
        if (tile_i == p + 1 && tile_j == p + 1) store_pivot(next + size_t(b) * TILE_ENTRIES, inverse_of_tile(out));
        // Tiles in shared memory may be overwritten from here on.
        __syncthreads();
    }
}

}  // namespace vkd

extern "C" __global__ void __launch_bounds__(256, 2)
    inverse_step(const double* from, const double* pivot, double* to, double* next, unsigned batch, unsigned k, unsigned p) {
    vkd::inverse_step(from, pivot, to, next, batch, k, p);
}
VKD_EXPORT(inverse_step)
