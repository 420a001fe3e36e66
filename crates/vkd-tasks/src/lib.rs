//! Distillation tasks on candle: feature adapters and the distiller with named taps.
//!
//! A student's features go through a [`FeatureAdapter`], an orthogonal projector and a normaliser slot, and are matched to
//! the teacher's adapted and normalised features (V_kD, arXiv:2403.06213). The crate knows no concrete model: a
//! student or a teacher is any [`Network`], and every closure of the right form is one: `examples/own_model.rs` distils a
//! candle module of your own from a teacher of your own. Detectors are no classifiers: [`DetectionAdapter`] and
//! [`Distiller::feature_terms`] take what is tapped from any, [`SetCriterion`] and [`DenseCriterion`] are their own losses, and
//! [`decode_queries`] and [`decode_dense`] make [`Detection`]s of what they predict; [`DetectionTask`] is all of it in one.
//! [`GenerationTask`] trains a GAN of anyone's, with [`DiffAugment`], and [`GenerationDistiller`] its discriminator on a teacher.
//!
//! Invariants: nothing of the teacher is ever on the tape; the projector belongs to the [`Distiller`], not to the student,
//! so that what is exported is the bare student.
//!
//! ```
//! use candle_core::{D, DType, Device, Result, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use vkd_norm::{Context, Normalizer};
//! use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
//! use vkd_tasks::{Distiller, FeatureLoss, FeatureMap, Layout, NetworkOutput, ProjectorConfig, TapConfig};
//!
//! # fn main() -> Result<()> {
//! let (vars, device) = (VarMap::new(), Device::Cpu);
//! let vb = VarBuilder::from_varmap(&vars, DType::F32, &device);
//! let tap = TapConfig {
//!     student: "tokens".into(),
//!     student_width: 8,
//!     teacher: "grid".into(),
//!     teacher_width: 16,
//!     projector: ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, 0)),
//!     student_normalizer: Normalizer::Identity,
//!     teacher_normalizer: Normalizer::LayerNorm { eps: 1e-5 },
//!     loss: FeatureLoss::SmoothL1 { beta: 1. },
//!     weight: 1.,
//! };
//! let distiller = Distiller::new(vec![tap], None, vb)?;
//!
//! // What your two networks hand over for a batch of two images.
//! let student = NetworkOutput::new(Tensor::zeros((2, 10), DType::F32, &device)?)
//!     .with_tap("tokens", FeatureMap::new(Tensor::ones((2, 5, 8), DType::F32, &device)?, Layout::Tokens)?);
//! let teacher = NetworkOutput::new(Tensor::zeros((2, 10), DType::F32, &device)?)
//!     .with_tap("grid", FeatureMap::new(Tensor::ones((2, 16, 3, 3), DType::F32, &device)?, Layout::Grid)?);
//! let terms = distiller.terms(&student, &teacher, &Context::eval())?;
//! assert_eq!(terms[0].name, "feature.tokens");
//! # Ok(())
//! # }
//! ```

mod adapter;
mod classification;
mod detection;
mod distiller;
mod features;
mod generation;
mod projector;
mod published;
mod task;
mod teacher;

pub use adapter::{ClassificationAdapter, DetectionAdapter, FeatureAdapter, Padding};
pub use classification::ClassificationTask;
pub use detection::{
    DenseCriterion, DenseDecoding, DenseLevel, Detection, DetectionBatch, DetectionConfig,
    DetectionTask, DetectorNetwork, DetectorOutput, DetectorTeacher, ImageSize, Objects,
    Predictions, QueryPredictions, SetCriterion, SetWeights, decode_dense, decode_queries,
    hungarian, suppress,
};
pub use distiller::{Distiller, FeatureLoss, LogitDistance, LogitLoss, TapConfig};
pub use features::{FeatureMap, Layout, Network, NetworkOutput, Taps};
pub use generation::{
    DISCRIMINATOR, DiffAugment, DiscriminatorNetwork, GENERATOR, GenerationBatch, GenerationConfig,
    GenerationDistiller, GenerationLoss, GenerationTap, GenerationTask, GeneratorNetwork,
    Judgement, LecamConfig, RunningWhitening, Sides, TeacherNormalizer, brightness, contrast,
    cutout, saturation, translation, uniform_classes, white_noise,
};
pub use projector::{Projector, ProjectorConfig};
pub use published::{PUBLISHED_PARAMETER, PublishedProjector};
pub use task::{Batch, DistillTask, Phase, StepOutput};
pub use teacher::Teacher;
pub use vkd_loss::{Term, weighted_sum};
