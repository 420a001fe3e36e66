//! Softmax of the rows of a block, and its gradient, in vector code.
//!
//! Sums and maxima run in a fixed number of lanes: vector instructions for the compiler, the same bits on every machine.

use crate::ops::Real;
use vkd_norm::lanes::vectorized;

const LANES: usize = 16;

/// `f` folded over a row in lanes and then over the lanes.
#[inline(always)]
fn fold<T: Real>(row: &[T], start: T, f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [start; LANES];
    let whole = row.chunks_exact(LANES);
    let rest = whole.remainder();
    for chunk in whole {
        for i in 0..LANES {
            lanes[i] = f(lanes[i], chunk[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, *x);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum of the products of two rows, in lanes.
#[inline(always)]
fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::zero(); LANES];
    let (whole_a, whole_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (rest_a, rest_b) = (whole_a.remainder(), whole_b.remainder());
    for (a, b) in whole_a.zip(whole_b) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(rest_a).zip(rest_b) {
        *lane += *a * *b;
    }
    fold(&lanes, T::zero(), |x, y| x + y)
}

/// `softmax(scale · row + bias)` of each row. The bias comes with the step from row to row.
pub(super) fn softmax<T: Real>(
    values: &mut [T],
    keys: usize,
    scale: T,
    bias: Option<(&[T], usize)>,
) {
    vectorized(
        #[inline(always)]
        || {
            for (at, row) in values.chunks_exact_mut(keys).enumerate() {
                match bias {
                    Some((bias, step)) => {
                        let bias = &bias[at * step..][..keys];
                        for (x, b) in row.iter_mut().zip(bias) {
                            *x = *x * scale + *b;
                        }
                    }
                    None => {
                        for x in row.iter_mut() {
                            *x *= scale;
                        }
                    }
                }
                let top = fold(row, T::neg_infinity(), |m, x| if x > m { x } else { m });
                for x in row.iter_mut() {
                    *x = (*x - top).exponential();
                }
                let part = fold(row, T::zero(), |x, y| x + y).recip();
                for x in row.iter_mut() {
                    *x *= part;
                }
            }
        },
    );
}

/// `dp` becomes `scale · P∘(dP − rowsum(P∘dP))`.
pub(super) fn softmax_backward<T: Real>(p: &[T], dp: &mut [T], keys: usize, scale: T) {
    vectorized(
        #[inline(always)]
        || {
            for (p, dp) in p.chunks_exact(keys).zip(dp.chunks_exact_mut(keys)) {
                let mean = dot(p, dp);
                for (d, p) in dp.iter_mut().zip(p) {
                    *d = *p * (*d - mean) * scale;
                }
            }
        },
    );
}
