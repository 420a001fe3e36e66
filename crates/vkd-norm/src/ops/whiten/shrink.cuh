// How a covariance is shrunk, (1 - rho) S + ridge I with S = factor `squares`, and what that does to a gradient.
//
// Nothing of it comes to the host: it stands in `state`, of ten numbers.
#pragma once
#include "common.cuh"

namespace vkd {

// Places in `state`. LIVE is 0 where the shrunk covariance has no trace, else 1; SHARE is the share of the trace that the ridge
// has; BY_.. are the derivatives of rho by tr S², tr S and the sum of fourth powers; TRACE is that of S.
constexpr unsigned RIDGE = 0, LIVE = 1, KEEP = 2, SHARE = 3, TARGET = 4, BY_SQUARES = 5, BY_TRACE = 6, BY_FOURTH = 7, TRACE = 8,
                   SHRUNK_TRACE = 9;

// Places in `turn`: what the diagonal of the covariance's gradient gains, the factor of S in it, and that of the fourth powers.
constexpr unsigned ON_DIAGONAL = 0, OF_COVARIANCE = 1, OF_FOURTH = 2;

// Where rho comes from.
constexpr unsigned GIVEN = 0, OAS = 1;

// Below this share of tr S² the covariance is a multiple of the identity to rounding.
constexpr double SPHERICAL = 1e-13;

// rho and its derivatives from t = tr S, q = tr S² and the sum of fourth powers of n centred rows. An estimate outside of its range
// is cut off, and no longer moves; one under `least` would not lift all directions over the rounding of the others.
__device__ __forceinline__ double estimate(bool oas, double n, double d, double t, double q, double fourth, double least,
                                           double* state) {
    const double spread = q - t * t / d;
    double rho = 1, by_squares = 0, by_trace = 0, by_fourth = 0;
    if (spread > SPHERICAL * q) {
        if (oas) {
            const double a = 1 - 2 / d, below = (n + 1 - 2 / d) * spread;
            rho = (a * q + t * t) / below;
            by_squares = a / below - rho / spread;
            by_trace = 2 * t / below + rho * 2 * t / (d * spread);
        } else {
            // Of the biased covariance, k S.
            const double k = (n - 1) / n, biased = k * k * spread;
            rho = (fourth / n - k * k * q) / (n * biased);
            by_squares = -(k * k / biased) * (1 / n + rho);
            by_trace = rho * k * k * 2 * t / (d * biased);
            by_fourth = 1 / (n * n * biased);
        }
    }
    const bool cut = rho >= 1 || rho <= least;
    if (cut) rho = rho >= 1 ? 1 : least;
    state[BY_SQUARES] = cut ? 0 : by_squares;
    state[BY_TRACE] = cut ? 0 : by_trace;
    state[BY_FOURTH] = cut ? 0 : by_fourth;
    // What is an error on the CPU: fourth powers that left f64 on either side.
    const bool lost = t > 0 && (q == 0 || (!oas && fourth == 0));
    return lost || !finite(q) || !finite(fourth) ? nan("") : rho;
}

// What the diagonal and the rows gain, from trace and product with S of the gradient of the shrunk covariance.
__device__ __forceinline__ void turn_of(double trace, double along, const double* state, double* turn) {
    const double of_rho = state[TARGET] * trace - along;
    turn[ON_DIAGONAL] = of_rho * state[BY_TRACE] + state[SHARE] * trace;
    turn[OF_COVARIANCE] = 2 * of_rho * state[BY_SQUARES];
    turn[OF_FOURTH] = 4 * of_rho * state[BY_FOURTH];
}

}  // namespace vkd

// Sums of (of_a a)(of_b b) over what each block walks over.
extern "C" __global__ void __launch_bounds__(256)
    whiten_dot(const double* a, const double* b, double* parts, unsigned count, double of_a, double of_b) {
    double sum = 0;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x)
        sum += (of_a * a[i]) * (of_b * b[i]);
    sum = vkd::block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}
VKD_EXPORT(whiten_dot)

// The squared length of each row, by a block each.
extern "C" __global__ void __launch_bounds__(256)
    whiten_lengths(const double* centred, double* lengths, unsigned rows, unsigned d) {
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const double* x = centred + size_t(row) * d;
        double sum = 0;
        for (unsigned j = threadIdx.x; j < d; j += blockDim.x) sum += x[j] * x[j];
        sum = vkd::block_sum(sum);
        if (threadIdx.x == 0) lengths[row] = sum;
    }
}
VKD_EXPORT(whiten_lengths)

