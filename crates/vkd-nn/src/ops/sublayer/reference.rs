//! A pre-norm sub-layer from the other twins.

use super::Body;
use crate::ops::Activation;
use crate::ops::attention::reference::multi_head_attention;
use crate::ops::linear::reference::linear;
use candle_core::{D, Result, Tensor};

/// Twin of [`crate::ops::sublayer`].
pub fn sublayer(
    xs: &Tensor,
    parameters: [&Tensor; 6],
    body: Body,
    eps: f64,
    scale: Option<&[f64]>,
) -> Result<Tensor> {
    let [gain, shift, w_in, b_in, w_out, b_out] = parameters;
    let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    let normed = centred.broadcast_div(&deviation)?.broadcast_mul(gain)?.broadcast_add(shift)?;
    let hidden = match body {
        Body::Mlp(activation) => linear(&normed, w_in, Some(b_in), activation)?,
        Body::Attention { heads } => {
            let qkv = linear(&normed, w_in, Some(b_in), Activation::Identity)?;
            multi_head_attention(&qkv, None, heads)?
        }
    };
    let branch = linear(&hidden, w_out, Some(b_out), Activation::Identity)?;
    match scale {
        None => xs + branch,
        Some(scale) => {
            let mut dims = vec![1; xs.rank()];
            dims[0] = scale.len();
            let scale = Tensor::from_slice(scale, dims, xs.device())?.to_dtype(xs.dtype())?;
            xs + branch.broadcast_mul(&scale)?
        }
    }
}
