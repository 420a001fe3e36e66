// Attention of one head by one block, a tile of queries against a tile of keys at a time: no matrix of all scores exists.
//
// Blocks are 256 threads, 16 x 16, of which each owns MICRO x MICRO entries of a tile, 16 rows and 16 columns apart. A block
// writes one tile of rows and as many of the head's columns; heads that are wider take several blocks, each of which makes the
// scores again. Forward the softmax is kept up while keys come by (Milakov and Gimelshein, arXiv:1805.02867), and the logarithm
// of each row's sum is handed out; backward the probabilities are made again from it. Every sum runs in the order of its rows.
#include "common.cuh"

namespace vkd {

constexpr unsigned SIDE = 16, THREADS = SIDE * SIDE, WARPS = THREADS / WARP;
// Columns of the operands of a product of scores that are in shared memory at a time.
constexpr unsigned DEPTH = 32;

// Tiles of f64 take as much memory at half the side.
template <typename A>
struct Tiles {
    static constexpr unsigned MICRO = sizeof(A) == 4 ? 4 : 2;
    static constexpr unsigned TILE = SIDE * MICRO;
    // A column more keeps the banks of a column apart.
    static constexpr unsigned STAGE = 2 * TILE * (DEPTH + 1), SCORES = TILE * (TILE + 1);
};

// The entries of a tile that a thread owns.
template <typename A>
struct Own {
    static constexpr unsigned M = Tiles<A>::MICRO;
    A at[M][M];

    __device__ __forceinline__ void clear() {
        each([](A& x, unsigned, unsigned) { x = 0; });
    }
    // Calls f(entry, its row, its column).
    template <typename F>
    __device__ __forceinline__ void each(F f) {
        const unsigned x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll
        for (unsigned m = 0; m < M; m++)
#pragma unroll
            for (unsigned n = 0; n < M; n++) f(at[m][n], y + SIDE * m, x + SIDE * n);
    }
};

// Sizes as the launch gives them. Rows of queries, and of keys with values, are 1 and 2 blocks of all heads wide, or 3 where all are
// packed in one; of samples, heads and queries that share a bias there is one.
struct Sizes {
    unsigned batch, queries, keys, heads, dim, q_blocks, kv_blocks, bias_samples, bias_heads, bias_rows;
    double scale;

    __device__ __forceinline__ size_t width() const { return size_t(heads) * dim; }
    __device__ __forceinline__ size_t q_step() const { return q_blocks * width(); }
    __device__ __forceinline__ size_t kv_step() const { return kv_blocks * width(); }
    // Of one number a query.
    __device__ __forceinline__ size_t rows_at(unsigned sample, unsigned head) const {
        return (size_t(sample) * heads + head) * queries;
    }
    __device__ __forceinline__ size_t bias_at(unsigned sample, unsigned head) const {
        const size_t matrix = size_t(bias_samples == 1 ? 0 : sample) * bias_heads + (bias_heads == 1 ? 0 : head);
        return matrix * bias_rows * keys;
    }
};

__device__ __forceinline__ unsigned count_of(unsigned length, unsigned tile) { return (length + tile - 1) / tile; }

// Operands of one head of one sample.
template <typename T>
struct Head {
    const T *q, *k, *v, *bias;

