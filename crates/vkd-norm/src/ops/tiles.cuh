// Tiles of matrices in shared memory: blocks of 256 threads, of which each owns four entries.
#pragma once
#include "common.cuh"

namespace vkd {

constexpr unsigned TILE = 32;
constexpr unsigned TILE_ENTRIES = TILE * TILE;
constexpr unsigned SIDE = 16;

// A tile in shared memory; a column more keeps the banks of a column apart.
typedef double Tile[TILE][TILE + 1];

// The four entries of a tile that a thread owns: rows y and y + 16, columns x and x + 16.
struct Quarter {
    double v00, v01, v10, v11;
};

__device__ __forceinline__ unsigned tile_x() { return threadIdx.x % SIDE; }
__device__ __forceinline__ unsigned tile_y() { return threadIdx.x / SIDE; }

// Calls f(row, column) for each of the thread's entries.
template <typename F>
__device__ __forceinline__ Quarter each_entry(F f) {
    const unsigned x = tile_x(), y = tile_y();
    return {f(y, x), f(y, x + SIDE), f(y + SIDE, x), f(y + SIDE, x + SIDE)};
}

__device__ __forceinline__ void put(Tile& tile, Quarter q) {
    const unsigned x = tile_x(), y = tile_y();
    tile[y][x] = q.v00;
    tile[y][x + SIDE] = q.v01;
    tile[y + SIDE][x] = q.v10;
    tile[y + SIDE][x + SIDE] = q.v11;
}

// The thread's entries of a product of two tiles.
__device__ __forceinline__ Quarter product(const Tile& left, const Tile& right) {
    const unsigned x = tile_x(), y = tile_y();
    Quarter sum = {0, 0, 0, 0};
#pragma unroll 8
    for (unsigned q = 0; q < TILE; q++) {
        const double l0 = left[y][q], l1 = left[y + SIDE][q], r0 = right[q][x], r1 = right[q][x + SIDE];
        sum.v00 += l0 * r0;
        sum.v01 += l0 * r1;
        sum.v10 += l1 * r0;
        sum.v11 += l1 * r1;
    }
    return sum;
}

// Writes the thread's entries of tile (tile_i, tile_j) that lie inside the matrix.
__device__ __forceinline__ void store(double* a, Quarter q, unsigned tile_i, unsigned tile_j, unsigned k) {
    const unsigned i = tile_i * TILE + tile_y(), j = tile_j * TILE + tile_x();
    if (i < k && j < k) a[size_t(i) * k + j] = q.v00;
    if (i < k && j + SIDE < k) a[size_t(i) * k + j + SIDE] = q.v01;
    if (i + SIDE < k && j < k) a[size_t(i + SIDE) * k + j] = q.v10;
    if (i + SIDE < k && j + SIDE < k) a[size_t(i + SIDE) * k + j + SIDE] = q.v11;
}

// Entry (i, j) of a k x k matrix that goes on as the identity.
template <typename At>
__device__ __forceinline__ double padded(At at, unsigned i, unsigned j, unsigned k) {
    if (i < k && j < k) return at(i, j);
    return i == j ? 1.0 : 0.0;
}

// Writes a whole tile, row after row.
__device__ __forceinline__ void store_pivot(double* pivot, Quarter q) {
    const unsigned x = tile_x(), y = tile_y();
    pivot[y * TILE + x] = q.v00;
    pivot[y * TILE + x + SIDE] = q.v01;
    pivot[(y + SIDE) * TILE + x] = q.v10;
    pivot[(y + SIDE) * TILE + x + SIDE] = q.v11;
}

}  // namespace vkd
