//! The detection task.

use super::{
    DenseCriterion, DenseDecoding, DenseLevel, Detection, DetectionBatch, ImageSize,
    QueryPredictions, SetCriterion, decode_dense, decode_queries,
};
use crate::features::detached;
use crate::{DistillTask, Distiller, Phase, StepOutput, Taps, weighted_sum};
use candle_core::{Result, Tensor};
use std::sync::Arc;
use vkd_norm::Context;

/// What a detector predicts, in one of the two forms that have a criterion.
#[derive(Clone, Debug)]
pub enum Predictions {
    /// Levels of maps, for [`DenseCriterion`].
    Dense(Vec<DenseLevel>),
    /// Queries after each level of a decoder, for [`SetCriterion`].
    Queries(QueryPredictions),
}

/// Result of one forward pass of a detector.
#[derive(Clone, Debug)]
pub struct DetectorOutput {
    /// Classes and boxes.
    pub predictions: Predictions,
    /// Features by tap name.
    pub taps: Taps,
}

/// A student or teacher: images `(B, C, H, W)` and their padding `(B, H, W)`, u8 and 1 where there is no image, to a
/// [`DetectorOutput`]. Every closure of this form is one.
pub trait DetectorNetwork {
    /// One forward pass.
    ///
    /// # Errors
    /// Whatever the network refuses: another image shape or dtype, a context without the sample ids that its layers draw by.
    fn forward(&self, images: &Tensor, padding: &Tensor, ctx: &Context) -> Result<DetectorOutput>;
}

impl<F: Fn(&Tensor, &Tensor, &Context) -> Result<DetectorOutput>> DetectorNetwork for F {
    fn forward(&self, images: &Tensor, padding: &Tensor, ctx: &Context) -> Result<DetectorOutput> {
        self(images, padding, ctx)
    }
}

/// A detector whose features never carry a tape, whatever its weights are made of; it runs in evaluation mode.
pub struct DetectorTeacher(Box<dyn DetectorNetwork>);

impl DetectorTeacher {
    /// Freezes `network`.
    pub fn new(network: impl DetectorNetwork + 'static) -> Self {
        Self(Box::new(network))
    }

    /// One forward pass in evaluation mode, its features detached. Its predictions are for decoding, which takes no gradient.
    ///
    /// # Errors
    /// Those of the network.
    pub fn forward(&self, images: &Tensor, padding: &Tensor) -> Result<DetectorOutput> {
        let found = self.0.forward(images, padding, &Context::eval())?;
        Ok(DetectorOutput { taps: detached(&found.taps), ..found })
    }
}

/// How predictions are judged and read; the defaults are FCOS's for maps and ViDT's for queries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DetectionConfig {
    /// Of maps.
    pub dense: DenseCriterion,
    /// Of queries.
    pub set: SetCriterion,
    /// What of maps becomes a detection.
    pub decoding: DenseDecoding,
    /// Detections of an image from queries; 100.
    pub most: usize,
}

impl Default for DetectionConfig {
    fn default() -> Self {
        Self {
            dense: DenseCriterion::default(),
            set: SetCriterion::default(),
            decoding: DenseDecoding::default(),
            most: 100,
        }
    }
}

impl DetectionConfig {
    /// Detections of every image, the surest first, in pixels of `sizes`.
    ///
    /// # Errors
    /// Those of [`decode_dense`] and [`decode_queries`].
    pub fn decode(
        &self,
        predictions: &Predictions,
        sizes: &[ImageSize],
    ) -> Result<Vec<Vec<Detection>>> {
        match predictions {
            Predictions::Dense(levels) => decode_dense(levels, sizes, self.decoding),
            Predictions::Queries(queries) => decode_queries(queries, sizes, self.most),
        }
    }
}

