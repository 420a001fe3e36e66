//! EfficientNet-Lite with the names of timm.

use crate::conv_norm::{ConvNorm, conv_norm, strided};
use crate::model::{at_least_one, channels_last, check_rate, stage_taps, stage_widths};
use crate::{Model, ModelConfig, ModelOutput};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vkd_nn::{Activation, Context, Linear, drop_path, global_avg_pool2d, linear};

/// Stages of Lite0: blocks, kernel, stride of the first block, expansion, channels.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

/// Sizes of an [`EfficientnetLite`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EfficientnetLiteConfig {
    /// Channels of the stem; 32 in every Lite.
    pub stem: usize,
    /// Multiplier of the stages' channels, which are then rounded to multiples of 8; 1 in Lite0.
    pub width_multiple: f64,
    /// Channels of the last convolution; 1280 in every Lite.
    pub head: usize,
    /// Stochastic depth of a block after the last; it grows from 0 at the first. 0.2 in the original's training.
    #[serde(default)]
    pub drop_path: f64,
}

impl EfficientnetLiteConfig {
    /// EfficientNet-Lite0.
    pub fn lite0() -> Self {
        Self { stem: 32, width_multiple: 1., head: 1280, drop_path: 0. }
    }

    fn check(&self) -> Result<()> {
        at_least_one("efficientnet_lite", &[("stem", self.stem), ("head", self.head)])?;
        if !(self.width_multiple > 0. && self.width_multiple <= 64.) {
            bail!(
                "efficientnet_lite: width_multiple: expected a factor in (0, 64], got {}",
                self.width_multiple
            )
        }
        check_rate("efficientnet_lite", self.drop_path)
    }

    /// Scaled to a multiple of 8, not below 8 and not more than a tenth below the exact value.
    fn scaled(&self, channels: usize) -> usize {
        let exact = channels as f64 * self.width_multiple;
        let near = (((exact + 4.) / 8.).floor() * 8.).max(8.);
        (if near < 0.9 * exact { near + 8. } else { near }) as usize
    }

    pub(crate) fn taps(&self) -> BTreeMap<String, usize> {
        stage_widths(&STAGES.map(|stage| self.scaled(stage.4)), self.head)
    }

    /// How often the weight `name` is applied to one image.
    pub(crate) fn positions(&self, image_size: usize, name: &str) -> usize {
        let parts: Vec<&str> = name.split('.').collect();
        let stem = strided(image_size, 2);
        let after = |stages: usize| STAGES.iter().take(stages).fold(stem, |s, t| strided(s, t.2));
        let side = match parts[..] {
            ["conv_stem", ..] => stem,
            ["conv_head", ..] => after(STAGES.len()),
            ["blocks", stage, block, layer, ..] => {
                let stage = stage.parse().unwrap_or(0);
                // The first block of an inverted stage widens before its stride.
                let before = stage > 0 && block == "0" && layer == "conv_pw";
                after(if before { stage } else { stage + 1 })
            }
            _ => 1,
        };
        side * side
    }
}

struct Block {
    convs: Vec<ConvNorm>,
    residual: bool,
    drop_path: f64,
    name: String,
}

impl Block {
    fn new(
        [kernel, stride, expansion]: [usize; 3],
        [input, output]: [usize; 2],
        drop_path: f64,
        name: String,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let vb = vb.pp(&name);
        let hidden = expansion * input;
        let widen = ("conv_pw", [input, hidden], 1, 1, 1, true);
        let depthwise = ("conv_dw", [hidden, hidden], kernel, stride, hidden, true);
        let narrow = if expansion == 1 { "conv_pw" } else { "conv_pwl" };
        let narrow = (narrow, [hidden, output], 1, 1, 1, false);
        // Without an expansion there is nothing to widen.
        let plan =
            if expansion == 1 { vec![depthwise, narrow] } else { vec![widen, depthwise, narrow] };
        let convs = plan.into_iter().enumerate().map(
            |(k, (part, channels, kernel, stride, groups, active))| {
                let activation = if active { Activation::Relu6 } else { Activation::Identity };
                let norm = vb.pp(format!("bn{}", k + 1));
                conv_norm(channels, kernel, stride, groups, activation, vb.pp(part), norm)
            },
        );
        let convs = convs.collect::<Result<_>>()?;
        Ok(Self { convs, residual: stride == 1 && input == output, drop_path, name })
    }

