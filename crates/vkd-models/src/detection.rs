//! What detectors with queries hand over.

use crate::model::named_tap;
use candle_core::{Result, Tensor, bail};
use std::collections::BTreeMap;

/// Result of one forward pass of a detector whose predictions are tokens, such as [`Vidt`](crate::Vidt).
///
/// With B images, Q queries and K classes. Level 0 is the prediction of the queries as they enter the decoder, the last one
/// that of its last layer; those before the last are auxiliary and learn from losses of their own.
#[derive(Clone, Debug)]
pub struct QueryOutput {
    /// Class logits `(levels, B, Q, K)`, for a sigmoid each: there is no class for nothing.
    pub logits: Tensor,
    /// Boxes `(levels, B, Q, 4)`: centre x and y, width, height, from 0 to 1 of the image without its padding.
    pub boxes: Tensor,
    /// Features by name: a grid `(B, C, H, W)`, tokens `(B, Q, C)` or the tokens of all levels `(levels, B, Q, C)`.
    pub taps: BTreeMap<String, Tensor>,
    /// For each tap that is a grid, where it is padding: `(B, H, W)` of u8, 1 at cells that show no part of the image.
    pub masks: BTreeMap<String, Tensor>,
}

impl QueryOutput {
    /// The features of tap `name`.
    ///
    /// # Errors
    /// An unknown name; the message lists the known ones.
    pub fn tap(&self, name: &str) -> Result<&Tensor> {
        named_tap("detector", &self.taps, name)
    }

    /// Logits `(B, Q, K)` and boxes `(B, Q, 4)` of the last level: the prediction.
    ///
    /// # Errors
    /// An output without levels.
    pub fn prediction(&self) -> Result<(Tensor, Tensor)> {
        match self.logits.dim(0)? {
            0 => bail!("detector: expected at least one level of predictions, got none"),
            levels => Ok((self.logits.get(levels - 1)?, self.boxes.get(levels - 1)?)),
        }
    }
}
