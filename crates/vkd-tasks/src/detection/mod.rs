//! Detection: what is to be found in an image, and the losses of detectors.

mod batch;
mod objects;

pub use batch::DetectionBatch;
pub use objects::Objects;
