//! The Schur form with one `k x k` inverse; the spectral form where that one loses digits.

use super::NAME;
use crate::linalg::{add_product, product, residual};
use crate::skew::{SkewEigen, parameter_gradient, skew_block, stack, tall_block};
use candle_core::Result;
use faer::linalg::solvers::{DenseSolveCore, PartialPivLu};
use faer::{Mat, MatRef, c64};

/// What the Schur form may leave of `|QᵀQ - I|` before the spectral form takes over.
const SCHUR_RESIDUAL: f64 = 2e-14;

struct Frame {
    q: Mat<f64>,
    /// Top block of `(I - A/2)⁻¹ E`, half of `I + Q₁`.
    m: Mat<f64>,
    /// Present if the spectral form was needed.
    eigen: Option<SkewEigen>,
}

fn frame(lower: MatRef<'_, f64>) -> Result<Frame> {
    match schur(lower) {
        Some(frame) => Ok(frame),
        None => spectral(lower),
    }
}

/// `M = (I - B/2 + CᵀC/4)⁻¹`, `Q = [2M - I; C M]`; `None` unless orthonormal.
fn schur(lower: MatRef<'_, f64>) -> Option<Frame> {
    let k = lower.ncols();
    let c = tall_block(lower);
    let mut s = skew_block(lower);
    s *= faer::Scale(-0.5);
    add_product(s.as_mut(), 0.25, c.transpose(), c);
    for i in 0..k {
        s[(i, i)] += 1.;
    }
    if !s.is_all_finite() {
        return None;
    }
    let m = PartialPivLu::new(s.as_ref()).inverse();
    let top = Mat::from_fn(k, k, |i, j| 2. * m[(i, j)] - f64::from(u8::from(i == j)));
    let q = stack(top.as_ref(), product(c, m.as_ref()).as_ref());
    (residual(q.as_ref()) <= SCHUR_RESIDUAL).then_some(Frame { q, m, eigen: None })
}

/// With `t = λ/2`: eigenvalues `(1 - it)/(1 + it)` of modulus one for `Q`, `1/(1 + it)` for `M`.
fn spectral(lower: MatRef<'_, f64>) -> Result<Frame> {
    let eigen = SkewEigen::new(NAME, lower)?;
    let q = eigen.lift(&eigen.orthonormal_columns(|lambda| {
        let (sin, cos) = (2. * (0.5 * lambda).atan()).sin_cos();
        c64::new(cos, -sin)
    }));
    let m = eigen.first_columns(resolvent).as_ref().subrows(0, lower.ncols()).to_owned();
    Ok(Frame { q, m, eigen: Some(eigen) })
}

/// `1/(1 + iλ/2)` without a square that could overflow.
fn resolvent(lambda: f64) -> c64 {
    let t = 0.5 * lambda;
    let cos = 1. / t.hypot(1.);
    c64::new(cos * cos, -(t * cos) * cos)
}

pub(super) fn forward(lower: MatRef<'_, f64>) -> Result<Mat<f64>> {
    Ok(frame(lower)?.q)
}

/// With `Y = (I - A/2)⁻ᵀ G`, the gradient with respect to `A` is `Y [M; Q₂/2]ᵀ` in the first `k` columns; see `docs/math/stiefel.md`.
pub(super) fn backward(lower: MatRef<'_, f64>, grad: MatRef<'_, f64>) -> Result<Mat<f64>> {
    Ok(gradient(lower, grad, &frame(lower)?))
}

fn gradient(lower: MatRef<'_, f64>, grad: MatRef<'_, f64>, frame: &Frame) -> Mat<f64> {
    let Frame { q, m, eigen } = frame;
    let k = lower.ncols();
    let q2 = q.as_ref().subrows(k, q.nrows() - k);
    let (g1, g2) = grad.split_at_row(k);
    let (y1, y2) = match eigen {
        None => {
            let mut y1 = product(m.transpose(), g1);
            add_product(y1.as_mut(), 0.5, q2.transpose(), g2);
            let mut y2 = g2.to_owned();
            add_product(y2.as_mut(), -0.5, tall_block(lower), y1.as_ref());
            (y1, y2)
        }
        Some(eigen) => {
            let (small, rest) = eigen.reduce(grad);
            let y = eigen.apply(|lambda| resolvent(lambda).conj(), small.as_ref());
            let (y1, y2) = y.as_ref().split_at_row(k);
            (y1.to_owned(), eigen.lift_tall(y2) + rest)
        }
    };
    let b_grad = product(y1.as_ref(), m.transpose());
    let mut c_grad = product(y2.as_ref(), m.transpose());
    add_product(c_grad.as_mut(), -0.5, q2, y1.transpose());
    parameter_gradient(b_grad.as_ref(), c_grad.as_ref())
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
                let Some(a) = schur(lower.as_ref()) else { panic!("({n}, {k}) at {scale}") };
                let b = spectral(lower.as_ref())?;
                assert!((&a.q - &b.q).norm_max() < 1e-13, "({n}, {k}) at {scale}");
                assert!((&a.m - &b.m).norm_max() < 1e-13, "({n}, {k}) at {scale}");
                let a = gradient(lower.as_ref(), grad.as_ref(), &a);
                let b = gradient(lower.as_ref(), grad.as_ref(), &b);
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
        assert!(schur(spread.as_ref()).is_none());
        assert!(residual(frame(spread.as_ref())?.q.as_ref()) <= 1e-13);
        Ok(())
    }
}
