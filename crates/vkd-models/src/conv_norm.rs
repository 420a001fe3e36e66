//! Convolution, batch norm and activation, as all the convolutional families have them.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use vkd_nn::{
    BatchNorm2d, BatchNormConfig, Context, Conv2d, Conv2dConfig, batch_norm2d, conv2d_no_bias,
};

/// What follows the norm.
pub(crate) type Pointwise = Option<fn(&Tensor) -> Result<Tensor>>;

/// A convolution without bias, batch norm with PyTorch's defaults, and an activation or none.
pub(crate) struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm2d,
    activation: Pointwise,
}

/// Builds a [`ConvNorm`] from `channels[0]` to `channels[1]`, padded by half the kernel.
pub(crate) fn conv_norm(
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    groups: usize,
    activation: Pointwise,
    conv: VarBuilder,
    norm: VarBuilder,
) -> Result<ConvNorm> {
    let config = Conv2dConfig {
        stride: (stride, stride),
        padding: (kernel / 2, kernel / 2),
        groups,
        ..Conv2dConfig::default()
    };
    Ok(ConvNorm {
        conv: conv2d_no_bias(channels[0], channels[1], kernel, config, conv)?,
        norm: batch_norm2d(channels[1], BatchNormConfig::default(), norm)?,
        activation,
    })
}

impl ConvNorm {
    pub(crate) fn forward(&self, xs: &Tensor, ctx: &Context) -> Result<Tensor> {
        let ys = self.norm.forward(&self.conv.forward(xs)?, ctx)?;
        match self.activation {
            Some(activation) => activation(&ys),
            None => Ok(ys),
        }
    }
}

/// Height or width after a convolution of stride `stride` that is padded by half its odd kernel.
pub(crate) fn strided(size: usize, stride: usize) -> usize {
    size.div_ceil(stride)
}
