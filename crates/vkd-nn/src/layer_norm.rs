//! Layer norm with learnt gain and bias.

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// Layer norm over the last dimension with learnt gain and bias (Ba, Kiros and Hinton, arXiv:1607.06450).
///
/// The op is `vkd_norm::layer_norm_affine`, which has a gradient; candle-nn's fused one has none.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) eps: f64,
}

/// Creates a [`LayerNorm`] with variables `weight` (starts at one) and `bias` (starts at zero), both `(dim)`.
///
/// # Errors
/// A zero width, or an `eps` that is not finite or under the smallest normal f32.
pub fn layer_norm(dim: usize, eps: f64, vb: VarBuilder) -> Result<LayerNorm> {
    if dim == 0 || !(eps >= f64::from(f32::MIN_POSITIVE) && eps.is_finite()) {
        bail!(
            "layer_norm {}: expected a width and an eps above 0, got {dim} and {eps}",
            vb.prefix()
        )
    }
    Ok(LayerNorm {
        weight: vb.get_with_hints(dim, "weight", Init::Const(1.))?,
        bias: vb.get_with_hints(dim, "bias", Init::Const(0.))?,
        eps,
    })
}

impl Module for LayerNorm {
    /// `(.., dim)` to `(.., dim)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        vkd_norm::layer_norm_affine(xs, &self.weight, &self.bias, self.eps)
    }
}
