//! The models of vkd-models as networks of vkd-tasks.

use candle_core::{Result, Tensor, bail};
use vkd_models::Model;
use vkd_nn::Context;
use vkd_tasks::{FeatureMap, Layout, NetworkOutput};

/// The patch tokens of a transformer: the usual student's tap.
pub const STUDENT_TAP: &str = "tokens";
/// The pooled features of a convolutional network: the usual teacher's tap.
pub const TEACHER_TAP: &str = "pooled";

/// A model with all its taps, as student or as teacher.
///
/// The rank of a tap is its layout: pooled `(B, C)`, tokens `(B, N, C)`, a grid `(B, C, H, W)`.
pub fn network(model: Box<dyn Model>) -> impl Fn(&Tensor, &Context) -> Result<NetworkOutput> {
    move |images, ctx| {
        let out = model.forward(images, ctx)?;
        let mut found = NetworkOutput::new(out.logits);
        if let Some(logits) = out.distillation_logits {
            found = found.with_distillation_logits(logits);
        }
        for (name, features) in out.taps {
            let layout = match features.rank() {
                2 => Layout::Pooled,
                3 => Layout::Tokens,
                4 => Layout::Grid,
                rank => bail!("tap {name}: expected a rank of 2 to 4, got {rank}"),
            };
            found = found.with_tap(&name, FeatureMap::new(features, layout)?);
        }
        Ok(found)
    }
}
