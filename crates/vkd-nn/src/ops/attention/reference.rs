//! Attention from tensor ops.

use candle_core::{D, Result, Tensor};

/// Twin of [`crate::multi_head_attention`].
///
/// # Errors
/// Its errors on shape and heads.
pub fn multi_head_attention(qkv: &Tensor, bias: Option<&Tensor>, heads: usize) -> Result<Tensor> {
    let s = super::packed_sizes(qkv.dims(), heads)?;
    let parts = qkv.reshape((s.batch, s.queries, 3 * s.width()))?;
    let part = |i: usize| parts.narrow(2, i * s.width(), s.width());
    attend(&part(0)?, &part(1)?, &part(2)?, bias, heads)
}

/// Twin of [`crate::cross_attention`].
///
/// # Errors
/// Its errors on shape and heads.
pub fn cross_attention(
    queries: &Tensor,
    keys_values: &Tensor,
    bias: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    let s = super::cross_sizes(queries.dims(), keys_values.dims(), heads)?;
    let part = |i: usize| keys_values.narrow(2, i * s.width(), s.width());
    attend(queries, &part(0)?, &part(1)?, bias, heads)
}

fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let split = |x: &Tensor| {
        let tokens = x.dim(1)?;
        x.contiguous()?
            .reshape((batch, tokens, heads, width / heads))?
            .transpose(1, 2)?
            .contiguous()
    };
    let (q, k, v) = (split(q)?, split(k)?, split(v)?);
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? / ((width / heads) as f64).sqrt())?;
    let scores = match bias {
        Some(bias) if bias.rank() == 4 => scores.broadcast_add(bias)?,
        // A mask for each sample stands before the heads, a bias for each head after the samples.
        Some(bias) if bias.dim(1)? == 1 && bias.dim(0)? == batch => {
            scores.broadcast_add(&bias.unsqueeze(1)?)?
        }
        Some(bias) => scores.broadcast_add(&bias.unsqueeze(0)?)?,
        None => scores,
    };
    let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let p = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
    p.matmul(&v)?.transpose(1, 2)?.reshape((batch, queries, width))
}
