//! The frozen teacher.

use crate::{Network, NetworkOutput};
use candle_core::{Result, Tensor};
use std::sync::Arc;
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
        self.forward_samples(images, &Arc::from([]))
    }

    /// As [`forward`](Self::forward), and told which samples the images are, for a network that remembers its answers.
    ///
    /// # Errors
    /// Those of the network.
    pub fn forward_samples(
        &self,
        images: &Tensor,
        sample_ids: &Arc<[u64]>,
    ) -> Result<NetworkOutput> {
        let ctx = Context { sample_ids: sample_ids.clone(), ..Context::eval() };
        Ok(self.network.forward(images, &ctx)?.detach())
    }
}
