//! ZCA and PCA from eigenvectors, and their adjoints.

use super::linalg::{mirror, product, symmetric};
use super::transform::{Adjoint, Failure};
use faer::Mat;

/// Least gap between neighbouring eigenvalues for PCA's gradient, as a share of `sqrt(value * largest)`.
///
/// Rounding moves an eigenvalue by about eps times that root, so that a gradient keeps about six digits at this gap.
pub(super) const EIGENGAP: f64 = 1e-9;

/// Eigenvectors that span what is kept.
pub(super) struct Spectrum {
    pub(super) principal: bool,
    /// `d x r`.
    pub(super) vectors: Mat<f64>,
    /// Eigenvalues of the shrunk covariance, descending.
    pub(super) values: Vec<f64>,
    /// Those of the covariance itself.
    pub(super) base: Vec<f64>,
}

impl Spectrum {
    /// `W`; also gives each vector its sign.
    pub(super) fn matrix(&mut self) -> Mat<f64> {
        let (d, r) = self.vectors.shape();
        for j in 0..r {
            let mut largest = 0f64;
            for x in self.vectors.col(j).iter() {
                if x.abs() > largest.abs() {
                    largest = *x;
                }
            }
            if largest < 0. {
                self.vectors.col_mut(j).iter_mut().for_each(|x| *x = -*x);
            }
        }
        if self.principal {
            return Mat::from_fn(d, d, |i, j| {
                if i < r { self.vectors[(j, i)] / self.values[i].sqrt() } else { 0. }
            });
        }
        let scaled = Mat::from_fn(d, r, |i, j| self.vectors[(i, j)] / self.values[j].sqrt().sqrt());
        let mut w = product(scaled.as_ref(), scaled.transpose());
        mirror(&mut w);
        w
    }

    pub(super) fn adjoint(&self, grad: &Mat<f64>) -> Result<Adjoint, Failure> {
        let (a, r) = (&self.vectors, self.values.len());
        // G A for the symmetric form; Gᵀ has the gradient of a component in each column for the other.
        let moved = if self.principal {
            Mat::from_fn(a.nrows(), r, |i, j| grad[(j, i)])
        } else {
            product(symmetric(grad).as_ref(), a.as_ref())
        };
        // Its part within what is kept; what lies without leans on the rest, if there is a rest.
        let within = product(a.transpose(), moved.as_ref());
        let root = |i: usize| self.values[i].sqrt();
        let mut rotation = Mat::zeros(a.nrows(), a.nrows());
        if r < a.nrows() {
            let mut lean = moved;
            lean -= product(a.as_ref(), within.as_ref());
            let weight = if self.principal { 1. } else { 2. };
            for j in 0..r {
                let by = weight / (root(j) * self.base[j]);
                lean.col_mut(j).iter_mut().for_each(|x| *x *= by);
            }
            rotation += product(lean.as_ref(), a.transpose());
        }
        let (mut scale, mut turn) = (Mat::<f64>::zeros(r, r), Mat::<f64>::zeros(r, r));
        if self.principal {
            self.check_gaps()?;
        }
        for j in 0..r {
            for i in 0..r {
                if !self.principal {
                    // Divided differences of x^(-1/2), which stay defined where eigenvalues meet.
                    let (p, q) = (root(i), root(j));
                    scale[(i, j)] = -within[(i, j)] / (p * q * (p + q));
                } else if i == j {
                    scale[(i, i)] = -0.5 * within[(i, i)] / (root(i) * self.values[i]);
                } else {
                    // Column i of `within` belongs to component i.
                    let torque = within[(i, j)] / root(j) - within[(j, i)] / root(i);
                    turn[(i, j)] = 0.5 * torque / (self.base[j] - self.base[i]);
                }
            }
        }
        let around =
            |core: &Mat<f64>| product(product(a.as_ref(), core.as_ref()).as_ref(), a.transpose());
        if self.principal {
            rotation += around(&turn);
        }
        let shrunk = symmetric(&around(&scale));
        Ok(Adjoint { shrunk, raw: Some(symmetric(&rotation)) })
    }

    fn check_gaps(&self) -> Result<(), Failure> {
        for (index, pair) in self.base.windows(2).enumerate() {
            let size = (pair[0] * self.base[0]).sqrt();
            let gap = if size > 0. { (pair[0] - pair[1]) / size } else { 0. };
            if !(gap > EIGENGAP) {
                return Err(Failure::Eigengap { index, gap, values: (pair[0], pair[1]) });
            }
        }
        Ok(())
    }
}
