//! ResNets with the names of timm and torchvision.

use crate::conv_norm::{ConvNorm, conv_norm, strided};
use crate::model::{at_least_one, channels_last, check_rate, stage_taps, stage_widths};
use crate::{Model, ModelConfig, ModelOutput};
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vkd_nn::{
    Activation, Context, Linear, Pool2dConfig, drop_path, global_avg_pool2d, linear, max_pool2d,
    relu,
};

/// Kind of a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResnetBlock {
    /// Two 3×3 convolutions.
    Basic,
    /// 1×1, 3×3 (with the stride) and 1×1, the last to four times the width.
    Bottleneck,
}

impl ResnetBlock {
    /// Channels that the block puts out over its width.
    fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

/// Sizes of a [`Resnet`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResnetConfig {
    /// Kind of the blocks.
    pub block: ResnetBlock,
    /// Blocks of each of the four stages.
    pub depths: [usize; 4],
    /// Channels of the stem and width of the first stage; each later stage doubles it. 64 in the original.
    pub width: usize,
    /// Stochastic depth of the last block; it grows from 0 at the first. 0 in the original.
    #[serde(default)]
    pub drop_path: f64,
}

impl ResnetConfig {
    /// ResNet-18.
    pub fn resnet18() -> Self {
        Self { block: ResnetBlock::Basic, depths: [2, 2, 2, 2], width: 64, drop_path: 0. }
    }

    /// ResNet-34.
    pub fn resnet34() -> Self {
        Self { depths: [3, 4, 6, 3], ..Self::resnet18() }
    }

    /// ResNet-50, with the stride in the 3×3 convolution as in PyTorch.
    pub fn resnet50() -> Self {
        Self { block: ResnetBlock::Bottleneck, ..Self::resnet34() }
    }

    fn outputs(&self) -> [usize; 4] {
        [1, 2, 4, 8].map(|times| times * self.width * self.block.expansion())
    }

    pub(crate) fn taps(&self) -> BTreeMap<String, usize> {
        let outputs = self.outputs();
        stage_widths(&outputs, outputs[3])
    }

    /// How often the weight `name` is applied to one image.
    pub(crate) fn positions(&self, image_size: usize, name: &str) -> usize {
        let parts: Vec<&str> = name.split('.').collect();
        let stem = strided(image_size, 2);
        let after = |stage: usize| (0..stage).fold(stem, |size, _| strided(size, 2));
        let side = match parts[..] {
            ["conv1", ..] => stem,
            [layer, "0", "conv1", ..] if self.block == ResnetBlock::Bottleneck => {
                // Before the stride. The first stage has none: the pool came before it.
                after(number(layer, "layer").saturating_sub(1).max(1))
            }
            [layer, ..] if layer.starts_with("layer") => after(number(layer, "layer")),
            _ => 1,
        };
        side * side
    }
}

/// The number at the end of a name such as `layer3`; 0 where there is none.
pub(crate) fn number(name: &str, prefix: &str) -> usize {
    name.strip_prefix(prefix).and_then(|n| n.parse().ok()).unwrap_or(0)
}

struct Block {
    convs: Vec<ConvNorm>,
    shortcut: Option<ConvNorm>,
    drop_path: f64,
    name: String,
}

/// Residual network (He et al., arXiv:1512.03385): a 7×7 stem of stride 2, a max pool, four stages, average pool, head.
///
/// Names: `conv1`, `bn1`, `layerI.J.convK`, `layerI.J.bnK`, `layerI.J.downsample.{0,1}`, `fc`.
///
/// Taps: `stage1` to `stage4`, `grid` (the last of them), `pooled`.
pub struct Resnet {
    channels: usize,
    stem: ConvNorm,
    stages: Vec<Vec<Block>>,
    fc: Linear,
}

impl Resnet {
    /// Builds the network under `vb`.
    ///
    /// # Errors
    /// A zero size or a rate outside `[0, 1)`.
    pub fn new(config: &ResnetConfig, model: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let depths = config.depths.map(|depth| ("depths", depth));
        at_least_one("resnet", &depths)?;
        at_least_one("resnet", &[("width", config.width)])?;
        check_rate("resnet", config.drop_path)?;
        let channels = [model.channels, config.width];
        let stem = conv_norm(channels, 7, 2, 1, Activation::Relu, vb.pp("conv1"), vb.pp("bn1"))?;
        let last = config.depths.iter().sum::<usize>() - 1;
        let (mut before, mut at) = (config.width, 0);
        let mut stages = Vec::new();
        for (i, (&depth, output)) in config.depths.iter().zip(config.outputs()).enumerate() {
            let mut blocks = Vec::new();
            for j in 0..depth {
                let name = format!("layer{}.{j}", i + 1);
                let stride = if i > 0 && j == 0 { 2 } else { 1 };
                let rate = config.drop_path * at as f64 / last as f64;
                let block = Block::new(config.block, [before, output], stride, rate, name, &vb)?;
                blocks.push(block);
                (before, at) = (output, at + 1);
            }
            stages.push(blocks);
        }
        Ok(Self {
            channels: model.channels,
            stem,
            stages,
            fc: linear(before, model.classes, vb.pp("fc"))?,
        })
    }
}

impl Block {
    fn new(
        kind: ResnetBlock,
        [input, output]: [usize; 2],
        stride: usize,
        drop_path: f64,
        name: String,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let vb = vb.pp(&name);
        let width = output / kind.expansion();
        // Kernel, stride and channels of each convolution.
        let plan = match kind {
            ResnetBlock::Basic => vec![(3, stride, [input, width]), (3, 1, [width, output])],
            ResnetBlock::Bottleneck => {
                vec![(1, 1, [input, width]), (3, stride, [width, width]), (1, 1, [width, output])]
            }
        };
        let last = plan.len();
        let convs = plan.into_iter().enumerate().map(|(k, (kernel, stride, channels))| {
            let (conv, norm) = (vb.pp(format!("conv{}", k + 1)), vb.pp(format!("bn{}", k + 1)));
            // The last ReLU comes after the sum.
            let activation = if k + 1 < last { Activation::Relu } else { Activation::Identity };
            conv_norm(channels, kernel, stride, 1, activation, conv, norm)
        });
        let convs = convs.collect::<Result<_>>()?;
        let shortcut = (stride != 1 || input != output).then(|| {
            let vb = vb.pp("downsample");
            conv_norm([input, output], 1, stride, 1, Activation::Identity, vb.pp(0), vb.pp(1))
        });
        Ok(Self { convs, shortcut: shortcut.transpose()?, drop_path, name })
    }

    fn forward(&self, xs: &Tensor, ctx: &Context) -> Result<Tensor> {
        let mut branch = xs.clone();
        for conv in &self.convs {
            branch = conv.forward(&branch, ctx)?;
        }
        let branch = drop_path(&branch, self.drop_path, &self.name, ctx)?;
        relu(&match &self.shortcut {
            Some(shortcut) => (branch + shortcut.forward(xs, ctx)?)?,
            None => (branch + xs)?,
        })
    }
}

impl Model for Resnet {
    fn forward(&self, images: &Tensor, ctx: &Context) -> Result<ModelOutput> {
        let xs = self.stem.forward(&channels_last("resnet", images, self.channels)?, ctx)?;
        let pool = Pool2dConfig { stride: (2, 2), padding: (1, 1), ..Pool2dConfig::new(3) };
        let mut xs = max_pool2d(&xs, pool)?;
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
