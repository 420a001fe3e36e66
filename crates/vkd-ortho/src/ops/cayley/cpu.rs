//! The Schur form with one `k x k` inverse; in f64 where f32 loses digits, and the spectral form where f64 does.

use crate::linalg::{Real, add_product, cast, gram, inverse, product, product_into, residual};
use crate::ops::common::{Map, Rows, row_major};
use crate::ops::device;
use crate::skew::{SkewEigen, parameter_gradient};
use candle_core::{Result, Tensor};
use faer::{Mat, MatMut, MatRef, c64};

pub(super) struct Cayley;

impl Map for Cayley {
    const NAME: &'static str = super::NAME;
    /// `M = (I - B/2 + CᵀC/4)⁻¹`, present if the Schur form held the law in the tensor's own type.
    type Kept = Mat<f64>;

    fn on_device(raw: &Tensor) -> Result<Tensor> {
        device::cayley(raw)
    }

    fn forward<T: Real>(raw: Rows<'_, T>) -> Result<(Vec<T>, Option<Mat<f64>>)> {
        if let Some((q, m)) = schur(raw, T::RESIDUAL) {
            return Ok((q, Some(m)));
        }
        let lower = raw.strict_lower();
        let wide: Vec<f64> = row_major(&lower);
        let wide = Rows { values: &wide, n: raw.n, k: raw.k };
        if size_of::<T>() < size_of::<f64>()
            && let Some((q, _)) = schur(wide, WIDE_RESIDUAL)
        {
            return Ok((q.into_iter().map(T::from_f64).collect(), None));
        }
        Ok((row_major(&spectral(lower.as_ref())?.0), None))
    }

    fn backward<T: Real>(
        raw: Rows<'_, T>,
        grad: Rows<'_, T>,
        kept: Option<Mat<f64>>,
    ) -> Result<Vec<T>> {
        if let Some(m) = kept.or_else(|| Some(schur(raw, T::RESIDUAL)?.1)) {
            return Ok(gradient(raw, grad, &m));
        }
        let lower = raw.strict_lower();
        if size_of::<T>() < size_of::<f64>() {
            let wide: Vec<f64> = row_major(&lower);
            let wide = Rows { values: &wide, n: raw.n, k: raw.k };
            if let Some((_, m)) = schur(wide, WIDE_RESIDUAL) {
                let grad: Vec<f64> = grad.values.iter().map(|x| x.to_f64()).collect();
                let grad = gradient(wide, Rows { values: &grad, ..wide }, &m);
                return Ok(grad.into_iter().map(T::from_f64).collect());
            }
        }
        Ok(row_major(&spectral_gradient(lower.as_ref(), grad.wide().as_ref())?))
    }
}

/// What f64 may leave for a result that is rounded to f32.
const WIDE_RESIDUAL: f64 = 1e-8;

/// `Q = [2M - I; C M]` and `M`; `None` unless `Q` is orthonormal to `limit`, by measurement.
///
/// The large products are in `T`. The `k x k` core is in f64: `S` spans the squares of the singular values of `C`.
fn schur<T: Real>(raw: Rows<'_, T>, limit: f64) -> Option<(Vec<T>, Mat<f64>)> {
    let Rows { values, n, k } = raw;
    let c = MatRef::from_row_major_slice(&values[k * k..], n - k, k);
    let half = |i: usize, j: usize| 0.5 * values[i * k + j].to_f64();
    let squares = gram(c);
    let mut s = Mat::zeros(k, k);
    for j in 0..k {
        for i in 0..k {
            let skew = match i.cmp(&j) {
                std::cmp::Ordering::Greater => -half(i, j),
                std::cmp::Ordering::Less => half(j, i),
                std::cmp::Ordering::Equal => 1.,
            };
            s[(i, j)] = skew + 0.25 * squares[(i, j)].to_f64();
        }
    }
    if !s.is_all_finite() {
        return None;
    }
    let m = inverse(s);
    let mut q = vec![T::from_f64(0.); n * k];
    for (i, row) in q.chunks_exact_mut(k).take(k).enumerate() {
        for (j, x) in row.iter_mut().enumerate() {
            *x = T::from_f64(2. * m[(i, j)] - f64::from(u8::from(i == j)));
        }
    }
    let bottom = MatMut::from_row_major_slice_mut(&mut q[k * k..], n - k, k);
    product_into(bottom, c, cast::<f64, T>(m.as_ref()).as_ref());
    let orthonormal = residual(MatRef::from_row_major_slice(&q, n, k)) <= limit;
    orthonormal.then_some((q, m))
}

