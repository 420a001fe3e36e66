//! The two networks of a GAN, as closures give them.

use crate::Taps;
use candle_core::{Result, Tensor};
use vkd_norm::Context;

/// Noise `(B, noise)` and classes `(B)` to images `(B, C, H, W)`. Every closure of this form is one.
pub trait GeneratorNetwork {
    /// One forward pass.
    ///
    /// # Errors
    /// Whatever the network refuses.
    fn generate(&self, noise: &Tensor, labels: &Tensor, ctx: &Context) -> Result<Tensor>;
}

impl<F: Fn(&Tensor, &Tensor, &Context) -> Result<Tensor>> GeneratorNetwork for F {
    fn generate(&self, noise: &Tensor, labels: &Tensor, ctx: &Context) -> Result<Tensor> {
        self(noise, labels, ctx)
    }
}

/// Result of one forward pass of a discriminator.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// Score `(B)`: high for what looks real.
    pub score: Tensor,
    /// Features by tap name.
    pub taps: Taps,
}

/// Images `(B, C, H, W)` and their classes `(B)` to a [`Judgement`]. Every closure of this form is one.
pub trait DiscriminatorNetwork {
    /// One forward pass.
    ///
    /// # Errors
    /// Whatever the network refuses.
    fn judge(&self, images: &Tensor, labels: &Tensor, ctx: &Context) -> Result<Judgement>;
}

impl<F: Fn(&Tensor, &Tensor, &Context) -> Result<Judgement>> DiscriminatorNetwork for F {
    fn judge(&self, images: &Tensor, labels: &Tensor, ctx: &Context) -> Result<Judgement> {
        self(images, labels, ctx)
    }
}
