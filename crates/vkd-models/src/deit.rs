//! DeiT with a distillation token, as in timm, and with V_kD's convolutional stem.

use crate::conv_norm::{ConvNorm, conv_norm};
use crate::encoder::{Encoder, EncoderConfig, encoder_taps};
use crate::{Model, ModelConfig, ModelOutput};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vkd_nn::{Activation, Context, Conv2d, Conv2dConfig, conv2d};

/// Channels of the convolutional stem.
const STEM: usize = 64;

/// How an image becomes patch tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Embedding {
    /// One linear map a patch: timm's `patch_embed`.
    Patch,
    /// Three convolutions with batch norm and ReLU, the first 7×7 with stride 2, the others 3×3, 64 channels each; then a
    /// linear map of each square of `patch / 2` pixels. The published V_kD students have it, as `conv_embed`.
    Conv,
}

/// Where the distillation token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistillationToken {
    /// A variable, `dist_token`, as in DeiT.
    Learnt,
    /// The mean of the embedded patches, as in V_kD's students.
    Mean,
}

/// Sizes of a [`Deit`].
///
/// The presets have patches of 16 pixels, 12 blocks, heads of width 64 and an MLP ratio of 4; stochastic depth is 0 as in the
/// published V_kD code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeitConfig {
    /// Embedding of the patches.
    pub embedding: Embedding,
    /// Source of the distillation token.
    pub distillation: DistillationToken,
    /// Height and width of a patch in pixels; divides the image size.
    pub patch: usize,
    /// Width C of a token.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; divide the width.
    pub heads: usize,
    /// Hidden width of a block's MLP over the token's width.
    pub mlp_ratio: usize,
    /// Stochastic depth of the last block; it grows from 0 at the first.
    pub drop_path: f64,
}

impl DeitConfig {
    /// V_kD's student of any width with heads of width 64: convolutional stem, mean-of-patches distillation token.
    pub fn student(width: usize) -> Self {
        Self {
            embedding: Embedding::Conv,
            distillation: DistillationToken::Mean,
            patch: 16,
            width,
            depth: 12,
            heads: (width / 64).max(1),
            mlp_ratio: 4,
            drop_path: 0.,
        }
    }

    /// timm's `deit_*_distilled_patch16_224` of any width with heads of width 64.
    pub fn plain(width: usize) -> Self {
        Self {
            embedding: Embedding::Patch,
            distillation: DistillationToken::Learnt,
            ..Self::student(width)
        }
    }

    /// [`student`](Self::student) of width 192: DeiT-Ti.
    pub fn tiny() -> Self {
        Self::student(192)
    }

    /// [`student`](Self::student) of width 384: DeiT-S.
    pub fn small() -> Self {
        Self::student(384)
    }

    /// [`student`](Self::student) of width 768: DeiT-B.
    pub fn base() -> Self {
        Self::student(768)
    }

    pub(crate) fn taps(&self) -> BTreeMap<String, usize> {
        encoder_taps(self.width)
    }

    /// How often the weight `name` is applied to one image.
    pub(crate) fn positions(&self, image_size: usize, name: &str) -> usize {
        let patches = (image_size / self.patch).pow(2);
        match name {
            "patch_embed.proj.weight" | "conv_embed.proj.weight" => patches,
            _ if name.starts_with("conv_embed.conv.") => image_size.div_ceil(2).pow(2),
            _ if name.starts_with("blocks.") => patches + 2,
            _ => 1,
        }
    }

    /// Multiply-adds of all attention's products of tokens with tokens.
    pub(crate) fn attention(&self, image_size: usize) -> usize {
        2 * self.depth * ((image_size / self.patch).pow(2) + 2).pow(2) * self.width
    }
}

/// Data-efficient image transformer with class and distillation tokens (Touvron et al., arXiv:2012.12877).
///
/// Token order: class, distillation, patches. Names are timm's; the convolutional stem's are those of the published V_kD
/// code (`conv_embed.conv.0` to `7`, `conv_embed.proj`).
///
/// Taps: `tokens` (the patches') and `class_token`, `distillation_token` after the final norm; `stem_tokens` before
/// positions and blocks. V_kD's student feature is the mean of `tokens`.
pub struct Deit {
    stem: Vec<ConvNorm>,
    patches: Conv2d,
    encoder: Encoder,
}

impl Deit {
    /// Builds the network under `vb`.
    ///
    /// # Errors
    /// A size that is zero or does not divide what it must, and an odd patch with the convolutional stem, which halves the
    /// image.
    pub fn new(config: &DeitConfig, model: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let DeitConfig { patch, width, .. } = *config;
        let encoder = EncoderConfig {
            what: "deit",
            patch,
            width,
            depth: config.depth,
            heads: config.heads,
            mlp_ratio: config.mlp_ratio,
            drop_path: config.drop_path,
            share: |i, depth| i as f64 / (depth.max(2) - 1) as f64,
            learnt_distillation: config.distillation == DistillationToken::Learnt,
        };
        let encoder = Encoder::new(&encoder, model, vb.clone())?;
        let square = |size| Conv2dConfig { stride: (size, size), ..Conv2dConfig::default() };
        let (stem, patches) = match config.embedding {
            Embedding::Patch => {
                let vb = vb.pp("patch_embed.proj");
                (Vec::new(), conv2d(model.channels, width, patch, square(patch), vb)?)
            }
            Embedding::Conv => {
                if !patch.is_multiple_of(2) {
                    bail!("deit: patch: expected an even number with the conv stem, got {patch}")
                }
                let vb = vb.pp("conv_embed");
                let layer = |at: usize, channels, kernel, stride| {
                    let conv = vb.pp("conv");
                    let (conv, norm) = (conv.pp(at), conv.pp(at + 1));
                    conv_norm([channels, STEM], kernel, stride, 1, Activation::Relu, conv, norm)
                };
                let stem = vec![
                    layer(0, model.channels, 7, 2)?,
                    layer(3, STEM, 3, 1)?,
                    layer(6, STEM, 3, 1)?,
                ];
                (stem, conv2d(STEM, width, patch / 2, square(patch / 2), vb.pp("proj"))?)
            }
        };
        Ok(Self { stem, patches, encoder })
    }
}

impl Model for Deit {
    fn forward(&self, images: &Tensor, ctx: &Context) -> Result<ModelOutput> {
        let mut xs = self.encoder.channels_last(images)?;
        for layer in &self.stem {
            xs = layer.forward(&xs, ctx)?;
        }
        self.encoder.forward(&self.patches.forward(&xs)?.flatten(1, 2)?, ctx)
    }
}
