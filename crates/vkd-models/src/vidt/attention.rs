//! The decoder's attention to the maps: a few points of every level, found from the token and its box.

use super::config::VidtConfig;
use super::decoder::Memory;
use super::{linear_from, starting_at};
use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use vkd_nn::{Linear, deformable_attention, init, softmax};

/// Levels of the neck.
const LEVELS: usize = 4;

/// Multi-scale deformable attention with its linear maps (Deformable DETR, arXiv:2010.04159).
pub(super) struct Sampling {
    values: Linear,
    offsets: Linear,
    weights: Linear,
    output: Linear,
    heads: usize,
    points: usize,
}

impl Sampling {
    /// `value_proj`, `sampling_offsets`, `attention_weights`, `output_proj`.
    ///
    /// At the start a head looks in a direction of its own, its points at 1, 2, .. steps, and all count alike.
    pub(super) fn new(c: &VidtConfig, vb: VarBuilder) -> Result<Self> {
        let (width, heads, points) = (c.reduced, c.decoder_heads, c.decoder_points);
        let square = init::xavier_uniform(&[width, width]);
        let mut directions = Vec::new();
        for head in 0..heads {
            let angle = std::f64::consts::TAU * head as f64 / heads as f64;
            let longest = angle.cos().abs().max(angle.sin().abs());
            for tap in 0..LEVELS * points {
                let step = (tap % points + 1) as f64 / longest;
                directions.extend([step * angle.cos(), step * angle.sin()]);
            }
        }
        starting_at(&vb.pp("sampling_offsets"), "bias", &directions)?;
        let (taps, zero) = (heads * LEVELS * points, Init::Const(0.));
        Ok(Self {
            values: linear_from(width, width, square, vb.pp("value_proj"))?,
            offsets: linear_from(width, 2 * taps, zero, vb.pp("sampling_offsets"))?,
            weights: linear_from(width, taps, zero, vb.pp("attention_weights"))?,
            output: linear_from(width, width, square, vb.pp("output_proj"))?,
            heads,
            points,
        })
    }

    /// Queries `(B, Q, C)` with boxes `(B, Q, 4)` to `(B, Q, C)`.
    ///
    /// A point lies at the box's centre plus its offset, of which the number of points is half the box's width and height.
    pub(super) fn forward(
        &self,
        queries: &Tensor,
        memory: &Memory,
        boxes: &Tensor,
    ) -> Result<Tensor> {
        let (batch, count, width) = queries.dims3()?;
        let (heads, points, levels) = (self.heads, self.points, memory.levels.len());
        let values = self.values.forward(&memory.cells)?;
        let values = match &memory.image {
            Some(image) => values.broadcast_mul(image)?,
            None => values,
        };
        let values = values.reshape((batch, (), heads, width / heads))?;
        // Boxes are of the image, locations of the padded map.
        let boxes = boxes.unsqueeze(2)?.broadcast_mul(&memory.ratios.unsqueeze(1)?)?;
        let boxes = boxes.reshape(&[batch, count, 1, levels, 1, 4][..])?;
        let (centres, sizes) = (boxes.narrow(5, 0, 2)?, boxes.narrow(5, 2, 2)?);
        let offsets = self.offsets.forward(queries)?;
        let offsets = offsets.reshape(&[batch, count, heads, levels, points, 2][..])?;
        let steps = (sizes * (0.5 / points as f64))?;
        let locations = offsets.broadcast_mul(&steps)?.broadcast_add(&centres)?;
        let weights = self.weights.forward(queries)?;
        let weights = weights.reshape((batch, count, heads, levels * points))?;
        // The softmax takes no half type.
        let (dtype, wide) = (weights.dtype(), DType::F32);
        let weights = match dtype {
            DType::F16 | DType::BF16 => softmax(&weights.to_dtype(wide)?)?.to_dtype(dtype)?,
            _ => softmax(&weights)?,
        };
        let weights = weights.reshape((batch, count, heads, levels, points))?;
        let sampled = deformable_attention(&values, &memory.levels, &locations, &weights)?;
        self.output.forward(&sampled)
    }
}
