//! Products and factorisations over faer, in f64.
//!
//! Large products share their rows and columns among rayon's threads, which moves no bit: no sum is ever split. The
//! factorisations run on one thread.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::traits::RealField;
use faer::{Accum, Mat, MatMut, MatRef, Par};

/// Threads pay from a few million multiplications on.
fn par(rows: usize, inner: usize, columns: usize) -> Par {
    if rows * inner * columns < 4_000_000 { Par::Seq } else { Par::rayon(0) }
}

/// `lhs * rhs`.
pub(super) fn product(lhs: MatRef<'_, f64>, rhs: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(lhs.nrows(), rhs.ncols());
    let par = par(lhs.nrows(), lhs.ncols(), rhs.ncols());
    matmul(out.as_mut(), Accum::Replace, lhs, rhs, 1., par);
    out
}

/// The lower triangle of a square `lhs * rhs`, zero above.
pub(super) fn lower_product<T: RealField>(lhs: MatRef<'_, T>, rhs: MatRef<'_, T>) -> Mat<T> {
    let full = BlockStructure::Rectangular;
    structured(BlockStructure::TriangularLower, (lhs, full), (rhs, full))
}

/// `lhs * rhs` where parts of them, or of what is asked for, are known to be zero; square results only.
pub(super) fn structured<T: RealField>(
    shape: BlockStructure,
    lhs: (MatRef<'_, T>, BlockStructure),
    rhs: (MatRef<'_, T>, BlockStructure),
) -> Mat<T> {
    let (rows, inner, columns) = (lhs.0.nrows(), lhs.0.ncols(), rhs.0.ncols());
    let mut out = Mat::zeros(rows, columns);
    let par = par(rows, inner, columns);
    let one = T::one_impl();
    triangular::matmul(out.as_mut(), shape, Accum::Replace, lhs.0, lhs.1, rhs.0, rhs.1, one, par);
    out
}

/// `alpha (a b + c d + ..)` of square matrices.
pub(super) fn sum_of_products(alpha: f64, pairs: &[(&Mat<f64>, &Mat<f64>)]) -> Mat<f64> {
    let d = pairs.first().map_or(0, |(a, _)| a.nrows());
    let mut out = Mat::zeros(d, d);
    for (a, b) in pairs {
        matmul(out.as_mut(), Accum::Add, a.as_ref(), b.as_ref(), alpha, par(d, d, d));
    }
    out
}

/// `a aᵀ`, in full.
pub(super) fn outer(a: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = lower_product(a, a.transpose());
    mirror(&mut out);
    out
}

/// Copies the lower triangle to the upper one.
pub(super) fn mirror<T: RealField>(a: &mut Mat<T>) {
    for j in 0..a.ncols() {
        for i in 0..j {
            a[(i, j)] = a[(j, i)].clone();
        }
    }
}

/// `into (+)= lhs * rhs` on one thread, with what is known of `lhs`.
pub(super) fn block_product<T: RealField>(
    into: MatMut<'_, T>,
    accum: Accum,
    lhs: MatRef<'_, T>,
    shape: BlockStructure,
    rhs: MatRef<'_, T>,
) {
    let one = T::one_impl();
    let full = BlockStructure::Rectangular;
    if matches!(shape, BlockStructure::Rectangular) {
        matmul(into, accum, lhs, rhs, one, Par::Seq);
    } else {
        triangular::matmul(into, full, accum, lhs, shape, rhs, full, one, Par::Seq);
    }
}

/// The lower Cholesky factor, zero above; `None` where a pivot is not positive.
pub(super) fn cholesky(a: &Mat<f64>) -> Option<Mat<f64>> {
    let d = a.nrows();
    let mut factor = a.clone();
    let scratch = cholesky_in_place_scratch::<f64>(d, Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    cholesky_in_place(factor.as_mut(), Default::default(), Par::Seq, stack, Default::default())
        .ok()?;
    for j in 1..d {
        for i in 0..j {
            factor[(i, j)] = 0.;
        }
    }
    Some(factor)
}

/// The inverse of a lower triangle, zero above.
pub(super) fn invert_lower(lower: &Mat<f64>) -> Mat<f64> {
    let mut out = Mat::zeros(lower.nrows(), lower.ncols());
    invert_lower_triangular(out.as_mut(), lower.as_ref(), Par::Seq);
    out
}

/// Left singular vectors and the `r` singular values, descending, of a tall `a`: `d x r`, or completed to `d x d`.
/// `None` if they did not converge.
pub(super) fn left_singular(a: &Mat<f64>, complete: bool) -> Option<(Mat<f64>, Vec<f64>)> {
    let (d, r) = a.shape();
    let mut vectors = Mat::zeros(d, if complete { d } else { r });
    let mut values = Diag::<f64>::zeros(r);
    let u = if complete { ComputeSvdVectors::Full } else { ComputeSvdVectors::Thin };
    let v = ComputeSvdVectors::No;
    let scratch = svd_scratch::<f64>(d, r, u, v, Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    svd(
        a.as_ref(),
        values.as_mut(),
        Some(vectors.as_mut()),
        None,
        Par::Seq,
        MemStack::new(&mut memory),
        Default::default(),
    )
    .ok()?;
    Some((vectors, values.column_vector().iter().copied().collect()))
}

/// `<a, b>`.
pub(super) fn dot(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    let mut sum = 0.;
    for j in 0..a.ncols() {
        sum += a.col(j).iter().zip(b.col(j).iter()).map(|(x, y)| x * y).sum::<f64>();
    }
    sum
}

/// Sum of the diagonal.
pub(super) fn trace(a: &Mat<f64>) -> f64 {
    (0..a.nrows()).map(|i| a[(i, i)]).sum()
}

/// `(a + aᵀ) / 2`.
pub(super) fn symmetric(a: &Mat<f64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| 0.5 * (a[(i, j)] + a[(j, i)]))
}
