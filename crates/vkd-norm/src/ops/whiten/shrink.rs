//! Shrinkage of a covariance towards a multiple of the identity, and its adjoint.

use super::linalg::{dot, trace};
use crate::Shrinkage;
use faer::Mat;

/// Below this share of `tr S²` the covariance is a multiple of the identity to rounding, and shrinking changes nothing.
const SPHERICAL: f64 = 1e-13;

/// `(1 - rho) S + rho target I`, and how `rho` moves with the statistics.
pub(super) struct Shrunk {
    rho: f64,
    target: f64,
    channels: f64,
    /// The target is `tr(S) / d`, not a constant.
    scaled: bool,
    /// Derivatives of `rho` by `tr S²`, `tr S` and `Σ ‖x‖⁴`.
    slope: (f64, f64, f64),
}

impl Shrunk {
    /// Intensity and target for the unbiased covariance of `count` rows; `quartic` is `Σ ‖x‖⁴` of the centred rows.
    pub(super) fn new(s: &Mat<f64>, count: f64, quartic: f64, shrinkage: Shrinkage) -> Self {
        let d = s.nrows() as f64;
        let t = trace(s);
        let fixed = |rho| (rho, (0., 0., 0.));
        let (rho, slope) = match shrinkage {
            Shrinkage::Fixed(rho) | Shrinkage::Absolute(rho) => fixed(rho),
            _ => {
                let q = dot(s, s);
                let spread = q - t * t / d;
                if !(spread > SPHERICAL * q) {
                    fixed(1.)
                } else if shrinkage == Shrinkage::Oas {
                    let (a, b) = (1. - 2. / d, count + 1. - 2. / d);
                    let rho = (a * q + t * t) / (b * spread);
                    let by_t = 2. * t / (b * spread) + rho * 2. * t / (d * spread);
                    (rho, (a / (b * spread) - rho / spread, by_t, 0.))
                } else {
                    // The formula is of the biased covariance, k S.
                    let k = (count - 1.) / count;
                    let spread = k * k * spread;
                    let rho = (quartic / count - k * k * q) / (count * spread);
                    let by_q = -(k * k / spread) * (1. / count + rho);
                    let by_t = rho * k * k * 2. * t / (d * spread);
                    (rho, (by_q, by_t, 1. / (count * count * spread)))
                }
            }
        };
        // Outside its range an estimate is cut off, and no longer moves.
        let (rho, slope) = if rho >= 1. {
            fixed(1.)
        } else if rho <= 0. {
            fixed(0.)
        } else {
            (rho, slope)
        };
        let scaled = !matches!(shrinkage, Shrinkage::Absolute(_));
        Self { rho, target: if scaled { t / d } else { 1. }, channels: d, scaled, slope }
    }

    pub(super) fn rho(&self) -> f64 {
        self.rho
    }

    /// Whether `rho` was given, or cut off.
    pub(super) fn is_fixed(&self) -> bool {
        self.slope == (0., 0., 0.)
    }

    /// What the trace of the shrunk covariance's gradient adds to each diagonal entry of the covariance's.
    pub(super) fn weight_of_trace(&self) -> f64 {
        if self.scaled { self.rho / self.channels } else { 0. }
    }

    /// The shrunk covariance.
    pub(super) fn matrix(&self, s: &Mat<f64>) -> Mat<f64> {
        let mut out = Mat::from_fn(s.nrows(), s.ncols(), |i, j| (1. - self.rho) * s[(i, j)]);
        for i in 0..s.nrows() {
            out[(i, i)] += self.rho * self.target;
        }
        out
    }

    /// An eigenvalue of the shrunk covariance from the covariance's own.
    pub(super) fn eigenvalue(&self, value: f64) -> f64 {
        (1. - self.rho) * value + self.rho * self.target
    }

    /// Gradients of the covariance and of `Σ ‖x‖⁴` from the gradient of the shrunk one.
    pub(super) fn adjoint(&self, s: &Mat<f64>, grad: Mat<f64>) -> (Mat<f64>, f64) {
        let d = s.nrows();
        let t = trace(&grad);
        let (by_q, by_t, by_quartic) = self.slope;
        let rho = if self.is_fixed() { 0. } else { self.target * t - dot(&grad, s) };
        let mut out = grad;
        for j in 0..d {
            for i in 0..d {
                out[(i, j)] = (1. - self.rho) * out[(i, j)] + 2. * rho * by_q * s[(i, j)];
            }
            out[(j, j)] += rho * by_t;
            out[(j, j)] += self.weight_of_trace() * t;
        }
        (out, rho * by_quartic)
    }
}