    __device__ __forceinline__ Head(const T* queries, const T* others, const T* added, const Sizes& s, unsigned sample,
                                    unsigned head) {
        const size_t column = size_t(head) * s.dim, first = (s.kv_blocks - 2) * s.width();
        q = queries + sample * s.queries * s.q_step() + column;
        k = others + sample * s.keys * s.kv_step() + first + column;
        v = k + s.width();
        bias = added ? added + s.bias_at(sample, head) : nullptr;
    }
    // What is added to the scaled product of a query and a key.
    __device__ __forceinline__ Sum<T> added(const Sizes& s, unsigned query, unsigned key) const {
        return bias ? widen(bias[(s.bias_rows == 1 ? 0 : size_t(query) * s.keys) + key]) : Sum<T>(0);
    }
};

// One block's work: a tile of rows, a tile of the head's columns, a head of a sample.
struct Task {
    unsigned row, column, head, sample;
};

__device__ __forceinline__ Task own_task(const Sizes& s, unsigned rows, unsigned tile) {
    const unsigned columns = count_of(s.dim, tile), tiles = count_of(rows, tile);
    const unsigned rest = blockIdx.x / columns;
    return {rest % tiles * tile, blockIdx.x % columns * tile, rest / tiles % s.heads, rest / tiles / s.heads};
}

// Products of rows of `left` with rows of `right`, over `dim` columns; zero for rows beyond the last. All threads must come here.
template <typename T>
__device__ __forceinline__ void products(const T* left, size_t left_step, unsigned left_row, unsigned left_rows, const T* right,
                                         size_t right_step, unsigned right_row, unsigned right_rows, unsigned dim,
                                         Sum<T>* stage, Own<Sum<T>>& own) {
    using A = Sum<T>;
    constexpr unsigned M = Tiles<A>::MICRO, TILE = Tiles<A>::TILE;
    const unsigned x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    A *of_left = stage, *of_right = stage + TILE * (DEPTH + 1);
    own.clear();
    for (unsigned first = 0; first < dim; first += DEPTH) {
        // What is in the stage may still be read.
        __syncthreads();
        for (unsigned at = threadIdx.x; at < TILE * DEPTH; at += THREADS) {
            const unsigned row = at / DEPTH, column = first + at % DEPTH, to = row * (DEPTH + 1) + at % DEPTH;
            const bool inside = column < dim;
            of_left[to] = inside && left_row + row < left_rows ? A(widen(left[(left_row + row) * left_step + column])) : A(0);
            of_right[to] =
                inside && right_row + row < right_rows ? A(widen(right[(right_row + row) * right_step + column])) : A(0);
        }
        __syncthreads();
#pragma unroll 4
        for (unsigned d = 0; d < DEPTH; d++) {
            A l[M], r[M];
#pragma unroll
            for (unsigned m = 0; m < M; m++) {
                l[m] = of_left[(y + SIDE * m) * (DEPTH + 1) + d];
                r[m] = of_right[(x + SIDE * m) * (DEPTH + 1) + d];
            }
#pragma unroll
            for (unsigned m = 0; m < M; m++)
#pragma unroll
                for (unsigned n = 0; n < M; n++) own.at[m][n] += l[m] * r[n];
        }
    }
}

// A tile of rows and columns into the stage, row after row; zero beyond the last of either.
template <typename T>
__device__ __forceinline__ void load_tile(const T* from, size_t step, unsigned row, unsigned rows, unsigned column,
                                          unsigned columns, Sum<T>* stage) {
    constexpr unsigned TILE = Tiles<Sum<T>>::TILE;
    for (unsigned at = threadIdx.x; at < TILE * TILE; at += THREADS) {
        const unsigned i = row + at / TILE, j = column + at % TILE;
        stage[at] = i < rows && j < columns ? Sum<T>(widen(from[i * step + j])) : Sum<T>(0);
    }
}

// The thread's entries of a tile into shared memory.
template <typename A>
__device__ __forceinline__ void put(Own<A>& own, A* scores) {
    own.each([&](A& x, unsigned row, unsigned column) { scores[row * (Tiles<A>::TILE + 1) + column] = x; });
}

// Adds the product of a tile of scores, or of its transpose, with the tile in the stage.
template <bool TRANSPOSED, typename A>
__device__ __forceinline__ void add_product(const A* scores, const A* stage, Own<A>& sum) {
    constexpr unsigned M = Tiles<A>::MICRO, TILE = Tiles<A>::TILE;
    const unsigned x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll 4
    for (unsigned k = 0; k < TILE; k++) {
        A l[M], r[M];
#pragma unroll
        for (unsigned m = 0; m < M; m++) {
            const unsigned row = y + SIDE * m;
            l[m] = TRANSPOSED ? scores[k * (TILE + 1) + row] : scores[row * (TILE + 1) + k];
            r[m] = stage[k * TILE + x + SIDE * m];
        }
#pragma unroll
        for (unsigned m = 0; m < M; m++)
#pragma unroll
            for (unsigned n = 0; n < M; n++) sum.at[m][n] += l[m] * r[n];
    }
}

// Writes a tile that lies in a matrix of rows `step` apart.
template <typename T, typename A>
__device__ __forceinline__ void store(Own<A>& own, T* to, size_t step, unsigned row, unsigned rows, unsigned column,
                                      unsigned columns) {
    own.each([&](A& x, unsigned i, unsigned j) {
        if (row + i < rows && column + j < columns) to[(row + i) * step + column + j] = narrow<T>(x);
    });
}

// Takes a tile of scores into the softmax of its rows: the scores become exponentials, and each row has the largest score and the
// sum so far, and the factor of what was summed before. A warp takes every eighth row.
template <typename A>
__device__ __forceinline__ void take_scores(A* scores, A* largest, A* sums, A* keep) {
    constexpr unsigned TILE = Tiles<A>::TILE;
    const unsigned lane = threadIdx.x % WARP;
    for (unsigned row = threadIdx.x / WARP; row < TILE; row += WARPS) {
        A* own = scores + row * (TILE + 1);
        // By the lane alone that writes it below: nothing else orders the two.
        const A before = lane == 0 ? largest[row] : -A(INFINITY);
        A top = before, sum = 0;
#pragma unroll
        for (unsigned at = 0; at < TILE; at += WARP) top = Larger()(top, own[at + lane]);
        top = over_warp(top, Larger());
        // A row whose keys are all masked so far has sums of zero, not NaN.
        const A level = top == -A(INFINITY) ? A(0) : top;
#pragma unroll
        for (unsigned at = 0; at < TILE; at += WARP) {
            const A p = exponential(own[at + lane] - level);
            own[at + lane] = p;
            sum += p;
        }
        sum = over_warp(sum, Add());
        if (lane == 0) {
            const A factor = exponential(before - level);
            keep[row] = factor;
            largest[row] = top;
            sums[row] = sums[row] * factor + sum;
        }
    }
}

// The output, and for each query the logarithm of the sum of the exponentials of its scores.
template <typename T>
__device__ __forceinline__ void attention(const T* queries, const T* others, const T* bias, T* out, Sum<T>* logs, Sizes s) {
    using A = Sum<T>;
    constexpr unsigned TILE = Tiles<A>::TILE;
    __shared__ A stage[Tiles<A>::STAGE], scores[Tiles<A>::SCORES], largest[TILE], sums[TILE], keep[TILE];
    const Task task = own_task(s, s.queries, TILE);
    const Head<T> head(queries, others, bias, s, task.sample, task.head);
    if (threadIdx.x < TILE) {
        largest[threadIdx.x] = -A(INFINITY);
        sums[threadIdx.x] = 0;
    }
    Own<A> sum, own;
    sum.clear();
    for (unsigned key = 0; key < s.keys; key += TILE) {
        products(head.q, s.q_step(), task.row, s.queries, head.k, s.kv_step(), key, s.keys, s.dim, stage, own);
        own.each([&](A& x, unsigned i, unsigned j) {
            const bool inside = task.row + i < s.queries;
            x = key + j >= s.keys ? -A(INFINITY) : x * A(s.scale) + (inside ? head.added(s, task.row + i, key + j) : A(0));
        });
        put(own, scores);
        __syncthreads();
        load_tile(head.v, s.kv_step(), key, s.keys, task.column, s.dim, stage);
        take_scores(scores, largest, sums, keep);
        __syncthreads();
        sum.each([&](A& x, unsigned i, unsigned) { x *= keep[i]; });
        add_product<false>(scores, stage, sum);
    }
    __syncthreads();
    // Without a key there is nothing to divide by.
    sum.each([&](A& x, unsigned i, unsigned) { x = s.keys == 0 ? A(0) : x / sums[i]; });
    store(sum, out + task.sample * s.queries * s.width() + size_t(task.head) * s.dim, s.width(), task.row, s.queries,
          task.column, s.dim);
    if (task.column == 0 && threadIdx.x < TILE && task.row + threadIdx.x < s.queries) {
        const A top = largest[threadIdx.x];
        logs[s.rows_at(task.sample, task.head) + task.row + threadIdx.x] =
            (top == -A(INFINITY) ? A(0) : top) + logarithm(sums[threadIdx.x]);
    }
}

// Means (batch, queries, heads): the output's gradient times the output, which is P dP summed over each row. A warp a mean.
template <typename T>
__device__ __forceinline__ void attention_means(const T* out, const T* grad, Sum<T>* means, unsigned rows,
                                                unsigned dim) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Whole warps leave.
    if (row >= rows) return;
    Sum<T> sum = 0;
    for (unsigned d = lane; d < dim; d += WARP) sum += widen(out[size_t(row) * dim + d]) * widen(grad[size_t(row) * dim + d]);
    sum = over_warp(sum, Add());
    if (lane == 0) means[row] = sum;
}

