//! RegNetY with the names of timm.

use crate::conv_norm::{ConvNorm, conv_norm, strided};
use crate::model::{at_least_one, channels_last, check_rate, stage_taps, stage_widths, summable};
use crate::resnet::number;
use crate::{Model, ModelConfig, ModelOutput};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vkd_nn::{
    Activation, Context, Conv2d, Conv2dConfig, Linear, conv2d, drop_path, global_avg_pool2d,
    linear, relu,
};

/// Sizes of a [`Regnet`].
///
/// The paper draws widths and depths from a quantised line; here they are given as they come out, as timm builds them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegnetConfig {
    /// Channels of the stem.
    pub stem: usize,
    /// Channels of each of the four stages; multiples of the group width.
    pub widths: [usize; 4],
    /// Blocks of each stage.
    pub depths: [usize; 4],
    /// Channels of a group of the 3×3 convolutions.
    pub group_width: usize,
    /// Squeezed channels over a block's input channels.
    pub squeeze: f64,
    /// Stochastic depth of the last block; it grows from 0 at the first. 0 in the original.
    #[serde(default)]
    pub drop_path: f64,
}

impl RegnetConfig {
    fn preset(widths: [usize; 4], depths: [usize; 4], group_width: usize) -> Self {
        Self { stem: 32, widths, depths, group_width, squeeze: 0.25, drop_path: 0. }
    }

    /// RegNetY of 0.2 GFLOP.
    pub fn regnety_002() -> Self {
        Self::preset([24, 56, 152, 368], [1, 1, 4, 7], 8)
    }

    /// RegNetY of 0.4 GFLOP.
    pub fn regnety_004() -> Self {
        Self::preset([48, 104, 208, 440], [1, 3, 6, 6], 8)
    }

    /// RegNetY of 0.8 GFLOP.
    pub fn regnety_008() -> Self {
        Self::preset([64, 128, 320, 768], [1, 3, 8, 2], 16)
    }

    /// RegNetY of 1.6 GFLOP.
    pub fn regnety_016() -> Self {
        Self::preset([48, 120, 336, 888], [2, 6, 17, 2], 24)
    }

    /// RegNetY of 3.2 GFLOP.
    pub fn regnety_032() -> Self {
        Self::preset([72, 216, 576, 1512], [2, 5, 13, 1], 24)
    }

    /// RegNetY of 16 GFLOP: the teacher of DeiT and V_kD.
    pub fn regnety_160() -> Self {
        Self::preset([224, 448, 1232, 3024], [2, 4, 11, 1], 112)
    }

    fn check(&self) -> Result<()> {
        at_least_one("regnet", &[("stem", self.stem), ("group_width", self.group_width)])?;
        at_least_one("regnet", &self.depths.map(|depth| ("depths", depth)))?;
        at_least_one("regnet", &self.widths.map(|width| ("widths", width)))?;
        if let Some(width) = self.widths.iter().find(|w| !w.is_multiple_of(self.group_width)) {
            bail!("regnet: widths: expected multiples of {}, got {width}", self.group_width)
        }
        if !(self.squeeze > 0. && self.squeeze <= 1.) {
            bail!("regnet: squeeze: expected a share in (0, 1], got {}", self.squeeze)
        }
        check_rate("regnet", self.drop_path)
    }

    pub(crate) fn taps(&self) -> BTreeMap<String, usize> {
        stage_widths(&self.widths, self.widths[3])
    }

    /// How often the weight `name` is applied to one image.
    pub(crate) fn positions(&self, image_size: usize, name: &str) -> usize {
        let parts: Vec<&str> = name.split('.').collect();
        let stem = strided(image_size, 2);
        let after = |stage: usize| (0..stage).fold(stem, |size, _| strided(size, 2));
        let side = match parts[..] {
            ["stem", ..] => stem,
            [_, _, "se", ..] | ["head", ..] => 1,
            // Before the stride.
            [stage, "b1", "conv1", ..] => after(number(stage, "s").saturating_sub(1)),
            [stage, ..] => after(number(stage, "s")),
            [] => 1,
        };
        side * side
    }
}

/// Squeeze-and-excitation (Hu et al., arXiv:1709.01507): channels are scaled by what their means say.
struct SqueezeExcitation {
    fc1: Conv2d,
    fc2: Conv2d,
}

