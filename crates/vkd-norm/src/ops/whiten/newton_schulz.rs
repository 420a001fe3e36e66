//! `S^(-1/2)` from products alone, and its derivative.

use super::linalg::sum_of_products as mul;
use faer::Mat;

/// `p(S / t) / sqrt(t)` after the given number of coupled iterations
/// ```text
/// T = (3 I - Z Y) / 2,   Y <- Y T,   Z <- T Z,   from Y = S / t, Z = I, to Z;
/// ```
/// with a symmetric direction `along`, also its derivative by `S` at fixed `t`.
///
/// In exact arithmetic all of these are symmetric and half of each product would do; but then the iteration is unstable:
/// with the order of the factors as above, rounding stays bounded (Higham, *Functions of Matrices*, section 6.4).
pub(super) fn newton_schulz(
    s: &Mat<f64>,
    (t, floor): (f64, f64),
    iterations: usize,
    along: Option<&Mat<f64>>,
) -> (Mat<f64>, Option<Mat<f64>>) {
    let d = s.nrows();
    // Divided, not multiplied by 1 / t, which overflows first. The floor is of the size of the covariance's own rounding:
    // without it that may be negative where nothing is spread, and the iteration would diverge.
    let mut y = Mat::from_fn(d, d, |i, j| s[(i, j)] / t);
    for i in 0..d {
        y[(i, i)] += floor;
    }
    let mut z = Mat::<f64>::identity(d, d);
    let mut moved = along.map(|e| (e.clone(), Mat::<f64>::zeros(d, d)));
    for at in 0..iterations {
        let mut step = mul(-0.5, &[(&z, &y)]);
        for i in 0..d {
            step[(i, i)] += 1.5;
        }
        // After the last step nobody reads Y.
        let last = at + 1 == iterations;
        if let Some((dy, dz)) = &mut moved {
            let turn = mul(-0.5, &[(dz, &y), (&z, dy)]);
            if !last {
                *dy = mul(1., &[(dy, &step), (&y, &turn)]);
            }
            *dz = mul(1., &[(&turn, &z), (&step, dz)]);
        }
        if !last {
            y = mul(1., &[(&y, &step)]);
        }
        z = mul(1., &[(&step, &z)]);
    }
    let root = t.sqrt();
    let fold = |z: &Mat<f64>, scale: f64| {
        Mat::from_fn(d, d, |i, j| 0.5 * (z[(i, j)] + z[(j, i)]) / root / scale)
    };
    (fold(&z, 1.), moved.map(|(_, dz)| fold(&dz, t)))
}
