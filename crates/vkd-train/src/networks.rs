//! The models of vkd-models as networks of vkd-tasks.

use candle_core::{Result, Tensor};
use vkd_models::{Cnn, Vit};
use vkd_nn::Context;
use vkd_tasks::{FeatureMap, Layout, NetworkOutput};

/// The student's patch tokens.
pub const STUDENT_TAP: &str = "tokens";
/// The teacher's pooled features.
pub const TEACHER_TAP: &str = "pooled";
/// The teacher's last feature map.
pub(crate) const TEACHER_GRID: &str = "grid";

/// A ViT student with the tap `tokens`.
pub fn student_network(vit: Vit) -> impl Fn(&Tensor, &Context) -> Result<NetworkOutput> {
    move |images, ctx| {
        let out = vit.forward(images, ctx)?;
        Ok(NetworkOutput::new(out.logits)
            .with_distillation_logits(out.distillation_logits)
            .with_tap(STUDENT_TAP, FeatureMap::new(out.tokens, Layout::Tokens)?))
    }
}

/// A CNN teacher with the taps `grid` and `pooled`.
pub fn teacher_network(cnn: Cnn) -> impl Fn(&Tensor, &Context) -> Result<NetworkOutput> {
    move |images, _ctx| {
        let out = cnn.forward(images)?;
        Ok(NetworkOutput::new(out.logits)
            .with_tap(TEACHER_GRID, FeatureMap::new(out.grid, Layout::Grid)?)
            .with_tap(TEACHER_TAP, FeatureMap::new(out.pooled, Layout::Pooled)?))
    }
}
