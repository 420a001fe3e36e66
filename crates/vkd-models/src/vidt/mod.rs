//! ViDT: a transformer body that carries detection tokens, and a decoder that turns them into boxes.

mod attention;
mod body;
mod config;
mod cost;
mod decoder;
mod merging;
mod neck;
mod position;
#[cfg(test)]
mod tests;
mod window;

pub use config::VidtConfig;

use crate::detection::QueryOutput;
use crate::model::channels_last;
use body::Body;
use candle_core::{Device, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use decoder::Decoder;
use neck::Neck;
use position::Padding;
use std::collections::BTreeMap;
use vkd_nn::{Context, Linear};

/// Epsilon of all norms.
const EPS: f64 = 1e-5;

/// Groups of the neck's norms.
const GROUPS: usize = 32;

/// A detector of detection tokens (Song et al., arXiv:2110.03921): a Swin body with reconfigured attention, a neck of 1×1
/// convolutions and group norm, and a decoder of deformable attention that refines a box in every layer.
///
/// Names are those of the published code, so that its files load through [`load_weights`](crate::load_weights) with the key
/// `model`; what nothing here reads of them is named by [`Vidt::is_unread`]. A Swin classifier's file loads into the body with
/// the prefix `backbone`, where `det_token`, `det_pos_embed`, each `det_pos_linear` and the last `downsample` are
/// [allowed](crate::LoadOptions::allow) to be missing.
///
/// # Shapes
/// With images `(B, 3, H, W)`, Q detection tokens, K classes, D decoder layers, C the [reduced](VidtConfig::reduced) width and
/// patches of 4 pixels, `⌈⌉` at every halving:
///
/// | output | shape | what |
/// | --- | --- | --- |
/// | `logits` | `(D + 1, B, Q, K)` | for a sigmoid each |
/// | `boxes` | `(D + 1, B, Q, 4)` | cx, cy, w, h of the image without its padding |
/// | tap `patch0` | `(B, C, H/8, W/8)` | the neck's maps |
/// | tap `patch1` | `(B, C, H/16, W/16)` | |
/// | tap `patch2` | `(B, C, H/32, W/32)` | |
/// | tap `patch3` | `(B, C, H/64, W/64)` | |
/// | tap `body_det` | `(B, Q, C)` | the body's detection tokens after the neck |
/// | tap `neck_det` | `(D + 1, B, Q, C)` | these, and the tokens after each layer of the decoder |
/// | masks `patch0` to `patch3` | `(B, h, w)`, u8 | 1 at padding |
///
/// # Differences
/// In training the published decoder also drops entries of the self-attention's softmax; this one drops only results. The
/// options of ViDT+ (fusion across scales, an IoU branch, token labels) are absent, as they are from V_kD's runs.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Result, Tensor};
/// use vkd_models::{Vidt, VidtConfig};
/// use vkd_nn::{Context, VarStore};
/// # fn main() -> Result<()> {
/// let config = VidtConfig {
///     width: 12,
///     depths: [1, 1, 1, 1],
///     heads: [1, 1, 2, 2],
///     queries: 5,
///     reduced: 32,
///     decoder_layers: 1,
///     decoder_hidden: 32,
///     ..VidtConfig::nano()
/// };
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let vidt = Vidt::new(&config, 3, 7, store.builder())?;
/// let images = Tensor::zeros((1, 3, 64, 96), DType::F32, &Device::Cpu)?;
/// let output = vidt.forward(&images, None, &Context::eval())?;
/// assert_eq!(output.logits.dims(), [2, 1, 5, 7]);
/// assert_eq!(output.tap("patch0")?.dims(), [1, 32, 8, 12]);
/// # Ok(())
/// # }
/// ```
pub struct Vidt {
    channels: usize,
    body: Body,
    neck: Neck,
    decoder: Decoder,
}

impl Vidt {
    /// Builds the detector for images of `channels` under `vb`; the names of `backbone.*`, `input_proj.*`, `tgt_proj`,
    /// `query_pos_proj`, `transformer.*`, `class_embed.*` and `bbox_embed.*` are the published code's.
    ///
    /// Variables start as there: the body's linear maps as truncated normals of 0.02, the decoder's as Xavier's, the points
    /// that a head samples in its own direction, the classes at one in a hundred, and the first boxes at their points.
    ///
    /// # Errors
    /// A size that is zero or does not fit the others, or a rate outside `[0, 1)`: the field and both values are named.
    pub fn new(
        config: &VidtConfig,
        channels: usize,
        classes: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        config.check(channels, classes)?;
        let [_, second, third, fourth] = config.widths();
        let maps = [second, third, fourth, config.reduced];
        Ok(Self {
            channels,
            body: Body::new(config, channels, vb.pp("backbone"))?,
            neck: Neck::new(maps, fourth, vb.clone())?,
            decoder: Decoder::new(config, classes, vb)?,
        })
    }

    /// One pass over images `(B, channels, H, W)` of any size.
    ///
    /// `mask` `(B, H, W)` of any number dtype is 0 where the image is and anything else at the padding at its right and
    /// bottom; without it no image is padded. The padding itself should be zeros: attention within windows sees it.
    ///
    /// # Errors
    /// Images or a mask of another shape, and in training a context without an id for each sample.
    pub fn forward(
        &self,
        images: &Tensor,
        mask: Option<&Tensor>,
        ctx: &Context,
    ) -> Result<QueryOutput> {
        let images = channels_last("vidt", images, self.channels)?;
        let (batch, rows, cols, _) = images.dims4()?;
        if [batch, rows, cols].contains(&0) {
            candle_core::bail!("vidt: expected images with pixels, got {rows} x {cols}")
        }
        let padding = Padding::new([batch, rows, cols], mask)?;
        let neck = self.neck(&self.body.forward(&images, &padding, ctx)?, &padding)?;
        let found = self.decoder.forward(&neck, ctx)?;
        let (mut taps, mut masks) = (BTreeMap::new(), BTreeMap::new());
        for (i, (level, padding)) in neck.levels.iter().zip(&neck.padding).enumerate() {
            taps.insert(format!("patch{i}"), level.permute((0, 3, 1, 2))?);
            // On the CPU, where whoever reads it decides.
            masks.insert(format!("patch{i}"), padding.mask(&Device::Cpu)?);
        }
        taps.insert("body_det".to_owned(), neck.det);
        taps.insert("neck_det".to_owned(), found.hidden);
        Ok(QueryOutput { logits: found.logits, boxes: found.boxes, taps, masks })
    }

    /// Whether `name` in a published file is a tensor that no pass of the published code reads, or another name for one of
    /// the model's: what [`load_weights`](crate::load_weights) then calls unexpected is no fault.
    pub fn is_unread(name: &str) -> bool {
        let parts: Vec<&str> = name.split('.').collect();
        match parts[..] {
            ["backbone", norm, _] => norm.starts_with("norm"),
            ["transformer", "level_embed"] => true,
            // The same module as `bbox_embed`.
            ["transformer", "decoder", "bbox_embed", ..] => true,
            [.., "downsample", "expansion" | "norm2", _] => true,
            [.., last] => last == "relative_position_index",
            [] => false,
        }
    }

    fn neck(&self, body: &body::BodyOutput, padding: &Padding) -> Result<neck::NeckOutput> {
        let Some(last) = body.stages.last() else {
            candle_core::bail!("vidt: expected a body of stages, got none")
        };
        self.neck.forward(body.maps(), &last.det, self.body.det_positions(), padding)
    }
}

/// A linear layer whose weight starts as `init` says: the first request decides how a variable starts.
fn linear_from(in_dim: usize, out_dim: usize, init: Init, vb: VarBuilder) -> Result<Linear> {
    vb.get_with_hints((out_dim, in_dim), "weight", init)?;
    vkd_nn::linear(in_dim, out_dim, vb)
}

/// The variable `name` with these values, if this is the first request for it; candle's hints know no such start.
fn starting_at(vb: &VarBuilder, name: &str, values: &[f64]) -> Result<Tensor> {
    let is_new = !vb.contains_tensor(name);
    let variable = vb.get_with_hints(values.len(), name, Init::Const(0.))?;
    // A recorder of shapes hands out one zero for all places: nothing to write to.
    if is_new && variable.is_contiguous() {
        let values = Tensor::new(values, variable.device())?.to_dtype(variable.dtype())?;
        variable.slice_set(&values, 0, 0)?;
    }
    Ok(variable)
}
