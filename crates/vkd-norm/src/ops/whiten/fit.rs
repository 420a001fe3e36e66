//! From statistics to the whitening matrix, and back.

use super::linalg::{dot, trace};
use super::shrink::Shrunk;
use super::transform::{Failure, Transform};
use crate::{Shrinkage, WhitenConfig};
use candle_core::{Error, Result, bail};
use faer::Mat;
use faer::linalg::matmul::triangular::BlockStructure;
use std::fmt;

/// A covariance and the whitening that was made of it.
pub(crate) struct Fit {
    op: &'static str,
    count: f64,
    covariance: Mat<f64>,
    shrunk: Shrunk,
    transform: Transform,
}

impl Fit {
    /// Of the unbiased covariance of `count` rows, of no more than `rank`; `quartic` is `Σ ‖x‖⁴` of the centred rows,
    /// for Ledoit and Wolf.
    pub(crate) fn new(
        op: &'static str,
        covariance: Mat<f64>,
        quartic: f64,
        (count, rank): (f64, usize),
        config: WhitenConfig,
    ) -> Result<Self> {
        let channels = covariance.nrows();
        let shrunk = Shrunk::new(&covariance, count, quartic, config.shrinkage);
        let estimated = matches!(config.shrinkage, Shrinkage::LedoitWolf | Shrinkage::Oas);
        // A variance that is not finite has its own message.
        if let (true, Some([t, q])) = (estimated, squares(&covariance)) {
            let fourth = config.shrinkage == Shrinkage::LedoitWolf;
            let lost = t > 0. && (q == 0. || (fourth && quartic == 0.));
            if lost || !(q.is_finite() && quartic.is_finite() && shrunk.rho().is_finite()) {
                bail!(
                    "{op}: expected fourth powers in the range of f64 to estimate the shrinkage, got trace {t:e}, \
                     sum of squares {q:e}, sum of fourth powers {quartic:e}, intensity {}",
                    shrunk.rho()
                )
            }
        }
        let transform = Transform::new(&covariance, &shrunk, (count, rank), config)
            .map_err(|failure| Error::wrap(WhitenError { op, count, channels, failure }).bt())?;
        Ok(Self { op, count, covariance, shrunk, transform })
    }

    /// Of the scatter of `rows` rows and their `Σ ‖x‖⁴`, which only Ledoit and Wolf's shrinkage reads.
    pub(super) fn of_sums(
        op: &'static str,
        scatter: Mat<f64>,
        quartic: f64,
        rows: usize,
        config: WhitenConfig,
    ) -> Result<Self> {
        let mut covariance = scatter;
        // One row has no spread: its scatter is zero, whatever divides it.
        covariance *= faer::Scale(1. / (rows.max(2) - 1) as f64);
        let rank = covariance.nrows().min(rows - 1);
        Self::new(op, covariance, quartic, (rows as f64, rank), config)
    }

    pub(crate) fn w(&self) -> &Mat<f64> {
        &self.transform.w
    }

    pub(crate) fn into_w(self) -> Mat<f64> {
        self.transform.w
    }

    pub(crate) fn shape(&self) -> BlockStructure {
        self.transform.shape()
    }

    pub(crate) fn rank(&self) -> usize {
        self.transform.rank
    }

    pub(crate) fn intensity(&self) -> f64 {
        self.shrunk.rho()
    }

    pub(crate) fn residual(&self) -> f64 {
        self.transform.residual(&self.shrunk.matrix(&self.covariance))
    }

    /// A whole triangle, shrunk by an intensity that does not depend on the rows.
    pub(super) fn is_plain_triangle(&self) -> bool {
        self.transform.is_whole_triangle() && self.shrunk.is_fixed()
    }

    /// Of such a triangle, with `A = Gᵀ Y` in whitened rows, the lower triangle mirrored: `S̄ = ridge I + weight Wᵀ A W`.
    pub(super) fn triangle_adjoint(&self, inner: &Mat<f64>) -> (f64, f64) {
        let of_trace = self.shrunk.weight_of_trace();
        let weight = -0.5 * (1. - self.shrunk.rho());
        if of_trace == 0. {
            return (0., weight);
        }
        (-0.5 * of_trace * self.transform.trace_around(inner), weight)
    }

    /// Gradients of covariance and `Σ ‖x‖⁴` from that of `W`.
    pub(super) fn adjoint(&self, w: &Mat<f64>) -> Result<(Mat<f64>, f64)> {
        let Self { op, count, .. } = *self;
        let channels = self.covariance.nrows();
        let parts = self
            .transform
            .adjoint(w)
            .map_err(|failure| Error::wrap(WhitenError { op, count, channels, failure }).bt())?;
        let (mut covariance, quartic) = self.shrunk.adjoint(&self.covariance, parts.shrunk);
        if let Some(raw) = parts.raw {
            covariance += raw;
        }
        Ok((covariance, quartic))
    }
}

/// Trace of a covariance and sum of its squares, if its variances are finite.
fn squares(covariance: &Mat<f64>) -> Option<[f64; 2]> {
    let t = trace(covariance);
    t.is_finite().then(|| [t, dot(covariance, covariance)])
}

/// A failure with the sizes that its message names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct WhitenError {
    op: &'static str,
    count: f64,
    channels: usize,
    pub(super) failure: Failure,
}

impl fmt::Display for WhitenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, count: n, channels: d, failure } = self;
        match failure {
            Failure::NotFinite { channel } => write!(
                f,
                "{op}: expected finite values, got a variance that is not finite in channel {channel}"
            ),
            Failure::Deficient(pivot) => {
                write!(
                    f,
                    "{op}: expected rows that span all channels, got pivot {:e} (share of the variance) at channel {} \
                     with N = {n} rows, d = {d} channels",
                    pivot.share, pivot.index
                )?;
                if *n <= *d as f64 {
                    write!(f, "; N <= d has rank at most {}", n - 1.)?;
                }
                write!(f, "; more rows, or Deficient::Full or Truncate, would do")
            }
            Failure::Eigengap { index, gap, values } => write!(
                f,
                "{op}: expected an eigengap above {:e} for the gradient of PCA, got {gap:e} between eigenvalues {index} \
                 ({:e}) and {} ({:e}) with N = {n} rows, d = {d} channels; ZCA has a gradient there",
                super::spectrum::EIGENGAP,
                values.0,
                index + 1,
                values.1
            ),
            Failure::NoConvergence => write!(
                f,
                "{op}: expected singular values of the {d} x {d} factor, got no convergence with N = {n} rows"
            ),
        }
    }
}

impl std::error::Error for WhitenError {}
