//! A transposed convolution as a convolution of the spread image.

use super::ConvTranspose2dConfig;
use crate::ops::{Conv2dConfig, reference};
use candle_core::{Result, Tensor};

/// Twin of [`crate::ops::conv_transpose2d`]: zeros between the pixels and around them, then a convolution with each
/// filter turned around.
///
/// # Errors
/// Its errors on shapes and configuration.
pub fn conv_transpose2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: ConvTranspose2dConfig,
) -> Result<Tensor> {
    let g = super::geometry_of(xs, weight, bias, config)?;
    let (stride, padding): ([usize; 2], [usize; 2]) = (config.stride.into(), config.padding.into());
    let output_padding: [usize; 2] = config.output_padding.into();
    let mut spread = xs.contiguous()?;
    for axis in 0..2 {
        let dim = axis + 1;
        let size = spread.dim(dim)?;
        let between = spread.unsqueeze(dim + 1)?.pad_with_zeros(dim + 1, 0, stride[axis] - 1)?;
        let rows = between.flatten(dim, dim + 1)?.narrow(dim, 0, (size - 1) * stride[axis] + 1)?;
        let reach = g.window.dilation[axis] * (g.window.kernel[axis] - 1);
        let padded = rows.pad_with_zeros(dim, reach, reach + output_padding[axis])?;
        let length = padded.dim(dim)? - 2 * padding[axis];
        spread = padded.narrow(dim, padding[axis], length)?.contiguous()?;
    }
    let (groups, c) = (config.groups, xs.dim(3)?);
    let (_, og, kh, kw) = weight.dims4()?;
    let reversed = |n: usize| Tensor::new((0..n as u32).rev().collect::<Vec<_>>(), xs.device());
    let turned =
        weight.contiguous()?.index_select(&reversed(kh)?, 2)?.index_select(&reversed(kw)?, 3)?;
    let turned = turned.reshape((groups, c / groups, og, kh, kw))?.transpose(1, 2)?;
    let turned = turned.reshape((groups * og, c / groups, kh, kw))?;
    let conv = Conv2dConfig { dilation: config.dilation, groups, ..Conv2dConfig::default() };
    reference::conv2d(&spread, &turned, bias, conv)
}
