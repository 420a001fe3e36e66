//! Pre-norm sub-layers of a transformer, each one op.

use crate::ops::{Activation, Body, sublayer};
use crate::{LayerNorm, Linear, SelfAttention};
use candle_core::{Module, Result, Tensor};

/// `xs + scale · fc2(fc1(norm(xs)))`, in one op where both layers have a bias and `fc2` no activation.
///
/// # Shapes
/// - `xs`: `(B, .., C)`; the output has the same shape
/// - `scale`: one factor for each of the B samples, from [`drop_path_scales`](crate::drop_path_scales); 1 where absent
///
/// # Errors
/// Those of [`sublayer`].
pub fn residual_mlp(
    xs: &Tensor,
    norm: &LayerNorm,
    fc1: &Linear,
    fc2: &Linear,
    scale: Option<&[f64]>,
) -> Result<Tensor> {
    if let (Some(b1), Some(b2), Activation::Identity) = (&fc1.bias, &fc2.bias, fc2.activation) {
        let parameters = [&norm.weight, &norm.bias, &fc1.weight, b1, &fc2.weight, b2];
        return sublayer(xs, parameters, Body::Mlp(fc1.activation), norm.eps, scale);
    }
    add(xs, &fc2.forward(&fc1.forward(&norm.forward(xs)?)?)?, scale)
}

/// `xs + scale · attention(norm(xs))`, in one op where both maps have a bias.
///
/// # Shapes
/// - `xs`: `(B, N, C)`; the output has the same shape
/// - `scale`: as for [`residual_mlp`]
///
/// # Errors
/// Those of [`sublayer`].
pub fn residual_attention(
    xs: &Tensor,
    norm: &LayerNorm,
    attention: &SelfAttention,
    scale: Option<&[f64]>,
) -> Result<Tensor> {
    let SelfAttention { qkv, proj, heads } = attention;
    if let (Some(b1), Some(b2)) = (&qkv.bias, &proj.bias) {
        let parameters = [&norm.weight, &norm.bias, &qkv.weight, b1, &proj.weight, b2];
        return sublayer(xs, parameters, Body::Attention { heads: *heads }, norm.eps, scale);
    }
    add(xs, &attention.forward(&norm.forward(xs)?)?, scale)
}

fn add(xs: &Tensor, branch: &Tensor, scale: Option<&[f64]>) -> Result<Tensor> {
    let Some(scale) = scale else { return xs + branch };
    let mut dims = vec![1; branch.rank()];
    if let Some(first) = dims.first_mut() {
        *first = scale.len();
    }
    let scale = Tensor::from_slice(scale, dims, branch.device())?.to_dtype(branch.dtype())?;
    xs + branch.broadcast_mul(&scale)?
}
