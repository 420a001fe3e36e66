//! Objects in images.

mod scored;

pub use scored::{detect, evaluate_detector};

use super::classification::SAMPLED;
use super::{Goal, Samples, Scores, Stream, Workload};
use crate::build::{self, STUDENT};
use crate::data::DetectionDataset;
use crate::detection_batches::{DetectionBatches, plain_detection};
use crate::fingerprint::hex;
use crate::networks::detector;
use crate::ranks::Ranks;
use crate::recipe::{
    ArmConfig, BoxCriterionConfig, ComputeKind, DetectionDataConfig, DetectionRecipe,
    DetectionSource, LabelBudget, PaddingKind, TapNames, TaskKind, not_with,
};
use crate::share::Share;
use candle_core::{Error, Result, Tensor, bail};
use candle_nn::VarBuilder;
use scored::{known, precision, scores};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use vkd_models::{DetectorArchitecture, DetectorCard, DetectorConfig, DetectorStudent};
use vkd_nn::VarStore;
use vkd_tasks::{
    DenseCriterion, DetectionAdapter, DetectionBatch, DetectionConfig, DetectionTask,
    DetectorTeacher, Distiller, Padding,
};

/// Images with boxes; scores are COCO's average precisions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection;

/// Images whose features' geometry is measured, at most.
const MEASURED: usize = 8;

impl Samples for DetectionDataset {
    fn name(&self) -> &str {
        &self.name
    }

