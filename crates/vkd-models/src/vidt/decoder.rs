//! The decoder: detection tokens attend to each other and sample the neck's maps, and refine a box in every layer.

use super::attention::Sampling;
use super::config::VidtConfig;
use super::neck::NeckOutput;
use super::{EPS, linear_from, starting_at};
use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder, ops::sigmoid};
use vkd_nn::ops::linear;
use vkd_nn::{
    Activation, Context, LayerNorm, Linear, dropout, init, layer_norm, multi_head_attention,
};

/// Self-attention whose queries and keys have positions and whose values have none; names as PyTorch's `MultiheadAttention`.
struct SelfAttention {
    weight: Tensor,
    bias: Tensor,
    out: Linear,
    heads: usize,
}

impl SelfAttention {
    fn new(width: usize, heads: usize, vb: VarBuilder) -> Result<Self> {
        let (dims, square) = ([3 * width, width], init::xavier_uniform(&[width, width]));
        Ok(Self {
            weight: vb.get_with_hints(&dims, "in_proj_weight", init::xavier_uniform(&dims))?,
            bias: vb.get_with_hints(3 * width, "in_proj_bias", Init::Const(0.))?,
            out: linear_from(width, width, square, vb.pp("out_proj"))?,
            heads,
        })
    }

    fn forward(&self, xs: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let width = xs.dim(2)?;
        let part = |xs: &Tensor, from: usize, count: usize| {
            let weight = self.weight.narrow(0, from * width, count * width)?;
            let bias = self.bias.narrow(0, from * width, count * width)?;
            linear(xs, &weight, Some(&bias), Activation::Identity)
        };
        let placed = xs.broadcast_add(positions)?;
        let qkv = Tensor::cat(&[part(&placed, 0, 2)?, part(xs, 2, 1)?], 2)?;
        self.out.forward(&multi_head_attention(&qkv, None, self.heads)?)
    }
}

/// Post-norm: self-attention, sampling of the maps, MLP.
pub(super) struct Layer {
    attention: SelfAttention,
    norm2: LayerNorm,
    pub(super) sampling: Sampling,
    norm1: LayerNorm,
    linear1: Linear,
    linear2: Linear,
    norm3: LayerNorm,
    rate: f64,
    name: String,
}

impl Layer {
    fn new(c: &VidtConfig, vb: VarBuilder) -> Result<Self> {
        let (width, hidden) = (c.reduced, c.decoder_hidden);
        let weight = |dims: [usize; 2]| init::xavier_uniform(&dims);
        Ok(Self {
            attention: SelfAttention::new(width, c.decoder_heads, vb.pp("self_attn"))?,
            norm2: layer_norm(width, EPS, vb.pp("norm2"))?,
            sampling: Sampling::new(c, vb.pp("cross_attn"))?,
            norm1: layer_norm(width, EPS, vb.pp("norm1"))?,
            linear1: linear_from(width, hidden, weight([hidden, width]), vb.pp("linear1"))?
                .with_activation(Activation::Relu),
            linear2: linear_from(hidden, width, weight([width, hidden]), vb.pp("linear2"))?,
            norm3: layer_norm(width, EPS, vb.pp("norm3"))?,
            rate: c.decoder_dropout,
            name: vb.prefix(),
        })
    }

    fn dropped(&self, xs: &Tensor, index: usize, ctx: &Context) -> Result<Tensor> {
        dropout(xs, self.rate, &format!("{}.dropout{index}", self.name), ctx)
    }

    /// The tokens after self-attention and its norm.
    pub(super) fn attended(
        &self,
        xs: &Tensor,
        positions: &Tensor,
        ctx: &Context,
    ) -> Result<Tensor> {
        let mixed = self.attention.forward(xs, positions)?;
        self.norm2.forward(&(xs + self.dropped(&mixed, 2, ctx)?)?)
    }

    fn forward(
        &self,
        xs: &Tensor,
        positions: &Tensor,
        memory: &Memory,
        boxes: &Tensor,
        ctx: &Context,
    ) -> Result<Tensor> {
        let xs = self.attended(xs, positions, ctx)?;
        let sampled = self.sampling.forward(&xs.broadcast_add(positions)?, memory, boxes)?;
        let xs = self.norm1.forward(&(xs + self.dropped(&sampled, 1, ctx)?)?)?;
        let hidden = self.dropped(&self.linear1.forward(&xs)?, 3, ctx)?;
        let mlp = self.linear2.forward(&hidden)?;
        self.norm3.forward(&(xs + self.dropped(&mlp, 4, ctx)?)?)
    }
}

/// The maps that the layers sample.
pub(super) struct Memory {
    /// All cells of all levels, `(B, cells, C)`.
    pub(super) cells: Tensor,
    /// Height and width of each level.
    pub(super) levels: Vec<(usize, usize)>,
    /// `(B, cells, 1)`: 0 at padding and else 1; absent where there is none.
    pub(super) image: Option<Tensor>,
    /// The part of each level that is image, `(B, levels, 4)`: twice its width and its height.
    pub(super) ratios: Tensor,
}

