//! What a task brings to a run. Folders, locks, checkpoints, logs, the loop and the comparison are the same for all.

mod classification;
mod detection;
mod generation;

pub use classification::Classification;
pub use detection::Detection;
pub use detection::{detect, evaluate_detector};
pub use generation::{
    Generation, GenerationBatches, Judge, JudgedGan, JudgedTeacher, Sampler, TeacherBatch,
    TeacherBatches, TeacherTraining, evaluate_generator, generator_grid,
};

use crate::build;
use crate::cache::CachePlan;
use crate::folder::RunFolderOf;
use crate::ranks::Ranks;
use crate::recipe::{ArmConfig, RecipeOf, TaskKind};
use crate::share::Share;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use vkd_nn::VarStore;
use vkd_tasks::DistillTask;

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

    /// From now on [`get`](Self::get) gives only one rank's part of the batch of that number. The parts of all ranks hold each of its
    /// samples once, as it would be with one rank.
    ///
    /// # Errors
    /// Numbers of images that can't be split evenly, by their keys in the recipe.
    fn share(&mut self, share: Share) -> Result<()>;

    /// Threads that make batches ahead of the step.
    fn workers(&self) -> usize;
}

/// What is left to do at the end.
pub type Finish = Box<dyn FnOnce() -> Result<()>>;

/// What a validation measures, and which way it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// Its name in [`Scores`]: `accuracy`, `ap`, `frechet`.
    pub name: &'static str,
    /// Whether less is better, as with a distance.
    pub less_is_better: bool,
}

impl Goal {
    /// A score of which more is better.
    pub const fn more(name: &'static str) -> Self {
        Self { name, less_is_better: false }
    }

    /// A score of which less is better.
    pub const fn less(name: &'static str) -> Self {
        Self { name, less_is_better: true }
    }

    /// Whether `value` is better than the best so far; a NaN never is.
    pub fn improves(self, value: f64, best: Option<f64>) -> bool {
        match best {
            _ if value.is_nan() => false,
            None => true,
            Some(best) if self.less_is_better => value < best,
            Some(best) => value > best,
        }
    }
}

