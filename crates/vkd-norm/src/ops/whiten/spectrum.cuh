// Eigenvectors of a covariance, by Jacobi's rotations from one side (Veselić and Hari, Numer. Math. 56, 1989).
//
// Rows of the inverse Cholesky factor are turned in pairs until all are orthogonal. They then are eigenvectors, each over the root
// of its eigenvalue: any two whitenings differ by a rotation from the left. A step turns d / 2 pairs that share no row, a block
// each, and d - 1 steps are a sweep, which meets every pair once. Nobody waits for the host to hear that all is done: the number
// of sweeps is fixed, and those after the last rotation turn nothing.
#pragma once
#include "shrink.cuh"

namespace vkd {

// What a block has done in a sweep: nothing, turned a pair, turned one by more than what the next sweep squares away.
constexpr unsigned IDLE = 0, TURNED = 1, FAR = 2;
constexpr double SMALL_TURN = 1e-8;

// Least gap of eigenvalues for PCA's gradient, as a share of sqrt(value * largest); as on the CPU.
constexpr double EIGENGAP = 1e-9;

struct Most {
    __device__ __forceinline__ unsigned operator()(unsigned a, unsigned b) const { return a > b ? a : b; }
};
struct Least {
    __device__ __forceinline__ unsigned operator()(unsigned a, unsigned b) const { return a < b ? a : b; }
};

// The most that a block did in a sweep of d rows. All threads must come here.
__device__ __forceinline__ unsigned most_done(const unsigned* done, unsigned d) {
    unsigned most = IDLE;
    for (unsigned i = threadIdx.x; i < (d + 1) / 2; i += blockDim.x) most = Most()(most, done[i]);
    return over_block(most, IDLE, Most());
}

// Whether a number that is not negative stands before another; NaN comes last, so that every row has a place.
__device__ __forceinline__ bool stands_before(double a, double b) { return a < b || (a == a && b != b); }

// Derivative of v^(-1/2) on the diagonal, with the gradient c.
__device__ __forceinline__ double own_slope(double c, double v) { return -0.5 * c / (v * sqrt(v)); }

}  // namespace vkd

// Step `step` of a sweep over the rows of w, in place; `before` is what the sweep before has done, and `done` what this one has.
extern "C" __global__ void __launch_bounds__(256)
    whiten_rotate(double* w, const unsigned* before, unsigned* done, unsigned d, unsigned step, double tolerance) {
    // Of an odd number of rows one has no partner.
    const unsigned i = blockIdx.x, last = (d + 1) / 2 * 2 - 1;
    // The block's own place is its first thread's alone.
    unsigned state = step == 0 || threadIdx.x != 0 ? vkd::IDLE : done[i];
    if (!before || vkd::most_done(before, d) != vkd::IDLE) {
        const unsigned a = (step + i) % last, b = i == 0 ? last : (step + last - i) % last;
        if (a < d && b < d) {
            double *x = w + size_t(a < b ? a : b) * d, *y = w + size_t(a < b ? b : a) * d;
            double xx = 0, yy = 0, xy = 0;
            for (unsigned k = threadIdx.x; k < d; k += blockDim.x) {
                const double u = x[k], v = y[k];
                xx += u * u;
                yy += v * v;
                xy += u * v;
            }
            xx = vkd::block_sum(xx);
            yy = vkd::block_sum(yy);
            xy = vkd::block_sum(xy);
            const double size = sqrt(xx) * sqrt(yy);
            // NaN turns, and leaves NaN.
            if (!(fabs(xy) <= tolerance * size)) {
                const double ratio = (yy - xx) / (2 * xy);
                const double tangent = copysign(1.0, ratio) / (fabs(ratio) + sqrt(1 + ratio * ratio));
                const double c = 1 / sqrt(1 + tangent * tangent), s = c * tangent;
                for (unsigned k = threadIdx.x; k < d; k += blockDim.x) {
                    const double u = x[k], v = y[k];
                    x[k] = c * u - s * v;
                    y[k] = s * u + c * v;
                }
                const unsigned turned = fabs(xy) > vkd::SMALL_TURN * size ? vkd::FAR : vkd::TURNED;
                state = turned > state ? turned : state;
            }
        }
    }
    if (threadIdx.x == 0) done[i] = state;
}
VKD_EXPORT(whiten_rotate)

