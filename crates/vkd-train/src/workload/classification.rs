//! One class an image.

use super::{Finish, Goal, NoSettings, Samples, Scores, Stream, Workload};
use crate::batches::{Batches, readable_images};
use crate::build::{self, STUDENT};
use crate::cache::{self, CachePlan};
use crate::data::Dataset;
use crate::fingerprint::hex;
use crate::folder::RunFolder;
use crate::networks::{frozen_network, training_network};
use crate::ranks::Ranks;
use crate::recipe::{ArmConfig, DataConfig, DataKind, LabelBudget, Recipe, TaskKind, not_with};
use crate::score::{EVALUATION_BATCH, score, scores};
use crate::share::Share;
use candle_core::{Error, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use vkd_models::{Architecture, ModelConfig, Student, StudentCard};
use vkd_nn::VarStore;
use vkd_tasks::{Batch, ClassificationTask, Distiller, Teacher};

/// Images with a class each; scores are accuracies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Classification;

impl Samples for Dataset {
    fn name(&self) -> &str {
        &self.name
    }

    fn counts(&self) -> [usize; 3] {
        [self.train.len(), self.validation.len(), self.test.len()]
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn skipped(&self) -> Vec<String> {
        Self::skipped(self)
    }
}

impl Stream for Batches {
    type Batch = Batch;

    fn get(&mut self, number: u64) -> Result<Batch> {
        Self::get(self, number)
    }

    fn share(&mut self, share: Share) -> Result<()> {
        Self::share(self, share)
    }

    fn workers(&self) -> usize {
        Self::workers(self)
    }
}

/// A model as this data set wants it.
pub(crate) fn model(architecture: &Architecture, data: &Dataset) -> ModelConfig {
    ModelConfig {
        image_size: data.size,
        channels: data.channels,
        classes: data.class_names.len(),
        architecture: architecture.clone(),
    }
}

/// Images whose pixels are looked at.
pub(super) const SAMPLED: usize = 64;

/// The hash of all labels; of what comes from files also that of the classes' names and of some images, spread over all,
/// since another set may have the same labels. What can't be read counts as that.
pub(super) fn identify(kind: DataKind, data: &Dataset, settings: &mut BTreeMap<String, Value>) {
    let mut labels = Sha256::new();
    for index in 0..data.len() {
        labels.update(format!("{},", data.label(index)));
    }
    settings.insert("data.hash".to_owned(), hex(labels).into());
    if kind == DataKind::Digits {
        return;
    }
    let mut images = Sha256::new();
    data.class_names.iter().for_each(|name| images.update(format!("{name},")));
    for index in (0..data.len()).step_by(data.len().div_ceil(SAMPLED).max(1)) {
        match data.image(index) {
            Ok(image) => images.update(image.pixels()),
            Err(_) => images.update("unreadable"),
        }
    }
    settings.insert("data.images".to_owned(), hex(images).into());
}

impl Workload for Classification {
    const KIND: TaskKind = TaskKind::Classification;
    const GOAL: Goal = Goal::more("accuracy");
    const TEACHER_METRIC: &'static str = "accuracy";
    const PATHS: &'static [&'static str] = &["data.dir"];
    type DataConfig = DataConfig;
    type TeacherModel = Architecture;
    type StudentModel = Architecture;
    type Criterion = NoSettings;
    type Data = Dataset;
    type Task = ClassificationTask;
    type Batches = Batches;
    type TeacherTask = ClassificationTask;
    type TeacherBatches = Batches;
    type Teacher = Teacher;
    type Distiller = Distiller;

    fn check(recipe: &Recipe) -> Result<()> {
        let few = |name: &String| {
            let arm = recipe.arm.get(name);
            arm.is_some_and(|arm| arm.labels == LabelBudget::Few && arm.uses_teacher())
        };
        if recipe.training.labelled == 0 && recipe.arms.iter().any(few) {
            bail!("training.labelled: expected at least 1 for an arm with few labels, got 0")
        }
        recipe.data.check()?;
        recipe.teacher.check_cache(&recipe.data)?;
        let detection = [("distill.padding", recipe.distill.padding != Default::default())];
        not_with(TaskKind::Classification, &detection)?;
        recipe.without_generation(TaskKind::Classification)?;
        for (name, arm) in &recipe.arm {
            arm.check_labels(name, &recipe.data.augment)?;
            let loss = arm.method(&recipe.distill).loss;
            not_with(
                TaskKind::Classification,
                &[(&format!("arm.{name}: the loss token_matching"), loss.is_rooted())],
            )?;
        }
        Ok(())
    }

    fn open(config: &DataConfig) -> Result<Dataset> {
        Dataset::open(config)
    }

    fn check_data(recipe: &Recipe, data: &Dataset) -> Result<()> {
        cache::plan(recipe, data).map(|_| ())
    }

    fn identify(recipe: &Recipe, data: &Dataset, settings: &mut BTreeMap<String, Value>) {
        identify(recipe.data.kind, data, settings);
    }

    fn declare_teacher(recipe: &Recipe, data: &Dataset, vb: VarBuilder) -> Result<()> {
        model(&recipe.teacher.model, data).build(vb).map(|_| ())
    }

    fn multiply_adds(recipe: &Recipe, data: &Dataset) -> Result<[usize; 2]> {
        let of =
            |architecture| -> Result<usize> { Ok(model(architecture, data).cost()?.multiply_adds) };
        Ok([of(&recipe.teacher.model)?, of(&recipe.student)?])
    }

    fn distiller(
        recipe: &Recipe,
        arm: &ArmConfig,
        data: &Dataset,
        store: &VarStore,
        _teacher: Option<&Teacher>,
    ) -> Result<Distiller> {
        let taps = |architecture| model(architecture, data).taps();
        let taps = [taps(&recipe.student), taps(&recipe.teacher.model)];
        build::distiller(recipe, arm, &taps, |_| 1, store)
    }

    fn teacher_task(
        recipe: &Recipe,
        data: &Dataset,
        store: &VarStore,
    ) -> Result<Option<ClassificationTask>> {
        let config = &recipe.teacher;
        if config.checkpoint.is_some() {
            return Ok(None);
        }
        let network = training_network(model(&config.model, data), config.compute, store, None)?;
        ClassificationTask::new(network, None, config.smoothing).map(Some)
    }

    fn teacher_batches(recipe: &Recipe, data: &Dataset) -> Result<Batches> {
        let (images, batch) = (data.train.clone(), recipe.teacher.batch);
        let batches = Batches::new(data, images, batch, 0, &recipe.data, recipe.seed)?;
        Ok(batches.of_teacher().on(recipe.training.device))
    }

    fn validate_teacher(
        task: &ClassificationTask,
        recipe: &Recipe,
        data: &Dataset,
        ranks: &Ranks,
    ) -> Result<f64> {
        Self::validate(task, recipe, data, ranks)
    }

    fn student_task(
        recipe: &Recipe,
        data: &Dataset,
        store: &VarStore,
        teacher: Option<Teacher>,
        distiller: Option<Distiller>,
    ) -> Result<ClassificationTask> {
        let named = |e| Error::Msg(format!("student: {}", crate::plain(&e)));
        let (model, training) = (model(&recipe.student, data), &recipe.training);
        let network =
            training_network(model, training.compute, store, Some(STUDENT)).map_err(named)?;
        ClassificationTask::new(network, teacher.zip(distiller), training.smoothing)
    }

    fn check_task(task: &ClassificationTask, _recipe: &Recipe, data: &Dataset) -> Result<()> {
        task.check(&data.blank()?)
    }

    fn teacher(recipe: &Recipe, data: &Dataset, store: &VarStore) -> Result<Teacher> {
        let model = model(&recipe.teacher.model, data);
        Ok(Teacher::new(frozen_network(&model, recipe.teacher.compute, store.frozen())?))
    }

    fn remembering_teacher(
        run: &RunFolder,
        data: &Dataset,
        store: &VarStore,
    ) -> Result<(Teacher, Option<Finish>)> {
        let recipe = run.recipe();
        let answers = cache::open(run, data, store)?;
        let model = model(&recipe.teacher.model, data);
        let network = frozen_network(&model, recipe.teacher.compute, store.frozen())?;
        let teacher = Teacher::new(cache::remembering(network, answers.clone()));
        let finish = answers.map(|answers| Box::new(move || answers.flush()) as Finish);
        Ok((teacher, finish))
    }

    fn cache_plan(recipe: &Recipe, data: &Dataset) -> Result<Option<CachePlan>> {
        cache::plan(recipe, data)
    }

    fn batches(recipe: &Recipe, data: &Dataset, arm: &ArmConfig) -> Result<(Batches, usize)> {
        let training = &recipe.training;
        let labelled = match arm.labels {
            LabelBudget::Few => data.labelled(recipe.data.labels, recipe.seed)?,
            LabelBudget::All => data.train.clone(),
            LabelBudget::None => Vec::new(),
        };
        let labels = labelled.len();
        // Without a teacher an unlabelled image says nothing, so the whole batch is labelled: the arm gets the same
        // number of images to learn from.
        let from_labelled = match (arm.labels, arm.uses_teacher()) {
            (LabelBudget::Few, true) => training.labelled,
            (LabelBudget::None, _) => 0,
            _ => training.batch,
        };
        let rest = training.batch - from_labelled;
        let batches = Batches::new(data, labelled, from_labelled, rest, &recipe.data, recipe.seed)?;
        Ok((batches.on(training.device), labels))
    }

    fn first(batch: &Batch, count: usize) -> Result<Batch> {
        Ok(Batch {
            images: batch.images.narrow(0, 0, count)?,
            labels: batch.labels.narrow(0, 0, batch.labels.dim(0)?.min(count))?,
            sample_ids: batch.sample_ids.iter().take(count).copied().collect(),
        })
    }

    fn validate(
        task: &ClassificationTask,
        _recipe: &Recipe,
        data: &Dataset,
        ranks: &Ranks,
    ) -> Result<f64> {
        score(|images| task.evaluate(images), data, &data.validation, ranks)
    }

    fn scores(
        task: &ClassificationTask,
        _recipe: &Recipe,
        data: &Dataset,
        ranks: &Ranks,
    ) -> Result<Scores> {
        scores(|images| task.evaluate(images), data, ranks)
    }

    fn teacher_scores(
        teacher: &Teacher,
        _recipe: &Recipe,
        data: &Dataset,
        ranks: &Ranks,
    ) -> Result<Scores> {
        scores(|images| teacher.forward(images), data, ranks)
    }

    fn geometry(
        task: &ClassificationTask,
        _recipe: &Recipe,
        data: &Dataset,
    ) -> Result<Vec<(String, f64)>> {
        let images = &data.validation[..data.validation.len().min(EVALUATION_BATCH)];
        // Two images at least: one alone has no rank.
        if images.len() < 2 {
            return Ok(Vec::new());
        }
        task.geometry(&readable_images(data, images, data.preprocessing())?.0)
    }

    fn save(
        path: &Path,
        recipe: &Recipe,
        data: &Dataset,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let model = model(&recipe.student, data);
        let preprocessing = data.preprocessing().clone();
        let card = StudentCard::new(model, preprocessing, data.class_names.clone());
        Student::save(path, &card, tensors)
    }
}
