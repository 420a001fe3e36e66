//! Convolution, batch norm and activation, as all the convolutional families have them.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use vkd_nn::{
    Activation, BatchNorm2d, BatchNormConfig, Context, Conv2d, Conv2dConfig, batch_norm2d,
    conv2d_no_bias, relu, relu6,
};

/// A convolution without bias, batch norm with PyTorch's defaults, and an activation: identity, ReLU or ReLU6.
pub(crate) struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm2d,
    activation: Activation,
}

/// Builds a [`ConvNorm`] from `channels[0]` to `channels[1]`, padded by half the kernel.
pub(crate) fn conv_norm(
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    groups: usize,
    activation: Activation,
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

/// A [`ConvNorm`] of layers that were built elsewhere.
pub(crate) fn of_parts(conv: Conv2d, norm: BatchNorm2d, activation: Activation) -> ConvNorm {
    ConvNorm { conv, norm, activation }
}

impl ConvNorm {
    pub(crate) fn forward(&self, xs: &Tensor, ctx: &Context) -> Result<Tensor> {
        let ys = if ctx.train {
            self.norm.forward(&self.conv.forward(xs)?, ctx)?
        } else {
            let conv = self.conv.with_norm(&self.norm)?;
            if self.activation == Activation::Relu {
                return conv.forward_relu(xs);
            }
            conv.forward(xs)?
        };
        match self.activation {
            Activation::Relu => relu(&ys),
            Activation::Relu6 => relu6(&ys),
            _ => Ok(ys),
        }
    }
}

/// Height or width after a convolution of stride `stride` that is padded by half its odd kernel.
pub(crate) fn strided(size: usize, stride: usize) -> usize {
    size.div_ceil(stride)
}
