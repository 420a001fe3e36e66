//! From one stage to the next: four neighbouring patches become one.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use vkd_nn::{LayerNorm, Linear, init, layer_norm};

use super::EPS;

/// Layer norm and a linear map of four tokens side by side.
pub(super) struct Merging {
    norm: LayerNorm,
    reduction: Linear,
}

impl Merging {
    /// `norm` and `reduction` (without bias), from `4 · width` to `out`.
    pub(super) fn new(width: usize, out: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.pp("reduction");
        weight.get_with_hints((out, 4 * width), "weight", init::truncated_normal(0.02))?;
        Ok(Self {
            norm: layer_norm(4 * width, EPS, vb.pp("norm"))?,
            reduction: vkd_nn::linear_no_bias(4 * width, out, weight)?,
        })
    }

    /// Patches `(B, rows · cols, C)` to a map `(B, ⌈rows/2⌉, ⌈cols/2⌉, C')`; beyond an odd side there are zeros.
    ///
    /// The order of the four is (0, 0), (1, 0), (0, 1), (1, 1) as (row, column).
    pub(super) fn patches(&self, xs: &Tensor, [rows, cols]: [usize; 2]) -> Result<Tensor> {
        let (batch, _, width) = xs.dims3()?;
        let xs = xs.reshape((batch, rows, cols, width))?;
        let xs = xs.pad_with_zeros(1, 0, rows % 2)?.pad_with_zeros(2, 0, cols % 2)?;
        let (down, across) = (rows.div_ceil(2), cols.div_ceil(2));
        let four = xs.reshape(&[batch, down, 2, across, 2, width][..])?;
        let four = four.permute([0, 1, 3, 4, 2, 5])?;
        self.reduce(&four.reshape((batch, down, across, 4 * width))?)
    }

    /// Detection tokens `(B, Q, C)` to `(B, Q, C')`: each stands for all four.
    pub(super) fn tokens(&self, xs: &Tensor) -> Result<Tensor> {
        self.reduce(&Tensor::cat(&[xs, xs, xs, xs], 2)?)
    }

    fn reduce(&self, xs: &Tensor) -> Result<Tensor> {
        self.reduction.forward(&self.norm.forward(xs)?)
    }
}
