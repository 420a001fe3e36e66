//! `S^(-1/2)` from products alone, and its derivative.

use super::linalg::product;
use faer::{Mat, Scale};

/// `p(S / t) / sqrt(t)` after the given number of coupled iterations
/// ```text
/// T = (3 I - Z Y) / 2,   Y <- Y T,   Z <- T Z,   from Y = S / t, Z = I, to Z;
/// ```
/// with a direction `along`, also its derivative by `S` at fixed `t`.
pub(super) fn newton_schulz(
    s: &Mat<f64>,
    t: f64,
    iterations: usize,
    along: Option<&Mat<f64>>,
) -> (Mat<f64>, Option<Mat<f64>>) {
    let d = s.nrows();
    let mul = |a: &Mat<f64>, b: &Mat<f64>| product(a.as_ref(), b.as_ref());
    // Divided, not multiplied by 1 / t, which overflows first.
    let mut y = Mat::from_fn(d, d, |i, j| s[(i, j)] / t);
    let mut z = Mat::<f64>::identity(d, d);
    let mut moved = along.map(|e| (e.clone(), Mat::<f64>::zeros(d, d)));
    for _ in 0..iterations {
        let mut step = mul(&z, &y);
        step *= Scale(-0.5);
        for i in 0..d {
            step[(i, i)] += 1.5;
        }
        if let Some((dy, dz)) = &mut moved {
            let mut turn = mul(dz, &y);
            turn += mul(&z, dy);
            turn *= Scale(-0.5);
            let mut next = mul(dy, &step);
            next += mul(&y, &turn);
            *dy = next;
            let mut next = mul(&turn, &z);
            next += mul(&step, dz);
            *dz = next;
        }
        y = mul(&y, &step);
        z = mul(&step, &z);
    }
    let root = t.sqrt();
    // In exact arithmetic both are symmetric.
    let fold = |z: &Mat<f64>, scale: f64| {
        Mat::from_fn(d, d, |i, j| 0.5 * (z[(i, j)] + z[(j, i)]) / root / scale)
    };
    (fold(&z, 1.), moved.map(|(_, dz)| fold(&dz, t)))
}