// What the backward kernels have of one head beside its operands.
template <typename T>
struct Upstream {
    const T* grad;
    const Sum<T>*logs, *means;
    size_t step;
    unsigned heads;

    __device__ __forceinline__ Upstream(const T* all, const Sum<T>* of_logs, const Sum<T>* of_means, const Sizes& s,
                                        unsigned sample, unsigned head) {
        step = s.width();
        heads = s.heads;
        grad = all + sample * s.queries * step + size_t(head) * s.dim;
        logs = of_logs + s.rows_at(sample, head);
        means = of_means + size_t(sample) * s.queries * heads + head;
    }
    __device__ __forceinline__ Sum<T> mean(unsigned query) const { return means[size_t(query) * heads]; }
};

// Probabilities P and slopes P (dP - mean) of a tile of queries and keys; zero beyond the last of either.
template <typename T>
__device__ __forceinline__ void slopes(const Head<T>& head, const Upstream<T>& up, const Sizes& s, unsigned query, unsigned key,
                                       Sum<T>* stage, Own<Sum<T>>& p, Own<Sum<T>>& ds) {
    using A = Sum<T>;
    constexpr unsigned M = Tiles<A>::MICRO;
    products(head.q, s.q_step(), query, s.queries, head.k, s.kv_step(), key, s.keys, s.dim, stage, p);
    p.each([&](A& x, unsigned i, unsigned j) {
        const bool inside = query + i < s.queries && key + j < s.keys;
        x = inside ? exponential(x * A(s.scale) + head.added(s, query + i, key + j) - up.logs[query + i]) : A(0);
    });
    products(up.grad, up.step, query, s.queries, head.v, s.kv_step(), key, s.keys, s.dim, stage, ds);
    ds.each([&](A& x, unsigned i, unsigned) { x -= query + i < s.queries ? up.mean(query + i) : A(0); });
#pragma unroll
    for (unsigned m = 0; m < M; m++)
#pragma unroll
        for (unsigned n = 0; n < M; n++) ds.at[m][n] *= p.at[m][n];
}

