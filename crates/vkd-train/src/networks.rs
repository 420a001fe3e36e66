//! The models of vkd-models as networks of vkd-tasks, and the dtype in which they compute.
//!
//! Invariants: variables are f32 whatever a network computes in, and so are gradients, averages, checkpoints and files. Images may lie
//! anywhere: a network answers on the device of its variables.

use crate::recipe::ComputeKind;
use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use std::collections::BTreeMap;
use vkd_models::{
    DenseOutput, Detector, DetectorArchitecture, DetectorConfig, DetectorStudent, Model,
    ModelConfig, QueryOutput,
};
use vkd_nn::{Context, VarStore};
use vkd_tasks::{
    DenseLevel, DetectorOutput, FeatureMap, Layout, Network, NetworkOutput, Predictions,
    QueryPredictions, Taps,
};

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
    let device = vb.device().clone();
    let half = vb.set_dtype(compute.dtype());
    Ok(move |images: &Tensor, ctx: &Context| {
        let images = &images.to_device(&device)?;
        if compute == ComputeKind::F32 || !ctx.train {
            return whole(images, ctx);
        }
        // Built for each pass: what a builder casts are the variables' values at that moment.
        let network = network(model.build(half.clone())?);
        single(network(&images.to_dtype(compute.dtype())?, ctx)?)
    })
}

/// The network of the constants that `vb` holds, in `compute`: nothing of a pass is kept for a backward one.
pub(crate) fn frozen_network(
    model: &ModelConfig,
    compute: ComputeKind,
    vb: VarBuilder,
) -> Result<impl Network + use<>> {
    let device = vb.device().clone();
    let frozen = network(model.build(vb.set_dtype(compute.dtype()))?);
    Ok(move |images: &Tensor, ctx: &Context| {
        let images = images.to_device(&device)?.to_dtype(compute.dtype())?;
        single(frozen(&images, ctx)?)
    })
}

/// Logits in f32: they are few, and sums of two heads and softmaxes follow. Whoever compares features casts those it needs.
fn single(mut output: NetworkOutput) -> Result<NetworkOutput> {
    output.logits = output.logits.to_dtype(DType::F32)?;
    let other = output.distillation_logits.map(|logits| logits.to_dtype(DType::F32));
    output.distillation_logits = other.transpose()?;
    Ok(output)
}

/// A detector of `config` with all its taps, its variables under `vb`.
///
/// A grid's padding is that of the pixel its place stands for.
pub(crate) fn detector(
    config: &DetectorConfig,
    vb: VarBuilder,
) -> Result<impl Fn(&Tensor, &Tensor, &Context) -> Result<DetectorOutput> + use<>> {
    let (device, strides) = (vb.device().clone(), strides(config));
    let model = config.build(vb)?;
    Ok(move |images: &Tensor, padding: &Tensor, ctx: &Context| {
        let (images, padding) = (images.to_device(&device)?, padding.to_device(&device)?);
        output(model.as_ref(), &strides, &images, &padding, ctx)
    })
}

/// The same of a saved one.
pub(crate) fn saved_detector(
    student: &DetectorStudent,
) -> impl Fn(&Tensor, &Tensor, &Context) -> Result<DetectorOutput> {
    let strides = strides(&student.card.model);
    move |images: &Tensor, padding: &Tensor, ctx: &Context| {
        let device = student.device();
        let (images, padding) = (images.to_device(device)?, padding.to_device(device)?);
        output(student.network().as_ref(), &strides, &images, &padding, ctx)
    }
}

/// Stride of each tap of a dense detector; one with queries knows its own padding.
fn strides(config: &DetectorConfig) -> BTreeMap<String, usize> {
    match &config.architecture {
        DetectorArchitecture::Fcos(c) => {
            c.taps().into_iter().map(|(name, shape)| (name, shape.stride)).collect()
        }
        DetectorArchitecture::Vidt(_) => BTreeMap::new(),
    }
}

fn output(
    model: &dyn Detector,
    strides: &BTreeMap<String, usize>,
    images: &Tensor,
    padding: &Tensor,
    ctx: &Context,
) -> Result<DetectorOutput> {
    match model.forward(images, Some(padding), ctx)? {
        vkd_models::DetectorOutput::Dense(found) => dense(found, strides, padding),
        vkd_models::DetectorOutput::Queries(found) => queries(found),
    }
}

fn dense(
    found: DenseOutput,
    strides: &BTreeMap<String, usize>,
    padding: &Tensor,
) -> Result<DetectorOutput> {
    let level = |level: vkd_models::DenseLevel| DenseLevel {
        logits: level.logits,
        distances: level.distances,
        centerness: level.centerness,
        stride: level.stride,
    };
    let mut taps = Taps::new();
    for (name, grid) in found.taps {
        let Some(stride) = strides.get(&name) else {
            bail!("tap {name}: expected a grid of known stride, got none")
        };
        let (_, _, height, width) = grid.dims4()?;
        let mask = sampled(&sampled(padding, 1, height, *stride)?, 2, width, *stride)?;
        taps.insert(name, FeatureMap::new(grid, Layout::Grid)?.with_padding(mask)?);
    }
    let levels = found.levels.into_iter().map(level).collect();
    Ok(DetectorOutput { predictions: Predictions::Dense(levels), taps })
}

/// Along `axis` the entries at the middles of `count` places of `stride` pixels; beyond the end the last one.
fn sampled(mask: &Tensor, axis: usize, count: usize, stride: usize) -> Result<Tensor> {
    let last = mask.dim(axis)?.saturating_sub(1);
    let at: Vec<u32> = (0..count).map(|i| (i * stride + stride / 2).min(last) as u32).collect();
    mask.contiguous()?.index_select(&Tensor::from_vec(at, count, mask.device())?, axis)
}

fn queries(found: QueryOutput) -> Result<DetectorOutput> {
    let mut taps = Taps::new();
    for (name, features) in found.taps {
        let map = match (found.masks.get(&name), features.rank()) {
            (Some(mask), _) => {
                FeatureMap::new(features, Layout::Grid)?.with_padding(mask.clone())?
            }
            (None, 4) => FeatureMap::new(features, Layout::Queries)?,
            (None, _) => FeatureMap::new(features, Layout::Tokens)?,
        };
        taps.insert(name, map);
    }
    let predictions =
        Predictions::Queries(QueryPredictions { logits: found.logits, boxes: found.boxes });
    Ok(DetectorOutput { predictions, taps })
}
