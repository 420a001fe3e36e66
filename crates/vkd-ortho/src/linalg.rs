//! Products and factorisations over faer.
//!
//! Products share their rows among rayon's threads once they are large, which moves no bit: no sum is ever split. The
//! `k x k` factorisations run on one thread.

use candle_core::WithDType;
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder;
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::linalg::{
    cholesky::llt::factor as llt, evd, lu::partial_pivoting as lu, qr::no_pivoting::factor as qr,
};
use faer::perm::PermRef;
use faer::traits::ext::ComplexFieldExt;
use faer::traits::{ComplexField, RealField};
use faer::{Accum, Conj, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

/// The two types that the maps compute in.
pub(crate) trait Real: WithDType + RealField {
    /// What a form in this type may leave of `|QᵀQ - I|`, measured in this type, before a more careful one takes over.
    ///
    /// The law is 1e-6 and 1e-13; the rest is left to the rounding of the measurement itself.
    const RESIDUAL: f64;
}

impl Real for f32 {
    const RESIDUAL: f64 = 5e-7;
}

impl Real for f64 {
    const RESIDUAL: f64 = 2e-14;
}

/// Threads pay from a few million multiplications on.
fn par(rows: usize, inner: usize, columns: usize) -> Par {
    if rows * inner * columns < 4_000_000 { Par::Seq } else { Par::rayon(0) }
}

/// `lhs * rhs`.
pub(crate) fn product<T: ComplexField>(lhs: MatRef<'_, T>, rhs: MatRef<'_, T>) -> Mat<T> {
    let mut out = Mat::zeros(lhs.nrows(), rhs.ncols());
    product_into(out.as_mut(), lhs, rhs);
    out
}

/// `into = lhs * rhs`.
pub(crate) fn product_into<T: ComplexField>(
    into: MatMut<'_, T>,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
) {
    let par = par(lhs.nrows(), lhs.ncols(), rhs.ncols());
    matmul(into, Accum::Replace, lhs, rhs, T::one_impl(), par);
}

/// `into += alpha * lhs * rhs`.
pub(crate) fn add_product<T: ComplexField>(
    into: MatMut<'_, T>,
    alpha: T,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
) {
    let par = par(lhs.nrows(), lhs.ncols(), rhs.ncols());
    matmul(into, Accum::Add, lhs, rhs, alpha, par);
}

/// `aᵀ a`, in full.
pub(crate) fn gram<T: ComplexField>(a: MatRef<'_, T>) -> Mat<T> {
    let k = a.ncols();
    let mut out = Mat::zeros(k, k);
    triangular::matmul(
        out.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Replace,
        a.transpose(),
        BlockStructure::Rectangular,
        a,
        BlockStructure::Rectangular,
        T::one_impl(),
        par(k, a.nrows(), k),
    );
    for j in 0..k {
        for i in 0..j {
            out[(i, j)] = out[(j, i)].clone();
        }
    }
    out
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

/// Entries of a block that one thread passes over; it depends on the size alone, so that threads move no bit.
///
/// What fits the nearer caches is one block: shared among threads, it would have to travel back for the product after it.
pub(crate) fn block(entries: usize) -> usize {
    if entries < 1 << 20 { entries.max(1) } else { 1 << 15 }
}

/// Sums of squares of the columns, in f64; of row `i` the first `width(i)` entries.
///
/// A long sum of positive numbers drifts by more in f32 than what is measured here.
pub(crate) fn squares<T: Real>(
    a: MatRef<'_, T>,
    width: impl Fn(usize) -> usize + Sync,
) -> Vec<f64> {
    let (n, k) = a.shape();
    let rows = (block(n * k) / k).max(1);
    let part = |block: usize| {
        let mut sums = vec![0f64; k];
        for i in block * rows..n.min((block + 1) * rows) {
            // A slice where there is one: an index checks its bounds.
            match a.row(i).try_as_row_major() {
                Some(row) => {
                    for (sum, x) in sums.iter_mut().zip(&row.as_slice()[..width(i)]) {
                        *sum += x.to_f64() * x.to_f64();
                    }
                }
                None => {
                    for (j, sum) in sums.iter_mut().enumerate().take(width(i)) {
                        *sum += a[(i, j)].to_f64().powi(2);
                    }
                }
            }
        }
        sums
    };
    let parts: Vec<Vec<f64>> = (0..n.div_ceil(rows)).into_par_iter().map(part).collect();
    parts.into_iter().fold(vec![0.; k], |mut sums, part| {
        sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        sums
    })
}

/// Largest `|qᵀq - I|`, off the diagonal in the type of `q`; infinite when any entry is NaN.
pub(crate) fn residual<T: Real>(q: MatRef<'_, T>) -> f64 {
    let gram = gram(q);
    let mut worst = 0f64;
    let mut meet = |difference: f64| {
        // NaN is neither: it becomes infinity and stays.
        worst = if difference.abs() <= worst {
            worst
        } else if difference.is_nan() {
            f64::INFINITY
        } else {
            difference.abs()
        };
    };
    for (j, square) in squares(q, |_| q.ncols()).into_iter().enumerate() {
        meet(square - 1.);
        for i in j + 1..gram.nrows() {
            meet(gram[(i, j)].to_f64());
        }
    }
    worst
}

/// The same numbers in another type.
pub(crate) fn cast<T: Real, U: Real>(a: MatRef<'_, T>) -> Mat<U> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| U::from_f64(a[(i, j)].to_f64()))
}

/// `a^-1` by elimination with partial pivoting; not finite where `a` is singular.
pub(crate) fn inverse(mut a: Mat<f64>) -> Mat<f64> {
    let k = a.nrows();
    let (mut forward, mut backward) = (vec![0usize; k], vec![0usize; k]);
    let scratch = lu::factor::lu_in_place_scratch::<usize, f64>(k, k, Par::Seq, Default::default());
    let scratch = scratch.or(lu::inverse::inverse_scratch::<usize, f64>(k, Par::Seq));
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    lu::factor::lu_in_place(
        a.as_mut(),
        &mut forward,
        &mut backward,
        Par::Seq,
        stack,
        Default::default(),
    );
    let mut out = Mat::zeros(k, k);
    let rows = PermRef::new_checked(&forward, &backward, k);
    lu::inverse::inverse(out.as_mut(), a.as_ref(), a.as_ref(), rows, Par::Seq, stack);
    out
}

/// The upper triangular `R` of `RᵀR = a`, and its inverse; `None` unless `a` is positive definite to rounding.
pub(crate) fn cholesky(a: MatRef<'_, f64>) -> Option<(Mat<f64>, Mat<f64>)> {
    let k = a.nrows();
    let mut lower = a.to_owned();
    let scratch = llt::cholesky_in_place_scratch::<f64>(k, Par::Seq, Default::default());
    llt::cholesky_in_place(
        lower.as_mut(),
        Default::default(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    let mut inverse = Mat::zeros(k, k);
    invert_lower_triangular(inverse.as_mut(), lower.as_ref(), Par::Seq);
    let upper = Mat::from_fn(k, k, |i, j| if i <= j { lower[(j, i)] } else { 0. });
    Some((upper, inverse.transpose().to_owned()))
}

/// Eigenvalues, ascending, and eigenvectors of a Hermitian matrix; reads the lower triangle only. `None` if it did not converge.
pub(crate) fn eigen<T: ComplexField<Real = f64>>(a: MatRef<'_, T>) -> Option<(Vec<f64>, Mat<T>)> {
    let m = a.nrows();
    let (mut values, mut vectors) = (Diag::<T>::zeros(m), Mat::<T>::zeros(m, m));
    let scratch = evd::self_adjoint_evd_scratch::<T>(
        m,
        evd::ComputeEigenvectors::Yes,
        Par::Seq,
        Default::default(),
    );
    evd::self_adjoint_evd(
        a,
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    Some((values.column_vector().iter().map(|x| x.real()).collect(), vectors))
}

/// Householder QR: reflectors below the diagonal and `R` on and above it, and the factors of the reflectors.
pub(crate) fn reflectors(a: MatRef<'_, f64>) -> (Mat<f64>, Mat<f64>) {
    let (n, k) = a.shape();
    let mut packed = a.to_owned();
    let block = qr::recommended_block_size::<f64>(n, k);
    let mut factors = Mat::zeros(block, n.min(k));
    let scratch = qr::qr_in_place_scratch::<f64>(n, k, block, Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let into = factors.as_mut();
    let stack = MemStack::new(&mut memory);
    qr::qr_in_place(packed.as_mut(), into, Par::Seq, stack, Default::default());
    (packed, factors)
}

/// Thin Householder QR. `Q` is orthonormal for every `a`, rank-deficient or zero.
pub(crate) fn thin_qr(a: MatRef<'_, f64>) -> (Mat<f64>, Mat<f64>) {
    let (packed, factors) = reflectors(a);
    let (n, k) = a.shape();
    let scratch = householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(
        n,
        factors.nrows(),
        k,
    );
    let mut q = Mat::identity(n, n.min(k));
    householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
        packed.as_ref(),
        factors.as_ref(),
        Conj::No,
        q.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
    );
    let r = Mat::from_fn(n.min(k), k, |i, j| if i <= j { packed[(i, j)] } else { 0. });
    (q, r)
}

/// Thin QR factor with the signs that make the diagonal of `R` positive.
pub(crate) fn orthonormalize(a: MatRef<'_, f64>) -> Mat<f64> {
    let (mut q, r) = thin_qr(a);
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
