//! What a covariance spans: Cholesky factors, with pivoting where it is singular.
//!
//! Pivots are judged as shares of their channel's own variance, so that channels of very different size don't disturb
//! each other.

use super::linalg::cholesky;
use faer::Mat;

/// A pivot whose share of the channel's variance is within the rounding of the covariance is no pivot.
pub(super) fn pivot_floor(count: f64, channels: usize) -> f64 {
    4. * (count + channels as f64) * f64::EPSILON
}

/// The pivot that stopped a factorisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct SmallPivot {
    /// Its channel.
    pub(super) index: usize,
    /// Its share of the channel's variance.
    pub(super) share: f64,
}

/// Below this share a pivot may be rounding that elimination in the given order has magnified: pivoting then decides.
const SUSPECT: f64 = 1e-8;

/// The lower Cholesky factor of a matrix that is positive definite to working precision; `rank` is known to be no less
/// than its rank.
pub(super) fn full(s: &Mat<f64>, floor: f64, rank: usize) -> Option<Mat<f64>> {
    let d = s.nrows();
    if rank < d {
        return None;
    }
    let factor = cholesky(s)?;
    let share = smallest(s, &factor).share;
    let definite = share > SUSPECT || (share > floor && pivoted(s, floor, d).0.len() == d);
    definite.then_some(factor)
}

/// The smallest pivot of a matrix that has no such factor.
#[cold]
pub(super) fn small_pivot(s: &Mat<f64>, floor: f64) -> SmallPivot {
    match cholesky(s) {
        Some(factor) => smallest(s, &factor),
        None => first_bad_pivot(s, floor),
    }
}

fn smallest(s: &Mat<f64>, factor: &Mat<f64>) -> SmallPivot {
    let mut smallest = SmallPivot { index: 0, share: f64::INFINITY };
    for j in 0..s.nrows() {
        let (pivot, variance) = (factor[(j, j)] * factor[(j, j)], s[(j, j)]);
        let share = if variance > 0. { pivot / variance } else { 0. };
        if !(share >= smallest.share) {
            smallest = SmallPivot { index: j, share };
        }
    }
    smallest
}

/// The first pivot at or under the floor, by plain elimination.
fn first_bad_pivot(s: &Mat<f64>, floor: f64) -> SmallPivot {
    let d = s.nrows();
    let mut left = s.clone();
    for j in 0..d {
        let (pivot, variance) = (left[(j, j)], s[(j, j)]);
        if !(pivot > floor * variance) {
            let share = if variance > 0. { pivot / variance } else { 0. };
            return SmallPivot { index: j, share };
        }
        for c in j + 1..d {
            let f = left[(c, j)] / pivot;
            for r in c..d {
                let step = f * left[(r, j)];
                left[(r, c)] -= step;
            }
        }
    }
    // Rounding let elimination pass where the blocked factorisation stopped: the last channel is the tightest.
    SmallPivot { index: d - 1, share: 0. }
}

/// Channels that span `s`, in order of pivoting, at most `rank` of them, and `L` (`d x r`) with `s = L Lᵀ` up to the
/// floor.
pub(super) fn pivoted(s: &Mat<f64>, floor: f64, rank: usize) -> (Vec<usize>, Mat<f64>) {
    let d = s.nrows();
    let mut left: Vec<f64> = (0..d).map(|i| s[(i, i)]).collect();
    let (mut order, mut columns) = (Vec::new(), Vec::<Vec<f64>>::new());
    let mut chosen = vec![false; d];
    while order.len() < rank {
        let mut best = (0, floor);
        for (i, &rest) in left.iter().enumerate() {
            let variance = s[(i, i)];
            let share = if variance > 0. { rest / variance } else { 0. };
            if share > best.1 && !chosen[i] {
                best = (i, share);
            }
        }
        let (pivot, share) = best;
        if share <= floor {
            break;
        }
        let mut column: Vec<f64> = s.col(pivot).iter().copied().collect();
        for earlier in &columns {
            let weight = earlier[pivot];
            column.iter_mut().zip(earlier).for_each(|(x, e)| *x -= weight * e);
        }
        let root = left[pivot].sqrt();
        for (i, x) in column.iter_mut().enumerate() {
            // Channels that were chosen before are spanned already.
            *x = if chosen[i] { 0. } else { *x / root };
            left[i] -= *x * *x;
        }
        column[pivot] = root;
        chosen[pivot] = true;
        order.push(pivot);
        columns.push(column);
    }
    let factor = Mat::from_fn(d, columns.len(), |i, j| columns[j][i]);
    (order, factor)
}

/// Independent channels of `spans`, ascending, and the Cholesky factor of `s` on them.
pub(super) fn independent(
    spans: &Mat<f64>,
    s: &Mat<f64>,
    floor: f64,
    rank: usize,
) -> (Vec<usize>, Mat<f64>) {
    let mut floor = floor;
    loop {
        let (mut kept, _) = pivoted(spans, floor, rank);
        if kept.is_empty() {
            return (kept, Mat::zeros(0, 0));
        }
        kept.sort_unstable();
        let part = Mat::from_fn(kept.len(), kept.len(), |i, j| s[(kept[i], kept[j])]);
        // In another order a pivot at the floor may fall under zero: then it is not kept after all.
        match cholesky(&part) {
            Some(factor) => return (kept, factor),
            None => floor *= 16.,
        }
    }
}
