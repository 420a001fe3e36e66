//! A convolution from windows, groups and one matrix product each.

use super::Conv2dConfig;
use candle_core::{Result, Tensor};

/// Twin of [`crate::ops::conv2d`].
///
/// # Errors
/// Its errors on shapes and configuration.
pub fn conv2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: Conv2dConfig,
) -> Result<Tensor> {
    let g = super::geometry_of("conv2d", xs, weight, bias, config)?;
    let ([oh, ow, o], [cg, og]) = (g.output, g.group());
    let ((ph, pw), (kh, kw)) = (config.padding, (g.window.kernel[0], g.window.kernel[1]));
    let padded = xs.contiguous()?.pad_with_zeros(1, ph, ph)?.pad_with_zeros(2, pw, pw)?;
    let steps = |count: usize, start: usize, stride: usize| {
        let at: Vec<u32> = (0..count).map(|i| (start + i * stride) as u32).collect();
        Tensor::new(at, xs.device())
    };
    let mut groups = Vec::new();
    for group in 0..g.groups {
        let xs = padded.narrow(3, group * cg, cg)?.contiguous()?;
        let weight = weight.narrow(0, group * og, og)?;
        let mut sum = Tensor::zeros((g.batch * oh * ow, og), xs.dtype(), xs.device())?;
        for i in 0..kh {
            let rows = xs.index_select(&steps(oh, i * config.dilation.0, config.stride.0)?, 1)?;
            for j in 0..kw {
                let columns = steps(ow, j * config.dilation.1, config.stride.1)?;
                let taps = rows.index_select(&columns, 2)?.reshape((g.batch * oh * ow, cg))?;
                let filters = weight.narrow(2, i, 1)?.narrow(3, j, 1)?.reshape((og, cg))?;
                // A product of empty matrices is an error to candle.
                if g.batch > 0 {
                    sum = (sum + taps.matmul(&filters.t()?.contiguous()?)?)?;
                }
            }
        }
        groups.push(sum);
    }
    let ys = Tensor::cat(&groups, 1)?.reshape((g.batch, oh, ow, o))?;
    match bias {
        Some(bias) => ys.broadcast_add(bias),
        None => Ok(ys),
    }
}
