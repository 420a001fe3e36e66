//! From a network's features to rows that a projector can map.

mod classification;
mod detection;

pub use classification::ClassificationAdapter;
pub use detection::{DetectionAdapter, Padding};

use crate::FeatureMap;
use candle_core::{Result, Tensor};

/// Brings features of any layout to rows `(M, C)`; has no parameters.
pub trait FeatureAdapter {
    /// `features` as `(M, C)`, on the tape.
    ///
    /// # Errors
    /// Features that hold no row, or a layout that the task does not know.
    fn adapt(&self, features: &FeatureMap) -> Result<Tensor>;

    /// Whether the rows of the two belong together one by one; an adapter that pools has nothing to check.
    ///
    /// # Errors
    /// What is not alike, student first.
    fn check_pair(&self, _student: &FeatureMap, _teacher: &FeatureMap) -> Result<()> {
        Ok(())
    }
}
