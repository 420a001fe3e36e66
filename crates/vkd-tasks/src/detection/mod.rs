//! Detection: what is to be found in an image, the losses of detectors, and boxes from what they predict.

mod assignment;
mod batch;
mod decode;
mod dense;
mod locations;
mod objects;
mod set;
mod task;

pub use assignment::hungarian;
pub use batch::DetectionBatch;
pub use decode::{DenseDecoding, Detection, decode_dense, decode_queries, suppress};
pub use dense::{DenseCriterion, DenseLevel};
pub use objects::{ImageSize, Objects};
pub use set::{QueryPredictions, SetCriterion, SetWeights};
pub use task::{
    DetectionConfig, DetectionTask, DetectorNetwork, DetectorOutput, DetectorTeacher, Predictions,
};
