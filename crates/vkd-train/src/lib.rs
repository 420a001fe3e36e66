//! Training for distillation on candle: data, recipes, the loop, checkpoints, metrics and the gradient audit.
//!
//! [`Recipe`] says what a run is, [`RunFolder`] where it lives; [`train_teacher`] and [`train_arm`] do it.
//!
//! ```
//! use vkd_train::{Dataset, Recipe};
//!
//! # fn main() -> candle_core::Result<()> {
//! # let text = include_str!("../tests/tiny.toml");
//! let recipe = Recipe::parse(text, "tiny.toml", &["data.labels=30".to_owned()])?;
//! let data = Dataset::open(&recipe.data)?;
//! vkd_train::check(&recipe, &data)?;
//! let labelled = data.labelled(recipe.data.labels, recipe.seed)?;
//! assert_eq!(labelled.len(), 30);
//! assert_eq!(data.image(labelled[0])?.pixels().len(), 8 * 8);
//! # Ok(())
//! # }
//! ```
//!
//! Invariants: every random draw is a function of the seed, a name, the step and the sample; every file but the locks and the
//! growing event logs is either the old one or the whole new one; a run that was killed goes on from its last checkpoint and ends at the same bits;
//! nothing of the test images decides anything before the report.

mod audit;
mod augment;
mod batches;
mod build;
mod cache;
pub mod checkpoint;
mod checkpoints;
mod data;
mod detection_batches;
mod event;
mod fingerprint;
mod folder;
mod generation;
mod guard;
mod hub;
mod loader;
mod lock;
pub mod metrics;
mod networks;
mod optimizer;
mod plan;
mod probe;
mod ranks;
mod recipe;
mod report;
mod result;
mod run;
mod score;
mod share;
mod state;
mod tensorboard;
mod trainer;
mod workload;

pub use audit::gradient_audit;
pub use augment::resize;
pub use batches::{Batches, plain_images};
pub use build::{check, check_ranks};
pub use cache::CachePlan;
pub use checkpoints::{Checkpoints, Note, Saved};
pub use data::{
    Annotation, Counts, Dataset, DetectionDataset, Image, write_image_folder, write_scenes,
};
pub use detection_batches::{DetectionBatches, plain_detection};
pub use event::{Event, EventKind, Observer, Validation};
pub use fingerprint::{fingerprint, teacher_fingerprint};
pub use folder::{RunFolder, RunFolderOf, Worker};
pub use generation::{discriminator_network, generator_network, sample_grid};
pub use networks::{STUDENT_TAP, TEACHER_TAP, network};
pub use plan::{ArmPlan, Plan, plan};
pub use ranks::{Communicator, Ranks, Traffic, is_of_another_rank, thread_ranks};
#[cfg(feature = "mpi")]
pub use ranks::{MpiSession, mpi_ranks};
pub use recipe::{
    AnyRecipe, ArmConfig, AugmentConfig, BoxAugmentConfig, BoxCriterionConfig, BoxCropConfig,
    CacheConfig, ClipTeacherConfig, CocoConfig, ComputeDevice, ComputeKind, CovarianceKind,
    CropConfig, DataConfig, DataKind, DetectionDataConfig, DetectionRecipe, DetectionSource,
    DiffAugmentConfig, DistillConfig, EraseWith, GanCriterionConfig, GanTeacherModel,
    GenerationRecipe, InceptionTableConfig, InitConfig, LabelBudget, LecamTableConfig,
    LogitLossKind, LossKind, OnCorrupt, OptimizerKind, Outside, PaddingKind, ProjectorKind,
    QueryCriterionConfig, RandAugmentConfig, Recipe, RecipeOf, ScenesConfig, ScheduleKind,
    TapNames, TaskKind, TeacherConfig, TrainingConfig, ValidationPart,
};
pub use report::{ArmReport, Report, TeacherReport};
pub use result::{ArmResult, RunFacts};
pub use run::{train_arm, train_teacher};
pub use score::evaluate_student;
pub use share::Share;
pub use tensorboard::{TensorBoard, csv, scalars};
pub use trainer::{Outcome, TrainerConfig, decays, train};
pub use vkd_models::plain;
pub use workload::{
    Classification, Detection, Finish, Generation, GenerationBatches, Goal, Judge, JudgedGan,
    JudgedTeacher, NoSettings, Sampler, Samples, Scores, Settings, Stream, TeacherBatch,
    TeacherBatches, TeacherTraining, Workload, detect, evaluate_detector, evaluate_generator,
    generator_grid,
};

/// The snippets of the README, as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