// Eigenvectors as rows, by falling eigenvalue and each with its entry of largest size positive; in `values` the eigenvalues of the
// covariance and then those of the shrunk one, v; and in `scaled` the vectors over a root of v: the square root for PCA, the
// fourth for ZCA. `lengths` are the squared lengths of the rows of w. A block for each row. NaN where the sweeps were too few.
extern "C" __global__ void __launch_bounds__(256)
    whiten_sorted(const double* w, const double* lengths, const unsigned* done, const double* unit, const double* state,
                  double* vectors, double* values, double* scaled, unsigned d, unsigned principal) {
    const unsigned i = blockIdx.x;
    const double* row = w + size_t(i) * d;
    const double own = lengths[i], length = sqrt(own);
    unsigned place = 0, first = d;
    double largest = 0;
    for (unsigned j = threadIdx.x; j < d; j += blockDim.x) {
        const bool earlier = vkd::stands_before(lengths[j], own) || (!vkd::stands_before(own, lengths[j]) && j < i);
        place += earlier ? 1 : 0;
        largest = vkd::larger(largest, fabs(row[j]));
    }
    place = vkd::over_block(place, 0u, vkd::Add());
    largest = vkd::over_block(largest, 0.0, vkd::Larger());
    for (unsigned j = threadIdx.x; j < d; j += blockDim.x)
        if (fabs(row[j]) == largest) first = vkd::Least()(first, j);
    first = vkd::over_block(first, d, vkd::Least());
    const bool done_all = vkd::most_done(done, d) != vkd::FAR;
    const bool spread = unit[vkd::LIVE] != 0, live = state[vkd::LIVE] != 0;
    double value = spread ? state[vkd::TRACE] * (1 / own - unit[vkd::RIDGE]) : 0.0;
    value = value < 0 ? 0.0 : value;
    const double shrunk = state[vkd::KEEP] * value + state[vkd::RIDGE];
    const double root = principal ? sqrt(shrunk) : sqrt(sqrt(shrunk));
    const double sign = !done_all ? nan("") : first < d && row[first] < 0 ? -1.0 : 1.0;
    for (unsigned j = threadIdx.x; j < d; j += blockDim.x) {
        // Nothing spread: any basis does.
        const double entry = spread ? sign * (row[j] / length) : i == j ? 1.0 : 0.0;
        vectors[size_t(place) * d + j] = entry;
        scaled[size_t(place) * d + j] = live ? entry / root : 0.0;
    }
    if (threadIdx.x == 0) {
        values[place] = value;
        values[d + place] = shrunk;
    }
}
VKD_EXPORT(whiten_sorted)

// The gradient of the covariance in the basis of its eigenvectors: the shrunk one's times what is kept of it and, for PCA, that of the
// vectors' turning. With W's gradient B, `c` is A B Aᵀ for ZCA and A Bᵀ for PCA, with the vectors A.
extern "C" __global__ void __launch_bounds__(256)
    whiten_core(const double* c, const double* values, const double* state, double* core, unsigned d, unsigned principal) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= size_t(d) * d) return;
    const unsigned i = at / d, j = at % d;
    const double own = c[at], other = c[size_t(j) * d + i], keep = state[vkd::KEEP];
    const double v = values[d + i], p = sqrt(v), q = sqrt(values[d + j]);
    double out;
    if (state[vkd::LIVE] == 0) {
        out = 0;
    } else if (i == j) {
        out = keep * vkd::own_slope(own, v);
    } else if (!principal) {
        // Divided differences of v^(-1/2), which stay defined where eigenvalues meet.
        out = -keep * 0.5 * (own + other) / (p * q * (p + q));
    } else {
        const double high = values[i < j ? i : j], low = values[i < j ? j : i];
        const bool apart = high - low > vkd::EIGENGAP * sqrt(high) * sqrt(values[0]);
        // Components that are no function of the rows have no gradient.
        out = apart ? 0.5 * (own / q - other / p) / (values[j] - values[i]) : nan("");
    }
    core[at] = out;
}
VKD_EXPORT(whiten_core)

// `turn` from the diagonal of `c` as `whiten_core` takes it. By one block.
extern "C" __global__ void __launch_bounds__(256)
    whiten_core_turn(const double* c, const double* values, const double* state, double* turn, unsigned d) {
    double trace = 0, along = 0;
    if (state[vkd::LIVE] != 0) {
        for (unsigned i = threadIdx.x; i < d; i += blockDim.x) {
            const double slope = vkd::own_slope(c[size_t(i) * d + i], values[d + i]);
            trace += slope;
            along += slope * values[i];
        }
    }
    trace = vkd::block_sum(trace);
    along = vkd::block_sum(along);
    if (threadIdx.x == 0) vkd::turn_of(trace, along, state, turn);
}
VKD_EXPORT(whiten_core_turn)
