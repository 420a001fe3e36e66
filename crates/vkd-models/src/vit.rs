//! A vision transformer for small images, with class and distillation tokens.

use crate::encoder::{Encoder, EncoderConfig, encoder_taps};
use crate::{Model, ModelConfig, ModelOutput};
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vkd_nn::{Context, Conv2d, Conv2dConfig, conv2d, gelu};

/// Sizes of a [`Vit`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Height and width of a patch in pixels; divides the image size.
    pub patch: usize,
    /// Width C of a token.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; divide the width.
    pub heads: usize,
    /// Hidden width of a block's MLP over the token's width; 4 in DeiT.
    pub mlp_ratio: usize,
    /// Stochastic depth of the last block; earlier blocks have proportionally less. 0 in the published V_kD code.
    pub drop_path: f64,
}

impl VitConfig {
    pub(crate) fn taps(&self) -> BTreeMap<String, usize> {
        encoder_taps(self.width)
    }

    /// How often the weight `name` is applied to one image.
    pub(crate) fn positions(&self, image_size: usize, name: &str) -> usize {
        let patches = (image_size / self.patch).pow(2);
        match name {
            "patch_embed.stem.weight" => image_size.pow(2),
            "patch_embed.proj.weight" => patches,
            _ if name.starts_with("blocks.") => patches + 2,
            _ => 1,
        }
    }

    /// Multiply-adds of all attention's products of tokens with tokens.
    pub(crate) fn attention(&self, image_size: usize) -> usize {
        2 * self.depth * ((image_size / self.patch).pow(2) + 2).pow(2) * self.width
    }
}

/// Pre-norm vision transformer with a convolutional stem (DeiT, arXiv:2012.12877; tokens as in V_kD's students).
///
/// A 3×3 convolution and GELU, then one linear map per patch. The class token is learnt; the distillation token is the
/// mean of the patch tokens, as in the published code. Names follow timm: `cls_token`, `pos_embed`, `blocks.I.attn.qkv`,
/// `head`, `head_dist`.
///
/// Taps: `tokens` (the patches') and `class_token`, `distillation_token` after the final norm; `stem_tokens` before the
/// first block.
pub struct Vit {
    stem: Conv2d,
    patches: Conv2d,
    encoder: Encoder,
}

impl Vit {
    /// Builds the network under `vb`.
    ///
    /// # Errors
    /// A size that is zero or does not divide what it must: the field and both values are named.
    pub fn new(config: &VitConfig, model: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let VitConfig { patch, width, .. } = *config;
        let encoder = EncoderConfig {
            what: "vit",
            patch,
            width,
            depth: config.depth,
            heads: config.heads,
            mlp_ratio: config.mlp_ratio,
            drop_path: config.drop_path,
            share: |i, depth| (i + 1) as f64 / depth as f64,
            learnt_distillation: false,
        };
        let encoder = Encoder::new(&encoder, model, vb.clone())?;
        let same = Conv2dConfig { padding: (1, 1), ..Conv2dConfig::default() };
        let stride = Conv2dConfig { stride: (patch, patch), ..Conv2dConfig::default() };
        Ok(Self {
            stem: conv2d(model.channels, width, 3, same, vb.pp("patch_embed.stem"))?,
            patches: conv2d(width, width, patch, stride, vb.pp("patch_embed.proj"))?,
            encoder,
        })
    }
}

impl Model for Vit {
    fn forward(&self, images: &Tensor, ctx: &Context) -> Result<ModelOutput> {
        let stem = gelu(&self.stem.forward(&self.encoder.channels_last(images)?)?)?;
        self.encoder.forward(&self.patches.forward(&stem)?.flatten(1, 2)?, ctx)
    }
}
