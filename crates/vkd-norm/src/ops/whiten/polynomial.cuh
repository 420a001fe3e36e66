// S^(-1/2) by coupled Newton-Schulz iterations: what surrounds the products.
#pragma once
#include "shrink.cuh"

// The shrunk covariance over its trace, its diagonal lifted by `floor`, which is of the size of its own rounding. Nothing spread:
// the identity.
extern "C" __global__ void __launch_bounds__(256)
    whiten_scaled(const double* squares, const double* state, double* y, unsigned d, double factor, double floor) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= size_t(d) * d) return;
    const bool diagonal = at / d == at % d;
    if (state[vkd::LIVE] == 0) {
        y[at] = diagonal ? 1.0 : 0.0;
        return;
    }
    double own = state[vkd::KEEP] * (factor * squares[at]);
    if (diagonal) own += state[vkd::RIDGE];
    own /= state[vkd::SHRUNK_TRACE];
    y[at] = diagonal ? own + floor : own;
}
VKD_EXPORT(whiten_scaled)

// (3 I - x) / 2
extern "C" __global__ void __launch_bounds__(256) whiten_newton(const double* x, double* out, unsigned d) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= size_t(d) * d) return;
    out[at] = (at / d == at % d ? 1.5 : 0.0) - 0.5 * x[at];
}
VKD_EXPORT(whiten_newton)

// The symmetric part over the root of the trace, and over the trace where `again`. Nothing spread: zero.
extern "C" __global__ void __launch_bounds__(256)
    whiten_fold(const double* z, const double* state, double* out, unsigned d, unsigned again) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= size_t(d) * d) return;
    const double t = state[vkd::SHRUNK_TRACE], own = 0.5 * (z[at] + z[at % d * d + at / d]) / sqrt(t);
    out[at] = state[vkd::LIVE] == 0 ? 0.0 : again ? own / t : own;
}
VKD_EXPORT(whiten_fold)

// `turn` of the gradient `x` + c I of the shrunk covariance, with what the trace's own way to W gives it: c = -(<E, W> / 2 + <x, S'>) / t.
// `parts` sum to <x, S> and `others` to <E, W>. By one block.
extern "C" __global__ void __launch_bounds__(256)
    whiten_trace_turn(const double* x, const double* parts, const double* others, const double* state, double* turn, unsigned d,
                      unsigned count) {
    double trace = 0, along = 0, other = 0;
    for (unsigned i = threadIdx.x; i < d; i += blockDim.x) trace += x[size_t(i) * d + i];
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        along += parts[i];
        other += others[i];
    }
    trace = vkd::block_sum(trace);
    along = vkd::block_sum(along);
    other = vkd::block_sum(other);
    if (threadIdx.x != 0) return;
    const double shrunk = state[vkd::KEEP] * along + state[vkd::RIDGE] * trace;
    const double c = state[vkd::LIVE] == 0 ? 0.0 : -(0.5 * other + shrunk) / state[vkd::SHRUNK_TRACE];
    vkd::turn_of(trace + c * d, along + c * state[vkd::TRACE], state, turn);
    turn[vkd::ON_DIAGONAL] += state[vkd::KEEP] * c;
}
VKD_EXPORT(whiten_trace_turn)