    fn forward(&self, xs: &Tensor, ctx: &Context) -> Result<Tensor> {
        let mut branch = xs.clone();
        for conv in &self.convs {
            branch = conv.forward(&branch, ctx)?;
        }
        if self.residual {
            return drop_path(&branch, self.drop_path, &self.name, ctx)? + xs;
        }
        Ok(branch)
    }
}

/// EfficientNet-Lite (Tan and Le, arXiv:1905.11946, without squeeze-and-excitation and with ReLU6): inverted bottlenecks
/// of depthwise convolutions, a small and good teacher.
///
/// Padding is symmetric, as in timm's `efficientnet_lite0`; `tf_efficientnet_lite0` has the same names and another padding
/// and epsilon, so its weights load and give other logits.
///
/// Names: `conv_stem`, `bn1`, `blocks.I.J.conv_{pw,dw,pwl}` with `bn{1,2,3}`, `conv_head`, `bn2`, `classifier`.
///
/// Taps: `stage1` to `stage7`, `grid` (the last of them, before the head's convolution), `pooled` (after it).
pub struct EfficientnetLite {
    channels: usize,
    stem: ConvNorm,
    stages: Vec<Vec<Block>>,
    head: ConvNorm,
    classifier: Linear,
}

impl EfficientnetLite {
    /// Builds the network under `vb`.
    ///
    /// # Errors
    /// A zero size, a multiplier or rate out of range.
    pub fn new(
        config: &EfficientnetLiteConfig,
        model: &ModelConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        config.check()?;
        let outer = |channels, kernel, stride, conv: &str, norm: &str| {
            conv_norm(channels, kernel, stride, 1, Activation::Relu6, vb.pp(conv), vb.pp(norm))
        };
        let stem = outer([model.channels, config.stem], 3, 2, "conv_stem", "bn1")?;
        let count = STAGES.iter().map(|stage| stage.0).sum::<usize>();
        let (mut before, mut at) = (config.stem, 0);
        let mut stages = Vec::new();
        for (i, (depth, kernel, stride, expansion, channels)) in STAGES.into_iter().enumerate() {
            let output = config.scaled(channels);
            let mut blocks = Vec::new();
            for j in 0..depth {
                let name = format!("blocks.{i}.{j}");
                let stride = if j == 0 { stride } else { 1 };
                let rate = config.drop_path * at as f64 / count as f64;
                let shape = [kernel, stride, expansion];
                blocks.push(Block::new(shape, [before, output], rate, name, &vb)?);
                (before, at) = (output, at + 1);
            }
            stages.push(blocks);
        }
        Ok(Self {
            channels: model.channels,
            stem,
            stages,
            head: outer([before, config.head], 1, 1, "conv_head", "bn2")?,
            classifier: linear(config.head, model.classes, vb.pp("classifier"))?,
        })
    }
}

impl Model for EfficientnetLite {
    fn forward(&self, images: &Tensor, ctx: &Context) -> Result<ModelOutput> {
        let images = channels_last("efficientnet_lite", images, self.channels)?;
        let mut xs = self.stem.forward(&images, ctx)?;
        let mut stages = Vec::with_capacity(STAGES.len());
        for stage in &self.stages {
            for block in stage {
                xs = block.forward(&xs, ctx)?;
            }
            stages.push(xs.clone());
        }
        let pooled = global_avg_pool2d(&self.head.forward(&xs, ctx)?)?;
        Ok(ModelOutput {
            logits: self.classifier.forward(&pooled)?,
            distillation_logits: None,
            taps: stage_taps(&stages, &pooled)?,
        })
    }
}
