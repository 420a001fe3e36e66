//! Sizes of a ViDT.

use crate::cost::recorded;
use crate::model::{at_least_one, check_rate};
use crate::{Vidt, vidt::GROUPS};
use candle_core::{Result, Shape, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Sizes of a [`Vidt`]; the presets are those of the published models.
///
/// Parameters with 3 channels and 91 classes, without those of the published files that nothing reads:
///
/// | preset | width | depths | heads | drop path | parameters |
/// | --- | --- | --- | --- | --- | --- |
/// | [`nano`](Self::nano) | 48 | 2, 2, 6, 2 | 3, 6, 12, 24 | 0 | 15,529,797 |
/// | [`tiny`](Self::tiny) | 96 | 2, 2, 6, 2 | 3, 6, 12, 24 | 0.2 | 37,372,629 |
/// | [`small`](Self::small) | 96 | 2, 2, 18, 2 | 3, 6, 12, 24 | 0.3 | 59,874,789 |
/// | [`base`](Self::base) | 128 | 2, 2, 18, 2 | 4, 8, 16, 32 | 0.3 | 99,000,915 |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VidtConfig {
    /// Height and width of a patch in pixels; 4 in the published models.
    pub patch: usize,
    /// Width of a token in the first stage; each later one doubles it.
    pub width: usize,
    /// Blocks of each stage.
    pub depths: [usize; 4],
    /// Attention heads of each stage; divide its width.
    pub heads: [usize; 4],
    /// Height and width of a window in patches; 7.
    pub window: usize,
    /// Hidden width of a block's MLP over the token's width; 4.
    pub mlp_ratio: usize,
    /// Stochastic depth of the body's last block; it grows from 0 at the first.
    pub drop_path: f64,
    /// Detection tokens Q: the most objects that an image can have; 100.
    pub queries: usize,
    /// Whether a stage's detection tokens attend to its patches; in the last stage only.
    pub cross: [bool; 4],
    /// Width C of neck and decoder, and of every tap; 256, a multiple of 32, the groups of the neck's norms.
    pub reduced: usize,
    /// Layers of the decoder; 6.
    pub decoder_layers: usize,
    /// Heads of the decoder; 8, dividing `reduced`.
    pub decoder_heads: usize,
    /// Points that a head samples in each of the four levels; 4.
    pub decoder_points: usize,
    /// Hidden width of the decoder's MLPs; 1024.
    pub decoder_hidden: usize,
    /// Dropout in the decoder, on attention's and the MLP's results and inside the MLP; 0.1.
    pub decoder_dropout: f64,
}

impl VidtConfig {
    /// Swin-nano body.
    pub fn nano() -> Self {
        Self {
            patch: 4,
            width: 48,
            depths: [2, 2, 6, 2],
            heads: [3, 6, 12, 24],
            window: 7,
            mlp_ratio: 4,
            drop_path: 0.,
            queries: 100,
            cross: [false, false, false, true],
            reduced: 256,
            decoder_layers: 6,
            decoder_heads: 8,
            decoder_points: 4,
            decoder_hidden: 1024,
            decoder_dropout: 0.1,
        }
    }

    /// Swin-tiny body.
    pub fn tiny() -> Self {
        Self { width: 96, drop_path: 0.2, ..Self::nano() }
    }

    /// Swin-small body.
    pub fn small() -> Self {
        Self { depths: [2, 2, 18, 2], drop_path: 0.3, ..Self::tiny() }
    }

    /// Swin-base body.
    pub fn base() -> Self {
        Self { width: 128, heads: [4, 8, 16, 32], ..Self::small() }
    }

    /// Width of the tokens of each stage.
    pub(super) fn widths(&self) -> [usize; 4] {
        [1, 2, 4, 8].map(|times| times * self.width)
    }

    /// Name and width of each tap of [`Vidt`], sorted by name.
    pub fn taps(&self) -> BTreeMap<String, usize> {
        let names = ["patch0", "patch1", "patch2", "patch3", "body_det", "neck_det"];
        names.map(|name| (name.to_owned(), self.reduced)).into()
    }

    /// Layers that a tap of [`taps`](Self::taps) stacks: the decoder's with the one before it for `neck_det`, else 1.
    pub fn stacked(&self, tap: &str) -> usize {
        if tap == "neck_det" { self.decoder_layers + 1 } else { 1 }
    }

    /// Name and shape of every variable, without allocating any.
    ///
    /// # Errors
    /// Those of [`Vidt::new`].
    pub fn variables(&self, channels: usize, classes: usize) -> Result<BTreeMap<String, Shape>> {
        recorded(|vb| Vidt::new(self, channels, classes, vb))
    }

    pub(super) fn check(&self, channels: usize, classes: usize) -> Result<()> {
        let sizes = [
            ("channels", channels),
            ("classes", classes),
            ("patch", self.patch),
            ("width", self.width),
            ("window", self.window),
            ("mlp_ratio", self.mlp_ratio),
            ("queries", self.queries),
            ("reduced", self.reduced),
            ("decoder_layers", self.decoder_layers),
            ("decoder_heads", self.decoder_heads),
            ("decoder_points", self.decoder_points),
            ("decoder_hidden", self.decoder_hidden),
        ];
        at_least_one("vidt", &sizes)?;
        at_least_one("vidt", &self.depths.map(|depth| ("depths", depth)))?;
        for (stage, (width, heads)) in self.widths().into_iter().zip(self.heads).enumerate() {
            if heads == 0 || !width.is_multiple_of(heads) {
                bail!(
                    "vidt: heads: expected a divisor of stage {stage}'s width {width}, got {heads}"
                )
            }
        }
        let Self { reduced, decoder_heads, .. } = *self;
        if !reduced.is_multiple_of(GROUPS) {
            bail!("vidt: reduced: expected a multiple of {GROUPS}, got {reduced}")
        }
        if !reduced.is_multiple_of(decoder_heads) {
            bail!(
                "vidt: decoder_heads: expected a divisor of reduced {reduced}, got {decoder_heads}"
            )
        }
        check_rate("vidt", self.drop_path)?;
        if !(0. ..1.).contains(&self.decoder_dropout) {
            bail!("vidt: decoder_dropout: expected a rate in [0, 1), got {}", self.decoder_dropout)
        }
        Ok(())
    }
}