// The gradient of the queries, scale dS K, in the first block of rows of `q_blocks` blocks.
template <typename T>
__device__ __forceinline__ void attention_queries(const T* queries, const T* others, const T* bias, const T* grad,
                                                  const Sum<T>* logs, const Sum<T>* means, T* dq, Sizes s) {
    using A = Sum<T>;
    constexpr unsigned TILE = Tiles<A>::TILE;
    __shared__ A stage[Tiles<A>::STAGE], scores[Tiles<A>::SCORES];
    const Task task = own_task(s, s.queries, TILE);
    const Head<T> head(queries, others, bias, s, task.sample, task.head);
    const Upstream<T> up(grad, logs, means, s, task.sample, task.head);
    Own<A> sum, p, ds;
    sum.clear();
    for (unsigned key = 0; key < s.keys; key += TILE) {
        slopes(head, up, s, task.row, key, stage, p, ds);
        put(ds, scores);
        __syncthreads();
        load_tile(head.k, s.kv_step(), key, s.keys, task.column, s.dim, stage);
        __syncthreads();
        add_product<false>(scores, stage, sum);
    }
    sum.each([&](A& x, unsigned, unsigned) { x *= A(s.scale); });
    store(sum, dq + task.sample * s.queries * s.q_step() + size_t(task.head) * s.dim, s.q_step(), task.row, s.queries,
          task.column, s.dim);
}

