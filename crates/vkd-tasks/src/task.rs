//! What a trainer drives: phases, steps and named loss terms.

use candle_core::{Device, Result, Tensor};
use std::sync::Arc;
use vkd_loss::Term;
use vkd_norm::Context;

/// One batch of classification. The first `L` images are labelled, the rest have no label.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Images `(B, ..)`.
    pub images: Tensor,
    /// Classes of the first `L <= B` images: indices, u32 `(L)`, or shares of the `K` classes, f32 `(L, K)`, each row summing to
    /// one, as mixed images have them.
    pub labels: Tensor,
    /// Identity of each image in its data set, `B` of them.
    pub sample_ids: Arc<[u64]>,
}

impl Batch {
    /// The same on `device`; what lies there already is shared.
    ///
    /// # Errors
    /// Those of the copy.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            images: moved(&self.images, device)?,
            labels: moved(&self.labels, device)?,
            sample_ids: self.sample_ids.clone(),
        })
    }
}

/// `xs` on `device`. Without values it stays where it is: a CUDA device has no memory of no bytes.
pub(crate) fn moved(xs: &Tensor, device: &Device) -> Result<Tensor> {
    match xs.elem_count() {
        0 => Ok(xs.clone()),
        _ => xs.to_device(device),
    }
}

/// A part of a step with an optimiser of its own: one for classification and detection, two for a GAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Name for the log.
    pub name: &'static str,
    /// The phase trains the variables whose names start so.
    pub prefix: &'static str,
}

/// Result of one step, before any update.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The weighted sum of the terms, rank 0.
    pub loss: Tensor,
    /// The parts of the loss.
    pub terms: Vec<Term>,
}

/// A task that a trainer can run.
pub trait DistillTask {
    /// What a step learns from.
    type Batch;

    /// Identity of each sample of `batch` in its data set: what random layers draw by.
    fn sample_ids(batch: &Self::Batch) -> Arc<[u64]>;

    /// The phases of a step, in order.
    fn phases(&self) -> &[Phase];

    /// How many updates a step makes in `phase`, each with a batch of its own: the discriminator of a GAN may take several for one
    /// of the generator. Default 1.
    ///
    /// A step has [`rounds`](Self::rounds) batches; update `r` of a phase has the batch and the [`Context`] of number `s · rounds + r` in step
    /// `s`.
    fn repeats(&self, _phase: &Phase) -> u64 {
        1
    }

    /// Batches of a step: the most updates of any phase.
    fn rounds(&self) -> u64 {
        self.phases().iter().map(|phase| self.repeats(phase)).max().unwrap_or(1)
    }

    /// The name of a phase's term in a log: with the phase's own before it where there are several.
    fn term_name(&self, phase: &Phase, term: &str) -> String {
        match self.phases().len() {
            0 | 1 => term.to_owned(),
            _ => format!("{}.{term}", phase.name),
        }
    }

    /// Whether a batch says something about every variable: a detector's without any object does not. Default true.
    fn speaks(_batch: &Self::Batch) -> bool {
        true
    }

    /// Loss and terms of one phase on one batch.
    ///
    /// # Errors
    /// A batch that contradicts itself or leaves no loss term, and whatever networks and losses refuse.
    fn step(&self, batch: &Self::Batch, phase: &Phase, ctx: &Context) -> Result<StepOutput>;

    /// Largest `max|WᵀW − I|` of the task's orthogonal projectors now, of rank 0 in f64 and where it was computed; `None` without one.
    fn residual(&self) -> Result<Option<Tensor>> {
        Ok(None)
    }
}
