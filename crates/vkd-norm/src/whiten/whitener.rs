//! A whitening made once, of statistics that were gathered before.

use crate::ops::{Fit, apply, check_config};
use crate::{Moments, WhitenConfig};
use candle_core::{Result, Tensor};
use faer::Mat;
use faer::linalg::matmul::triangular::BlockStructure;
use std::fmt;
use std::sync::Arc;

const OP: &str = "whitener";

/// Mean and whitening matrix of given [`Moments`]: of a whole data set, or of a running estimate.
///
/// Clones share the matrix.
#[derive(Clone, PartialEq)]
pub struct Whitener(Arc<Inner>);

#[derive(PartialEq)]
struct Inner {
    config: WhitenConfig,
    mean: Vec<f64>,
    w: Mat<f64>,
    lower: bool,
    rank: usize,
    intensity: f64,
    residual: f64,
}

impl Whitener {
    /// Shrinks and factors the unbiased covariance of `moments`.
    ///
    /// # Errors
    /// No rows, and those of [`whiten`](crate::whiten) for its config and its covariance.
    ///
    /// # Example
    /// ```
    /// # use candle_core::{Device, Tensor}; use vkd_norm::{Moments, WhitenConfig, Whitener, whiten_with};
    /// let mut moments = Moments::new(2)?;
    /// for batch in [[[0f64, 1.], [2., 3.]], [[5., 1.], [3., 3.]]] {
    ///     moments.merge(&Moments::from_rows(&Tensor::new(&batch, &Device::Cpu)?, None)?)?;
    /// }
    /// let whitener = Whitener::new(&moments, WhitenConfig::default())?;
    /// let mean = Tensor::new(&[[2.5f32, 2.]], &Device::Cpu)?;
    /// assert_eq!(whiten_with(&mean, &whitener)?.to_vec2::<f32>()?, [[0., 0.]]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn new(moments: &Moments, config: WhitenConfig) -> Result<Self> {
        check_config(OP, config)?;
        let covariance = moments.covariance_matrix(OP, true)?;
        // A sum of weights does not tell how many rows it was made of.
        let size = (moments.effective_count(), moments.channels());
        let fit = Fit::new(OP, covariance, moments.quartic(), size, config)?;
        Ok(Self(Arc::new(Inner {
            config,
            mean: moments.mean().to_vec(),
            lower: !matches!(fit.shape(), BlockStructure::Rectangular),
            rank: fit.rank(),
            intensity: fit.intensity(),
            residual: fit.residual(),
            w: fit.into_w(),
        })))
    }

    /// Width d.
    pub fn channels(&self) -> usize {
        self.0.mean.len()
    }

    /// Number of directions that are whitened; the others give 0.
    ///
    /// Newton-Schulz decides nothing of the kind: it has d (0 without any variance), also where the covariance is
    /// singular, and multiplies directions without variance by `1.5^iterations / sqrt(trace)`.
    pub fn rank(&self) -> usize {
        self.0.rank
    }

    /// The intensity ρ of the shrinkage, given or estimated.
    pub fn intensity(&self) -> f64 {
        self.0.intensity
    }

    /// `max |W S Wᵀ - P|` with `S` the shrunk covariance and `P` the identity on what is whitened.
    ///
    /// Rounding, but for Newton-Schulz, where it says how far the iterations came. `P` is then the identity: of a singular
    /// covariance the directions without variance stay in it, whatever the iterations, and it is at most 1.
    pub fn residual(&self) -> f64 {
        self.0.residual
    }

    /// What it was made with.
    pub fn config(&self) -> WhitenConfig {
        self.0.config
    }

    /// The mean of each channel.
    pub fn mean(&self) -> &[f64] {
        &self.0.mean
    }

    /// The whitening matrix `W`, `(d, d)` in f64 on the CPU: `y = W (x - mean)`.
    ///
    /// # Errors
    /// None that is known; candle's constructor returns a result.
    pub fn matrix(&self) -> Result<Tensor> {
        let d = self.channels();
        let values = (0..d * d).map(|at| self.0.w[(at / d, at % d)]).collect::<Vec<_>>();
        Tensor::from_vec(values, (d, d), &candle_core::Device::Cpu)
    }

    pub(crate) fn w(&self) -> &Mat<f64> {
        &self.0.w
    }

    pub(crate) fn shape(&self) -> BlockStructure {
        if self.0.lower { BlockStructure::TriangularLower } else { BlockStructure::Rectangular }
    }
}

impl fmt::Debug for Whitener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Whitener")
            .field("channels", &self.channels())
            .field("config", &self.0.config)
            .field("rank", &self.0.rank)
            .field("residual", &self.0.residual)
            .finish_non_exhaustive()
    }
}

/// Rows through a whitening that was made before: `(x - mean) Wᵀ`.
///
/// # Shapes
/// - `xs`: `(N, d)` with the whitener's d, any strides; f32 or f64, or a half type, which is computed in f32
/// - output: `(N, d)`, contiguous, same dtype and device
///
/// # Gradient
/// Flows to `xs`: the incoming one times `W`. Mean and matrix are constants.
///
/// # Numerics
/// All arithmetic is in f64, also for f32 tensors; the same bits for any number of threads.
///
/// # Errors
/// A rank other than two, `N` of 0, another width, another dtype. Does not panic.
///
/// # References
/// [`whiten`](crate::whiten) has those of the methods.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::{Moments, WhitenConfig, Whitener, whiten_with};
/// let rows = Tensor::new(&[[0f64, 1.], [2., 3.], [5., 1.]], &Device::Cpu)?;
/// let whitener = Whitener::new(&Moments::from_rows(&rows, None)?, WhitenConfig::default())?;
/// assert_eq!(whiten_with(&rows, &whitener)?.dims(), [3, 2]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn whiten_with(xs: &Tensor, whitener: &Whitener) -> Result<Tensor> {
    apply(xs, whitener)
}
