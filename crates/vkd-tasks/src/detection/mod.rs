//! Detection: what is to be found in an image, and the losses of detectors.

mod objects;

pub use objects::Objects;
