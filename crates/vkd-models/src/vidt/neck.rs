//! The neck: maps and detection tokens of the body at one width.

use super::position::Padding;
use super::{EPS, GROUPS};
use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use vkd_nn::{Conv2d, Conv2dConfig, GroupNorm, conv2d, group_norm, init};

/// A 1×1 convolution and group norm, over the cells of a map or over tokens.
pub(super) struct Projection {
    conv: Conv2d,
    norm: GroupNorm,
}

impl Projection {
    /// `0` is the convolution, `1` the norm.
    pub(super) fn new(width: usize, out: usize, vb: VarBuilder) -> Result<Self> {
        let (conv, dims) = (vb.pp("0"), [out, width, 1, 1]);
        conv.get_with_hints(&dims, "weight", init::xavier_uniform(&dims))?;
        conv.get_with_hints(out, "bias", Init::Const(0.))?;
        Ok(Self {
            conv: conv2d(width, out, 1, Conv2dConfig::default(), conv)?,
            norm: group_norm(GROUPS, out, EPS, vb.pp("1"))?,
        })
    }

    /// `(B, h, w, C)` to `(B, h, w, C')`.
    pub(super) fn map(&self, xs: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(xs)?)
    }

    /// `(B, N, C)` to `(B, N, C')`.
    pub(super) fn tokens(&self, xs: &Tensor) -> Result<Tensor> {
        self.map(&xs.unsqueeze(1)?)?.squeeze(1)
    }
}

/// What the decoder works on, all of the neck's width C.
pub(super) struct NeckOutput {
    /// Maps `(B, h, w, C)`.
    pub(super) levels: Vec<Tensor>,
    /// The padding of each.
    pub(super) padding: Vec<Padding>,
    /// Detection tokens `(B, Q, C)`.
    pub(super) det: Tensor,
    /// Their positions `(1, Q, C)`.
    pub(super) positions: Tensor,
}

pub(super) struct Neck {
    levels: Vec<Projection>,
    tokens: Projection,
    pub(super) positions: Projection,
}

impl Neck {
    /// From maps of `widths` and detection tokens of width `det`, all to the last of the widths.
    pub(super) fn new(widths: [usize; 4], det: usize, vb: VarBuilder) -> Result<Self> {
        let out = widths[3];
        let level = |(i, &width)| Projection::new(width, out, vb.pp("input_proj").pp(i));
        Ok(Self {
            levels: widths.iter().enumerate().map(level).collect::<Result<_>>()?,
            tokens: Projection::new(det, out, vb.pp("tgt_proj"))?,
            positions: Projection::new(out, out, vb.pp("query_pos_proj"))?,
        })
    }

    pub(super) fn forward<'a>(
        &self,
        maps: impl Iterator<Item = &'a Tensor>,
        det: &Tensor,
        positions: &Tensor,
        padding: &Padding,
    ) -> Result<NeckOutput> {
        let (mut levels, mut paddings) = (Vec::new(), Vec::new());
        for (projection, map) in self.levels.iter().zip(maps) {
            let (_, rows, cols, _) = map.dims4()?;
            levels.push(projection.map(map)?);
            paddings.push(padding.at(rows, cols));
        }
        Ok(NeckOutput {
            levels,
            padding: paddings,
            det: self.tokens.tokens(det)?,
            positions: self.positions.tokens(positions)?,
        })
    }
}