// The gradients of keys and values, scale dS^T Q and P^T dO, in the last two blocks of rows of `kv_blocks` blocks.
template <typename T>
__device__ __forceinline__ void attention_keys(const T* queries, const T* others, const T* bias, const T* grad,
                                               const Sum<T>* logs, const Sum<T>* means, T* dkv, Sizes s) {
    using A = Sum<T>;
    constexpr unsigned TILE = Tiles<A>::TILE;
    __shared__ A stage[Tiles<A>::STAGE], scores[Tiles<A>::SCORES];
    const Task task = own_task(s, s.keys, TILE);
    const Head<T> head(queries, others, bias, s, task.sample, task.head);
    const Upstream<T> up(grad, logs, means, s, task.sample, task.head);
    Own<A> of_keys, of_values, p, ds;
    of_keys.clear();
    of_values.clear();
    for (unsigned query = 0; query < s.queries; query += TILE) {
        slopes(head, up, s, query, task.row, stage, p, ds);
        put(p, scores);
        __syncthreads();
        load_tile(up.grad, up.step, query, s.queries, task.column, s.dim, stage);
        __syncthreads();
        add_product<true>(scores, stage, of_values);
        // Both are read by the others still.
        __syncthreads();
        put(ds, scores);
        load_tile(head.q, s.q_step(), query, s.queries, task.column, s.dim, stage);
        __syncthreads();
        add_product<true>(scores, stage, of_keys);
    }
    of_keys.each([&](A& x, unsigned, unsigned) { x *= A(s.scale); });
    T* to = dkv + task.sample * s.keys * s.kv_step() + (s.kv_blocks - 2) * s.width() + size_t(task.head) * s.dim;
    store(of_keys, to, s.kv_step(), task.row, s.keys, task.column, s.dim);
    store(of_values, to + s.width(), s.kv_step(), task.row, s.keys, task.column, s.dim);
}

