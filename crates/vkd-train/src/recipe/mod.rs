//! A run's settings as typed TOML.

mod any;
mod arms;
mod augment;
mod criterion;
mod data;
mod detection;
mod device;
mod generation;
mod init;
mod overrides;
mod teacher;
mod training;

pub use any::AnyRecipe;
pub use arms::{
    ArmConfig, CovarianceKind, DistillConfig, LabelBudget, LogitLossKind, LossKind, PaddingKind,
    ProjectorKind, TapNames,
};
pub use augment::{AugmentConfig, CropConfig, EraseWith, RandAugmentConfig};
pub use criterion::{BoxCriterionConfig, QueryCriterionConfig};
pub use data::{DataConfig, DataKind, OnCorrupt};
pub use detection::{
    BoxAugmentConfig, BoxCropConfig, CocoConfig, DetectionDataConfig, DetectionSource, Outside,
    ScenesConfig, ValidationPart,
};
pub use device::ComputeDevice;
pub use generation::{
    ClipTeacherConfig, DiffAugmentConfig, GanCriterionConfig, GanTeacherModel,
    InceptionTableConfig, LecamTableConfig,
};
pub use init::InitConfig;
pub use teacher::{CacheConfig, TeacherConfig};
pub use training::{ComputeKind, OptimizerKind, ScheduleKind, TrainingConfig};

use crate::workload::{Classification, Detection, Generation, Workload};
use candle_core::{Device, Result, bail};
use overrides::{blame, located, set};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use training::is_default;

/// Name under which the teacher trains and logs; no arm may have it.
pub(crate) const TEACHER: &str = "teacher";

/// Keys that say how a run is made and what its logs show, and change no bit of its result.
pub(crate) const NEUTRAL: [&str; 8] = [
    "data.workers",
    "teacher.cache.dir",
    "teacher.cache.limit_mib",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep",
    "training.bucket_mib",
    "training.term_gradients",
];

/// Everything that decides a run. A recipe and a seed give the same student on the same machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "W: Workload")]
pub struct RecipeOf<W: Workload> {
    /// Name for reports and for the default run folder.
    pub name: String,
    /// What is distilled.
    #[serde(default)]
    pub task: TaskKind,
    /// Seed of everything random; the split into training, validation and test does not depend on it.
    #[serde(default)]
    pub seed: u64,
    /// Which arms run, in order; each has a table `[arm.NAME]`.
    #[serde(default = "default_arms")]
    pub arms: Vec<String>,
    /// Data.
    pub data: W::DataConfig,
    /// Teacher.
    pub teacher: TeacherConfig<W::TeacherModel>,
    /// Student: family and sizes; image size, channels and classes come from the data.
    pub student: W::StudentModel,
    /// Weights that the student starts from; by default drawn ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitConfig>,
    /// Training of the student, the same for every arm.
    pub training: TrainingConfig,
    /// What the task's own loss leaves open; by default nothing is changed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub criterion: W::Criterion,
    /// Parts of the method that the arms share.
    pub distill: DistillConfig,
    /// The arms that can run.
    pub arm: BTreeMap<String, ArmConfig>,
}

/// A recipe of classification.
pub type Recipe = RecipeOf<Classification>;

/// A recipe of detection.
pub type DetectionRecipe = RecipeOf<Detection>;

/// A recipe of generation.
pub type GenerationRecipe = RecipeOf<Generation>;

fn default_arms() -> Vec<String> {
    vec!["vkd".to_owned()]
}

/// Kind of task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// One class an image.
    #[default]
    Classification,
    /// Objects in images.
    Detection,
    /// A generator of images, whose discriminator learns from the teacher.
    Generation,
}

impl TaskKind {
    /// The name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Detection => "detection",
            Self::Generation => "generation",
        }
    }
}

impl<W: Workload> RecipeOf<W> {
    /// Reads a recipe and applies `KEY=VALUE` overrides, in order; `source` names the text in messages.
    ///
    /// # Errors
    /// Invalid TOML, an unknown key (with its line and the nearest known one), a missing key, a value of the wrong type
    /// or out of range. A fault of an override is reported as that override's.
    pub fn parse(text: &str, source: &str, overrides: &[String]) -> Result<Self> {
        let mut table: toml::Table = match toml::from_str(text) {
            Ok(table) => table,
            Err(e) => bail!("{}", located(text, source, &e)),
        };
        for change in overrides {
            set(&mut table, change)?;
        }
        let recipe: Self = match table.try_into() {
            Ok(recipe) => recipe,
            Err(e) => bail!("{}", blame::<Self>(text, source, overrides, &e)?),
        };
        recipe.check()?;
        Ok(recipe)
    }

