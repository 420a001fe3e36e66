//! From a network's features to rows that a projector can map.

mod classification;

pub use classification::ClassificationAdapter;

use crate::FeatureMap;
use candle_core::{Result, Tensor};

/// Brings features of any layout to rows `(M, C)`; has no parameters.
pub trait FeatureAdapter {
    /// `features` as `(M, C)`, on the tape.
    ///
    /// # Errors
    /// Features that hold no row, or a layout that the task does not know.
    fn adapt(&self, features: &FeatureMap) -> Result<Tensor>;
}
