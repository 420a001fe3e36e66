//! Sequential products over faer: one thread per matrix, so the bits don't depend on the machine's load.

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Qr;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::traits::ComplexField;
use faer::{Accum, Mat, MatMut, MatRef, Par};

/// `lhs * rhs`.
pub(crate) fn product<T: ComplexField>(lhs: MatRef<'_, T>, rhs: MatRef<'_, T>) -> Mat<T> {
    let mut out = Mat::zeros(lhs.nrows(), rhs.ncols());
    matmul(out.as_mut(), Accum::Replace, lhs, rhs, T::one_impl(), Par::Seq);
    out
}

/// `into += alpha * lhs * rhs`.
pub(crate) fn add_product<T: ComplexField>(
    into: MatMut<'_, T>,
    alpha: T,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
) {
    matmul(into, Accum::Add, lhs, rhs, alpha, Par::Seq);
}

/// `upper^-1 * rhs`; reads the upper triangle only.
pub(crate) fn solve_upper(upper: MatRef<'_, f64>, mut rhs: Mat<f64>) -> Mat<f64> {
    solve_upper_triangular_in_place(upper, rhs.as_mut(), Par::Seq);
    rhs
}

/// `upper^-T * rhs`; reads the upper triangle only.
pub(crate) fn solve_upper_transposed(upper: MatRef<'_, f64>, mut rhs: Mat<f64>) -> Mat<f64> {
    solve_lower_triangular_in_place(upper.transpose(), rhs.as_mut(), Par::Seq);
    rhs
}

/// Largest `|qᵀq - I|`; infinite when any entry is NaN.
pub(crate) fn residual(q: MatRef<'_, f64>) -> f64 {
    let gram = product(q.transpose(), q);
    let mut worst = 0f64;
    for j in 0..gram.ncols() {
        for i in 0..gram.nrows() {
            let difference = (gram[(i, j)] - f64::from(u8::from(i == j))).abs();
            worst = if difference.is_nan() { f64::INFINITY } else { worst.max(difference) };
        }
    }
    worst
}

/// Thin QR factor with the signs that make the diagonal of `R` positive.
pub(crate) fn orthonormalize(a: MatRef<'_, f64>) -> Mat<f64> {
    let qr = Qr::new(a);
    let (mut q, r) = (qr.compute_thin_Q(), qr.thin_R());
    for j in 0..q.ncols() {
        if r[(j, j)] < 0. {
            for i in 0..q.nrows() {
                q[(i, j)] = -q[(i, j)];
            }
        }
    }
    q
}

/// Strictly upper part plus half the diagonal: the half of a symmetric matrix that belongs to a compact WY factor.
pub(crate) fn upper_half(a: &Mat<f64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| match i.cmp(&j) {
        std::cmp::Ordering::Less => a[(i, j)],
        std::cmp::Ordering::Equal => 0.5 * a[(i, j)],
        std::cmp::Ordering::Greater => 0.,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residual_never_hides_nan() {
        let mut q = Mat::<f64>::identity(4, 2);
        assert_eq!(residual(q.as_ref()), 0.);
        q[(3, 0)] = f64::NAN;
        assert_eq!(residual(q.as_ref()), f64::INFINITY);
    }
}
