//! BigGAN for small images: a class-conditional generator and a projection discriminator.

mod config;
mod discriminator;
mod generator;
mod layers;

pub use config::{DiscriminatorConfig, GanConfig, GeneratorConfig, GeneratorModel};
pub use discriminator::{Discriminator, DiscriminatorOutput};
pub use generator::Generator;
