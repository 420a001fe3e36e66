//! Compact WY: `H_a .. H_b = I - U S⁻¹ Uᵀ` with unit vectors `U` and `S` the upper half of `UᵀU`.
//!
//! All reflectors as one block where that holds the law: nothing but products of full height around one `k x k`
//! triangle. Otherwise blocks of 32 in f64, whose triangles are always well conditioned.

use crate::linalg::{
    self, Real, add_product, cast, gram, product, residual, solve_upper, solve_upper_transposed,
    squares, upper_half,
};
use crate::ops::common::{Map, Rows, row_major};
use crate::ops::device;
use candle_core::{Result, Tensor};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

pub(super) struct Householder;

impl Map for Householder {
    const NAME: &'static str = super::NAME;
    /// `S`, present if one block held the law in the tensor's own type.
    type Kept = Mat<f64>;

    fn on_device(raw: &Tensor) -> Result<Tensor> {
        device::householder_product(raw)
    }

    fn forward<T: Real>(raw: Rows<'_, T>) -> Result<(Vec<T>, Option<Mat<f64>>)> {
        if let Some((q, s)) = whole(raw) {
            return Ok((q, Some(s)));
        }
        Ok((row_major(&multiply(&reflectors(raw.strict_lower().as_ref()).0)), None))
    }

    fn backward<T: Real>(
        raw: Rows<'_, T>,
        grad: Rows<'_, T>,
        kept: Option<Mat<f64>>,
    ) -> Result<Vec<T>> {
        if let Some(s) = kept.or_else(|| Some(whole(raw)?.1)) {
            return Ok(gradient(raw, grad, &s));
        }
        let lower = raw.strict_lower();
        Ok(row_major(&blocked_gradient(lower.as_ref(), grad.wide().as_ref())))
    }
}

/// Unit reflectors row by row, and the factors that gave them their length.
fn unit<T: Real>(raw: Rows<'_, T>) -> (Vec<T>, Vec<f64>) {
    let Rows { values, n, k } = raw;
    let squares = squares(MatRef::from_row_major_slice(values, n, k), |i| k.min(i));
    let factors: Vec<f64> = squares.iter().map(|x| (1. + x).sqrt().recip()).collect();
    let mut u = values.to_vec();
    each_row(&mut u, k, |i, row| {
        scale(&mut row[..k.min(i)], &factors);
        if i < k {
            row[i] = T::from_f64(factors[i]);
            row[i + 1..].fill(T::from_f64(0.));
        }
    });
    (u, factors)
}

/// Calls `f` with the number and the entries of each row, rows shared among threads.
fn each_row<T: Real>(values: &mut [T], k: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let rows = (linalg::block(values.len()) / k).max(1);
    values.par_chunks_mut(rows * k).enumerate().for_each(|(at, values)| {
        for (i, row) in values.chunks_exact_mut(k).enumerate() {
            f(at * rows + i, row);
        }
    });
}

/// A function of its own, so that the compiler knows the two apart and works on vectors.
fn scale<T: Real>(row: &mut [T], factors: &[f64]) {
    for (x, factor) in row.iter_mut().zip(factors) {
        *x = T::from_f64(x.to_f64() * factor);
    }
}

/// `Z = S⁻¹ U₁ᵀ`, upper triangular.
fn triangle<T: Real>(u: &[T], s: &Mat<f64>) -> Mat<T> {
    let k = s.nrows();
    let top = MatRef::from_row_major_slice(&u[..k * k], k, k);
    cast(solve_upper(s.as_ref(), cast(top.transpose())).as_ref())
}

