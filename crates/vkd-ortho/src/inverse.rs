//! Right inverses of the Householder and Cayley maps: the parameter of a given matrix, in f64.
//!
//! Callers hand in columns that are orthonormal to rounding, and check the result by mapping it forward.

use candle_core::{Result, bail};
use faer::linalg::solvers::{PartialPivLu, Solve};
use faer::{Mat, MatRef};

/// `(I + Q₁)/2` with a smaller singular value has a parameter of more than ten digits: as good as none.
const CAYLEY_FLOOR: f64 = 1e-10;

/// Reflectors whose product has the columns `q`.
///
/// `H₁` moves `e₁` to the first column. With it undone, the second column has nothing left in the first row, and so on.
/// A column closer to its unit vector than `floor` has no finite reflector: reflectors turn, they can't stand still.
pub(crate) fn householder(q: MatRef<'_, f64>, floor: f64) -> Result<Mat<f64>> {
    let (n, k) = (q.nrows(), q.ncols());
    let mut rest = q.to_owned();
    let mut raw = Mat::zeros(n, k);
    for j in 0..k {
        let head = rest[(j, j)];
        let square: f64 = (j + 1..n).map(|i| rest[(i, j)] * rest[(i, j)]).sum();
        if head > 0. && square.sqrt() <= floor {
            if j + 1 == n {
                bail!(
                    "householder right_inverse: expected determinant {} for n = k = {k}, got the opposite",
                    if k % 2 == 0 { 1 } else { -1 }
                )
            }
            bail!(
                "householder right_inverse: expected column {j} away from its unit vector once the reflectors before it \
                 are undone, got distance {:.1e}: only an infinite parameter leads there",
                square.sqrt()
            )
        }
        // Both are 1/(1 - head); each is used where it doesn't cancel.
        let scale = if head > 0. { (1. + head) / square } else { (1. - head).recip() };
        for i in j + 1..n {
            raw[(i, j)] = -scale * rest[(i, j)];
        }
        let tau = 2. / (1. + scale * scale * square);
        for c in j + 1..k {
            let tail: f64 = (j + 1..n).map(|i| raw[(i, j)] * rest[(i, c)]).sum();
            let dot = tau * (rest[(j, c)] + tail);
            rest[(j, c)] -= dot;
            for i in j + 1..n {
                rest[(i, c)] -= dot * raw[(i, j)];
            }
        }
    }
    Ok(raw)
}

/// The parameter whose Cayley transform has the columns `q`.
///
/// `(I - A/2)(Q + E)/2 = E` by rows of blocks, with `M = (I + Q₁)/2` and `S = M⁻¹`: `C = Q₂ S`, and the skew part of
/// the upper row gives `B = Sᵀ - S`.
pub(crate) fn cayley(q: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let (n, k) = (q.nrows(), q.ncols());
    let (top, bottom) = q.split_at_row(k);
    let half = Mat::from_fn(k, k, |i, j| 0.5 * (top[(i, j)] + f64::from(u8::from(i == j))));
    let Ok(singular) = half.singular_values() else {
        bail!("cayley right_inverse: expected convergent singular values, got none for size {k}")
    };
    let least = singular.iter().copied().fold(f64::INFINITY, f64::min);
    if !(least > CAYLEY_FLOOR) {
        bail!(
            "cayley right_inverse: expected a top block without eigenvalue -1, got (I + Q1)/2 with least singular value \
             {least:.1e}: only an infinite parameter leads there"
        )
    }
    let inverse = PartialPivLu::new(half.as_ref()).solve(Mat::<f64>::identity(k, k));
    let tall = bottom * &inverse;
    Ok(Mat::from_fn(n, k, |i, j| {
        if i >= k {
            tall[(i - k, j)]
        } else if i > j {
            inverse[(j, i)] - inverse[(i, j)]
        } else {
            0.
        }
    }))
}
