//! The normaliser slot of a distillation tap.

use crate::{Context, layer_norm, standardize, whiten_cholesky};
use candle_core::{Error, Result, Tensor, bail};
use std::str::FromStr;

/// How features are normalised before they meet the loss.
///
/// A recipe writes it as `identity`, `layer_norm`, `standardize` or `whiten`; [`FromStr`] then takes these `eps`:
///
/// | name | eps | from |
/// | --- | --- | --- |
/// | `layer_norm` | 1e-5 | V_kD's classification code (PyTorch's default) |
/// | `standardize` | 1e-6 | ours: the published detection code has none |
/// | `whiten` | 1e-4 | advised for the W-MSE code that V_kD points to, whose own default is 0 and fails for `N <= d` |
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
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// Decorrelated channels: [`whiten_cholesky`].
    Whiten {
        /// Shrinkage of the covariance.
        eps: f64,
    },
}

impl Normalizer {
    /// Normalises `xs` of shape `(M, C)`; the output has the same shape, and a gradient flows back to `xs`.
    ///
    /// Statistics come from `xs` alone, in training and in evaluation: no variant reads the context yet.
    ///
    /// # Errors
    /// A rank other than two, and those of the function behind the variant.
    pub fn forward(&self, xs: &Tensor, _ctx: &Context) -> Result<Tensor> {
        if xs.rank() != 2 {
            bail!("normalizer: expected (M, C), got {:?}", xs.dims())
        }
        match *self {
            Self::Identity => Ok(xs.clone()),
            Self::LayerNorm { eps } => layer_norm(xs, eps),
            Self::Standardize { eps } => standardize(xs, eps),
            Self::Whiten { eps } => whiten_cholesky(xs, eps),
        }
    }
}

impl FromStr for Normalizer {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "identity" => Ok(Self::Identity),
            "layer_norm" => Ok(Self::LayerNorm { eps: 1e-5 }),
            "standardize" => Ok(Self::Standardize { eps: 1e-6 }),
            "whiten" => Ok(Self::Whiten { eps: 1e-4 }),
            other => bail!(
                "normalizer: expected identity, layer_norm, standardize or whiten, got {other:?}"
            ),
        }
    }
}
