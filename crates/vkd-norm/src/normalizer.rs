//! The normaliser slot of a distillation tap.

use crate::checks::{check_eps, check_relative_eps};
use crate::ops::check_config;
use crate::{
    Context, Deficient, Shrinkage, Variance, WhitenConfig, WhitenMethod, Whitener, layer_norm,
    standardize, standardize_synchronised, whiten, whiten_synchronised, whiten_with,
};
use candle_core::{Error, Result, Tensor, bail};
use std::str::FromStr;

/// How features are normalised before they meet the loss.
///
/// A recipe writes it as one of these names; [`FromStr`] then takes these numbers:
///
/// | name | numbers | from |
/// | --- | --- | --- |
/// | `identity` | | |
/// | `layer_norm` | eps 1e-5 | V_kD's classification code (PyTorch's default) |
/// | `standardize` | eps 1e-6 | ours: the published detection code has none |
/// | `whiten`, `whiten_cholesky` | ε 1e-4 of the mean variance | advised, as an absolute number, for the W-MSE code that V_kD points to, whose own default is 0 and fails for `N <= d` |
/// | `whiten_zca` | the same | |
/// | `whiten_pca` | the same, truncated to what the rows span | else its gradient is an error for `N < d` |
/// | `whiten_newton_schulz` | the same, 5 iterations | IterNorm |
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::{Context, Normalizer};
/// let normalizer: Normalizer = "layer_norm".parse()?;
/// let teacher = Tensor::new(&[[1f32, 3.]], &Device::Cpu)?;
/// let ys = normalizer.forward(&teacher, &Context::eval())?;
/// assert!((ys.to_vec2::<f32>()?[0][0] + 1.).abs() < 1e-5);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Normalizer {
    /// Nothing.
    Identity,
    /// Per row over the channels: [`layer_norm`].
    LayerNorm {
        /// Added to the variance.
        eps: f64,
    },
    /// Per channel over the rows: [`standardize`].
    Standardize {
        /// Guard of the denominator, relative to the channel.
        eps: f64,
    },
    /// Decorrelated channels, by the covariance of the batch: [`whiten`].
    Whiten(WhitenConfig),
    /// Decorrelated channels, by statistics gathered before: [`whiten_with`].
    Precomputed(Whitener),
}

impl Normalizer {
    /// Checks the numbers of a variant, and a whitener's width against `channels`, before there are any features.
    ///
    /// # Errors
    /// What [`forward`](Self::forward) would refuse whatever the features.
    pub fn check(&self, channels: usize) -> Result<()> {
        match self {
            Self::Identity => Ok(()),
            Self::LayerNorm { eps } => check_eps("layer_norm", *eps),
            Self::Standardize { eps } => check_relative_eps("standardize", *eps),
            Self::Whiten(config) => check_config("whiten", *config),
            Self::Precomputed(whitener) if whitener.channels() != channels => {
                bail!("whiten_with: expected {} channels, got {channels}", whitener.channels())
            }
            Self::Precomputed(_) => Ok(()),
        }
    }

    /// Normalises `xs` of shape `(M, C)`; the output has the same shape, and a gradient flows back to `xs`.
    ///
    /// Statistics come from `xs` alone, in training and in evaluation, or were gathered before; with
    /// [`replicas`](Context::replicas) they come from the rows of all, which each has to normalise at the same time.
    ///
    /// # Errors
    /// A rank other than two, and those of the function behind the variant.
    pub fn forward(&self, xs: &Tensor, ctx: &Context) -> Result<Tensor> {
        if xs.rank() != 2 {
            bail!("normalizer: expected (M, C), got {:?}", xs.dims())
        }
        match (self, &ctx.replicas) {
            (Self::Standardize { eps }, Some(replicas)) => {
                standardize_synchronised(xs, Variance::Unbiased, *eps, replicas)
            }
            (Self::Whiten(config), Some(replicas)) => whiten_synchronised(xs, *config, replicas),
            _ => self.alone(xs),
        }
    }

    fn alone(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Identity => Ok(xs.clone()),
            Self::LayerNorm { eps } => layer_norm(xs, *eps),
            Self::Standardize { eps } => standardize(xs, *eps),
            Self::Whiten(config) => whiten(xs, *config),
            Self::Precomputed(whitener) => whiten_with(xs, whitener),
        }
    }
}

impl FromStr for Normalizer {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let method = match name {
            "identity" => return Ok(Self::Identity),
            "layer_norm" => return Ok(Self::LayerNorm { eps: 1e-5 }),
            "standardize" => return Ok(Self::Standardize { eps: 1e-6 }),
            "whiten" | "whiten_cholesky" => WhitenMethod::Cholesky,
            "whiten_zca" => WhitenMethod::Zca,
            "whiten_pca" => WhitenMethod::Pca,
            "whiten_newton_schulz" => WhitenMethod::NewtonSchulz { iterations: 5 },
            other => bail!(
                "normalizer: expected identity, layer_norm, standardize, whiten, whiten_cholesky, whiten_zca, \
                 whiten_pca or whiten_newton_schulz, got {other:?}"
            ),
        };
        let deficient =
            if method == WhitenMethod::Pca { Deficient::Truncate } else { Deficient::Full };
        Ok(Self::Whiten(WhitenConfig { method, shrinkage: Shrinkage::Fixed(1e-4), deficient }))
    }
}
