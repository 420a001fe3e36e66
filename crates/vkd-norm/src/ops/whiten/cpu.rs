//! Cholesky whitening of a `rows x channels` matrix in f64.
//!
//! A row-major `N x d` slice is a column-major `d x N` matrix: everything below works on that transpose, so that
//! nothing is copied and the triangular solves run in place.

use super::{NotPositiveDefinite, pivot_floor};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Accum, Mat, MatMut, MatRef, Par};

/// Sizes and shrinkage of one whitening.
#[derive(Clone, Copy)]
pub(super) struct Problem {
    pub(super) rows: usize,
    pub(super) channels: usize,
    pub(super) eps: f64,
}

/// What can stop the factorisation.
pub(super) enum Failure {
    NotFinite { channel: usize },
    NotPositiveDefinite(NotPositiveDefinite),
}

impl Problem {
    /// The whitened rows.
    pub(super) fn forward(&self, xs: Vec<f64>) -> Result<Vec<f64>, Failure> {
        Ok(self.whiten(xs)?.0)
    }

    /// Gradient of the input from input and incoming gradient.
    ///
    /// With `A = Gᵀ Y` and `K` the symmetric matrix that has `A`'s lower triangle, the chain through triangular
    /// solve, Cholesky factor and covariance collapses to `(G - (1 - eps) / (N - 1) Y K) L⁻¹`, centred.
    pub(super) fn backward(&self, xs: Vec<f64>, mut grad: Vec<f64>) -> Result<Vec<f64>, Failure> {
        let (ys, factor) = self.whiten(xs)?;
        let (n, d) = (self.rows, self.channels);
        let y = MatRef::from_column_major_slice(&ys, d, n);
        let mut k = Mat::<f64>::zeros(d, d);
        let g = MatMut::from_column_major_slice_mut(&mut grad, d, n);
        matmul(k.as_mut(), Accum::Replace, g.as_ref(), y.transpose(), 1., Par::Seq);
        for j in 0..d {
            for i in j + 1..d {
                k[(j, i)] = k[(i, j)];
            }
        }
        let mut g = g;
        let weight = -(1. - self.eps) / (n - 1) as f64;
        matmul(g.as_mut(), Accum::Add, k.as_ref(), y, weight, Par::Seq);
        solve_upper_triangular_in_place(factor.as_ref().transpose(), g, Par::Seq);
        centre(&mut grad, d);
        Ok(grad)
    }

    fn whiten(&self, mut xs: Vec<f64>) -> Result<(Vec<f64>, Mat<f64>), Failure> {
        let (n, d) = (self.rows, self.channels);
        centre(&mut xs, d);
        let mut covariance = Mat::<f64>::zeros(d, d);
        let x = MatRef::from_column_major_slice(&xs, d, n);
        let weight = (1. - self.eps) / (n - 1) as f64;
        matmul(covariance.as_mut(), Accum::Replace, x, x.transpose(), weight, Par::Seq);
        for j in 0..d {
            covariance[(j, j)] += self.eps;
        }
        let factor = self.factor(covariance)?;
        let x = MatMut::from_column_major_slice_mut(&mut xs, d, n);
        solve_lower_triangular_in_place(factor.as_ref(), x, Par::Seq);
        Ok((xs, factor))
    }

    /// The lower Cholesky factor; its upper triangle is left as it falls.
    fn factor(&self, covariance: Mat<f64>) -> Result<Mat<f64>, Failure> {
        let d = self.channels;
        if let Some(channel) = (0..d).find(|&j| !covariance[(j, j)].is_finite()) {
            return Err(Failure::NotFinite { channel });
        }
        let mut factor = covariance.clone();
        let scratch = cholesky_in_place_scratch::<f64>(d, Par::Seq, Default::default());
        let mut memory = MemBuffer::new(scratch);
        let done = cholesky_in_place(
            factor.as_mut(),
            Default::default(),
            Par::Seq,
            MemStack::new(&mut memory),
            Default::default(),
        );
        // What is left of channel j after the channels before it, as a share of its variance.
        let floor = pivot_floor(self.rows, d);
        let mut smallest = (0, f64::INFINITY);
        if done.is_ok() {
            for j in 0..d {
                let variance = covariance[(j, j)];
                let pivot = factor[(j, j)] * factor[(j, j)];
                let share = if variance > 0. { pivot / variance } else { 0. };
                if share < smallest.1 {
                    smallest = (j, share);
                }
            }
            if smallest.1 > floor {
                return Ok(factor);
            }
        } else {
            smallest = first_bad_pivot(covariance, floor);
        }
        Err(Failure::NotPositiveDefinite(NotPositiveDefinite {
            rows: self.rows,
            channels: d,
            eps: self.eps,
            index: smallest.0,
            pivot: smallest.1,
        }))
    }
}

/// The first pivot at or under the floor and its share of the channel's variance, by plain elimination.
#[cold]
fn first_bad_pivot(covariance: Mat<f64>, floor: f64) -> (usize, f64) {
    let d = covariance.nrows();
    let mut s = covariance.clone();
    for j in 0..d {
        let pivot = s[(j, j)];
        let variance = covariance[(j, j)];
        // NaN can't come here: the diagonal is finite, and so is what it bounds.
        if pivot <= floor * variance {
            return (j, if variance > 0. { pivot / variance } else { pivot });
        }
        for c in j + 1..d {
            let f = s[(c, j)] / pivot;
            for r in c..d {
                let step = f * s[(r, j)];
                s[(r, c)] -= step;
            }
        }
    }
    // Rounding let elimination pass where the blocked factorisation stopped: the last channel is the tightest.
    (d - 1, 0.)
}

/// Subtracts the mean of every column of row-major `xs`, in two passes.
fn centre(xs: &mut [f64], channels: usize) {
    let rows = (xs.len() / channels) as f64;
    for _ in 0..2 {
        let mut mean = vec![0f64; channels];
        for row in xs.chunks_exact(channels) {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += x);
        }
        mean.iter_mut().for_each(|m| *m /= rows);
        for row in xs.chunks_exact_mut(channels) {
            row.iter_mut().zip(&mean).for_each(|(x, m)| *x -= m);
        }
    }
}