/// With `Y₁ = Mᵀ(G₁ + CᵀG₂/2)` the gradient is `Y₁Mᵀ` for `B` and `G₂Mᵀ - C(Y₁Mᵀ + MY₁ᵀ)/2` for `C`.
fn gradient<T: Real>(raw: Rows<'_, T>, grad: Rows<'_, T>, m: &Mat<f64>) -> Vec<T> {
    let Rows { values, n, k } = raw;
    let part = |values| MatRef::from_row_major_slice(values, n - k, k);
    let (c, g2) = (part(&values[k * k..]), part(&grad.values[k * k..]));
    let g1 = MatRef::from_row_major_slice(&grad.values[..k * k], k, k);
    let m: Mat<T> = cast(m.as_ref());
    let mut inner = g1.to_owned();
    if n > k {
        add_product(inner.as_mut(), T::from_f64(0.5), c.transpose(), g2);
    }
    let y1 = product(m.transpose(), inner.as_ref());
    let b = product(y1.as_ref(), m.transpose());
    let mut out = vec![T::from_f64(0.); n * k];
    for (i, row) in out.chunks_exact_mut(k).take(k).enumerate() {
        for (j, x) in row.iter_mut().enumerate().take(i) {
            *x = b[(i, j)] - b[(j, i)];
        }
    }
    if n > k {
        let both = &b + b.transpose();
        let mut bottom = MatMut::from_row_major_slice_mut(&mut out[k * k..], n - k, k);
        product_into(bottom.as_mut(), g2, m.transpose());
        add_product(bottom, T::from_f64(-0.5), c, both.as_ref());
    }
    out
}

/// With `t = λ/2`: eigenvalues `(1 - it)/(1 + it)` of modulus one for `Q`, `1/(1 + it)` for `M`.
fn spectral(lower: MatRef<'_, f64>) -> Result<(Mat<f64>, Mat<f64>, SkewEigen)> {
    let eigen = SkewEigen::new(super::NAME, lower)?;
    let q = eigen.lift(&eigen.orthonormal_columns(|lambda| {
        let (sin, cos) = (2. * (0.5 * lambda).atan()).sin_cos();
        c64::new(cos, -sin)
    }));
    let m = eigen.first_columns(resolvent).as_ref().subrows(0, lower.ncols()).to_owned();
    Ok((q, m, eigen))
}

/// `1/(1 + iλ/2)` without a square that could overflow.
fn resolvent(lambda: f64) -> c64 {
    let t = 0.5 * lambda;
    if t.is_infinite() {
        return c64::new(0., 0.);
    }
    let cos = 1. / t.hypot(1.);
    c64::new(cos * cos, -(t * cos) * cos)
}

/// With `Y = (I - A/2)⁻ᵀ G`, the gradient with respect to `A` is `Y [M; Q₂/2]ᵀ` in the first `k` columns; see `docs/math/stiefel.md`.
fn spectral_gradient(lower: MatRef<'_, f64>, grad: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let (q, m, eigen) = spectral(lower)?;
    let k = lower.ncols();
    let q2 = q.as_ref().subrows(k, q.nrows() - k);
    let (small, rest) = eigen.reduce(grad);
    let y = eigen.apply(|lambda| resolvent(lambda).conj(), small.as_ref());
    let (y1, y2) = y.as_ref().split_at_row(k);
    let y2 = eigen.lift_tall(y2) + rest;
    let b_grad = product(y1, m.transpose());
    let mut c_grad = product(y2.as_ref(), m.transpose());
    add_product(c_grad.as_mut(), -0.5, q2, y1.transpose());
    Ok(parameter_gradient(b_grad.as_ref(), c_grad.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lower(n: usize, k: usize, scale: f64) -> Mat<f64> {
        Mat::from_fn(n, k, |i, j| if i > j { scale * ((i * 31 + j * 17) as f64).sin() } else { 0. })
    }

    #[test]
    fn both_forms_give_the_same_frame_and_gradient() -> Result<()> {
        for (n, k) in [(1, 1), (6, 6), (7, 5), (9, 2), (40, 12)] {
            for scale in [0., 1e-3, 1.] {
                let lower = lower(n, k, scale);
                let grad = Mat::from_fn(n, k, |i, j| ((i * 13 + j * 7) as f64).cos());
                let (raw, rows): (Vec<f64>, Vec<f64>) = (row_major(&lower), row_major(&grad));
                let raw = Rows { values: &raw, n, k };
                let Some((q, m)) = schur(raw, 2e-14) else { panic!("({n}, {k}) at {scale}") };
                let (other, other_m, _) = spectral(lower.as_ref())?;
                let q = MatRef::from_row_major_slice(&q, n, k).to_owned();
                assert!((q - other).norm_max() < 1e-13, "({n}, {k}) at {scale}");
                assert!((&m - other_m).norm_max() < 1e-13, "({n}, {k}) at {scale}");
                let a = gradient(raw, Rows { values: &rows, n, k }, &m);
                let a = MatRef::from_row_major_slice(&a, n, k).to_owned();
                let b = spectral_gradient(lower.as_ref(), grad.as_ref())?;
                assert!((a - b).norm_max() < 1e-12, "({n}, {k}) at {scale}");
            }
        }
        Ok(())
    }

    #[test]
    fn lost_digits_are_noticed() -> Result<()> {
        // Singular values of C between 1 and 1e6: their squares span more than half of f64's digits.
        let spread = Mat::from_fn(12, 6, |i, j| {
            if i > j { 10f64.powi(j as i32) * ((i * 31 + j * 17) as f64).sin() } else { 0. }
        });
        let raw: Vec<f64> = row_major(&spread);
        let raw = Rows { values: &raw, n: 12, k: 6 };
        assert!(schur(raw, f64::RESIDUAL).is_none());
        let (q, kept) = Cayley::forward(raw)?;
        assert!(kept.is_none());
        assert!(residual(MatRef::from_row_major_slice(&q, 12, 6)) <= 1e-13);
        Ok(())
    }
}