/// Trains a detector on boxes and, with a teacher, on its features (V_kD, arXiv:2403.06213, published code `criterion.py`).
///
/// The loss is the detector's own, [`DenseCriterion`] or [`SetCriterion`] by what it predicts, and the distiller's feature
/// terms; predictions of the teacher are not looked at.
///
/// # Example: a detector of anyone's learns from another
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{Module, VarBuilder, VarMap};
/// use std::sync::Arc;
/// use vkd_norm::{Context, Normalizer};
/// use vkd_tasks::{
///     DenseLevel, DetectionAdapter, DetectionBatch, DetectionConfig, DetectionTask, DetectorOutput, DetectorTeacher, DistillTask,
///     Distiller, FeatureLoss, FeatureMap, Layout, Objects, Predictions, ProjectorConfig, TapConfig, Taps,
/// };
///
/// # fn main() -> Result<()> {
/// // One level of stride 4 from a single convolution.
/// fn detector(vb: VarBuilder) -> Result<impl Fn(&Tensor, &Tensor, &Context) -> Result<DetectorOutput>> {
///     let config = candle_nn::Conv2dConfig { stride: 4, ..Default::default() };
///     let conv = candle_nn::conv2d(1, 8, 4, config, vb)?;
///     Ok(move |images: &Tensor, _: &Tensor, _: &Context| {
///         let map = conv.forward(images)?;
///         let level = DenseLevel {
///             logits: map.narrow(1, 0, 3)?,
///             distances: map.narrow(1, 3, 4)?.exp()?,
///             centerness: map.narrow(1, 7, 1)?,
///             stride: 4,
///         };
///         let taps = Taps::from([("map".to_owned(), FeatureMap::new(map, Layout::Grid)?)]);
///         Ok(DetectorOutput { predictions: Predictions::Dense(vec![level]), taps })
///     })
/// }
/// let (student_vars, teacher_vars) = (VarMap::new(), VarMap::new());
/// let vb = VarBuilder::from_varmap(&student_vars, DType::F32, &Device::Cpu);
/// let student = detector(vb.pp("student"))?;
/// let teacher = detector(VarBuilder::from_varmap(&teacher_vars, DType::F32, &Device::Cpu))?;
/// let tap = TapConfig {
///     student: "map".into(),
///     student_width: 8,
///     teacher: "map".into(),
///     teacher_width: 8,
///     projector: ProjectorConfig::Linear,
///     student_normalizer: Normalizer::Standardize { eps: 1e-6 },
///     teacher_normalizer: Normalizer::Standardize { eps: 1e-6 },
///     loss: FeatureLoss::SmoothL1 { beta: 1. },
///     weight: 4.,
/// };
/// let distiller = Distiller::new(vec![tap], None, vb.pp("projector"))?.with_adapter(DetectionAdapter::default());
/// let distillation = Some((DetectorTeacher::new(teacher), distiller));
/// let task = DetectionTask::new(student, distillation, DetectionConfig::default());
///
/// let batch = DetectionBatch {
///     images: Tensor::rand(0f32, 1., (1, 1, 16, 16), &Device::Cpu)?,
///     padding: Tensor::zeros((1, 16, 16), DType::U8, &Device::Cpu)?,
///     objects: vec![Objects { boxes: vec![[2., 2., 12., 10.]], classes: vec![1] }],
///     sizes: vec![[16, 16]],
///     original_sizes: vec![[16, 16]],
///     sample_ids: Arc::from([0]),
/// };
/// let step = task.step(&batch, &task.phases()[0], &Context::train(0, 0, batch.sample_ids.clone()))?;
/// let names: Vec<&str> = step.terms.iter().map(|term| term.name.as_str()).collect();
/// assert_eq!(names, ["class", "giou", "centerness", "feature.map"]);
/// # Ok(())
/// # }
/// ```
pub struct DetectionTask {
    student: Box<dyn DetectorNetwork>,
    distillation: Option<(DetectorTeacher, Distiller)>,
    config: DetectionConfig,
    phases: [Phase; 1],
}

impl DetectionTask {
    /// A task for `student`, with a teacher and a distiller or alone.
    pub fn new(
        student: impl DetectorNetwork + 'static,
        distillation: Option<(DetectorTeacher, Distiller)>,
        config: DetectionConfig,
    ) -> Self {
        // All variables: the student's and the projectors'.
        let phases = [Phase { name: "student", prefix: "" }];
        Self { student: Box::new(student), distillation, config, phases }
    }

    /// The student's output in evaluation mode.
    ///
    /// # Errors
    /// Those of the network.
    pub fn evaluate(&self, images: &Tensor, padding: &Tensor) -> Result<DetectorOutput> {
        self.student.forward(images, padding, &Context::eval())
    }

    /// Runs both detectors on a batch once and checks that they fit the distiller, before any training.
    ///
    /// # Errors
    /// Those of [`Distiller::check_features`].
    pub fn check(&self, batch: &DetectionBatch) -> Result<()> {
        let Some((teacher, distiller)) = &self.distillation else { return Ok(()) };
        let student = self.evaluate(&batch.images, &batch.padding)?;
        let teacher = teacher.forward(&batch.images, &batch.padding)?;
        distiller.check_features(&student.taps, &teacher.taps)
    }

    /// [`Distiller::feature_geometry`] on a batch in evaluation mode; empty without a teacher or a tap.
    ///
    /// # Errors
    /// Those of the networks and of [`Distiller::check_features`].
    pub fn geometry(&self, batch: &DetectionBatch) -> Result<Vec<(String, f64)>> {
        let Some((teacher, distiller)) = &self.distillation else { return Ok(Vec::new()) };
        let student = self.evaluate(&batch.images, &batch.padding)?;
        let teacher = teacher.forward(&batch.images, &batch.padding)?;
        distiller.feature_geometry(&student.taps, &teacher.taps)
    }
}

impl DistillTask for DetectionTask {
    type Batch = DetectionBatch;

    fn sample_ids(batch: &DetectionBatch) -> Arc<[u64]> {
        batch.sample_ids.clone()
    }

    fn speaks(batch: &DetectionBatch) -> bool {
        batch.object_count() > 0
    }

    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn step(&self, batch: &DetectionBatch, _phase: &Phase, ctx: &Context) -> Result<StepOutput> {
        let student = self.student.forward(&batch.images, &batch.padding, ctx)?;
        let replicas = ctx.replicas.as_ref();
        let mut terms = match &student.predictions {
            Predictions::Dense(levels) => {
                self.config.dense.terms_among(levels, &batch.objects, replicas)?
            }
            Predictions::Queries(queries) => {
                let size = |&[height, width]: &[usize; 2]| ImageSize { height, width };
                let sizes: Vec<ImageSize> = batch.sizes.iter().map(size).collect();
                self.config.set.terms_among(queries, &batch.objects, &sizes, replicas)?
            }
        };
        if let Some((teacher, distiller)) = &self.distillation {
            let teacher = teacher.forward(&batch.images, &batch.padding)?;
            terms.extend(distiller.feature_terms(&student.taps, &teacher.taps, ctx)?);
        }
        Ok(StepOutput { loss: weighted_sum(&terms)?, terms })
    }

    fn residual(&self) -> Result<Option<Tensor>> {
        match &self.distillation {
            Some((_, distiller)) => distiller.residual(),
            None => Ok(None),
        }
    }
}
