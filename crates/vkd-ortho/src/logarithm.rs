//! Right inverse of the exponential map: a logarithm on the Stiefel manifold, in f64.
//!
//! An `n x k` frame leaves open how the other directions turn. The parameter has no block for that, so the completion
//! `V` of the frame must be turned, `V <- V diag(I, exp Γ)`, until the lower right block of `log V` is zero.

use candle_core::{Result, bail};
use faer::linalg::solvers::{PartialPivLu, Qr, SelfAdjointEigen, Solve, Svd};
use faer::{Mat, MatRef, Side, c64};

const OP: &str = "matrix_exp right_inverse";

/// Rounding of a logarithm of moderate size; a block as small as this changes no digit that could be kept.
const DONE: f64 = 2e-15;

/// Convergence is linear: a nearby frame takes ten to thirty rounds, one that takes more than this lies too far.
const ROUNDS: usize = 400;

/// A turn this close to a half has two logarithms, and rounding would choose.
const HALF_TURN: f64 = 1e-7;

/// The parameter whose exponential has the columns `q`.
///
/// Zimmermann, *A matrix-algebraic algorithm for the Riemannian logarithm on the Stiefel manifold under the canonical
/// metric*, SIAM J. Matrix Anal. Appl. 38, 2017, arXiv:1604.05054; the correction `Γ` from a Sylvester equation is that of
/// Zimmermann and Hüper, arXiv:2103.12046.
pub(crate) fn matrix_exp(q: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let (n, k) = (q.nrows(), q.ncols());
    if n == k {
        let det = q.determinant();
        if det < 0. {
            bail!("{OP}: expected determinant 1 for n = k = {k}, got {det:.3}")
        }
        return Ok(strict_lower(logarithm(q)?.as_ref()));
    }
    let (top, bottom) = q.split_at_row(k);
    let (basis, small) = if n - k <= k {
        (None, bottom.to_owned())
    } else {
        let qr = Qr::new(bottom);
        (Some(qr.compute_thin_Q()), qr.thin_R().to_owned())
    };
    let mut v = complete(top, small.as_ref())?;
    let p = small.nrows();
    let mut found = None;
    let (mut size, mut best) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        let log = logarithm(v.as_ref())?;
        let block = log.as_ref().submatrix(k, k, p, p);
        size = block.norm_max();
        // Below 1e-13 rounding may end the decrease before `DONE`.
        if size <= DONE || (size <= 1e-13 && size >= best) {
            found = Some(log);
            break;
        }
        best = best.min(size);
        let turn = exponential(&correction(log.as_ref().submatrix(k, 0, p, k), block)?)?;
        let turned = v.as_ref().subcols(k, p) * &turn;
        v.as_mut().subcols_mut(k, p).copy_from(&turned);
    }
    let Some(log) = found else {
        bail!(
            "{OP}: expected a frame near enough to the first unit vectors for the logarithm to converge, got a remainder of \
             {size:.1e} after {ROUNDS} rounds"
        )
    };
    let mut raw = Mat::zeros(n, k);
    raw.as_mut().subrows_mut(0, k).copy_from(strict_lower(log.as_ref().submatrix(0, 0, k, k)));
    let tall = log.as_ref().submatrix(k, 0, p, k);
    let tall = basis.map_or_else(|| tall.to_owned(), |basis| &basis * tall);
    raw.as_mut().subrows_mut(k, n - k).copy_from(&tall);
    Ok(raw)
}

/// A rotation with the first columns `[top; bottom]`, its lower right block as near to the identity as can be.
fn complete(top: MatRef<'_, f64>, bottom: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let (k, p) = (top.ncols(), bottom.nrows());
    let mut v = Mat::from_fn(k + p, k, |i, j| if i < k { top[(i, j)] } else { bottom[(i - k, j)] });
    let full = Qr::new(v.as_ref()).compute_Q();
    let others = full.as_ref().subcols(k, p);
    let Ok(svd) = Svd::new(others.subrows(k, p)) else {
        bail!("{OP}: expected a convergent singular value decomposition, got none for size {p}")
    };
    let others = others * svd.V() * svd.U().transpose();
    v = Mat::from_fn(k + p, k + p, |i, j| if j < k { v[(i, j)] } else { others[(i, j - k)] });
    if v.determinant() < 0. {
        // The direction that costs least: that of the smallest singular value.
        let u = svd.U().col(p - 1);
        let along = others * u;
        for j in 0..p {
            for i in 0..k + p {
                v[(i, k + j)] -= 2. * along[i] * u[j];
            }
        }
    }
    Ok(v)
}

