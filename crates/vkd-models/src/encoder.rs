//! The transformer that the ViTs share: tokens, positions, blocks and two heads.

use crate::ModelOutput;
use crate::model::{ModelConfig, at_least_one, check_rate, summable};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use std::collections::BTreeMap;
use vkd_nn::{
    Activation, Context, LayerNorm, Linear, SelfAttention, drop_path_scales, layer_norm, linear,
    residual_attention, residual_mlp, self_attention,
};

/// Epsilon of the layer norms, as in timm.
const EPS: f64 = 1e-6;

/// Sizes of an [`Encoder`].
pub(crate) struct EncoderConfig<'a> {
    /// Family's name for messages.
    pub(crate) what: &'a str,
    pub(crate) patch: usize,
    pub(crate) width: usize,
    pub(crate) depth: usize,
    pub(crate) heads: usize,
    pub(crate) mlp_ratio: usize,
    /// Largest rate of stochastic depth.
    pub(crate) drop_path: f64,
    /// Rate of block `i` over the largest one.
    pub(crate) share: fn(i: usize, depth: usize) -> f64,
    /// Whether the distillation token is a variable; else it is the mean of the patch tokens.
    pub(crate) learnt_distillation: bool,
}

impl EncoderConfig<'_> {
    fn check(&self, image_size: usize) -> Result<()> {
        let Self { what, patch, width, heads, .. } = *self;
        let sizes = [
            ("patch", patch),
            ("width", width),
            ("depth", self.depth),
            ("heads", heads),
            ("mlp_ratio", self.mlp_ratio),
        ];
        at_least_one(what, &sizes)?;
        if !image_size.is_multiple_of(patch) {
            bail!("{what}: patch: expected a divisor of the image size {image_size}, got {patch}")
        }
        if !width.is_multiple_of(heads) {
            bail!("{what}: heads: expected a divisor of the width {width}, got {heads}")
        }
        check_rate(what, self.drop_path)
    }
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

/// Pre-norm blocks over a class token, a distillation token and the patch tokens, in this order, with a head on each
/// of the first two. Names follow timm.
pub(crate) struct Encoder {
    image_size: usize,
    channels: usize,
    what: String,
    cls_token: Tensor,
    dist_token: Option<Tensor>,
    pos_embed: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
    head_dist: Linear,
}

impl Encoder {
    pub(crate) fn new(config: &EncoderConfig, model: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        config.check(model.image_size)?;
        let EncoderConfig { patch, width, depth, .. } = *config;
        let small = Init::Randn { mean: 0., stdev: 0.02 };
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
                    drop_path: config.drop_path * (config.share)(i, depth),
                    name: format!("blocks.{i}"),
                })
            })
            .collect::<Result<_>>()?;
        let token = |name| vb.get_with_hints((1, 1, width), name, small);
        let tokens = (model.image_size / patch).pow(2) + 2;
        Ok(Self {
            image_size: model.image_size,
            channels: model.channels,
            what: config.what.to_owned(),
            cls_token: token("cls_token")?,
            dist_token: config.learnt_distillation.then(|| token("dist_token")).transpose()?,
            pos_embed: vb.get_with_hints((1, tokens, width), "pos_embed", small)?,
            blocks,
            norm: layer_norm(width, EPS, vb.pp("norm"))?,
            head: linear(width, model.classes, vb.pp("head"))?,
            head_dist: linear(width, model.classes, vb.pp("head_dist"))?,
        })
    }

    /// Images `(B, channels, image_size, image_size)`, checked and channels-last.
    pub(crate) fn channels_last(&self, images: &Tensor) -> Result<Tensor> {
        let Self { image_size: size, channels, what, .. } = self;
        match images.dims() {
            [_, c, h, w] if c == channels && h == size && w == size => images.permute((0, 2, 3, 1)),
            dims => bail!("{what}: expected images (B, {channels}, {size}, {size}), got {dims:?}"),
        }
    }

    /// Patch tokens `(B, N, C)` to logits and taps.
    pub(crate) fn forward(&self, patches: &Tensor, ctx: &Context) -> Result<ModelOutput> {
        let (batch, count, width) = patches.dims3()?;
        let wide = summable(patches)?;
        let class = summable(&self.cls_token)?.broadcast_as((batch, 1, width))?;
        let distillation = match &self.dist_token {
            Some(token) => summable(token)?.broadcast_as((batch, 1, width))?,
            None => wide.mean_keepdim(1)?,
        };
        let tokens = Tensor::cat(&[&class, &distillation, &wide], 1)?;
        let mut xs =
            tokens.broadcast_add(&summable(&self.pos_embed)?)?.to_dtype(patches.dtype())?;
        for block in &self.blocks {
            xs = block.forward(&xs, ctx)?;
        }
        let xs = self.norm.forward(&xs)?;
        let token = |i: usize| xs.narrow(1, i, 1)?.squeeze(1)?.contiguous();
        let (class, distillation) = (token(0)?, token(1)?);
        Ok(ModelOutput {
            logits: self.head.forward(&class)?,
            distillation_logits: Some(self.head_dist.forward(&distillation)?),
            taps: BTreeMap::from([
                ("class_token".to_owned(), class),
                ("distillation_token".to_owned(), distillation),
                ("stem_tokens".to_owned(), patches.clone()),
                ("tokens".to_owned(), xs.narrow(1, 2, count)?),
            ]),
        })
    }
}

/// Widths of the taps: all the token's.
pub(crate) fn encoder_taps(width: usize) -> BTreeMap<String, usize> {
    let names = ["class_token", "distillation_token", "stem_tokens", "tokens"];
    names.map(|name| (name.to_owned(), width)).into()
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