impl Memory {
    pub(super) fn new(neck: &NeckOutput) -> Result<Self> {
        let (mut cells, mut levels, mut image, mut ratios) = (vec![], vec![], vec![], vec![]);
        let padded = neck.padding.iter().any(|padding| padding.any());
        for (level, padding) in neck.levels.iter().zip(&neck.padding) {
            let (_, rows, cols, _) = level.dims4()?;
            levels.push((rows, cols));
            cells.push(level.flatten(1, 2)?);
            if padded {
                image.push(padding.values(0., 1., level)?.unsqueeze(2)?);
            }
            let valid: Vec<f64> =
                padding.valid_ratios().iter().flat_map(|[x, y]| [*x, *y, *x, *y]).collect();
            ratios.push(Tensor::from_vec(valid, (level.dim(0)?, 4), level.device())?);
        }
        Ok(Self {
            image: padded.then(|| Tensor::cat(&image, 1)).transpose()?,
            ratios: Tensor::stack(&ratios, 1)?.to_dtype(neck.det.dtype())?,
            cells: Tensor::cat(&cells, 1)?,
            levels,
        })
    }
}

/// A linear map to class logits and an MLP to a change of a box.
struct Head {
    class: Linear,
    layers: Vec<Linear>,
}

impl Head {
    fn new(c: &VidtConfig, classes: usize, index: usize, vb: &VarBuilder) -> Result<Self> {
        let (width, class) = (c.reduced, vb.pp("class_embed").pp(index));
        // One object in a hundred.
        class.get_with_hints(classes, "bias", Init::Const(-(99f64.ln())))?;
        let vb = vb.pp("bbox_embed").pp(index).pp("layers");
        // The first box is a point with a size of sigmoid(-2).
        let size = if index == 0 { -2. } else { 0. };
        starting_at(&vb.pp(2), "bias", &[0., 0., size, size])?;
        let hidden =
            |i| vkd_nn::linear(width, width, vb.pp(i)).map(|l| l.with_activation(Activation::Relu));
        Ok(Self {
            class: vkd_nn::linear(width, classes, class)?,
            layers: vec![hidden(0)?, hidden(1)?, linear_from(width, 4, Init::Const(0.), vb.pp(2))?],
        })
    }

    /// Boxes `(B, Q, 4)` near a reference `(B, Q, 2)` or `(B, Q, 4)`, moved in the space before the sigmoid.
    fn boxes(&self, xs: &Tensor, reference: &Tensor) -> Result<Tensor> {
        let change = self.layers.iter().try_fold(xs.clone(), |xs, layer| layer.forward(&xs))?;
        let near = inverse_sigmoid(reference)?;
        let near = near.pad_with_zeros(2, 0, 4 - near.dim(2)?)?;
        sigmoid(&change.broadcast_add(&near)?)
    }
}

/// `ln(x / (1 - x))`, with both clamped at 1e-5.
fn inverse_sigmoid(xs: &Tensor) -> Result<Tensor> {
    let least = |xs: Tensor| xs.maximum(1e-5);
    (least(xs.clone())? / least(xs.affine(-1., 1.)?)?)?.log()
}

/// What the decoder makes.
pub(super) struct DecoderOutput {
    /// Tokens `(layers + 1, B, Q, C)`, as they enter the first layer and after each.
    pub(super) hidden: Tensor,
    /// `(layers + 1, B, Q, K)`.
    pub(super) logits: Tensor,
    /// `(layers + 1, B, Q, 4)`.
    pub(super) boxes: Tensor,
}

pub(super) struct Decoder {
    reference_points: Linear,
    pub(super) layers: Vec<Layer>,
    heads: Vec<Head>,
}

impl Decoder {
    pub(super) fn new(c: &VidtConfig, classes: usize, vb: VarBuilder) -> Result<Self> {
        let transformer = vb.pp("transformer");
        let layer = |i| Layer::new(c, transformer.pp("decoder.layers").pp(i));
        let point = init::xavier_uniform(&[2, c.reduced]);
        Ok(Self {
            reference_points: linear_from(c.reduced, 2, point, transformer.pp("reference_points"))?,
            layers: (0..c.decoder_layers).map(layer).collect::<Result<_>>()?,
            heads: (0..=c.decoder_layers)
                .map(|i| Head::new(c, classes, i, &vb))
                .collect::<Result<_>>()?,
        })
    }

    /// The points `(1, Q, 2)`, x first, that the first boxes lie around.
    pub(super) fn initial_reference(&self, positions: &Tensor) -> Result<Tensor> {
        sigmoid(&self.reference_points.forward(positions)?)
    }

    /// Each layer samples around the boxes before it, and no gradient goes back through these.
    pub(super) fn forward(&self, neck: &NeckOutput, ctx: &Context) -> Result<DecoderOutput> {
        let memory = Memory::new(neck)?;
        let mut reference = self.initial_reference(&neck.positions)?;
        let (mut hidden, mut boxes, mut logits) = (vec![neck.det.clone()], vec![], vec![]);
        for (i, head) in self.heads.iter().enumerate() {
            if let Some(layer) = i.checked_sub(1).map(|i| &self.layers[i]) {
                let xs =
                    layer.forward(&hidden[i - 1], &neck.positions, &memory, &reference, ctx)?;
                hidden.push(xs);
            }
            let found = head.boxes(&hidden[i], &reference)?;
            reference = found.detach();
            boxes.push(found);
            logits.push(head.class.forward(&hidden[i])?);
        }
        Ok(DecoderOutput {
            hidden: Tensor::stack(&hidden, 0)?,
            logits: Tensor::stack(&logits, 0)?,
            boxes: Tensor::stack(&boxes, 0)?,
        })
    }
}
