//! A compact convolutional classifier.

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use vkd_nn::{
    Conv2d, Conv2dConfig, LayerNorm, Linear, conv2d, global_avg_pool2d, layer_norm, linear, relu,
};

/// Sizes of a [`Cnn`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CnnConfig {
    /// Channels of the image.
    pub channels: usize,
    /// Number of classes.
    pub classes: usize,
    /// Channels after each 3×3 convolution. The first keeps the size of the image, each later one halves it.
    pub widths: Vec<usize>,
}

/// Result of a [`Cnn`]'s forward pass.
#[derive(Clone, Debug)]
pub struct CnnOutput {
    /// Class logits `(B, K)`.
    pub logits: Tensor,
    /// Last feature map `(B, C, H, W)`.
    pub grid: Tensor,
    /// Its spatial mean `(B, C)`.
    pub pooled: Tensor,
}

/// 3×3 convolutions with layer norm over the channels and ReLU, global average pooling and a linear head.
///
/// The normaliser works per pixel, so that the network is the same in training and evaluation.
pub struct Cnn {
    stages: Vec<(Conv2d, LayerNorm)>,
    head: Linear,
    channels: usize,
}

impl Cnn {
    /// Builds the network under `vb`: `stages.I.conv`, `stages.I.norm`, `head`.
    ///
    /// # Errors
    /// No stages, or a zero size.
    pub fn new(config: &CnnConfig, vb: VarBuilder) -> Result<Self> {
        let Some(&last) = config.widths.last() else {
            bail!("cnn: expected at least one width, got none")
        };
        let mut stages = Vec::new();
        let mut before = config.channels;
        for (i, &width) in config.widths.iter().enumerate() {
            let vb = vb.pp("stages").pp(i);
            let stride = if i == 0 { 1 } else { 2 };
            let conv = conv2d(
                before,
                width,
                3,
                Conv2dConfig {
                    stride: (stride, stride),
                    padding: (1, 1),
                    ..Conv2dConfig::default()
                },
                vb.pp("conv"),
            )?;
            stages.push((conv, layer_norm(width, 1e-6, vb.pp("norm"))?));
            before = width;
        }
        Ok(Self {
            stages,
            head: linear(last, config.classes, vb.pp("head"))?,
            channels: config.channels,
        })
    }

    /// Images `(B, C, H, W)` to logits and features.
    ///
    /// # Errors
    /// Another rank or number of channels.
    pub fn forward(&self, images: &Tensor) -> Result<CnnOutput> {
        match images.dims() {
            [_, c, _, _] if *c == self.channels => {}
            dims => bail!("cnn: expected images (B, {}, H, W), got {dims:?}", self.channels),
        }
        let mut xs = images.permute((0, 2, 3, 1))?;
        for (conv, norm) in &self.stages {
            xs = relu(&norm.forward(&conv.forward(&xs)?)?)?;
        }
        let pooled = global_avg_pool2d(&xs)?;
        Ok(CnnOutput {
            logits: self.head.forward(&pooled)?,
            grid: xs.permute((0, 3, 1, 2))?,
            pooled,
        })
    }
}
