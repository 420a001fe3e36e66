//! The body: Swin whose attention also carries detection tokens (ViDT's reconfigured attention module).

use super::EPS;
use super::config::VidtConfig;
use super::linear_from;
use super::merging::Merging;
use super::position::Padding;
use super::window::{FAR, Windows, relative_bias, relative_positions};
use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use vkd_nn::ops::linear;
use vkd_nn::{
    Activation, Context, Conv2d, Conv2dConfig, LayerNorm, Linear, conv2d, cross_attention,
    drop_path, drop_path_scales, init, layer_norm, multi_head_attention, residual_mlp,
};

/// Deviation of the linear maps' initial weights.
const DEVIATION: f64 = 0.02;

/// What the blocks of a stage have in common in one forward pass.
struct Surroundings<'a> {
    /// The maps' windows, and the shifted ones where a block wants them.
    windows: Vec<Windows>,
    /// `(1, Q, reduced)`.
    det_positions: &'a Tensor,
    /// Where detection tokens attend to patches: encoding `(B, patches, C)` and bias `(B, 1, patches + Q)`, if there is padding.
    cross: Option<(Tensor, Option<Tensor>)>,
    ctx: &'a Context,
}

/// Pre-norm attention and MLP over patches and detection tokens, with one set of weights for both.
struct Block {
    norm1: LayerNorm,
    qkv: (Tensor, Tensor),
    proj: Linear,
    bias_table: Tensor,
    bias_index: Tensor,
    det_pos: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    window: usize,
    shifted: bool,
    drop_path: f64,
    name: String,
}

impl Block {
    fn new(c: &VidtConfig, stage: usize, index: usize, rate: f64, vb: VarBuilder) -> Result<Self> {
        let (width, heads, weight) =
            (c.widths()[stage], c.heads[stage], init::truncated_normal(DEVIATION));
        let (attn, hidden) = (vb.pp("attn"), c.mlp_ratio * width);
        let rows = (2 * c.window - 1).pow(2);
        let qkv = attn.pp("qkv");
        Ok(Self {
            norm1: layer_norm(width, EPS, vb.pp("norm1"))?,
            qkv: (
                qkv.get_with_hints((3 * width, width), "weight", weight)?,
                qkv.get_with_hints(3 * width, "bias", Init::Const(0.))?,
            ),
            proj: linear_from(width, width, weight, attn.pp("proj"))?,
            bias_table: attn.get_with_hints(
                (rows, heads),
                "relative_position_bias_table",
                weight,
            )?,
            bias_index: relative_positions(c.window, vb.device())?,
            det_pos: linear_from(c.reduced, width, weight, vb.pp("det_pos_linear"))?,
            norm2: layer_norm(width, EPS, vb.pp("norm2"))?,
            fc1: linear_from(width, hidden, weight, vb.pp("mlp.fc1"))?
                .with_activation(Activation::Gelu),
            fc2: linear_from(hidden, width, weight, vb.pp("mlp.fc2"))?,
            heads,
            window: c.window,
            shifted: index % 2 == 1,
            drop_path: rate,
            name: vb.prefix(),
        })
    }

    /// Patches `(B, N, C)` attend within their windows, detection tokens `(B, Q, C)` to each other and, where the stage says
    /// so, to the patches with their positions; patches never attend to detection tokens.
    fn forward(
        &self,
        patches: &Tensor,
        det: &Tensor,
        around: &Surroundings<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let (batch, _, width) = patches.dims3()?;
        let (weight, bias) = &self.qkv;
        let qkv = |xs: &Tensor| linear(xs, weight, Some(bias), Activation::Identity);
        let normed = self.norm1.forward(patches)?;
        let positions = self.det_pos.forward(around.det_positions)?;
        let of_det = qkv(&self.norm1.forward(det)?.broadcast_add(&positions)?)?;
        let relative = relative_bias(&self.bias_table, &self.bias_index, self.window.pow(2))?;
        let windows = &around.windows[usize::from(self.shifted)];
        let of_patches = windows.attend(&qkv(&normed)?, bias, &relative, self.heads)?;
        let of_det = match &around.cross {
            None => multi_head_attention(&of_det, None, self.heads)?,
            Some((encoding, mask)) => {
                let (weight, bias) =
                    (weight.narrow(0, width, 2 * width)?, bias.narrow(0, width, 2 * width)?);
                let placed = (&normed + encoding)?;
                let others = linear(&placed, &weight, Some(&bias), Activation::Identity)?;
                let others = Tensor::cat(&[&others, &of_det.narrow(2, width, 2 * width)?], 1)?;
                let queries = of_det.narrow(2, 0, width)?;
                cross_attention(&queries, &others, mask.as_ref(), self.heads)?
            }
        };
        let (rate, ctx) = (self.drop_path, around.ctx);
        let name = format!("{}.attn", self.name);
        // Both branches of a sample are dropped together: the name is the same.
        let after = |xs: &Tensor, branch: &Tensor| {
            xs + drop_path(&self.proj.forward(branch)?, rate, &name, ctx)?
        };
        let (patches, det) = (after(patches, &of_patches)?, after(det, &of_det)?);
        let scales = drop_path_scales(batch, rate, &format!("{}.mlp", self.name), ctx)?;
        let mlp =
            |xs: &Tensor| residual_mlp(xs, &self.norm2, &self.fc1, &self.fc2, scales.as_deref());
        Ok((mlp(&patches)?, mlp(&det)?))
    }
}

/// What a stage makes.
pub(super) struct StageOutput {
    /// Patches after the last block, a map `(B, h, w, C)`.
    pub(super) patches: Tensor,
    /// Detection tokens `(B, Q, C)` after the last block.
    pub(super) det: Tensor,
    /// These merged, a map `(B, ⌈h/2⌉, ⌈w/2⌉, C')`.
    pub(super) merged: Tensor,
}

