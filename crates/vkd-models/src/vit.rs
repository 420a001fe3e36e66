//! A vision transformer with class and distillation tokens.

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};
use vkd_nn::{
    Activation, Context, Conv2d, Conv2dConfig, LayerNorm, Linear, SelfAttention, conv2d,
    drop_path_scales, gelu, layer_norm, linear, residual_attention, residual_mlp, self_attention,
};

/// Epsilon of the ViT's layer norms, as in timm.
const EPS: f64 = 1e-6;

/// Sizes of a [`Vit`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Height and width of the image in pixels.
    pub image_size: usize,
    /// Channels of the image.
    pub channels: usize,
    /// Number of classes.
    pub classes: usize,
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
    /// Number of patch tokens.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch.max(1)).pow(2)
    }

    fn check(&self) -> Result<()> {
        let sizes = [
            ("image_size", self.image_size),
            ("channels", self.channels),
            ("classes", self.classes),
            ("patch", self.patch),
            ("width", self.width),
            ("depth", self.depth),
            ("heads", self.heads),
            ("mlp_ratio", self.mlp_ratio),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            bail!("vit: {name}: expected at least 1, got 0")
        }
        if !self.image_size.is_multiple_of(self.patch) {
            bail!(
                "vit: patch: expected a divisor of the image size {}, got {}",
                self.image_size,
                self.patch
            )
        }
        if !self.width.is_multiple_of(self.heads) {
            bail!("vit: heads: expected a divisor of the width {}, got {}", self.width, self.heads)
        }
        if !(0. ..1.).contains(&self.drop_path) {
            bail!("vit: drop_path: expected a rate in [0, 1), got {}", self.drop_path)
        }
        Ok(())
    }
}

/// Result of a [`Vit`]'s forward pass.
#[derive(Clone, Debug)]
pub struct VitOutput {
    /// Logits of the class token's head `(B, K)`.
    pub logits: Tensor,
    /// Logits of the distillation token's head `(B, K)`.
    pub distillation_logits: Tensor,
    /// Patch tokens after the final norm `(B, N, C)`.
    pub tokens: Tensor,
}

struct Block {
    norm1: LayerNorm,
    attention: SelfAttention,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    drop_path: f64,
    name: String,
}

/// Pre-norm vision transformer with a convolutional stem (DeiT, arXiv:2012.12877; stem and tokens as in V_kD's students).
///
/// A 3×3 convolution and GELU, then one linear map per patch. The class token is learnt; the distillation token is the
/// mean of the patch tokens, as in the published code. Names follow timm: `cls_token`, `pos_embed`, `blocks.I.attn.qkv`,
/// `head`, `head_dist`.
pub struct Vit {
    config: VitConfig,
    stem: Conv2d,
    patches: Conv2d,
    cls_token: Tensor,
    pos_embed: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
    head_dist: Linear,
}

impl Vit {
    /// Builds the network under `vb`.
    ///
    /// # Errors
    /// A size that is zero or does not divide what it must: the field and both values are named.
    pub fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let VitConfig { channels, classes, patch, width, depth, .. } = *config;
        let small = Init::Randn { mean: 0., stdev: 0.02 };
        let stem = vb.pp("patch_embed.stem");
        let blocks = (0..depth)
            .map(|i| {
                let vb = vb.pp("blocks").pp(i);
                let hidden = config.mlp_ratio * width;
                Ok(Block {
                    norm1: layer_norm(width, EPS, vb.pp("norm1"))?,
                    attention: self_attention(width, config.heads, vb.pp("attn"))?,
                    norm2: layer_norm(width, EPS, vb.pp("norm2"))?,
                    fc1: linear(width, hidden, vb.pp("mlp.fc1"))?.with_activation(Activation::Gelu),
                    fc2: linear(hidden, width, vb.pp("mlp.fc2"))?,
                    drop_path: config.drop_path * (i + 1) as f64 / depth as f64,
                    name: format!("blocks.{i}"),
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            stem: conv2d(
                channels,
                width,
                3,
                Conv2dConfig { padding: (1, 1), ..Conv2dConfig::default() },
                stem,
            )?,
            patches: conv2d(
                width,
                width,
                patch,
                Conv2dConfig { stride: (patch, patch), ..Conv2dConfig::default() },
                vb.pp("patch_embed.proj"),
            )?,
            cls_token: vb.get_with_hints((1, 1, width), "cls_token", small)?,
            pos_embed: vb.get_with_hints((1, config.patches() + 2, width), "pos_embed", small)?,
            blocks,
            norm: layer_norm(width, EPS, vb.pp("norm"))?,
            head: linear(width, classes, vb.pp("head"))?,
            head_dist: linear(width, classes, vb.pp("head_dist"))?,
            config: config.clone(),
        })
    }

    /// Images `(B, channels, image_size, image_size)` to logits and tokens.
    ///
    /// # Errors
    /// Images of another shape.
    pub fn forward(&self, images: &Tensor, ctx: &Context) -> Result<VitOutput> {
        let VitConfig { image_size, channels, width, .. } = self.config;
        let batch = match images.dims() {
            [b, c, h, w] if *c == channels && *h == image_size && *w == image_size => *b,
            dims => bail!(
                "vit: expected images (B, {channels}, {image_size}, {image_size}), got {dims:?}"
            ),
        };
        let stem = gelu(&self.stem.forward(&images.permute((0, 2, 3, 1))?)?)?;
        let patches = self.patches.forward(&stem)?.flatten(1, 2)?;
        let class = self.cls_token.broadcast_as((batch, 1, width))?;
        let tokens = Tensor::cat(&[&class, &patches.mean_keepdim(1)?, &patches], 1)?;
        let mut xs = tokens.broadcast_add(&self.pos_embed)?;
        for block in &self.blocks {
            xs = block.forward(&xs, ctx)?;
        }
        let xs = self.norm.forward(&xs)?;
        let token = |i: usize| xs.narrow(1, i, 1)?.squeeze(1)?.contiguous();
        Ok(VitOutput {
            logits: self.head.forward(&token(0)?)?,
            distillation_logits: self.head_dist.forward(&token(1)?)?,
            tokens: xs.narrow(1, 2, self.config.patches())?,
        })
    }
}

impl Block {
    fn forward(&self, xs: &Tensor, ctx: &Context) -> Result<Tensor> {
        let batch = xs.dim(0)?;
        let scales = |part: &str| {
            drop_path_scales(batch, self.drop_path, &format!("{}.{part}", self.name), ctx)
        };
        let xs = residual_attention(xs, &self.norm1, &self.attention, scales("attn")?.as_deref())?;
        residual_mlp(&xs, &self.norm2, &self.fc1, &self.fc2, scales("mlp")?.as_deref())
    }
}