    fn counts(&self) -> [usize; 3] {
        [self.train.len(), self.validation.len(), self.test.len()]
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// None: an image that can't be read ends the run.
    fn skipped(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Stream for DetectionBatches {
    type Batch = DetectionBatch;

    fn get(&mut self, number: u64) -> Result<DetectionBatch> {
        Self::get(self, number)
    }

    fn share(&mut self, share: Share) -> Result<()> {
        Self::share(self, share)
    }

    fn workers(&self) -> usize {
        Self::workers(self)
    }
}

/// A detector as this data set wants it.
fn model(architecture: &DetectorArchitecture, data: &DetectionDataset) -> DetectorConfig {
    DetectorConfig {
        channels: data.channels,
        classes: data.class_names.len(),
        architecture: architecture.clone(),
    }
}

/// How predictions are judged.
fn config(recipe: &DetectionRecipe) -> DetectionConfig {
    let BoxCriterionConfig { reach, radius, queries } = &recipe.criterion;
    let (reach, radius) = (*reach, *radius);
    let dense = DenseCriterion { reach, radius, ..DenseCriterion::default() };
    DetectionConfig { dense, set: queries.criterion(), ..DetectionConfig::default() }
}

impl Workload for Detection {
    const KIND: TaskKind = TaskKind::Detection;
    const GOAL: Goal = Goal::more("ap");
    const TEACHER_METRIC: &'static str = "ap";
    const PATHS: &'static [&'static str] = &["data.source.dir"];
    type DataConfig = DetectionDataConfig;
    type TeacherModel = DetectorArchitecture;
    type StudentModel = DetectorArchitecture;
    type Criterion = BoxCriterionConfig;
    type Data = DetectionDataset;
    type Task = DetectionTask;
    type Batches = DetectionBatches;
    type TeacherTask = DetectionTask;
    type TeacherBatches = DetectionBatches;
    type Teacher = DetectorTeacher;
    type Distiller = Distiller;

    fn check(recipe: &DetectionRecipe) -> Result<()> {
        recipe.data.check()?;
        recipe.criterion.check()?;
        let models = [&recipe.student, &recipe.teacher.model];
        let of_maps = models.iter().any(|m| matches!(m, DetectorArchitecture::Fcos(_)));
        let BoxCriterionConfig { reach, radius, .. } = BoxCriterionConfig::default();
        for (key, own, default) in
            [("reach", recipe.criterion.reach, reach), ("radius", recipe.criterion.radius, radius)]
        {
            if own != default && !of_maps {
                bail!("criterion.{key}: expected none without a detector of maps, got {own}")
            }
        }
        let of_queries = models.iter().any(|m| matches!(m, DetectorArchitecture::Vidt(_)));
        if recipe.criterion.queries != Default::default() && !of_queries {
            bail!("criterion.queries: expected none without a detector of queries, got weights")
        }
        let (training, teacher) = (&recipe.training, &recipe.teacher);
        let mut refused = vec![
            ("training.labelled".to_owned(), training.labelled > 0),
            ("training.smoothing".to_owned(), training.smoothing > 0.),
            ("training.compute = \"bf16\"".to_owned(), training.compute != ComputeKind::F32),
            ("teacher.compute = \"bf16\"".to_owned(), teacher.compute != ComputeKind::F32),
            ("teacher.smoothing".to_owned(), teacher.smoothing > 0.),
            ("teacher.cache".to_owned(), teacher.cache.is_some()),
        ];
        for (name, arm) in &recipe.arm {
            if arm.labels != LabelBudget::All {
                bail!("arm.{name}.labels: expected \"all\" with task = \"detection\"")
            }
            refused.push((format!("arm.{name}.logits"), arm.logits > 0.));
            refused.push((format!("arm.{name}.logit_loss"), arm.logit_loss.is_some()));
        }
        let refused: Vec<(&str, bool)> =
            refused.iter().map(|(key, on)| (key.as_str(), *on)).collect();
        not_with(TaskKind::Detection, &refused)?;
        recipe.without_generation(TaskKind::Detection)
    }

    fn open(config: &DetectionDataConfig) -> Result<DetectionDataset> {
        DetectionDataset::open(config)
    }

    /// Images and boxes in every part: without them there is nothing to learn or to score.
    fn check_data(_recipe: &DetectionRecipe, data: &DetectionDataset) -> Result<()> {
        for (part, indices) in
            [("train", &data.train), ("validation", &data.validation), ("test", &data.test)]
        {
            if indices.is_empty() {
                bail!("data.source.{part}: expected images, got none in {}", data.name)
            }
            let mut boxes = false;
            for index in indices {
                boxes = data.annotations(*index)?.iter().any(|a| !a.crowd && a.area > 0.);
                if boxes {
                    break;
                }
            }
            if !boxes {
                bail!(
                    "data.source.{part}: expected a box with an area that is no crowd in one of {} images of {}, got none",
                    indices.len(),
                    data.name
                )
            }
        }
        Ok(())
    }

    /// The hash of all annotations; of files also that of the classes' names, of every image's id, size and number of boxes, and of
    /// some images, spread over all. What can't be read counts as that.
    fn identify(
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
        settings: &mut BTreeMap<String, Value>,
    ) {
        let mut objects = Sha256::new();
        for index in 0..data.len() {
            match data.annotations(index) {
                Ok(all) => all.iter().for_each(|a| objects.update(format!("{a:?},"))),
                Err(_) => objects.update("unreadable"),
            }
        }
        settings.insert("data.hash".to_owned(), hex(objects).into());
        if let DetectionSource::Scenes(_) = recipe.data.source {
            return;
        }
        let mut images = Sha256::new();
        data.class_names.iter().for_each(|name| images.update(format!("{name},")));
        for index in 0..data.len() {
            // Whose boxes they are; of scenes the order says it.
            images.update(
                match (data.image_id(index), data.size(index), data.annotations(index)) {
                    (Ok(id), Ok(size), Ok(boxes)) => format!("{id} {size:?} {},", boxes.len()),
                    _ => "unreadable".to_owned(),
                },
            );
        }
        for index in (0..data.len()).step_by(data.len().div_ceil(SAMPLED).max(1)) {
            match data.sample(index) {
                Ok((image, _)) => images.update(image.pixels()),
                Err(_) => images.update("unreadable"),
            }
        }
        settings.insert("data.images".to_owned(), hex(images).into());
    }

    fn declare_teacher(
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
        vb: VarBuilder,
    ) -> Result<()> {
        model(&recipe.teacher.model, data).build(vb).map(|_| ())
    }

    fn multiply_adds(recipe: &DetectionRecipe, data: &DetectionDataset) -> Result<[usize; 2]> {
        let batch = plain_detection(data, &recipe.data, &data.test[..data.test.len().min(1)])?;
        let (.., height, width) = batch.images.dims4()?;
        let of = |architecture| -> Result<usize> {
            Ok(model(architecture, data).cost([height, width])?.multiply_adds)
        };
        Ok([of(&recipe.teacher.model)?, of(&recipe.student)?])
    }

    fn distiller(
        recipe: &DetectionRecipe,
        arm: &ArmConfig,
        data: &DetectionDataset,
        store: &VarStore,
        _teacher: Option<&DetectorTeacher>,
    ) -> Result<Distiller> {
        let taps = |architecture| model(architecture, data).taps();
        let taps = [taps(&recipe.student), taps(&recipe.teacher.model)];
        let stacked = |tap: &TapNames| match &recipe.student {
            DetectorArchitecture::Vidt(config) => config.stacked(&tap.student),
            DetectorArchitecture::Fcos(_) => 1,
        };
        let padding = match recipe.distill.padding {
            PaddingKind::Counted => Padding::Counted,
            PaddingKind::Masked => Padding::Masked,
        };
        let distiller = build::distiller(recipe, arm, &taps, stacked, store)?;
        Ok(distiller.with_adapter(DetectionAdapter { padding }))
    }

    fn teacher_task(
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
        store: &VarStore,
    ) -> Result<Option<DetectionTask>> {
        if recipe.teacher.checkpoint.is_some() {
            return Ok(None);
        }
        let network = detector(&model(&recipe.teacher.model, data), store.builder())?;
        Ok(Some(DetectionTask::new(network, None, config(recipe))))
    }

    fn teacher_batches(
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
    ) -> Result<DetectionBatches> {
        let batch = recipe.teacher.batch;
        let batches = DetectionBatches::new(data, &recipe.data, batch, recipe.seed)?;
        Ok(batches.of_teacher().on(recipe.training.device))
    }

    fn validate_teacher(
        task: &DetectionTask,
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
        ranks: &Ranks,
    ) -> Result<f64> {
        Self::validate(task, recipe, data, ranks)
    }

    fn student_task(
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
        store: &VarStore,
        teacher: Option<DetectorTeacher>,
        distiller: Option<Distiller>,
    ) -> Result<DetectionTask> {
        let named = |e| Error::Msg(format!("student: {}", crate::plain(&e)));
        let network =
            detector(&model(&recipe.student, data), store.builder().pp(STUDENT)).map_err(named)?;
        Ok(DetectionTask::new(network, teacher.zip(distiller), config(recipe)))
    }

    fn check_task(
        task: &DetectionTask,
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
    ) -> Result<()> {
        let one = &data.train[..data.train.len().min(1)];
        task.check(&plain_detection(data, &recipe.data, one)?)
    }

    fn teacher(
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
        store: &VarStore,
    ) -> Result<DetectorTeacher> {
        let model = model(&recipe.teacher.model, data);
        Ok(DetectorTeacher::new(detector(&model, store.frozen())?))
    }

    /// Every image tells all of its boxes.
    fn batches(
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
        _arm: &ArmConfig,
    ) -> Result<(DetectionBatches, usize)> {
        let count = recipe.training.batch;
        let batches = DetectionBatches::new(data, &recipe.data, count, recipe.seed)?;
        Ok((batches.on(recipe.training.device), data.train.len()))
    }

    fn first(batch: &DetectionBatch, count: usize) -> Result<DetectionBatch> {
        Ok(DetectionBatch {
            images: batch.images.narrow(0, 0, count)?,
            padding: batch.padding.narrow(0, 0, count)?,
            objects: batch.objects.iter().take(count).cloned().collect(),
            sizes: batch.sizes.iter().take(count).copied().collect(),
            original_sizes: batch.original_sizes.iter().take(count).copied().collect(),
            sample_ids: batch.sample_ids.iter().take(count).copied().collect(),
        })
    }

    fn validate(
        task: &DetectionTask,
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
        ranks: &Ranks,
    ) -> Result<f64> {
        let forward = |images: &Tensor, padding: &Tensor| task.evaluate(images, padding);
        Ok(known(precision(forward, recipe, data, &data.validation, ranks)?.ap))
    }

    fn scores(
        task: &DetectionTask,
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
        ranks: &Ranks,
    ) -> Result<Scores> {
        scores(|images, padding| task.evaluate(images, padding), recipe, data, ranks)
    }

    fn teacher_scores(
        teacher: &DetectorTeacher,
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
        ranks: &Ranks,
    ) -> Result<Scores> {
        scores(|images, padding| teacher.forward(images, padding), recipe, data, ranks)
    }

    fn geometry(
        task: &DetectionTask,
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
    ) -> Result<Vec<(String, f64)>> {
        let images = &data.validation[..data.validation.len().min(MEASURED)];
        task.geometry(&plain_detection(data, &recipe.data, images)?)
    }

    fn save(
        path: &Path,
        recipe: &DetectionRecipe,
        data: &DetectionDataset,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let model = model(&recipe.student, data);
        let preprocessing = data.preprocessing().clone();
        let card = DetectorCard::new(model, preprocessing, data.class_names.clone());
        DetectorStudent::save(path, &DetectorCard { resize: recipe.data.resize(), ..card }, tensors)
    }
}
