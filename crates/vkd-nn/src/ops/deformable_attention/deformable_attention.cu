// Multi-scale deformable attention. Where a point lies is found in f64, with the roundings of cpu.rs.
//
// The gradient of the values is gathered, since points that share a pixel could only add to it one after the other: a warp owns some
// pixels of a map and 32 of a head's columns, asks of every point of its head and map whether it touches them, and sums those that
// do in the order of the points. The asking is done once for all columns and costs little beside the sums of those found.
#include "common.cuh"

namespace vkd {

// Words of a map in the table: pixels before it, its size, and how many blocks of pixels come before it.
enum Word : unsigned { START, ROWS, COLS, FIRST_TILE, WORDS };

struct Map {
    size_t start;
    unsigned rows, cols;
    __device__ __forceinline__ Map(const uint64_t* table, unsigned level)
        : start(table[WORDS * level + START]),
          rows(unsigned(table[WORDS * level + ROWS])),
          cols(unsigned(table[WORDS * level + COLS])) {}
};

struct Sizes {
    unsigned queries, heads, dim, levels, points;
    size_t pixels;

    // Of `row`, which is (batch, queries, heads), the point of a level.
    __device__ __forceinline__ size_t tap(size_t row, unsigned level, unsigned point) const {
        return (row * levels + level) * points + point;
    }
    __device__ __forceinline__ size_t value_at(size_t sample, size_t pixel, unsigned head) const {
        return ((sample * pixels + pixel) * heads + head) * dim;
    }
};

enum State { OUTSIDE, INSIDE, NO_NUMBER };

// The pixel above and on the left of a point, which may be one outside of the map, and the distances from it.
struct Cell {
    int row, col;
    double down, right;

    // Calls f(whether below, whether on the right, number of the pixel in its map, its share) for the corners that the map has.
    template <typename F>
    __device__ __forceinline__ void corners(const Map& map, F f) const {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int y = row + i, x = col + j;
                if (y < 0 || x < 0 || y >= int(map.rows) || x >= int(map.cols)) continue;
                f(i, j, unsigned(y) * map.cols + unsigned(x), (i ? down : 1 - down) * (j ? right : 1 - right));
            }
    }
};

template <typename T>
__device__ __forceinline__ State find(const T* location, Sum<T> weight, const Map& map, Cell& cell) {
    const double x = double(widen(location[0])), y = double(widen(location[1]));
    if (x != x || y != y || weight != weight) return NO_NUMBER;
    const double across = product_alone(x, map.cols) - 0.5, along = product_alone(y, map.rows) - 0.5;
    if (!(across > -1 && across < map.cols && along > -1 && along < map.rows)) return OUTSIDE;
    const double col = floor(across), row = floor(along);
    cell = {int(row), int(col), along - row, across - col};
    return INSIDE;
}

template <typename T>
__device__ __forceinline__ void deformable(const T* values, const T* locations, const T* weights, const uint64_t* table, T* out,
                                           unsigned count, Sizes s) {
    const unsigned entry = blockIdx.x * blockDim.x + threadIdx.x;
    if (entry >= count) return;
    const unsigned row = entry / s.dim, head = row % s.heads, sample = row / s.heads / s.queries;
    const T* of_head = values + s.value_at(sample, 0, head) + entry % s.dim;
    const size_t step = size_t(s.heads) * s.dim;
    Sum<T> sum = 0;
    for (unsigned level = 0; level < s.levels; level++) {
        const Map map(table, level);
        for (unsigned point = 0; point < s.points; point++) {
            const size_t k = s.tap(row, level, point);
            const Sum<T> weight = widen(weights[k]);
            Cell cell = {};
            const State state = find(locations + 2 * k, weight, map, cell);
            if (state == NO_NUMBER) sum += Sum<T>(NAN);
            if (state != INSIDE) continue;
            cell.corners(map, [&](int, int, unsigned pixel, double share) {
                sum += widen(of_head[(map.start + pixel) * step]) * (Sum<T>(share) * weight);
            });
        }
    }
    out[entry] = narrow<T>(sum);
}

// The gradients of locations and weights, a warp a query and head, or row.
template <typename T>
__device__ __forceinline__ void deformable_points(const T* values, const T* locations, const T* weights, const T* grad,
                                                  const uint64_t* table, T* dlocations, T* dweights, unsigned rows, Sizes s) {
    using A = Sum<T>;
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Whole warps leave.
    if (row >= rows) return;
    const unsigned head = row % s.heads, sample = row / s.heads / s.queries;
    const T* upstream = grad + size_t(row) * s.dim;
    for (unsigned level = 0; level < s.levels; level++) {
        const Map map(table, level);
        for (unsigned point = 0; point < s.points; point++) {
            const size_t k = s.tap(row, level, point);
            const A weight = widen(weights[k]);
            Cell cell = {};
            const State state = find(locations + 2 * k, weight, map, cell);
            double of_weight = 0, of_x = 0, of_y = 0;
            if (state == NO_NUMBER) of_weight = of_x = of_y = NAN;
            if (state == INSIDE) {
                double dots[2][2] = {{0, 0}, {0, 0}};
                cell.corners(map, [&](int i, int j, unsigned pixel, double share) {
                    const T* value = values + s.value_at(sample, map.start + pixel, head);
                    A sum = 0;
                    for (unsigned d = lane; d < s.dim; d += WARP) sum += widen(upstream[d]) * widen(value[d]);
                    dots[i][j] = double(over_warp(sum, Add()));
                    of_weight += share * dots[i][j];
                });
                const double across = (1 - cell.down) * (dots[0][1] - dots[0][0]) + cell.down * (dots[1][1] - dots[1][0]);
                const double along = (1 - cell.right) * (dots[1][0] - dots[0][0]) + cell.right * (dots[1][1] - dots[0][1]);
                of_x = double(weight) * map.cols * across;
                of_y = double(weight) * map.rows * along;
            }
            if (lane == 0) {
                dweights[k] = narrow<T>(A(of_weight));
                dlocations[2 * k] = narrow<T>(A(of_x));
                dlocations[2 * k + 1] = narrow<T>(A(of_y));
            }
        }
    }
}

