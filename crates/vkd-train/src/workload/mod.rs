//! What a task brings to a run. Folders, locks, checkpoints, logs, the loop and the comparison are the same for all.

mod classification;
mod detection;

pub use classification::Classification;
pub use detection::Detection;
pub use detection::{detect, evaluate_detector};

use crate::cache::CachePlan;
use crate::folder::RunFolderOf;
use crate::recipe::{ArmConfig, RecipeOf, TaskKind};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use vkd_nn::VarStore;
use vkd_tasks::{DistillTask, Distiller};

/// A table of a recipe.
pub trait Settings: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync {}

impl<T: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync> Settings for T {}

/// A table without keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// Scores by name.
pub type Scores = BTreeMap<String, f64>;

/// A data set, as far as every task has it alike.
pub trait Samples: Sync {
    /// Name for reports.
    fn name(&self) -> &str;

    /// Numbers of training, validation and test images.
    fn counts(&self) -> [usize; 3];

    /// Name of each class.
    fn class_names(&self) -> &[String];

    /// Names of the images that could not be read and were passed over.
    fn skipped(&self) -> Vec<String>;
}

/// Batches by number: a function of the seed and the number alone.
pub trait Stream {
    /// What a step learns from.
    type Batch;

    /// The batch of one number, counted from zero, in any order.
    ///
    /// # Errors
    /// An image that can't be read.
    fn get(&mut self, number: u64) -> Result<Self::Batch>;

    /// Threads that make batches ahead of the step.
    fn workers(&self) -> usize;
}

/// What is left to do at the end.
pub type Finish = Box<dyn FnOnce() -> Result<()>>;

/// For whom batches are made.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// The teacher.
    Teacher,
    /// The student of an arm.
    Arm(&'a ArmConfig),
}

