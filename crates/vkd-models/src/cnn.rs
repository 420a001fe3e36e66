//! A compact convolutional classifier.

use crate::model::{channels_last, stage_taps, stage_widths};
use crate::{Model, ModelConfig, ModelOutput};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vkd_nn::{
    Context, Conv2d, Conv2dConfig, LayerNorm, Linear, conv2d, global_avg_pool2d, layer_norm,
    linear, relu,
};

/// Sizes of a [`Cnn`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CnnConfig {
    /// Channels after each 3×3 convolution. The first keeps the size of the image, each later one halves it.
    pub widths: Vec<usize>,
}

impl CnnConfig {
    pub(crate) fn taps(&self) -> BTreeMap<String, usize> {
        stage_widths(&self.widths, self.widths.last().copied().unwrap_or(0))
    }

    /// How often the weight `name` is applied to one image.
    pub(crate) fn positions(&self, image_size: usize, name: &str) -> usize {
        match name.strip_prefix("stages.").and_then(|rest| rest.split('.').next()?.parse().ok()) {
            Some(stage) => (0..stage).fold(image_size, |size: usize, _| size.div_ceil(2)).pow(2),
            None => 1,
        }
    }
}

/// 3×3 convolutions with layer norm over the channels and ReLU, global average pooling and a linear head.
///
/// The normaliser works per pixel, so that the network is the same in training and evaluation.
///
/// Taps: `stage1` and on, `grid` (the last of them), `pooled`.
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
    pub fn new(config: &CnnConfig, model: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let Some(&last) = config.widths.last() else {
            bail!("cnn: expected at least one width, got none")
        };
        let mut stages = Vec::new();
        let mut before = model.channels;
        for (i, &width) in config.widths.iter().enumerate() {
            let vb = vb.pp("stages").pp(i);
            let stride = if i == 0 { 1 } else { 2 };
            let conv = Conv2dConfig {
                stride: (stride, stride),
                padding: (1, 1),
                ..Conv2dConfig::default()
            };
            let conv = conv2d(before, width, 3, conv, vb.pp("conv"))?;
            stages.push((conv, layer_norm(width, 1e-6, vb.pp("norm"))?));
            before = width;
        }
        Ok(Self {
            stages,
            head: linear(last, model.classes, vb.pp("head"))?,
            channels: model.channels,
        })
    }
}

impl Model for Cnn {
    fn forward(&self, images: &Tensor, _ctx: &Context) -> Result<ModelOutput> {
        let mut xs = channels_last("cnn", images, self.channels)?;
        let mut stages = Vec::with_capacity(self.stages.len());
        for (conv, norm) in &self.stages {
            xs = relu(&norm.forward(&conv.forward(&xs)?)?)?;
            stages.push(xs.clone());
        }
        let pooled = global_avg_pool2d(&xs)?;
        Ok(ModelOutput {
            logits: self.head.forward(&pooled)?,
            distillation_logits: None,
            taps: stage_taps(&stages, &pooled)?,
        })
    }
}