// Writes `state`, and into `unit` how S is brought to trace one and lifted by `lift`. `parts` sum to tr S² and `lengths` are the
// squared lengths of the rows, where an estimate needs them. By one block.
extern "C" __global__ void __launch_bounds__(256)
    whiten_shrink(const double* squares, const double* parts, const double* lengths, double* state, double* unit, unsigned d,
                  unsigned count, unsigned rows, unsigned kind, double factor, double rho, double level, double share, double least,
                  double lift) {
    double trace = 0, sum = 0, fourth = 0;
    for (unsigned i = threadIdx.x; i < d; i += blockDim.x) trace += squares[size_t(i) * d + i];
    trace = factor * vkd::block_sum(trace);
    if (parts)
        for (unsigned i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
    sum = vkd::block_sum(sum);
    if (lengths)
        for (unsigned i = threadIdx.x; i < rows; i += blockDim.x) fourth += lengths[i] * lengths[i];
    fourth = vkd::block_sum(fourth);
    if (threadIdx.x != 0) return;
    state[vkd::BY_SQUARES] = state[vkd::BY_TRACE] = state[vkd::BY_FOURTH] = 0;
    if (kind != vkd::GIVEN) {
        rho = vkd::estimate(kind == vkd::OAS, rows, d, trace, sum, fourth, least, state);
        share = rho / d;
    }
    state[vkd::RIDGE] = level + share * trace;
    state[vkd::KEEP] = 1 - rho;
    state[vkd::SHARE] = share;
    state[vkd::TARGET] = trace / d;
    state[vkd::TRACE] = trace;
    state[vkd::SHRUNK_TRACE] = (1 - rho) * trace + d * state[vkd::RIDGE];
    // NaN is not zero and goes on.
    state[vkd::LIVE] = state[vkd::SHRUNK_TRACE] == 0 ? 0.0 : 1.0;
    unit[vkd::RIDGE] = lift;
    unit[vkd::LIVE] = trace == 0 ? 0.0 : 1.0;
    unit[vkd::KEEP] = 1 / trace;
}
VKD_EXPORT(whiten_shrink)

// `turn` of the gradient scale `x` of the shrunk covariance; `parts` sum to its product with S, where rho moves. By one block.
extern "C" __global__ void __launch_bounds__(256)
    whiten_turn(const double* x, const double* parts, const double* state, double* turn, unsigned d, unsigned count, double scale) {
    double trace = 0, along = 0;
    for (unsigned i = threadIdx.x; i < d; i += blockDim.x) trace += x[size_t(i) * d + i];
    trace = scale * vkd::block_sum(trace);
    if (parts)
        for (unsigned i = threadIdx.x; i < count; i += blockDim.x) along += parts[i];
    along = vkd::block_sum(along);
    if (threadIdx.x == 0) vkd::turn_of(trace, along, state, turn);
}
VKD_EXPORT(whiten_turn)

// `weight` times the gradient of the covariance, of which the symmetric part of scale `x` is that of the shrunk one; or, where
// `whole`, what is left of it after the shrinkage. `squares` where rho moves.
extern "C" __global__ void __launch_bounds__(256)
    whiten_adjoint(const double* x, const double* squares, const double* state, const double* turn, double* out, unsigned d,
                   unsigned whole, double weight, double scale, double factor) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= size_t(d) * d) return;
    const size_t i = at / d, j = at % d;
    double sum = (whole ? scale : scale * state[vkd::KEEP]) * 0.5 * (x[at] + x[j * d + i]);
    if (squares) sum += turn[vkd::OF_COVARIANCE] * (factor * squares[at]);
    out[at] = weight * (i == j ? sum + turn[vkd::ON_DIAGONAL] : sum);
}
VKD_EXPORT(whiten_adjoint)

// What fourth powers add to the gradient of the rows, weight (|x|² x - its mean over the rows), on `product`; `sums` are of |x|² x.
extern "C" __global__ void __launch_bounds__(256)
    whiten_fourth(const double* product, const double* centred, const double* lengths, const double* sums, const double* turn,
                  double* out, unsigned rows, unsigned d) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= size_t(rows) * d) return;
    const unsigned i = at / d, j = at % d;
    out[at] = product[at] + turn[vkd::OF_FOURTH] * (lengths[i] * centred[at] - sums[j] / rows);
}
VKD_EXPORT(whiten_fourth)