// The gradient of a bias: dS summed over the samples, heads and queries that share it, in their order. A block a tile of one of
// its matrices.
template <typename T>
__device__ __forceinline__ void attention_bias(const T* queries, const T* others, const T* bias, const T* grad,
                                               const Sum<T>* logs, const Sum<T>* means, T* dbias, Sizes s) {
    using A = Sum<T>;
    constexpr unsigned M = Tiles<A>::MICRO, TILE = Tiles<A>::TILE;
    __shared__ A stage[Tiles<A>::STAGE], columns[SIDE * TILE];
    const bool one_row = s.bias_rows == 1;
    const unsigned key_tiles = count_of(s.keys, TILE), row_tiles = count_of(s.bias_rows, TILE);
    const unsigned key = blockIdx.x % key_tiles * TILE, row = blockIdx.x / key_tiles % row_tiles * TILE;
    const unsigned matrix = blockIdx.x / key_tiles / row_tiles;
    const unsigned of_head = matrix % s.bias_heads, of_sample = matrix / s.bias_heads;
    const unsigned first_sample = s.bias_samples == 1 ? 0 : of_sample, sample_end = s.bias_samples == 1 ? s.batch : of_sample + 1;
    const unsigned first_head = s.bias_heads == 1 ? 0 : of_head, head_end = s.bias_heads == 1 ? s.heads : of_head + 1;
    const unsigned query_end = one_row ? s.queries : row + 1;
    Own<A> sum, p, ds;
    sum.clear();
    for (unsigned sample = first_sample; sample < sample_end; sample++)
        for (unsigned head = first_head; head < head_end; head++) {
            const Head<T> operands(queries, others, bias, s, sample, head);
            const Upstream<T> up(grad, logs, means, s, sample, head);
            for (unsigned query = row; query < query_end; query += TILE) {
                slopes(operands, up, s, query, key, stage, p, ds);
#pragma unroll
                for (unsigned m = 0; m < M; m++)
#pragma unroll
                    for (unsigned n = 0; n < M; n++) sum.at[m][n] += ds.at[m][n];
            }
        }
    T* to = dbias + size_t(matrix) * s.bias_rows * s.keys;
    if (!one_row) {
        store(sum, to, s.keys, row, s.bias_rows, key, s.keys);
        return;
    }
    const unsigned x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll
    for (unsigned n = 0; n < M; n++) {
        A of_column = 0;
#pragma unroll
        for (unsigned m = 0; m < M; m++) of_column += sum.at[m][n];
        columns[y * TILE + x + SIDE * n] = of_column;
    }
    __syncthreads();
    if (threadIdx.x < TILE && key + threadIdx.x < s.keys) {
        A all = 0;
        for (unsigned i = 0; i < SIDE; i++) all += columns[i * TILE + threadIdx.x];
        to[key + threadIdx.x] = narrow<T>(all);
    }
}

}  // namespace vkd

#define SIZES                                                                                                             \
    unsigned batch, unsigned queries, unsigned keys, unsigned heads, unsigned dim, unsigned q_blocks, unsigned kv_blocks, \
        unsigned bias_samples, unsigned bias_heads, unsigned bias_rows, double scale
#define OWN_SIZES                                                                                                    \
    {                                                                                                                \
        batch, queries, keys, heads, dim, q_blocks, kv_blocks, bias_samples, bias_heads, bias_rows, scale            \
    }

#define BACKWARD(NAME, BOUNDS, T, S)                                                                                 \
    extern "C" __global__ void __launch_bounds__ BOUNDS                                                              \
        NAME##_##S(const T* q, const T* kv, const T* bias, const T* grad, const vkd::Sum<T>* logs,                   \
                   const vkd::Sum<T>* means, T* out, SIZES) {                                                        \
        vkd::NAME<T>(q, kv, bias, grad, logs, means, out, OWN_SIZES);                                                \
    }                                                                                                                \
    VKD_EXPORT(NAME##_##S)

#define KERNELS(T, S)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256, 1)                                                             \
        attention_##S(const T* q, const T* kv, const T* bias, T* out, vkd::Sum<T>* logs, SIZES) {                    \
        vkd::attention<T>(q, kv, bias, out, logs, OWN_SIZES);                                                        \
    }                                                                                                                \
    VKD_EXPORT(attention_##S)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                                                \
        attention_means_##S(const T* out, const T* grad, vkd::Sum<T>* means, unsigned rows, unsigned dim) {          \
        vkd::attention_means<T>(out, grad, means, rows, dim);                                                        \
    }                                                                                                                \
    VKD_EXPORT(attention_means_##S)                                                                                  \
    BACKWARD(attention_queries, (256), T, S)                                                                         \
    BACKWARD(attention_keys, (256), T, S)                                                                            \
    BACKWARD(attention_bias, (256, 1), T, S)

VKD_EACH_FLOAT(KERNELS)
