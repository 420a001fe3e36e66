//! CLIP's image encoder, a teacher for generation.

use crate::cost::recorded;
use crate::model::at_least_one;
use crate::{Model, ModelOutput};
use candle_core::{Module, Result, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vkd_nn::{
    Context, Conv2d, Conv2dConfig, LayerNorm, Linear, conv2d_no_bias, layer_norm, linear,
    linear_no_bias, multi_head_attention, silu, upsample_bilinear2d, upsample_nearest2d,
};

/// Epsilon of the layer norms.
const EPS: f64 = 1e-5;

/// Factor of the sigmoid in CLIP's activation.
const QUICK: f64 = 1.702;

/// Mean and standard deviation of CLIP's training images, channel by channel, of values from 0 to 1.
const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Sizes of a [`ClipVision`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipVisionConfig {
    /// Height and width of the images.
    pub image_size: usize,
    /// Side of a patch.
    pub patch: usize,
    /// Channels of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of the attention.
    pub heads: usize,
    /// Hidden channels of a block's MLP.
    pub hidden: usize,
    /// Channels of the embedding that images and texts share.
    pub projection: usize,
}

impl ClipVisionConfig {
    /// ViT-B/32, embedding of 512: the teacher of KD-DLGAN and of V_kD's generation.
    pub fn vit_b32() -> Self {
        Self {
            image_size: 224,
            patch: 32,
            width: 768,
            depth: 12,
            heads: 12,
            hidden: 3072,
            projection: 512,
        }
    }

    /// ViT-B/16.
    pub fn vit_b16() -> Self {
        Self { patch: 16, ..Self::vit_b32() }
    }

    /// ViT-L/14.
    pub fn vit_l14() -> Self {
        Self {
            patch: 14,
            width: 1024,
            depth: 24,
            heads: 16,
            hidden: 4096,
            projection: 768,
            ..Self::vit_b32()
        }
    }

    /// Multiply-adds of one image; norms, activations and softmaxes are not counted.
    pub fn multiply_adds(&self) -> usize {
        let Self { image_size, patch, width, depth, heads: _, hidden, projection } = *self;
        let patches = (image_size / patch.max(1)).pow(2);
        let tokens = patches + 1;
        let block = tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width;
        patches * 3 * patch * patch * width + depth * block + width * projection
    }

    /// Width of each tap: `embedding`, `class_token` and `tokens`.
    pub fn taps(&self) -> BTreeMap<String, usize> {
        let taps =
            [("embedding", self.projection), ("class_token", self.width), ("tokens", self.width)];
        taps.map(|(name, width)| (name.to_owned(), width)).into()
    }

    /// Name and shape of every variable, without allocating any.
    ///
    /// # Errors
    /// Those of [`ClipVision::new`].
    pub fn variables(&self) -> Result<BTreeMap<String, Shape>> {
        recorded(|vb| ClipVision::new(self, vb))
    }
}

struct Block {
    norms: [LayerNorm; 2],
    qkv: [Linear; 3],
    out: Linear,
    mlp: [Linear; 2],
    heads: usize,
}

impl Block {
    fn new(config: &ClipVisionConfig, vb: VarBuilder) -> Result<Self> {
        let (width, hidden) = (config.width, config.hidden);
        let map = |name: &str| linear(width, width, vb.pp("self_attn").pp(name));
        let norm = |name| layer_norm(width, EPS, vb.pp(name));
        Ok(Self {
            norms: [norm("layer_norm1")?, norm("layer_norm2")?],
            qkv: [map("q_proj")?, map("k_proj")?, map("v_proj")?],
            out: map("out_proj")?,
            mlp: [
                linear(width, hidden, vb.pp("mlp.fc1"))?,
                linear(hidden, width, vb.pp("mlp.fc2"))?,
            ],
            heads: config.heads,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let normed = self.norms[0].forward(xs)?;
        let [queries, keys, values] = &self.qkv;
        let parts = [queries.forward(&normed)?, keys.forward(&normed)?, values.forward(&normed)?];
        let attended = multi_head_attention(&Tensor::cat(&parts, 2)?, None, self.heads)?;
        let xs = (xs + self.out.forward(&attended)?)?;
        let hidden = self.mlp[0].forward(&self.norms[1].forward(&xs)?)?;
        &xs + self.mlp[1].forward(&quick_gelu(&hidden)?)?
    }
}

/// `x · sigmoid(1.702 x)`.
fn quick_gelu(xs: &Tensor) -> Result<Tensor> {
    silu(&(xs * QUICK)?)? * QUICK.recip()
}

/// CLIP's image encoder (Radford et al., arXiv:2103.00020): a vision transformer with layer norm before and after its pre-norm blocks,
/// whose class token a linear map takes to the embedding that images and texts share.
///
/// Variables have the names of the published `model.safetensors`: `vision_model.embeddings.{class_embedding, patch_embedding.weight,
/// position_embedding.weight}`, `vision_model.pre_layrnorm` (so spelt), `vision_model.encoder.layers.I` with
/// `self_attn.{q,k,v,out}_proj`, `layer_norm1`, `layer_norm2`, `mlp.fc1` and `mlp.fc2`, `vision_model.post_layernorm`, and
/// `visual_projection.weight`. So [`load_weights`](crate::load_weights) reads that file; what it holds of the text encoder is reported as
/// unexpected and left alone.
///
/// Taps: `embedding` `(B, projection)`, not scaled to length one; `class_token` `(B, width)` after the last norm; `tokens` `(B, N, width)`, the
/// patches after the last block. As a [`Model`] its logits are the embedding.
///
/// # Example: a teacher from a file
/// ```
/// # use candle_core::{DType, Device, Result, Tensor};
/// use vkd_models::{ClipInput, ClipVision, ClipVisionConfig, LoadOptions, Model, load_weights};
/// use vkd_nn::{Context, VarStore};
/// # fn main() -> Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("model.safetensors");
/// # let config = ClipVisionConfig { image_size: 8, patch: 4, width: 8, depth: 1, heads: 2, hidden: 16, projection: 6 };
/// # let old = VarStore::new(1, DType::F32, &Device::Cpu);
/// # ClipVision::new(&config, old.builder())?;
/// # candle_core::safetensors::save(&old.tensors().into_iter().collect(), &path)?;
/// // let config = ClipVisionConfig::vit_b32();
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// ClipVision::new(&config, store.builder())?;
/// load_weights(&store, &path, &LoadOptions::default())?;
/// // Of constants: a teacher records nothing.
/// let teacher = ClipVision::new(&config, store.frozen())?;
/// let generated = Tensor::zeros((2, 1, 4, 4), DType::F32, &Device::Cpu)?;
/// let input = ClipInput::kd_dlgan().apply(&generated, config.image_size)?;
/// assert_eq!(teacher.forward(&input, &Context::eval())?.tap("embedding")?.dims(), [2, 6]);
/// # Ok(())
/// # }
/// ```
pub struct ClipVision {
    config: ClipVisionConfig,
    patches: Conv2d,
    class: Tensor,
    positions: Tensor,
    norms: [LayerNorm; 2],
    blocks: Vec<Block>,
    projection: Linear,
}

impl ClipVision {
    /// Builds the network under `vb`.
    ///
    /// # Errors
    /// A zero size, a patch that does not divide the image, or heads that do not divide the width.
    pub fn new(config: &ClipVisionConfig, vb: VarBuilder) -> Result<Self> {
        const WHAT: &str = "clip";
        let ClipVisionConfig { image_size, patch, width, depth, heads, hidden, projection } =
            *config;
        let sizes = [
            ("image_size", image_size),
            ("patch", patch),
            ("width", width),
            ("depth", depth),
            ("heads", heads),
            ("hidden", hidden),
            ("projection", projection),
        ];
        at_least_one(WHAT, &sizes)?;
        if !image_size.is_multiple_of(patch) {
            bail!("{WHAT}: patch: expected a divisor of the image size {image_size}, got {patch}")
        }
        if !width.is_multiple_of(heads) {
            bail!("{WHAT}: heads: expected a divisor of the width {width}, got {heads}")
        }
        let small = Init::Randn { mean: 0., stdev: 0.02 };
        let vision = vb.pp("vision_model");
        let (embeddings, layers) = (vision.pp("embeddings"), vision.pp("encoder.layers"));
        let tokens = (image_size / patch).pow(2) + 1;
        let stride = Conv2dConfig { stride: (patch, patch), ..Conv2dConfig::default() };
        let norm = |name| layer_norm(width, EPS, vision.pp(name));
        Ok(Self {
            config: config.clone(),
            patches: conv2d_no_bias(3, width, patch, stride, embeddings.pp("patch_embedding"))?,
            class: embeddings.get_with_hints(width, "class_embedding", small)?,
            positions: embeddings.pp("position_embedding").get_with_hints(
                (tokens, width),
                "weight",
                small,
            )?,
            norms: [norm("pre_layrnorm")?, norm("post_layernorm")?],
            blocks: (0..depth).map(|i| Block::new(config, layers.pp(i))).collect::<Result<_>>()?,
            projection: linear_no_bias(width, projection, vb.pp("visual_projection"))?,
        })
    }
}

impl Model for ClipVision {
    /// Images `(B, 3, image_size, image_size)` as [`ClipInput`] makes them.
    fn forward(&self, images: &Tensor, _ctx: &Context) -> Result<ModelOutput> {
        let ClipVisionConfig { image_size: size, width, .. } = self.config;
        let batch = match *images.dims() {
            [batch, 3, h, w] if h == size && w == size => batch,
            ref dims => bail!("clip: expected images (B, 3, {size}, {size}), got {dims:?}"),
        };
        let patches = self.patches.forward(&images.permute((0, 2, 3, 1))?.contiguous()?)?;
        let class = self.class.broadcast_as((batch, 1, width))?;
        let xs = Tensor::cat(&[&class, &patches.flatten(1, 2)?], 1)?;
        let mut xs = self.norms[0].forward(&xs.broadcast_add(&self.positions)?)?;
        for block in &self.blocks {
            xs = block.forward(&xs)?;
        }
        let class = self.norms[1].forward(&xs.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)?;
        let embedding = self.projection.forward(&class)?;
        let tokens = xs.narrow(1, 1, xs.dim(1)? - 1)?;
        Ok(ModelOutput {
            logits: embedding.clone(),
            distillation_logits: None,
            taps: BTreeMap::from([
                ("embedding".to_owned(), embedding),
                ("class_token".to_owned(), class),
                ("tokens".to_owned(), tokens),
            ]),
        })
    }
}

/// From a GAN's images to CLIP's: a choice that recordings differ by, and that is therefore written out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipInput {
    /// Whether larger images are made by interpolation, not by the nearest pixel.
    pub smooth: bool,
    /// Whether values become CLIP's: from 0 to 1, less its mean, over its deviation. Else they stay from -1 to 1.
    pub normalize: bool,
}

impl ClipInput {
    /// As KD-DLGAN's code feeds it, which V_kD's generation builds on: the nearest pixel, values as they are.
    pub fn kd_dlgan() -> Self {
        Self { smooth: false, normalize: false }
    }

    /// As CLIP was trained, but for bilinear interpolation in place of bicubic.
    pub fn clip() -> Self {
        Self { smooth: true, normalize: true }
    }

    /// Images `(B, 1 or 3, H, W)` from -1 to 1 to `(B, 3, size, size)`; grey ones are repeated.
    ///
    /// # Gradient
    /// Flows to `images`.
    ///
    /// # Errors
    /// Another shape.
    pub fn apply(&self, images: &Tensor, size: usize) -> Result<Tensor> {
        let channels = match *images.dims() {
            [_, channels @ (1 | 3), _, _] => channels,
            ref dims => bail!("clip input: expected images (B, 1 or 3, H, W), got {dims:?}"),
        };
        let last = images.permute((0, 2, 3, 1))?.contiguous()?;
        let sized = match self.smooth {
            true => upsample_bilinear2d(&last, (size, size), false)?,
            false => upsample_nearest2d(&last, (size, size))?,
        };
        let mut xs = sized.permute((0, 3, 1, 2))?.contiguous()?;
        if channels == 1 {
            xs = xs.repeat((1, 3, 1, 1))?;
        }
        if !self.normalize {
            return Ok(xs);
        }
        let of = |values: [f64; 3]| {
            Tensor::new(&values, xs.device())?.reshape((1, 3, 1, 1))?.to_dtype(xs.dtype())
        };
        xs.affine(0.5, 0.5)?.broadcast_sub(&of(MEAN)?)?.broadcast_div(&of(STD)?)
    }
}
