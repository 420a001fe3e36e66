//! Training for distillation on candle: data, recipes, the loop, checkpoints, metrics and the gradient audit.
//!
//! [`Recipe`] says what a run is, [`RunFolder`] where it lives; [`train_teacher`] and [`train_arm`] do it.
//!
//! Invariants: every random draw is a function of the seed, a name, the step and the sample; every file is either the old
//! one or the whole new one; nothing of the test images decides anything before the report.

mod audit;
mod batches;
pub mod checkpoint;
mod data;
mod event;
mod folder;
pub mod metrics;
mod networks;
mod recipe;
mod report;
mod run;
mod trainer;

pub use audit::gradient_audit;
pub use batches::{Batches, plain_images};
pub use data::Dataset;
pub use event::{Event, EventKind, Observer};
pub use folder::RunFolder;
pub use networks::{STUDENT_TAP, TEACHER_TAP, student_network, teacher_network};
pub use recipe::{
    ArmConfig, DataConfig, DataKind, DistillConfig, LabelBudget, LossKind, ProjectorKind, Recipe,
    StudentConfig, TaskKind, TeacherConfig, TrainingConfig,
};
pub use report::{ArmReport, Report, TeacherReport};
pub use run::{evaluate_student, train_arm, train_teacher};
pub use trainer::{TrainerConfig, decays, train};

/// An error's text without the stack trace that candle attaches where `RUST_BACKTRACE` is set.
pub fn plain(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => plain(inner),
        candle_core::Error::Context { inner, context } => format!("{context}: {inner}"),
        other => other.to_string(),
    }
}
