//! The frozen teacher.

use crate::{Network, NetworkOutput};
use candle_core::{Result, Tensor};
use vkd_norm::Context;

/// A network whose outputs never carry a tape, whatever its weights are made of.
///
/// It always runs in evaluation mode. Build its network on a `VarBuilder` of its own, so that no optimiser ever sees its
/// weights.
pub struct Teacher {
    network: Box<dyn Network>,
}

impl Teacher {
    /// Freezes `network`.
    pub fn new(network: impl Network + 'static) -> Self {
        Self { network: Box::new(network) }
    }

    /// One forward pass of images `(B, ..)` in evaluation mode, detached.
    ///
    /// # Errors
    /// Those of the network.
    pub fn forward(&self, images: &Tensor) -> Result<NetworkOutput> {
        Ok(self.network.forward(images, &Context::eval())?.detach())
    }
}
