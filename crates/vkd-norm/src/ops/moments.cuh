// Number, mean and sum of squares of the columns of chunks of rows: what standardisation and channel norms start from.
#pragma once
#include "common.cuh"

namespace vkd {

struct Chunk {
    unsigned column, first, end;
};

__device__ __forceinline__ Chunk own_chunk(unsigned rows, unsigned per_chunk) {
    const unsigned first = blockIdx.y * per_chunk;
    return {blockIdx.x * blockDim.x + threadIdx.x, first, rows - first < per_chunk ? rows : first + per_chunk};
}

__device__ __forceinline__ bool counts(const uint8_t* mask, unsigned row) { return !mask || mask[row]; }

// Number, mean and sum of squares about the mean of one column of a chunk, with arithmetic in A, relative to `pivot` and
// then to the mean.
template <typename A, typename T>
__device__ __forceinline__ void chunk_moments(const T* xs, const uint8_t* mask, Chunk chunk, unsigned channels, A pivot,
                                              unsigned count, double& mean, double& squares) {
    A sum = 0, rest = 0, square = 0;
    for (unsigned row = chunk.first; row < chunk.end; row++)
        if (counts(mask, row)) sum += A(widen(xs[size_t(row) * channels + chunk.column])) - pivot;
    const A near = pivot + sum / A(count);
    for (unsigned row = chunk.first; row < chunk.end; row++)
        if (counts(mask, row)) {
            A d = A(widen(xs[size_t(row) * channels + chunk.column])) - near;
            rest += d;
            square += d * d;
        }
    // The rounded mean leaves a little over.
    const double left = double(rest) / count;
    mean = double(near) + left;
    squares = double(square) - count * left * left;
    if (squares < 0) squares = 0;
}

// Parts (chunks, 3, channels): number, mean and squares of every column of a matrix.
template <typename T>
__device__ __forceinline__ void moments(const T* xs, const uint8_t* mask, double* parts, unsigned rows, unsigned channels,
                                        unsigned per_chunk) {
    const Chunk chunk = own_chunk(rows, per_chunk);
    if (chunk.column >= channels) return;
    unsigned count = 0;
    Sum<T> pivot = 0;
    for (unsigned row = chunk.first; row < chunk.end; row++)
        if (counts(mask, row)) {
            if (count == 0) pivot = widen(xs[size_t(row) * channels + chunk.column]);
            count++;
        }
    double mean = 0, squares = 0;
    if (count > 0) {
        chunk_moments<Sum<T>>(xs, mask, chunk, channels, pivot, count, mean, squares);
        // Squares that overflow f32 or that its smallest numbers round: again in f64. Zero is a constant column's as well.
        if (sizeof(Sum<T>) == 4 && !(squares > 1e-30 * count && finite(float(squares))))
            chunk_moments<double>(xs, mask, chunk, channels, double(pivot), count, mean, squares);
    }
    double* part = parts + size_t(blockIdx.y) * 3 * channels + chunk.column;
    part[0] = count;
    part[channels] = mean;
    part[2 * size_t(channels)] = squares;
}

}  // namespace vkd