/// A kind of task with its data, its networks and its scores.
pub trait Workload: Copy + Debug + PartialEq + Send + Sync + 'static {
    /// Its name in a recipe.
    const KIND: TaskKind;

    /// The score that a validation tells, a key of [`Scores`]; more is better.
    const METRIC: &'static str;

    /// Keys of a recipe that say where the data's files lie.
    const PATHS: &'static [&'static str];

    /// The table `[data]`.
    type DataConfig: Settings;

    /// The tables `[teacher.model]` and `[student]`.
    type Architecture: Settings;

    /// The table `[criterion]`.
    type Criterion: Settings + Default;

    /// The data set.
    type Data: Samples;

    /// What is trained.
    type Task: DistillTask;

    /// The network that students ask.
    type Teacher;

    /// Its training batches.
    type Batches: Stream<Batch = <Self::Task as DistillTask>::Batch>;

    /// Refuses what a table can't know by itself.
    ///
    /// # Errors
    /// The key with what was expected and what came.
    fn check(recipe: &RecipeOf<Self>) -> Result<()>;

    /// Opens the data set.
    ///
    /// # Errors
    /// Settings that can't be met, files that are missing or broken.
    fn open(config: &Self::DataConfig) -> Result<Self::Data>;

    /// Refuses what only shows with the data set, networks apart.
    ///
    /// # Errors
    /// The key with what was expected and what came.
    fn check_data(_recipe: &RecipeOf<Self>, _data: &Self::Data) -> Result<()> {
        Ok(())
    }

    /// Adds to `settings` what says which data it is, wherever its files lie.
    fn identify(recipe: &RecipeOf<Self>, data: &Self::Data, settings: &mut BTreeMap<String, Value>);

    /// Asks `vb` for every variable of a network.
    ///
    /// # Errors
    /// A size that is zero or does not fit the others.
    fn declare(model: &Self::Architecture, data: &Self::Data, vb: VarBuilder) -> Result<()>;

    /// Width of each of a network's taps.
    fn taps(model: &Self::Architecture, data: &Self::Data) -> BTreeMap<String, usize>;

    /// Layers that a tap stacks: 1 but for the queries of a decoder.
    fn stacked(_model: &Self::Architecture, _tap: &str) -> usize {
        1
    }

    /// Multiply-adds of a network for one image.
    ///
    /// # Errors
    /// Sizes that don't fit.
    fn multiply_adds(
        recipe: &RecipeOf<Self>,
        model: &Self::Architecture,
        data: &Self::Data,
    ) -> Result<usize>;

    /// A distiller as this task needs it.
    ///
    /// # Errors
    /// Settings that it can't meet.
    fn fit(distiller: Distiller, _recipe: &RecipeOf<Self>) -> Result<Distiller> {
        Ok(distiller)
    }

    /// Trains the teacher, whose variables are all of `store`.
    ///
    /// # Errors
    /// A network that can't be built.
    fn teacher_task(
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
        store: &VarStore,
    ) -> Result<Self::Task>;

    /// Trains a student, whose variables lie in `store` under `student`.
    ///
    /// # Errors
    /// A network that can't be built.
    fn student_task(
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
        store: &VarStore,
        distillation: Option<(Self::Teacher, Distiller)>,
    ) -> Result<Self::Task>;

    /// Runs a task once on images of the data set, so that networks that don't fit are found before any training.
    ///
    /// # Errors
    /// Taps or widths that don't fit.
    fn check_task(task: &Self::Task, recipe: &RecipeOf<Self>, data: &Self::Data) -> Result<()>;

    /// The teacher of what `store` holds, as constants.
    ///
    /// # Errors
    /// A network that can't be built.
    fn teacher(
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
        store: &VarStore,
    ) -> Result<Self::Teacher>;

    /// As [`teacher`](Self::teacher), remembering its answers where the recipe says so, and what is to be called once they are
    /// all given.
    ///
    /// # Errors
    /// As there, and answers that can't be kept.
    fn remembering_teacher(
        run: &RunFolderOf<Self>,
        data: &Self::Data,
        store: &VarStore,
    ) -> Result<(Self::Teacher, Option<Finish>)> {
        Ok((Self::teacher(run.recipe(), data, store)?, None))
    }

    /// What the teacher's remembered answers take, where it remembers them.
    ///
    /// # Errors
    /// More than the recipe allows.
    fn cache_plan(_recipe: &RecipeOf<Self>, _data: &Self::Data) -> Result<Option<CachePlan>> {
        Ok(None)
    }

    /// Batches, and how many labels of images they tell.
    ///
    /// # Errors
    /// Splits that the data can't give.
    fn batches(
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
        part: Part<'_>,
    ) -> Result<(Self::Batches, usize)>;

    /// The first `count` samples of a batch.
    ///
    /// # Errors
    /// Fewer samples.
    fn first(
        batch: &<Self::Task as DistillTask>::Batch,
        count: usize,
    ) -> Result<<Self::Task as DistillTask>::Batch>;

    /// [`METRIC`](Self::METRIC) of a student on the validation images.
    ///
    /// # Errors
    /// No images, and whatever the network refuses.
    fn validate(task: &Self::Task, recipe: &RecipeOf<Self>, data: &Self::Data) -> Result<f64>;

    /// What a report holds of a student: its scores on the test images, and `validation_METRIC`.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    fn scores(task: &Self::Task, recipe: &RecipeOf<Self>, data: &Self::Data) -> Result<Scores>;

    /// The same of a teacher.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    fn teacher_scores(
        teacher: &Self::Teacher,
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
    ) -> Result<Scores>;

    /// How a student's features lie on validation images.
    ///
    /// # Errors
    /// Whatever the networks refuse.
    fn geometry(
        task: &Self::Task,
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
    ) -> Result<Vec<(String, f64)>>;

    /// Writes a student with its card.
    ///
    /// # Errors
    /// A failed write.
    fn save(
        path: &Path,
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<()>;
}
