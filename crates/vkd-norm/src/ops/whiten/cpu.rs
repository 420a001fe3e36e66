//! Statistics of rows and products with them, in f64.
//!
//! A row-major `N x d` slice is a column-major `d x N` matrix: everything below works on that transpose, so that
//! nothing is copied. Passes and products run over blocks of rows that do not depend on the number of threads, and
//! sums of blocks are added in order, so that no bit does either.

use super::linalg::{block_product, lower_product, outer};
use crate::dense::Real;
use faer::linalg::matmul::triangular::BlockStructure;
use faer::{Accum, Mat, MatMut, MatRef};
use rayon::prelude::*;

/// Rows of one block: a block of 512 channels in f64 fits a second-level cache.
pub(super) const BLOCK: usize = 128;

/// Rows less their mean.
pub(crate) struct Centred {
    pub(crate) mean: Vec<f64>,
    values: Vec<f64>,
}

impl Centred {
    /// Two passes for the mean, so that what is left of it is small beside the deviations.
    pub(crate) fn new<T: Real>(xs: &[T], channels: usize) -> Self {
        let first = mean(xs, channels, &vec![0.; channels]);
        let rest = mean(xs, channels, &first);
        let mut values = vec![0f64; xs.len()];
        let blocks = values.par_chunks_mut(BLOCK * channels).zip(xs.par_chunks(BLOCK * channels));
        blocks.for_each(|(values, xs)| {
            let rows = values.chunks_exact_mut(channels).zip(xs.chunks_exact(channels));
            for (value, x) in rows {
                for (((v, x), m), r) in value.iter_mut().zip(x).zip(&first).zip(&rest) {
                    // Apart, because their sum would be rounded to the size of the mean.
                    *v = (x.wide() - m) - r;
                }
            }
        });
        let mean = first.iter().zip(&rest).map(|(m, r)| m + r).collect();
        Self { mean, values }
    }

    /// Rows less a given mean.
    pub(super) fn about<T: Real>(xs: &[T], mean: &[f64]) -> Self {
        let (d, mut values) = (mean.len(), vec![0f64; xs.len()]);
        let blocks = values.par_chunks_mut(BLOCK * d).zip(xs.par_chunks(BLOCK * d));
        blocks.for_each(|(values, xs)| {
            for (value, x) in values.chunks_exact_mut(d).zip(xs.chunks_exact(d)) {
                value.iter_mut().zip(x).zip(mean).for_each(|((v, x), m)| *v = x.wide() - m);
            }
        });
        Self { mean: mean.to_vec(), values }
    }

    fn matrix(&self) -> MatRef<'_, f64> {
        let d = self.mean.len();
        MatRef::from_column_major_slice(&self.values, d, self.values.len() / d)
    }

    /// `Σ x xᵀ`.
    pub(crate) fn scatter_matrix(&self) -> Mat<f64> {
        outer(self.matrix())
    }

    /// `Σ ‖x‖² x`, then `Σ ‖x‖⁴` as one more entry.
    pub(crate) fn higher(&self) -> Vec<f64> {
        let d = self.mean.len();
        sums(&self.values, d, |row, sum| {
            let square = row.iter().map(|x| x * x).sum::<f64>();
            sum.iter_mut().zip(row).for_each(|(s, x)| *s += square * x);
            sum[d] += square * square;
        })
    }

    /// `Σ g xᵀ` for rows `g` beside the rows `x`; for a triangular shape only its triangle.
    pub(super) fn beside(&self, xs: &Self, shape: BlockStructure) -> Mat<f64> {
        let xs = xs.matrix().transpose();
        match shape {
            BlockStructure::Rectangular => super::linalg::product(self.matrix(), xs),
            _ => lower_product(self.matrix(), xs),
        }
    }

    /// `W x` for every row `x`.
    pub(super) fn through<T: Real>(&self, w: &Mat<f64>, shape: BlockStructure) -> Vec<T> {
        self.rows(|_, block, into| block_product(into, Accum::Replace, w.as_ref(), shape, block))
    }

    /// `Wᵀ x` for every row `x`.
    pub(super) fn through_transposed<T: Real>(
        &self,
        w: &Mat<f64>,
        shape: BlockStructure,
    ) -> Vec<T> {
        let (w, shape) = (w.transpose(), shape.transpose());
        self.rows(|_, block, into| block_product(into, Accum::Replace, w, shape, block))
    }

    /// `Wᵀ g + S x + weight (‖x‖² x - mean of that)` for rows `g` of `self` and `x`.
    pub(super) fn back<T: Real>(
        &self,
        w: &Mat<f64>,
        shape: BlockStructure,
        xs: &Self,
        s: &Mat<f64>,
        cubic: Option<(f64, Vec<f64>)>,
    ) -> Vec<T> {
        let full = BlockStructure::Rectangular;
        let x = xs.matrix();
        self.rows(|at, block, mut into| {
            let x = x.subcols(at, block.ncols());
            block_product(into.as_mut(), Accum::Replace, w.transpose(), shape.transpose(), block);
            block_product(into.as_mut(), Accum::Add, s.as_ref(), full, x);
            if let Some((weight, mean)) = &cubic {
                for j in 0..x.ncols() {
                    let square = x.col(j).iter().map(|x| x * x).sum::<f64>();
                    let terms = x.col(j).iter().zip(mean);
                    for (to, (x, m)) in into.as_mut().col_mut(j).iter_mut().zip(terms) {
                        *to += weight * (square * x - m);
                    }
                }
            }
        })
    }

    /// Maps blocks of rows; `f` gets the first row, the block and where to put what becomes of it.
    fn rows<T: Real>(
        &self,
        f: impl Fn(usize, MatRef<'_, f64>, MatMut<'_, f64>) + Send + Sync,
    ) -> Vec<T> {
        let d = self.mean.len();
        let mut out = vec![T::narrow(0.); self.values.len()];
        let blocks = out.par_chunks_mut(BLOCK * d).zip(self.values.par_chunks(BLOCK * d));
        blocks.enumerate().for_each_init(
            || vec![0f64; BLOCK * d],
            |scratch, (index, (out, values))| {
                let rows = values.len() / d;
                let scratch = &mut scratch[..values.len()];
                let block = MatRef::from_column_major_slice(values, d, rows);
                f(index * BLOCK, block, MatMut::from_column_major_slice_mut(scratch, d, rows));
                out.iter_mut().zip(scratch).for_each(|(o, s)| *o = T::narrow(*s));
            },
        );
        out
    }
}

/// Mean of the rows less a given row.
pub(super) fn mean<T: Real>(xs: &[T], channels: usize, less: &[f64]) -> Vec<f64> {
    let mut mean = sums(xs, channels, |row, sum| {
        for ((s, x), m) in sum.iter_mut().zip(row).zip(less) {
            *s += x.wide() - m;
        }
    });
    mean.truncate(channels);
    mean.iter_mut().for_each(|m| *m /= (xs.len() / channels) as f64);
    mean
}

/// Sums over rows, one more than there are channels: blocks in parallel, then in order.
fn sums<T: Real>(
    xs: &[T],
    channels: usize,
    add: impl Fn(&[T], &mut [f64]) + Send + Sync,
) -> Vec<f64> {
    let parts: Vec<Vec<f64>> = xs
        .par_chunks(BLOCK * channels)
        .map(|block| {
            let mut sum = vec![0f64; channels + 1];
            block.chunks_exact(channels).for_each(|row| add(row, &mut sum));
            sum
        })
        .collect();
    let mut total = vec![0f64; channels + 1];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
    }
    total
}
