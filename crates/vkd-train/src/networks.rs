//! The models of vkd-models as networks of vkd-tasks, and the dtype in which they compute.
//!
//! Invariant: variables are f32 whatever a network computes in, and so are gradients, averages, checkpoints and files.

use crate::recipe::ComputeKind;
use candle_core::{DType, Result, Tensor, bail};
use vkd_models::{Model, ModelConfig};
use vkd_nn::{Context, VarStore};
use vkd_tasks::{FeatureMap, Layout, Network, NetworkOutput};

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

/// A network that trains in `compute` and is evaluated in f32, as its file holds it; its variables are f32 ones of `store`,
/// under `prefix`.
pub(crate) fn training_network(
    model: ModelConfig,
    compute: ComputeKind,
    store: &VarStore,
    prefix: Option<&str>,
) -> Result<impl Network + use<>> {
    let vb = prefix.map_or(store.builder(), |prefix| store.builder().pp(prefix));
    let whole = network(model.build(vb.clone())?);
    let half = vb.set_dtype(compute.dtype());
    Ok(move |images: &Tensor, ctx: &Context| {
        if compute == ComputeKind::F32 || !ctx.train {
            return whole(images, ctx);
        }
        // Built for each pass: what a builder casts are the variables' values at that moment.
        let network = network(model.build(half.clone())?);
        single(network(&images.to_dtype(compute.dtype())?, ctx)?)
    })
}

/// The network of what `store` holds as constants, in `compute`: nothing of a pass is kept for a backward one.
pub(crate) fn frozen_network(
    model: &ModelConfig,
    compute: ComputeKind,
    store: &VarStore,
) -> Result<impl Network + use<>> {
    let frozen = network(model.build(store.frozen().set_dtype(compute.dtype()))?);
    Ok(move |images: &Tensor, ctx: &Context| {
        single(frozen(&images.to_dtype(compute.dtype())?, ctx)?)
    })
}

/// Logits in f32: they are few, and sums of two heads and softmaxes follow. Whoever compares features casts those it needs.
fn single(mut output: NetworkOutput) -> Result<NetworkOutput> {
    output.logits = output.logits.to_dtype(DType::F32)?;
    let other = output.distillation_logits.map(|logits| logits.to_dtype(DType::F32));
    output.distillation_logits = other.transpose()?;
    Ok(output)
}