/// A kind of task with its data, its networks and its scores.
pub trait Workload: Copy + Debug + PartialEq + Send + Sync + 'static {
    /// Its name in a recipe.
    const KIND: TaskKind;

    /// The score that a validation of a student tells.
    const GOAL: Goal;

    /// The score that `teacher.floor` is about; more is better.
    const TEACHER_METRIC: &'static str;

    /// First part of the names of the variables that a student's file holds.
    const SAVED: &'static str = build::STUDENT;

    /// First part of the names of the teacher's variables in its store, where that holds others beside.
    const TEACHER_PREFIX: Option<&'static str> = None;

    /// Keys of a recipe that say where the data's files lie.
    const PATHS: &'static [&'static str];

    /// The table `[data]`.
    type DataConfig: Settings;

    /// The table `[teacher.model]`.
    type TeacherModel: Settings;

    /// The table `[student]`.
    type StudentModel: Settings;

    /// The table `[criterion]`.
    type Criterion: Settings + Default;

    /// The data set.
    type Data: Samples;

    /// What trains a student.
    type Task: DistillTask;

    /// Its training batches.
    type Batches: Stream<Batch = <Self::Task as DistillTask>::Batch>;

    /// What trains a teacher.
    type TeacherTask: DistillTask;

    /// Its training batches.
    type TeacherBatches: Stream<Batch = <Self::TeacherTask as DistillTask>::Batch>;

    /// The network that students ask.
    type Teacher;

    /// What matches a student to it.
    type Distiller;

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

    /// Files that decide a result beside data, checkpoints and what arms name: the key of the recipe, and the path.
    fn files(_recipe: &RecipeOf<Self>) -> Vec<(&'static str, &Path)> {
        Vec::new()
    }

    /// Adds to `settings` what says which data it is, wherever its files lie.
    fn identify(recipe: &RecipeOf<Self>, data: &Self::Data, settings: &mut BTreeMap<String, Value>);

    /// Asks `vb` for every variable of the teacher's store.
    ///
    /// # Errors
    /// A size that is zero or does not fit the others.
    fn declare_teacher(recipe: &RecipeOf<Self>, data: &Self::Data, vb: VarBuilder) -> Result<()>;

    /// Multiply-adds of teacher and student for one image.
    ///
    /// # Errors
    /// Sizes that don't fit.
    fn multiply_adds(recipe: &RecipeOf<Self>, data: &Self::Data) -> Result<[usize; 2]>;

    /// The score of a report of the teacher that `teacher.floor` is about; NaN where it is not there.
    fn floor_score(scores: &Scores) -> f64 {
        let name = format!("validation_{}", Self::TEACHER_METRIC);
        scores.get(&name).copied().unwrap_or(f64::NAN)
    }

    /// Whether an arm needs the teacher.
    fn wants_teacher(arm: &ArmConfig) -> bool {
        arm.uses_teacher()
    }

    /// Weight of each loss term of an arm, by the names in its log.
    fn term_weights(recipe: &RecipeOf<Self>, arm: &ArmConfig) -> BTreeMap<String, f64> {
        build::term_weights(recipe, arm)
    }

    /// What matches an arm's student to the teacher, with its variables in `store`; `teacher` is `None` where it is built for a check
    /// alone. Built even for an arm without a feature term, so that a wrong name never rests in a recipe.
    ///
    /// # Errors
    /// Taps that there are not, and settings that can't be met.
    fn distiller(
        recipe: &RecipeOf<Self>,
        arm: &ArmConfig,
        data: &Self::Data,
        store: &VarStore,
        teacher: Option<&Self::Teacher>,
    ) -> Result<Self::Distiller>;

    /// Trains what `store` holds for the teacher; `None` where all of it was given.
    ///
    /// # Errors
    /// A network that can't be built.
    fn teacher_task(
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
        store: &VarStore,
    ) -> Result<Option<Self::TeacherTask>>;

    /// Its batches.
    ///
    /// # Errors
    /// Splits that the data can't give.
    fn teacher_batches(recipe: &RecipeOf<Self>, data: &Self::Data) -> Result<Self::TeacherBatches>;

    /// [`TEACHER_METRIC`](Self::TEACHER_METRIC) of the teacher in training on the validation images, among which the ranks share, as
    /// in all that is scored: every rank calls it, and only the first one's value counts.
    ///
    /// # Errors
    /// No images, and whatever the network refuses.
    fn validate_teacher(
        task: &Self::TeacherTask,
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
        ranks: &Ranks,
    ) -> Result<f64>;

    /// Trains a student, whose variables lie in `store`; without a teacher where there is none to learn from.
    ///
    /// # Errors
    /// A network that can't be built.
    fn student_task(
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
        store: &VarStore,
        teacher: Option<Self::Teacher>,
        distiller: Option<Self::Distiller>,
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

    /// Batches of an arm, and how many labels of images they tell.
    ///
    /// # Errors
    /// Splits that the data can't give.
    fn batches(
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
        arm: &ArmConfig,
    ) -> Result<(Self::Batches, usize)>;

    /// The first `count` samples of a batch.
    ///
    /// # Errors
    /// Fewer samples.
    fn first(
        batch: &<Self::Task as DistillTask>::Batch,
        count: usize,
    ) -> Result<<Self::Task as DistillTask>::Batch>;

    /// [`GOAL`](Self::GOAL) of a student on the validation images, by all ranks.
    ///
    /// # Errors
    /// No images, and whatever the network refuses.
    fn validate(
        task: &Self::Task,
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
        ranks: &Ranks,
    ) -> Result<f64>;

    /// What a report holds of a student: its scores on the test images, and `validation_GOAL`; by all ranks.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    fn scores(
        task: &Self::Task,
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
        ranks: &Ranks,
    ) -> Result<Scores>;

    /// What made the features that scores of a student are of, where that is no network of the run itself.
    fn extractor(_task: &Self::Task) -> Option<String> {
        None
    }

    /// What a report holds of a teacher, `validation_TEACHER_METRIC` among it; by all ranks.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    fn teacher_scores(
        teacher: &Self::Teacher,
        recipe: &RecipeOf<Self>,
        data: &Self::Data,
        ranks: &Ranks,
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

    /// Leaves pictures in `folder`, the arm's, of what was validated after `step` updates; by default none.
    ///
    /// # Errors
    /// A failed write.
    fn illustrate(_task: &Self::Task, _folder: &Path, _step: u64) -> Result<()> {
        Ok(())
    }

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
