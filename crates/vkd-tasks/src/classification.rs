//! The classification task.

use crate::{
    Batch, DistillTask, Distiller, Network, NetworkOutput, Phase, StepOutput, Teacher, Term,
    weighted_sum,
};
use candle_core::{D, DType, Result, Tensor, bail};
use std::sync::Arc;
use vkd_loss::Reduction;
use vkd_norm::Context;

/// Trains a classifier on labels, a teacher, or both.
///
/// The loss is `label + Σ distillation terms` (V_kD, published code `engine.py`): cross entropy of the class head on the
/// labelled images, soft where their labels are; divergence of the distillation head and features on all images. Without a distillation term
/// on the logits both heads learn the labels, and in a batch without labels both learn the teacher's logits, so that no head is left untrained.
pub struct ClassificationTask {
    student: Box<dyn Network>,
    distillation: Option<(Teacher, Distiller)>,
    smoothing: f64,
    phases: [Phase; 1],
}

impl ClassificationTask {
    /// A task for `student`, with a teacher and a distiller or alone. `smoothing` is the label smoothing.
    ///
    /// # Errors
    /// A smoothing outside `[0, 1)`.
    pub fn new(
        student: impl Network + 'static,
        distillation: Option<(Teacher, Distiller)>,
        smoothing: f64,
    ) -> Result<Self> {
        if !(0. ..1.).contains(&smoothing) {
            bail!("classification: expected a label smoothing in [0, 1), got {smoothing}")
        }
        // All variables: the student's and the projectors'.
        let phases = [Phase { name: "student", prefix: "" }];
        Ok(Self { student: Box::new(student), distillation, smoothing, phases })
    }

    /// The student's output for images `(B, ..)` in evaluation mode.
    ///
    /// # Errors
    /// Those of the network.
    pub fn evaluate(&self, images: &Tensor) -> Result<NetworkOutput> {
        self.student.forward(images, &Context::eval())
    }

    /// Runs both networks on `images` once and checks that they fit the distiller, before any training.
    ///
    /// # Errors
    /// Those of [`Distiller::check`].
    pub fn check(&self, images: &Tensor) -> Result<()> {
        let student = self.evaluate(images)?;
        match &self.distillation {
            Some((teacher, distiller)) => distiller.check(&student, &teacher.forward(images)?),
            None => Ok(()),
        }
    }

    /// [`Distiller::geometry`] on `images` in evaluation mode; empty without a teacher or a tap.
    ///
    /// # Errors
    /// Those of the networks and of [`Distiller::check`].
    pub fn geometry(&self, images: &Tensor) -> Result<Vec<(String, f64)>> {
        match &self.distillation {
            Some((teacher, distiller)) => {
                distiller.geometry(&self.evaluate(images)?, &teacher.forward(images)?)
            }
            None => Ok(Vec::new()),
        }
    }

    fn label_loss(
        &self,
        student: &NetworkOutput,
        labels: &Tensor,
        both_heads: bool,
    ) -> Result<Tensor> {
        let count = labels.dim(0)?;
        let loss = |logits: &Tensor| {
            let logits = logits.narrow(0, 0, count)?;
            match labels.rank() {
                1 => vkd_loss::cross_entropy(&logits, labels, self.smoothing, Reduction::Mean),
                _ => soft_loss(&logits, labels, self.smoothing),
            }
        };
        match &student.distillation_logits {
            Some(other) if both_heads => (loss(&student.logits)? + loss(other)?)? * 0.5,
            _ => loss(&student.logits),
        }
    }
}

/// Cross entropy with shares of the classes, smoothed as class indices are: each class gets `smoothing / K` of the rest.
fn soft_loss(logits: &Tensor, shares: &Tensor, smoothing: f64) -> Result<Tensor> {
    let classes = shares.dim(D::Minus1)?;
    // Half types have too few bits for shares; their loss is computed in f32 anyway.
    let dtype = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let shares = shares.to_dtype(dtype)?.affine(1. - smoothing, smoothing / classes as f64)?;
    vkd_loss::soft_cross_entropy(&logits.to_dtype(dtype)?, &shares, Reduction::Mean)
}

impl DistillTask for ClassificationTask {
    type Batch = Batch;

    fn sample_ids(batch: &Batch) -> Arc<[u64]> {
        batch.sample_ids.clone()
    }

    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn step(&self, batch: &Batch, _phase: &Phase, ctx: &Context) -> Result<StepOutput> {
        let (images, labels) = (batch.images.dim(0)?, batch.labels.dim(0)?);
        if labels > images {
            bail!("classification: expected at most {images} labels, one an image, got {labels}")
        }
        let student = self.student.forward(&batch.images, ctx)?;
        let distilled = match &self.distillation {
            Some((teacher, distiller)) => {
                let teacher = teacher.forward_samples(&batch.images, &batch.sample_ids)?;
                distiller.terms_with_labels(&student, &teacher, &batch.labels, ctx)?
            }
            None => Vec::new(),
        };
        let mut terms = Vec::new();
        if labels > 0 {
            let both_heads = !distilled.iter().any(|t| t.name == "logits");
            let value = self.label_loss(&student, &batch.labels, both_heads)?;
            terms.push(Term { name: "label".to_owned(), weight: 1., value });
        }
        terms.extend(distilled);
        Ok(StepOutput { loss: weighted_sum(&terms)?, terms })
    }

    fn residual(&self) -> Result<Option<Tensor>> {
        match &self.distillation {
            Some((_, distiller)) => distiller.residual(),
            None => Ok(None),
        }
    }
}