/// `lhs * rhs` for an `rhs` of one triangle, or one triangle of a product: half the work.
fn half_product<T: Real>(
    (into, into_structure): (MatMut<'_, T>, BlockStructure),
    lhs: MatRef<'_, T>,
    (rhs, rhs_structure): (MatRef<'_, T>, BlockStructure),
    alpha: f64,
) {
    let work = lhs.nrows() * lhs.ncols() * rhs.ncols();
    triangular::matmul(
        into,
        into_structure,
        Accum::Replace,
        lhs,
        BlockStructure::Rectangular,
        rhs,
        rhs_structure,
        T::from_f64(alpha),
        if work < 4_000_000 { Par::Seq } else { Par::rayon(0) },
    );
}

/// `Q = E - U Z` and `S`; `None` unless `Q` is orthonormal to what `T` allows, by measurement.
fn whole<T: Real>(raw: Rows<'_, T>) -> Option<(Vec<T>, Mat<f64>)> {
    use BlockStructure::{Rectangular, TriangularUpper};
    let Rows { n, k, .. } = raw;
    let (u, _) = unit(raw);
    let all = MatRef::from_row_major_slice(&u, n, k);
    let s = upper_half(&cast(gram(all).as_ref()));
    if !s.is_all_finite() {
        return None;
    }
    let z = triangle(&u, &s);
    let mut q = vec![T::from_f64(0.); n * k];
    let out = MatMut::from_row_major_slice_mut(&mut q, n, k);
    half_product((out, Rectangular), all, (z.as_ref(), TriangularUpper), -1.);
    for i in 0..k {
        q[i * k + i] += T::from_f64(1.);
    }
    (residual(MatRef::from_row_major_slice(&q, n, k)) <= T::RESIDUAL).then_some((q, s))
}

/// The adjoint of `Q = E - U Z`, `S Z = U₁ᵀ`, line by line. `Z`, and so all that meets it, needs one triangle only.
fn gradient<T: Real>(raw: Rows<'_, T>, grad: Rows<'_, T>, s: &Mat<f64>) -> Vec<T> {
    use BlockStructure::{Rectangular, TriangularLower, TriangularUpper};
    let Rows { n, k, .. } = raw;
    let (u, factors) = unit(raw);
    let z = triangle(&u, s);
    let u = MatRef::from_row_major_slice(&u, n, k);
    let g = MatRef::from_row_major_slice(grad.values, n, k);
    let mut z_grad = Mat::<T>::zeros(k, k);
    half_product((z_grad.as_mut(), TriangularUpper), u.transpose(), (g, Rectangular), -1.);
    let w = solve_upper_transposed(s.as_ref(), cast(z_grad.as_ref()));
    let mut s_grad = product(w.as_ref(), cast::<T, f64>(z.transpose()).as_ref());
    s_grad *= faer::Scale(-1.);
    let half = upper_half(&s_grad);
    let gram_grad: Mat<T> = cast((&half + half.transpose()).as_ref());

    let mut out = vec![T::from_f64(0.); n * k];
    let mut u_grad = MatMut::from_row_major_slice_mut(&mut out, n, k);
    half_product((u_grad.as_mut(), Rectangular), g, (z.transpose(), TriangularLower), -1.);
    add_product(u_grad, T::from_f64(1.), u, gram_grad.as_ref());
    // The product does not depend on the lengths, so the gradient is orthogonal to each reflector already.
    each_row(&mut out, k, |i, row| {
        if i < k {
            for (j, x) in row.iter_mut().enumerate().take(i) {
                *x = T::from_f64(x.to_f64() + w[(j, i)]);
            }
        }
        scale(row, &factors);
    });
    out
}

/// Reflectors per block. Small blocks keep `S` well conditioned, and touch only the rows and columns at and after their own.
const REFLECTORS: usize = 32;

/// Unit reflectors, and the lengths that were divided out.
fn reflectors(lower: MatRef<'_, f64>) -> (Mat<f64>, Vec<f64>) {
    let mut u = lower.to_owned();
    let mut lengths = Vec::with_capacity(u.ncols());
    for j in 0..u.ncols() {
        u[(j, j)] = 1.;
        // Not the root of a plain sum of squares: entries may be as large as f64 holds.
        let largest = u.col(j).norm_max();
        for i in j..u.nrows() {
            u[(i, j)] /= largest;
        }
        let length = u.col(j).norm_l2();
        for i in j..u.nrows() {
            u[(i, j)] /= length;
        }
        lengths.push(largest * length);
    }
    (u, lengths)
}

/// First reflector of each block, ascending.
fn starts(k: usize) -> impl DoubleEndedIterator<Item = usize> {
    (0..k.div_ceil(REFLECTORS)).map(|p| p * REFLECTORS)
}

/// The block that starts at reflector `at`, without the zero rows above it, and its `S`.
fn block(u: &Mat<f64>, at: usize) -> (MatRef<'_, f64>, Mat<f64>) {
    let width = REFLECTORS.min(u.ncols() - at);
    let u = u.as_ref().submatrix(at, at, u.nrows() - at, width);
    let s = upper_half(&product(u.transpose(), u));
    (u, s)
}

fn multiply(u: &Mat<f64>) -> Mat<f64> {
    let (n, k) = (u.nrows(), u.ncols());
    let mut q = Mat::identity(n, k);
    for at in starts(k).rev() {
        let (u, s) = block(u, at);
        let mut y = q.as_mut().submatrix_mut(at, at, n - at, k - at);
        let z = solve_upper(s.as_ref(), product(u.transpose(), y.as_ref()));
        add_product(y.as_mut(), -1., u, z.as_ref());
    }
    q
}

/// For one block, `Y' = Y - U Z`, `Z = S⁻¹ W`, `W = Uᵀ Y`. Each line below is the adjoint of one of these.
fn blocked_gradient(lower: MatRef<'_, f64>, grad: MatRef<'_, f64>) -> Mat<f64> {
    let (n, k) = (lower.nrows(), lower.ncols());
    let (all, lengths) = reflectors(lower);
    let mut q = multiply(&all);
    let mut g = grad.to_owned();
    let mut out = Mat::<f64>::zeros(n, k);
    for at in starts(k) {
        let (u, s) = block(&all, at);
        let mut y = q.as_mut().submatrix_mut(at, at, n - at, k - at);
        let mut g = g.as_mut().submatrix_mut(at, at, n - at, k - at);
        // The block is orthogonal: its transpose takes it off again.
        let undo = solve_upper_transposed(s.as_ref(), product(u.transpose(), y.as_ref()));
        add_product(y.as_mut(), -1., u, undo.as_ref());
        let z = solve_upper(s.as_ref(), product(u.transpose(), y.as_ref()));
        let mut z_grad = product(u.transpose(), g.as_ref());
        z_grad *= faer::Scale(-1.);
        let w_grad = solve_upper_transposed(s.as_ref(), z_grad);
        let mut s_grad = product(w_grad.as_ref(), z.transpose());
        s_grad *= faer::Scale(-1.);
        let half = upper_half(&s_grad);
        let gram_grad = &half + half.transpose();

        let mut u_grad = out.as_mut().submatrix_mut(at, at, n - at, u.ncols());
        add_product(u_grad.as_mut(), -1., g.as_ref(), z.transpose());
        add_product(u_grad.as_mut(), 1., y.as_ref(), w_grad.transpose());
        add_product(u_grad.as_mut(), 1., u, gram_grad.as_ref());
        add_product(g.as_mut(), 1., u, w_grad.as_ref());
    }
    // The product does not depend on the lengths, so the gradient is orthogonal to each reflector already.
    for (j, length) in lengths.iter().enumerate() {
        for i in 0..n {
            out[(i, j)] = if i > j { out[(i, j)] / length } else { 0. };
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_block_and_many_give_the_same_frame_and_gradient() -> Result<()> {
        for (n, k) in [(1, 1), (6, 6), (7, 5), (9, 2), (90, 40)] {
            for scale in [0., 1e-3, 1., 30.] {
                let entry = |i: usize, j: usize| scale * ((i * i * 31 + j * 17) as f64).sin();
                let lower = Mat::from_fn(n, k, |i, j| if i > j { entry(i, j) } else { 0. });
                let grad = Mat::from_fn(n, k, |i, j| ((i * 13 + j * 7) as f64).cos());
                let (raw, rows): (Vec<f64>, Vec<f64>) = (row_major(&lower), row_major(&grad));
                let raw = Rows { values: &raw, n, k };
                let Some((q, s)) = whole(raw) else { panic!("({n}, {k}) at {scale}") };
                let q = MatRef::from_row_major_slice(&q, n, k).to_owned();
                let other = multiply(&reflectors(lower.as_ref()).0);
                assert!((q - other).norm_max() < 1e-13, "({n}, {k}) at {scale}");
                let a = gradient(raw, Rows { values: &rows, n, k }, &s);
                let mut a = MatRef::from_row_major_slice(&a, n, k).to_owned();
                let mut b = blocked_gradient(lower.as_ref(), grad.as_ref());
                for i in 0..k {
                    for j in i..k {
                        (a[(i, j)], b[(i, j)]) = (0., 0.);
                    }
                }
                let difference = (&a - &b).norm_max();
                assert!(difference <= 1e-12 * (1. + b.norm_max()), "({n}, {k}) at {scale}");
            }
        }
        Ok(())
    }
}
