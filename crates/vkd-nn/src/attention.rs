//! Multi-head self-attention as in ViT.

use crate::{Linear, linear, multi_head_attention};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;

/// Self-attention: one projection to queries, keys and values, the attention itself, one output projection
/// (Vaswani et al., arXiv:1706.03762; packed as in timm's ViT).
#[derive(Clone, Debug)]
pub struct SelfAttention {
    pub(crate) qkv: Linear,
    pub(crate) proj: Linear,
    pub(crate) heads: usize,
}

/// Creates a [`SelfAttention`] with the layers `qkv` (`dim` to `3 dim`) and `proj` (`dim` to `dim`).
///
/// # Errors
/// If `heads` is zero or does not divide `dim`.
pub fn self_attention(dim: usize, heads: usize, vb: VarBuilder) -> Result<SelfAttention> {
    if heads == 0 || !dim.is_multiple_of(heads) {
        bail!(
            "self_attention {}: expected heads that divide the width {dim}, got {heads}",
            vb.prefix()
        )
    }
    Ok(SelfAttention {
        qkv: linear(dim, 3 * dim, vb.pp("qkv"))?,
        proj: linear(dim, dim, vb.pp("proj"))?,
        heads,
    })
}

impl Module for SelfAttention {
    /// `(B, N, dim)` to `(B, N, dim)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.proj.forward(&multi_head_attention(&self.qkv.forward(xs)?, None, self.heads)?)
    }
}
