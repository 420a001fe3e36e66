//! Generation: a discriminator that learns from a teacher, and the two phases of a GAN's step.

mod augment;
mod batch;
mod distiller;
mod lecam;
mod network;
mod running;
mod task;

pub use augment::{DiffAugment, brightness, contrast, cutout, saturation, translation};
pub use batch::{GenerationBatch, uniform_classes, white_noise};
pub use distiller::{GenerationDistiller, GenerationLoss, GenerationTap, Sides, TeacherNormalizer};
pub use lecam::LecamConfig;
use lecam::lecam_term;
pub use network::{DiscriminatorNetwork, GeneratorNetwork, Judgement};
pub use running::RunningWhitening;
pub use task::{DISCRIMINATOR, GENERATOR, GenerationConfig, GenerationTask};