    /// The recipe as a table of TOML.
    pub(crate) fn table(&self) -> Result<toml::Table> {
        toml::Table::try_from(self).map_err(candle_core::Error::wrap)
    }

    /// The recipe as TOML with every value resolved.
    ///
    /// # Errors
    /// A seed beyond TOML's 64-bit signed integers.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(candle_core::Error::wrap)
    }

    /// The settings of arm `name`.
    ///
    /// # Errors
    /// No table `[arm.NAME]`.
    pub fn arm(&self, name: &str) -> Result<&ArmConfig> {
        match self.arm.get(name) {
            Some(arm) => Ok(arm),
            None => {
                let known: Vec<&str> = self.arm.keys().map(String::as_str).collect();
                bail!(
                    "arms: expected a name with a table [arm.NAME], got {name}; there are {}",
                    known.join(", ")
                )
            }
        }
    }

    /// Where the run computes; the same device at every call.
    pub(crate) fn device(&self) -> Result<Device> {
        self.training.device.open()
    }

    /// What a single table can't know is checked here; each table checks itself.
    fn check(&self) -> Result<()> {
        if self.task != W::KIND {
            bail!("task: expected {}, got {}", W::KIND.name(), self.task.name())
        }
        let safe = |name: &str| {
            !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        for name in self.arm.keys().chain(&self.arms).chain([&self.name]) {
            // They become folder names.
            if !safe(name) {
                bail!("recipe: expected names of letters, digits, - and _, got {name:?}")
            }
        }
        if self.arms.is_empty() {
            bail!("arms: expected at least one, got none")
        }
        for (i, name) in self.arms.iter().enumerate() {
            self.arm(name)?;
            if self.arms[..i].contains(name) {
                bail!("arms: expected each name once, got {name} twice")
            }
        }
        if self.arm.contains_key(TEACHER) {
            bail!("arm: expected any name but {TEACHER}, which is the teacher's own")
        }
        self.teacher.check()?;
        self.training.check()?;
        self.init.iter().try_for_each(InitConfig::check)?;
        self.distill.check()?;
        self.arm.iter().try_for_each(|(name, arm)| arm.check(name, &self.distill))?;
        W::check(self)
    }

    /// Refuses what only generation knows, for another task.
    pub(crate) fn without_generation(&self, task: TaskKind) -> Result<()> {
        let mut refused = vec![
            ("distill.covariance".to_owned(), self.distill.covariance != Default::default()),
            ("distill.shrinkage".to_owned(), self.distill.shrinkage.is_some()),
            ("distill.texts".to_owned(), self.distill.texts.is_some()),
        ];
        for (name, arm) in &self.arm {
            let loss = arm.method(&self.distill).loss;
            refused.extend([
                (format!("arm.{name}.covariance"), arm.covariance.is_some()),
                (format!("arm.{name}.shrinkage"), arm.shrinkage.is_some()),
                (format!("arm.{name}.texts"), arm.texts.is_some()),
                (format!("arm.{name}.generated"), arm.generated.is_some()),
                (format!("arm.{name}: the loss kd_dlgan"), loss == LossKind::KdDlgan),
            ]);
        }
        let refused: Vec<(&str, bool)> =
            refused.iter().map(|(key, on)| (key.as_str(), *on)).collect();
        not_with(task, &refused)
    }
}

/// Refuses settings that a task does not know.
pub(crate) fn not_with(task: TaskKind, settings: &[(&str, bool)]) -> Result<()> {
    match settings.iter().find(|(_, given)| *given) {
        Some((key, _)) => bail!("{key}: expected none with task = \"{}\"", task.name()),
        None => Ok(()),
    }
}

/// Refuses counts that are zero.
fn at_least_one(values: &[(&str, u64)]) -> Result<()> {
    match values.iter().find(|(_, value)| *value == 0) {
        Some((key, _)) => bail!("{key}: expected at least 1, got 0"),
        None => Ok(()),
    }
}

/// Refuses negative and non-finite values.
fn not_negative(values: &[(&str, f64)]) -> Result<()> {
    match values.iter().find(|(_, value)| !(*value >= 0. && value.is_finite())) {
        Some((key, value)) => bail!("{key}: expected a finite value of at least 0, got {value}"),
        None => Ok(()),
    }
}

/// Refuses values outside `[0, 1)`.
fn shares(values: &[(&str, f64)]) -> Result<()> {
    match values.iter().find(|(_, value)| !(0. ..1.).contains(value)) {
        Some((key, value)) => bail!("{key}: expected a value in [0, 1), got {value}"),
        None => Ok(()),
    }
}
