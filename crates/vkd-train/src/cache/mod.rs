//! The teacher's answers, remembered: logits and the tapped features of each training image in each of its looks.
//!
//! It can refuse, it can't lie. Answers lie in a folder that is named by the hash of all that decides them (the teacher's
//! weights, dtype and taps, the data, how images are brought to the network and changed), each with a checksum of the very
//! pixels that the teacher saw: an answer is given for those pixels alone. What the teacher computes while some of a batch is
//! missing is compared bit by bit with what is remembered of it, and the first batch of a process that is remembered whole is
//! computed once more for that.

mod answers;
mod rows;
#[cfg(test)]
mod tests;

pub(crate) use answers::Answers;
pub(crate) use rows::clear;

use crate::build::fresh_teacher;
use crate::data::Dataset;
use crate::fingerprint::hex;
use crate::folder::RunFolder;
use crate::recipe::{ComputeDevice, Recipe};
use crate::workload::{Classification, Workload};
use candle_core::{DType, Device, Error, Result, Tensor, bail};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::sync::Arc;
use vkd_nn::{Context, VarStore};
use vkd_tasks::{Network, NetworkOutput};

/// Where a run keeps them, unless its recipe names a folder.
pub(crate) const FOLDER: &str = "teacher-cache";

/// What all answers take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachePlan {
    /// Training images.
    pub images: usize,
    /// Looks of each.
    pub looks: u64,
    /// Bytes of one answer.
    pub row_bytes: u64,
    /// The most that all may take.
    pub limit_mib: u64,
}

impl CachePlan {
    /// Bytes of all answers.
    pub fn bytes(&self) -> u64 {
        (self.images as u64).saturating_mul(self.looks).saturating_mul(self.row_bytes)
    }
}

/// The size of the cache that a recipe asks for, if it does.
///
/// # Errors
/// More than `teacher.cache.limit_mib`, images that are drawn anew at every step, and what the teacher refuses.
pub(crate) fn plan(recipe: &Recipe, data: &Dataset) -> Result<Option<CachePlan>> {
    let Some(config) = &recipe.teacher.cache else { return Ok(None) };
    let looks = recipe.data.looks().map_err(|name| {
        Error::Msg(format!("teacher.cache: expected looks that come again, got {name}"))
    })?;
    let fresh = fresh_teacher(recipe, data, &Device::Cpu)?;
    let teacher = Classification::teacher(recipe, data, &fresh)?;
    let output = teacher.forward(&data.blank()?)?;
    let size = |t: &Tensor| (t.elem_count() * t.dtype().size_in_bytes()) as u64;
    let answer: u64 = rows::parts(&output, &taps(recipe))?.values().map(size).sum();
    let plan = CachePlan {
        images: data.train.len(),
        looks,
        row_bytes: answer + rows::OVERHEAD,
        limit_mib: config.limit_mib,
    };
    if plan.bytes() > config.limit_mib.saturating_mul(1 << 20) {
        bail!(
            "teacher.cache.limit_mib: expected room for {} images in {} looks, {} bytes each, {} MiB, got {}",
            plan.images,
            plan.looks,
            plan.row_bytes,
            plan.bytes().div_ceil(1 << 20),
            config.limit_mib
        )
    }
    Ok(Some(plan))
}

/// The teacher's taps that any arm of the run looks at.
fn taps(recipe: &Recipe) -> BTreeSet<String> {
    let used = |name: &String| recipe.arm(name).is_ok_and(|arm| arm.features > 0.);
    match recipe.arms.iter().any(used) {
        true => recipe.distill.tap.iter().map(|tap| tap.teacher.clone()).collect(),
        false => BTreeSet::new(),
    }
}

/// All that decides an answer, the pixels apart, as JSON.
fn key(recipe: &Recipe, data: &Dataset, teacher: &VarStore) -> Result<String> {
    let mut weights = Sha256::new();
    for (name, tensor) in teacher.tensors() {
        weights.update(format!("{name} {:?} {:?}\n", tensor.dtype(), tensor.dims()));
        for value in tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()? {
            weights.update(value.to_le_bytes());
        }
    }
    let mut images = Sha256::new();
    for index in 0..data.len() {
        images.update(format!("{} {}\n", data.label(index), data.image_name(index)));
    }
    // Where nothing is drawn no seed matters.
    let drawn = recipe.data.drawn().map(|_| {
        let data = &recipe.data;
        json!({"seed": recipe.seed, "shift": data.shift, "augment": data.augment})
    });
    let mut key = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "teacher": {
            "model": recipe.teacher.model,
            "weights": hex(weights),
            "compute": recipe.teacher.compute,
            "taps": taps(recipe),
        },
        "data": {
            "name": data.name,
            "size": data.size,
            "channels": data.channels,
            "keep": data.keep(),
            "preprocessing": data.preprocessing(),
            "images": hex(images),
        },
        "drawn": drawn,
    });
    // Another device, other bits; not written while it is the default, as with every key.
    if recipe.training.device != ComputeDevice::default() {
        key["device"] = json!(recipe.training.device);
    }
    Ok(key.to_string())
}

/// The answers of `run`'s teacher, whose weights are in `store`, with what was remembered before; none where the recipe
/// wants none.
///
/// # Errors
/// Those of [`plan`], and a folder that can't be made or read.
pub(crate) fn open(
    run: &RunFolder,
    data: &Dataset,
    store: &VarStore,
) -> Result<Option<Arc<Answers>>> {
    let recipe = run.recipe();
    let Some(plan) = plan(recipe, data)? else { return Ok(None) };
    let own = recipe.teacher.cache.as_ref().and_then(|cache| cache.dir.clone());
    let dir = own.unwrap_or_else(|| run.path(FOLDER));
    let key = key(recipe, data, store)?;
    Ok(Some(Arc::new(Answers::open(&dir, key, taps(recipe), data.len(), &plan)?)))
}

/// `network`, asked only for what is not remembered. A context without sample ids goes past the memory.
pub(crate) fn remembering(network: impl Network, answers: Option<Arc<Answers>>) -> impl Network {
    move |images: &Tensor, ctx: &Context| -> Result<NetworkOutput> {
        let compute = || network.forward(images, ctx);
        match &answers {
            Some(answers) if !ctx.sample_ids.is_empty() => {
                answers.ask(images, &ctx.sample_ids, compute)
            }
            _ => compute(),
        }
    }
}