constexpr unsigned GATHER_WARPS = 4;

// Pixels of a warp: with 32 columns, 8 KiB of sums.
template <typename A>
struct Gather {
    static constexpr unsigned PIXELS = sizeof(A) == 4 ? 64 : 32;
};

// The gradient of the values. A task is 32 columns of a head, a block of a map's pixels, a head, and a sample, a warp each.
template <typename T>
__device__ __forceinline__ void deformable_values(const T* locations, const T* weights, const T* grad, const uint64_t* table,
                                                  T* dvalues, unsigned tasks, unsigned tiles, Sizes s) {
    using A = Sum<T>;
    constexpr unsigned PIXELS = Gather<A>::PIXELS;
    // A lane reads and writes its own column of its warp's alone.
    __shared__ A all_sums[GATHER_WARPS][PIXELS][WARP];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, task = blockIdx.x * GATHER_WARPS + warp;
    // Whole warps leave.
    if (task >= tasks) return;
    const unsigned chunks = (s.dim + WARP - 1) / WARP, channel = task % chunks * WARP + lane;
    const unsigned tile = task / chunks % tiles, head = task / chunks / tiles % s.heads, sample = task / chunks / tiles / s.heads;
    unsigned level = 0;
    while (level + 1 < s.levels && table[WORDS * (level + 1) + FIRST_TILE] <= tile) level++;
    const Map map(table, level);
    const unsigned first = (tile - unsigned(table[WORDS * level + FIRST_TILE])) * PIXELS;
    const unsigned left = map.rows * map.cols - first, own = left < PIXELS ? left : PIXELS;
    A(*sums)[WARP] = all_sums[warp];
    for (unsigned pixel = 0; pixel < own; pixel++) sums[pixel][lane] = 0;
    const unsigned count = s.queries * s.points;
    // The query's row of a point, and its tap.
    const auto row_of = [&](unsigned index) { return (size_t(sample) * s.queries + index / s.points) * s.heads + head; };
    const auto tap_of = [&](unsigned index) { return s.tap(row_of(index), level, index % s.points); };
    for (unsigned start = 0; start < count; start += WARP) {
        bool touches = false;
        if (start + lane < count) {
            const size_t k = tap_of(start + lane);
            Cell cell = {};
            if (find(locations + 2 * k, A(widen(weights[k])), map, cell) == INSIDE)
                cell.corners(map, [&](int, int, unsigned pixel, double) { touches = touches || pixel - first < own; });
        }
        for (unsigned found = __ballot_sync(ALL, touches); found != 0; found &= found - 1) {
            const unsigned index = start + unsigned(__ffs(int(found))) - 1;
            const size_t k = tap_of(index);
            const A weight = widen(weights[k]);
            const A upstream = channel < s.dim ? A(widen(grad[row_of(index) * s.dim + channel])) : A(0);
            Cell cell = {};
            find(locations + 2 * k, weight, map, cell);
            cell.corners(map, [&](int, int, unsigned pixel, double share) {
                // What comes before the first is a large number.
                if (pixel - first < own) sums[pixel - first][lane] += upstream * (A(share) * weight);
            });
        }
    }
    if (channel >= s.dim) return;
    for (unsigned pixel = 0; pixel < own; pixel++)
        dvalues[s.value_at(sample, map.start + first + pixel, head) + channel] = narrow<T>(sums[pixel][lane]);
}

}  // namespace vkd

#define SIZES unsigned queries, unsigned heads, unsigned dim, unsigned levels, unsigned points, unsigned pixels
#define OWN_SIZES \
    { queries, heads, dim, levels, points, pixels }

#define KERNELS(T, S)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                   \
        deformable_attention_##S(const T* values, const T* locations, const T* weights, const uint64_t* table, T* out,  \
                                 unsigned count, SIZES) {                                                               \
        vkd::deformable<T>(values, locations, weights, table, out, count, OWN_SIZES);                                   \
    }                                                                                                                   \
    VKD_EXPORT(deformable_attention_##S)                                                                                \
    extern "C" __global__ void __launch_bounds__(256)                                                                   \
        deformable_attention_points_##S(const T* values, const T* locations, const T* weights, const T* grad,           \
                                        const uint64_t* table, T* dlocations, T* dweights, unsigned rows, SIZES) {      \
        vkd::deformable_points<T>(values, locations, weights, grad, table, dlocations, dweights, rows, OWN_SIZES);      \
    }                                                                                                                   \
    VKD_EXPORT(deformable_attention_points_##S)                                                                         \
    extern "C" __global__ void __launch_bounds__(128)                                                                   \
        deformable_attention_values_##S(const T* locations, const T* weights, const T* grad, const uint64_t* table,     \
                                        T* dvalues, unsigned tasks, unsigned tiles, SIZES) {                            \
        vkd::deformable_values<T>(locations, weights, grad, table, dvalues, tasks, tiles, OWN_SIZES);                   \
    }                                                                                                                   \
    VKD_EXPORT(deformable_attention_values_##S)

VKD_EACH_FLOAT(KERNELS)
