//! Attention from tensor ops.

use candle_core::{D, Result, Tensor};

/// Twin of [`crate::multi_head_attention`].
///
/// # Errors
/// Its errors on shape and heads.
pub fn multi_head_attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let super::Sizes { batch, tokens, dim, .. } = super::sizes(qkv.dims(), heads)?;
    let parts = qkv.reshape((batch, tokens, 3, heads, dim))?.permute((2, 0, 3, 1, 4))?;
    let part = |i: usize| parts.get(i)?.contiguous();
    let scores =
        (part(0)?.matmul(&part(1)?.transpose(2, 3)?.contiguous()?)? / (dim as f64).sqrt())?;
    let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let p = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
    p.matmul(&part(2)?)?.transpose(1, 2)?.reshape((batch, tokens, heads * dim))
}
