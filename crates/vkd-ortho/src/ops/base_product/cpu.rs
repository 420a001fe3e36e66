//! `H = (I - V T Vᵀ) D` on row-major slices: `V` of unit reflectors, `D` of signs on the first `k` rows.
//!
//! In f64 also for f32: the rounding of two more f32 products adds to what the map's own form may leave of `|QᵀQ - I|`, and
//! together they miss the law.

use crate::linalg::{add_product, product};
use faer::{Mat, MatMut, MatRef};

/// An orthogonal matrix in compact WY form.
#[derive(Debug)]
pub(crate) struct Wy {
    v: Mat<f64>,
    t: Mat<f64>,
    signs: Vec<f64>,
}

impl Wy {
    pub(crate) fn new(v: Mat<f64>, t: Mat<f64>, signs: Vec<f64>) -> Self {
        Self { v, t, signs }
    }

    /// `H (Y - E)` for row-major `Y`, or `H Y`.
    pub(crate) fn forward(&self, mut y: Vec<f64>, less_unit: bool) -> Vec<f64> {
        for (i, (row, sign)) in y.chunks_exact_mut(self.v.ncols()).zip(&self.signs).enumerate() {
            if less_unit {
                row[i] -= 1.;
            }
            row.iter_mut().for_each(|x| *x *= sign);
        }
        self.turn(y, self.t.as_ref())
    }

    /// `Hᵀ G`.
    pub(crate) fn backward(&self, g: Vec<f64>) -> Vec<f64> {
        let mut g = self.turn(g, self.t.transpose());
        for (row, sign) in g.chunks_exact_mut(self.v.ncols()).zip(&self.signs) {
            row.iter_mut().for_each(|x| *x *= sign);
        }
        g
    }

    /// `(I - V T Vᵀ) X`.
    fn turn(&self, mut x: Vec<f64>, t: MatRef<'_, f64>) -> Vec<f64> {
        let (n, k) = self.v.shape();
        let inner = product(self.v.transpose(), MatRef::from_row_major_slice(&x, n, k));
        let inner = product(t, inner.as_ref());
        let into = MatMut::from_row_major_slice_mut(&mut x, n, k);
        add_product(into, -1., self.v.as_ref(), inner.as_ref());
        x
    }
}
