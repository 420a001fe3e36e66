//! Whitening of the rows through the Cholesky factor of their covariance.

mod cpu;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::dense::{Real, dense, with_slices};
use candle_core::{CpuStorage, CustomOp1, DType, Error, Layout, Result, Shape, Tensor, bail};
use cpu::{Failure, Problem};
use std::fmt;

const OP: &str = "whiten_cholesky";

/// The shrunk covariance has no usable Cholesky factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NotPositiveDefinite {
    /// Rows N of the batch.
    pub(crate) rows: usize,
    /// Channels d.
    pub(crate) channels: usize,
    /// The shrinkage that was asked for.
    pub(crate) eps: f64,
    /// Channel with the smallest pivot, or the first that fails.
    pub(crate) index: usize,
    /// That pivot as a share of the channel's own variance.
    pub(crate) pivot: f64,
}

impl fmt::Display for NotPositiveDefinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, channels, eps, index, pivot } = self;
        write!(
            f,
            "{OP}: expected a positive definite covariance, got pivot {pivot:e} (share of the variance) at channel \
             {index} with N = {rows} rows, d = {channels} channels, eps = {eps:e}"
        )?;
        if rows <= channels {
            write!(f, "; N <= d has rank at most {}, use more rows or a larger eps", rows - 1)?;
        }
        Ok(())
    }
}

impl std::error::Error for NotPositiveDefinite {}

/// Whitens the rows through the Cholesky factor of their covariance: decorrelated channels of variance 1.
///
/// With `Xc` the rows less their mean,
/// ```text
/// S = (1 − eps) · XcᵀXc / (N − 1) + eps · I = L Lᵀ,   Y = Xc L⁻ᵀ
/// ```
/// With `eps = 0` the covariance of the result is the identity. `eps` is absolute: it shrinks towards the identity,
/// so it acts on the scale of the features. The result depends on the order of the channels.
///
/// # Shapes
/// - `xs`: `(N, d)` with `N >= 2`, `d >= 1`, any strides; f32 or f64
/// - output: `(N, d)`, contiguous, same dtype and device
///
/// # Gradient
/// Flows to `xs` through mean, covariance and factor. The backward pass repeats the forward pass and adds two products
/// and one triangular solve, O(N d²) each; nothing is kept in between.
///
/// # Numerics
/// All arithmetic is in f64, also for f32 tensors, on one thread. Channels of very different size do not disturb each
/// other. The covariance of the result is within 1e-10 of the identity in f64, 1e-5 in f32, for covariances of
/// moderate correlation.
///
/// # Errors
/// `eps` outside [0, 1), `N < 2`, a rank other than two, another dtype, a value that is not finite, or a covariance that
/// is not positive definite to working precision: the message names N, d, eps, and the pivot and its channel, as a share of the
/// channel's variance. With `N <= d` and `eps = 0` that is certain. Never NaN.
///
/// # References
/// V_kD (arXiv:2403.06213) whitens the teacher's features in generation, and points to the form of W-MSE (Ermolov et al.,
/// arXiv:2007.06346), which this is. Adjoint of the factor: Murray, arXiv:1602.07527.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::whiten_cholesky;
/// let xs = Tensor::new(&[[0f64, 0.], [2., 3.], [4., 1.]], &Device::Cpu)?;
/// let ys = whiten_cholesky(&xs, 0.)?;
/// let covariance = (ys.t()?.matmul(&ys)? / 2.)?.to_vec2::<f64>()?;
/// assert!((covariance[0][0] - 1.).abs() < 1e-12 && covariance[0][1].abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn whiten_cholesky(xs: &Tensor, eps: f64) -> Result<Tensor> {
    if !(0. ..1.).contains(&eps) {
        bail!("{OP}: expected 0 <= eps < 1, got {eps:e}")
    }
    if !matches!(xs.dtype(), DType::F32 | DType::F64) {
        return Err(Error::UnsupportedDTypeForOp(xs.dtype(), OP).bt());
    }
    let (rows, channels) = match *xs.dims() {
        [rows, channels] if rows > 1 && channels > 0 => (rows, channels),
        ref dims => bail!("{OP}: expected (N, d) with N >= 2 and d >= 1, got {dims:?}"),
    };
    if !xs.device().is_cpu() {
        return reference::whiten_cholesky(xs, eps);
    }
    xs.contiguous()?.apply_op1(WhitenCholesky(Problem { rows, channels, eps }))
}

/// A pivot whose share of the channel's variance is within the rounding of the covariance is no pivot.
fn pivot_floor(rows: usize, channels: usize) -> f64 {
    4. * (rows + channels) as f64 * f64::EPSILON
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotPositiveDefinite(error) => Error::wrap(error),
            Failure::NotFinite { channel } => Error::Msg(format!(
                "{OP}: expected finite values, got a variance that is not finite in channel {channel}"
            ))
            .bt(),
        }
    }
}

struct WhitenCholesky(Problem);

impl CustomOp1 for WhitenCholesky {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ys = match storage {
            CpuStorage::F32(_) => self.forward::<f32>(storage, layout)?,
            _ => self.forward::<f64>(storage, layout)?,
        };
        Ok((ys, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dxs = match xs.dtype() {
            DType::F32 => self.backward::<f32>(xs, &grad),
            _ => self.backward::<f64>(xs, &grad),
        };
        dxs.map(Some)
    }
}

impl WhitenCholesky {
    fn forward<T: Real>(&self, storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let ys = self.0.forward(widen(dense::<T>(OP, storage, layout)?))?;
        Ok(T::to_cpu_storage_owned(narrow(ys)))
    }

    fn backward<T: Real>(&self, xs: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let dxs = with_slices::<T, _, 2>(OP, [xs, grad], |[x, g]| {
            Ok(self.0.backward(widen(x), widen(g))?)
        })?;
        Tensor::from_vec(narrow::<T>(dxs), xs.shape(), xs.device())
    }
}

fn widen<T: Real>(xs: &[T]) -> Vec<f64> {
    xs.iter().map(|x| x.wide()).collect()
}

fn narrow<T: Real>(xs: Vec<f64>) -> Vec<T> {
    xs.into_iter().map(T::narrow).collect()
}
