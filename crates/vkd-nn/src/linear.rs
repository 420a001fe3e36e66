//! Affine map of the last dimension.

use crate::add_bias;
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// `xs · weightᵀ + bias` over the last dimension.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

/// Creates a [`Linear`] with variables `weight` `(out_dim, in_dim)` and `bias` `(out_dim)`.
///
/// The weight starts normal with standard deviation `sqrt(1 / in_dim)`, which keeps the variance of unit inputs; the
/// bias starts at zero.
///
/// # Errors
/// A zero width.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    if in_dim == 0 || out_dim == 0 {
        bail!("linear {}: expected widths above 0, got {in_dim} -> {out_dim}", vb.prefix())
    }
    let init = Init::Randn { mean: 0., stdev: (in_dim as f64).sqrt().recip() };
    Ok(Linear {
        weight: vb.get_with_hints((out_dim, in_dim), "weight", init)?,
        bias: vb.get_with_hints(out_dim, "bias", Init::Const(0.))?,
    })
}

impl Module for Linear {
    /// `(.., in_dim)` to `(.., out_dim)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (out_dim, in_dim) = self.weight.dims2()?;
        let Some((&last, outer)) = xs.dims().split_last() else {
            bail!("linear: expected (.., {in_dim}), got a scalar")
        };
        if last != in_dim {
            bail!("linear: expected (.., {in_dim}), got {:?}", xs.dims())
        }
        // One matrix product over all rows: candle would loop over the batch.
        let rows: usize = outer.iter().product();
        let ys = add_bias(&xs.reshape((rows, in_dim))?.matmul(&self.weight.t()?)?, &self.bias)?;
        let mut shape = outer.to_vec();
        shape.push(out_dim);
        ys.reshape(shape)
    }
}