impl SqueezeExcitation {
    fn new(channels: usize, squeezed: usize, vb: VarBuilder) -> Result<Self> {
        let point = Conv2dConfig::default();
        Ok(Self {
            fc1: conv2d(channels, squeezed, 1, point, vb.pp("fc1"))?,
            fc2: conv2d(squeezed, channels, 1, point, vb.pp("fc2"))?,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let means = global_avg_pool2d(xs)?.unsqueeze(1)?.unsqueeze(1)?;
        let gate = self.fc2.forward(&self.fc1.forward_relu(&means)?)?;
        let gate = candle_nn::ops::sigmoid(&summable(&gate)?)?;
        summable(xs)?.broadcast_mul(&gate)?.to_dtype(xs.dtype())
    }
}

struct Block {
    conv1: ConvNorm,
    conv2: ConvNorm,
    se: SqueezeExcitation,
    conv3: ConvNorm,
    shortcut: Option<ConvNorm>,
    drop_path: f64,
    name: String,
}

impl Block {
    fn new(
        config: &RegnetConfig,
        [input, output]: [usize; 2],
        stride: usize,
        drop_path: f64,
        name: String,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let vb = vb.pp(&name);
        let layer = |part: &str, channels, kernel, stride, groups, activation| {
            let vb = vb.pp(part);
            conv_norm(channels, kernel, stride, groups, activation, vb.pp("conv"), vb.pp("bn"))
        };
        let groups = output / config.group_width;
        // timm rounds halves to even; a narrow model keeps one channel.
        let squeezed = (input as f64 * config.squeeze).round_ties_even().max(1.) as usize;
        let shortcut = (stride != 1 || input != output)
            .then(|| layer("downsample", [input, output], 1, stride, 1, Activation::Identity));
        Ok(Self {
            conv1: layer("conv1", [input, output], 1, 1, 1, Activation::Relu)?,
            conv2: layer("conv2", [output, output], 3, stride, groups, Activation::Relu)?,
            se: SqueezeExcitation::new(output, squeezed, vb.pp("se"))?,
            conv3: layer("conv3", [output, output], 1, 1, 1, Activation::Identity)?,
            shortcut: shortcut.transpose()?,
            drop_path,
            name,
        })
    }

    fn forward(&self, xs: &Tensor, ctx: &Context) -> Result<Tensor> {
        let branch = self.conv2.forward(&self.conv1.forward(xs, ctx)?, ctx)?;
        let branch = self.conv3.forward(&self.se.forward(&branch)?, ctx)?;
        let branch = drop_path(&branch, self.drop_path, &self.name, ctx)?;
        relu(&match &self.shortcut {
            Some(shortcut) => (branch + shortcut.forward(xs, ctx)?)?,
            None => (branch + xs)?,
        })
    }
}

/// RegNetY (Radosavovic et al., arXiv:2003.13678): residual blocks of grouped convolutions with squeeze-and-excitation.
///
/// Names: `stem`, `sI.bJ.conv{1,2,3}.{conv,bn}`, `sI.bJ.se.fc{1,2}`, `sI.bJ.downsample.{conv,bn}`, `head.fc`; stages and
/// blocks count from 1.
///
/// Taps: `stage1` to `stage4`, `grid` (the last of them), `pooled`.
pub struct Regnet {
    channels: usize,
    stem: ConvNorm,
    stages: Vec<Vec<Block>>,
    fc: Linear,
}

impl Regnet {
    /// Builds the network under `vb`.
    ///
    /// # Errors
    /// A zero size, a width that is no multiple of the group width, a share or rate out of range.
    pub fn new(config: &RegnetConfig, model: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let (conv, norm) = (vb.pp("stem.conv"), vb.pp("stem.bn"));
        let stem = conv_norm([model.channels, config.stem], 3, 2, 1, Activation::Relu, conv, norm)?;
        let last = config.depths.iter().sum::<usize>() - 1;
        let (mut before, mut at) = (config.stem, 0);
        let mut stages = Vec::new();
        for (i, (&depth, &width)) in config.depths.iter().zip(&config.widths).enumerate() {
            let mut blocks = Vec::new();
            for j in 0..depth {
                let name = format!("s{}.b{}", i + 1, j + 1);
                let stride = if j == 0 { 2 } else { 1 };
                let rate = config.drop_path * at as f64 / last as f64;
                blocks.push(Block::new(config, [before, width], stride, rate, name, &vb)?);
                (before, at) = (width, at + 1);
            }
            stages.push(blocks);
        }
        let fc = linear(before, model.classes, vb.pp("head.fc"))?;
        Ok(Self { channels: model.channels, stem, stages, fc })
    }
}

impl Model for Regnet {
    fn forward(&self, images: &Tensor, ctx: &Context) -> Result<ModelOutput> {
        let images = channels_last("regnet", images, self.channels)?;
        let mut xs = self.stem.forward(&images, ctx)?;
        let mut stages = Vec::with_capacity(4);
        for stage in &self.stages {
            for block in stage {
                xs = block.forward(&xs, ctx)?;
            }
            stages.push(xs.clone());
        }
        let pooled = global_avg_pool2d(&xs)?;
        Ok(ModelOutput {
            logits: self.fc.forward(&pooled)?,
            distillation_logits: None,
            taps: stage_taps(&stages, &pooled)?,
        })
    }
}