struct Stage {
    blocks: Vec<Block>,
    merging: Merging,
    window: usize,
    cross: bool,
}

impl Stage {
    fn forward(
        &self,
        map: &Tensor,
        det: &Tensor,
        det_positions: &Tensor,
        padding: &Padding,
        ctx: &Context,
    ) -> Result<StageOutput> {
        let (batch, rows, cols, width) = map.dims4()?;
        let shifts = [0, self.window / 2];
        let windows = |shift| Windows::new([batch, rows, cols], self.window, shift, map);
        let windows = shifts.into_iter().take(self.blocks.len()).map(windows);
        let cross = || -> Result<_> {
            let padding = padding.at(rows, cols);
            let mask = match padding.any() {
                false => None,
                true => {
                    let far = padding.values(FAR, 0., map)?.unsqueeze(1)?;
                    Some(far.pad_with_zeros(2, 0, det.dim(1)?)?)
                }
            };
            Ok((padding.encoding(width, map)?, mask))
        };
        let around = Surroundings {
            windows: windows.collect::<Result<_>>()?,
            det_positions,
            cross: self.cross.then(cross).transpose()?,
            ctx,
        };
        let (mut patches, mut det) = (map.flatten(1, 2)?, det.clone());
        for block in &self.blocks {
            (patches, det) = block.forward(&patches, &det, &around)?;
        }
        let merged = self.merging.patches(&patches, [rows, cols])?;
        Ok(StageOutput { patches: patches.reshape((batch, rows, cols, width))?, det, merged })
    }
}

/// What the body makes.
pub(super) struct BodyOutput {
    /// The patches after their norm, `(B, h, w, width)`.
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests compare it"))]
    pub(super) embedded: Tensor,
    /// One for each stage; the last one's detection tokens are the body's.
    pub(super) stages: Vec<StageOutput>,
}

impl BodyOutput {
    /// The maps for the neck: the later stages' patches, and the last ones merged.
    pub(super) fn maps(&self) -> impl Iterator<Item = &Tensor> {
        let later = self.stages.iter().skip(1).map(|stage| &stage.patches);
        later.chain(self.stages.last().map(|stage| &stage.merged))
    }
}

/// Patch embedding and four stages, each of which ends in a merging of patches.
pub(super) struct Body {
    patch: usize,
    proj: Conv2d,
    norm: LayerNorm,
    det_token: Tensor,
    det_pos_embed: Tensor,
    stages: Vec<Stage>,
}

impl Body {
    pub(super) fn new(c: &VidtConfig, channels: usize, vb: VarBuilder) -> Result<Self> {
        let (widths, small) = (c.widths(), init::truncated_normal(DEVIATION));
        let last = c.depths.iter().sum::<usize>() - 1;
        let (mut at, mut stages) = (0, Vec::new());
        for (i, &depth) in c.depths.iter().enumerate() {
            let vb = vb.pp("layers").pp(i);
            let mut blocks = Vec::new();
            for j in 0..depth {
                let rate = c.drop_path * at as f64 / last as f64;
                blocks.push(Block::new(c, i, j, rate, vb.pp("blocks").pp(j))?);
                at += 1;
            }
            let out = widths.get(i + 1).copied().unwrap_or(c.reduced);
            let merging = Merging::new(widths[i], out, vb.pp("downsample"))?;
            stages.push(Stage { blocks, merging, window: c.window, cross: c.cross[i] });
        }
        let stride = Conv2dConfig { stride: (c.patch, c.patch), ..Conv2dConfig::default() };
        let embed = vb.pp("patch_embed");
        Ok(Self {
            patch: c.patch,
            proj: conv2d(channels, c.width, c.patch, stride, embed.pp("proj"))?,
            norm: layer_norm(c.width, EPS, embed.pp("norm"))?,
            det_token: vb.get_with_hints((1, c.queries, c.width), "det_token", small)?,
            det_pos_embed: vb.get_with_hints((1, c.queries, c.reduced), "det_pos_embed", small)?,
            stages,
        })
    }

    /// The learnt positions of the detection tokens, `(1, Q, reduced)`.
    pub(super) fn det_positions(&self) -> &Tensor {
        &self.det_pos_embed
    }

    /// Detection tokens of a stage as the next one takes them.
    pub(super) fn merged(&self, stage: usize, det: &Tensor) -> Result<Tensor> {
        self.stages[stage].merging.tokens(det)
    }

    /// Images `(B, H, W, channels)`; those that are no whole number of patches are filled up with zeros.
    pub(super) fn forward(
        &self,
        images: &Tensor,
        padding: &Padding,
        ctx: &Context,
    ) -> Result<BodyOutput> {
        let (batch, rows, cols, _) = images.dims4()?;
        let lacks = |size: usize| size.next_multiple_of(self.patch) - size;
        let images = images.pad_with_zeros(1, 0, lacks(rows))?.pad_with_zeros(2, 0, lacks(cols))?;
        let embedded = self.norm.forward(&self.proj.forward(&images)?)?;
        let (_, queries, width) = self.det_token.dims3()?;
        let mut det = self.det_token.broadcast_as((batch, queries, width))?;
        let mut map = embedded.clone();
        let mut stages: Vec<StageOutput> = Vec::new();
        for (i, stage) in self.stages.iter().enumerate() {
            if let Some(before) = stages.last() {
                det = self.merged(i - 1, &before.det)?;
                map = before.merged.clone();
            }
            stages.push(stage.forward(&map, &det, &self.det_pos_embed, padding, ctx)?);
        }
        Ok(BodyOutput { embedded, stages })
    }
}