/// `Γ` with `C = SΓ + ΓS`, `S = B Bᵀ/12 - I/2`: to leading order what takes the block `C` out of the logarithm.
fn correction(b: MatRef<'_, f64>, c: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let gram = b * b.transpose();
    let Ok(eigen) = SelfAdjointEigen::new(gram.as_ref(), Side::Lower) else {
        bail!("{OP}: expected a convergent eigendecomposition, got none for size {}", gram.nrows())
    };
    let (u, s) = (eigen.U(), eigen.S());
    let inner = u.transpose() * c * u;
    // Far away the series behind `S` says nothing; there the step is held to four times the plain one.
    let scaled = Mat::from_fn(inner.nrows(), inner.ncols(), |i, j| {
        inner[(i, j)] / ((s[i] + s[j]) / 12. - 1.).min(-0.25)
    });
    let gamma = u * scaled * u.transpose();
    Ok(skew_part(gamma.as_ref()))
}

/// Principal logarithm of a rotation: twice the arc tangent of its Cayley transform `(V - I)(V + I)⁻¹`.
fn logarithm(v: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let n = v.nrows();
    let shifted = |by: f64| Mat::from_fn(n, n, |i, j| v[(i, j)] + if i == j { by } else { 0. });
    let tangent = PartialPivLu::new(shifted(1.).as_ref()).solve(shifted(-1.));
    let tangent = skew_part(tangent.as_ref());
    let worst = if tangent.is_all_finite() { largest(&tangent)? } else { f64::INFINITY };
    let gap = std::f64::consts::PI - 2. * worst.atan();
    if !(gap > HALF_TURN) {
        bail!(
            "{OP}: expected no eigenvalue -1, got a rotation that is within {gap:.1e} of a half turn"
        )
    }
    function(&tangent, |lambda| c64::new(0., -2. * lambda.atan()))
}

fn exponential(skew: &Mat<f64>) -> Result<Mat<f64>> {
    function(skew, |lambda| c64::new(lambda.cos(), -lambda.sin()))
}

/// Largest modulus of an eigenvalue.
fn largest(skew: &Mat<f64>) -> Result<f64> {
    let (_, lambda) = decompose(skew)?;
    Ok(lambda.into_iter().fold(0., |worst, x| worst.max(x.abs())))
}

/// A function of a skew matrix `-i U diag(λ) U*`, of which `f` names the values at `-iλ`; real part.
fn function(skew: &Mat<f64>, f: impl Fn(f64) -> c64) -> Result<Mat<f64>> {
    let (u, lambda) = decompose(skew)?;
    let values: Vec<c64> = lambda.into_iter().map(f).collect();
    let left = Mat::from_fn(u.nrows(), u.ncols(), |i, j| u[(i, j)] * values[j]);
    let full = left * u.adjoint();
    Ok(Mat::from_fn(full.nrows(), full.ncols(), |i, j| full[(i, j)].re))
}

fn decompose(skew: &Mat<f64>) -> Result<(Mat<c64>, Vec<f64>)> {
    let n = skew.nrows();
    let hermitian = Mat::from_fn(n, n, |i, j| c64::new(0., skew[(i, j)]));
    let Ok(eigen) = SelfAdjointEigen::new(hermitian.as_ref(), Side::Lower) else {
        bail!("{OP}: expected a convergent eigendecomposition, got none for size {n}")
    };
    let s = eigen.S();
    Ok((eigen.U().to_owned(), (0..n).map(|i| s[i].re).collect()))
}

fn skew_part(a: MatRef<'_, f64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| 0.5 * (a[(i, j)] - a[(j, i)]))
}

fn strict_lower(a: MatRef<'_, f64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| if i > j { a[(i, j)] } else { 0. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_undoes_the_logarithm() -> Result<()> {
        for n in [1, 2, 5, 12] {
            let skew = Mat::from_fn(n, n, |i, j| {
                let entry = |i: usize, j: usize| ((i * 7 + j * 3) % 11) as f64 / 5. - 1.;
                if i > j { entry(i, j) / n as f64 } else { 0. }
            });
            let skew = Mat::from_fn(n, n, |i, j| skew[(i, j)] - skew[(j, i)]);
            let back = logarithm(exponential(&skew)?.as_ref())?;
            assert!((&back - &skew).norm_max() < 1e-13, "{n}");
        }
        Ok(())
    }
}
