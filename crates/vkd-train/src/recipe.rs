//! A run's settings as typed TOML.

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Name under which the teacher trains and logs; no arm may have it.
pub(crate) const TEACHER: &str = "teacher";

/// Everything that decides a run. A recipe and a seed give the same student on the same machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
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
    pub data: DataConfig,
    /// Teacher.
    pub teacher: TeacherConfig,
    /// Student.
    pub student: StudentConfig,
    /// Training of the student, the same for every arm.
    pub training: TrainingConfig,
    /// Parts of the method that the arms share.
    pub distill: DistillConfig,
    /// The arms that can run.
    pub arm: BTreeMap<String, ArmConfig>,
}

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
}

/// Source of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// The embedded UCI handwritten digits.
    Digits,
    /// MNIST's files in `dir`.
    Idx,
}

/// Data settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Source.
    pub kind: DataKind,
    /// Folder of the files, for `idx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Number of training images.
    pub train: usize,
    /// Number of validation images.
    pub validation: usize,
    /// Number of training images whose label an arm with `labels = "few"` knows.
    pub labels: usize,
    /// Largest random shift of a training image, in pixels, per axis.
    pub shift: usize,
}

/// Teacher settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// Channels of the convolutions; the last is the width of the features.
    pub widths: Vec<usize>,
    /// Optimiser steps.
    pub steps: u64,
    /// Images a step, all labelled.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Weight decay of matrices and kernels.
    pub weight_decay: f64,
    /// Label smoothing.
    pub smoothing: f64,
    /// Validation accuracy below which the run stops.
    pub floor: f64,
    /// A trained teacher to use instead of training one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
}

/// Student settings; image size, channels and classes come from the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentConfig {
    /// Height and width of a patch in pixels.
    pub patch: usize,
    /// Width of a token.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden width of a block's MLP over the token's width.
    pub mlp_ratio: usize,
    /// Stochastic depth of the last block.
    pub drop_path: f64,
}

/// Training settings of the student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Images a step.
    pub batch: usize,
    /// How many of them come from the labelled ones, where only few have labels and a teacher speaks for the rest.
    pub labelled: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Weight decay of matrices and kernels; projector, biases, norms, tokens and positions have none.
    pub weight_decay: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Label smoothing.
    pub smoothing: f64,
    /// Steps between two log lines.
    pub log_every: u64,
    /// Steps between two validations.
    pub evaluate_every: u64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
}

/// Settings of the method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillConfig {
    /// Temperature of the logits' divergence.
    pub temperature: f64,
    /// Distance of the features: `smooth_l1` or `mse`.
    pub loss: LossKind,
    /// Where smooth-L1 turns linear.
    pub beta: f64,
    /// Map of the orthogonal projector: `cayley`, `matrix_exp` or `householder`.
    pub map: String,
    /// Normaliser of the teacher's features: `identity`, `layer_norm`, `standardize`, `whiten`, or another name of
    /// `vkd_norm::Normalizer`.
    pub teacher_normalizer: String,
    /// Normaliser of the projected student's features.
    pub student_normalizer: String,
}

/// Distance between features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Smooth-L1.
    SmoothL1,
    /// Mean squared difference.
    Mse,
}

/// One arm of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmConfig {
    /// Which labels it knows.
    pub labels: LabelBudget,
    /// Weight of the teacher's logits; 0 leaves the term out.
    #[serde(default)]
    pub logits: f64,
    /// Weight of the teacher's features; 0 leaves the term out.
    #[serde(default)]
    pub features: f64,
    /// Projector of the features.
    #[serde(default)]
    pub projector: ProjectorKind,
}

impl ArmConfig {
    /// Whether the arm looks at the teacher at all.
    pub fn uses_teacher(&self) -> bool {
        self.logits > 0. || self.features > 0.
    }
}

/// Which training labels an arm knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelBudget {
    /// `data.labels` of them.
    Few,
    /// All.
    All,
}

/// Kind of projector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectorKind {
    /// Orthonormal columns.
    #[default]
    Orthogonal,
    /// Unconstrained.
    Linear,
}

impl Recipe {
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
            Err(e) => bail!("{}", blame(text, source, overrides, &e)?),
        };
        recipe.check()?;
        Ok(recipe)
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

    fn check(&self) -> Result<()> {
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
        let positive = [
            ("data.train", self.data.train as u64),
            ("data.validation", self.data.validation as u64),
            ("data.labels", self.data.labels as u64),
            ("teacher.steps", self.teacher.steps),
            ("teacher.batch", self.teacher.batch as u64),
            ("training.steps", self.training.steps),
            ("training.batch", self.training.batch as u64),
            ("training.log_every", self.training.log_every),
            ("training.evaluate_every", self.training.evaluate_every),
            ("training.checkpoint_every", self.training.checkpoint_every),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            bail!("{key}: expected at least 1, got 0")
        }
        if self.arm.contains_key(TEACHER) {
            bail!("arm: expected any name but {TEACHER}, which is the teacher's own")
        }
        let few = |arm: &ArmConfig| arm.labels == LabelBudget::Few && arm.uses_teacher();
        if self.training.labelled == 0 && self.arms.iter().any(|n| self.arm.get(n).is_some_and(few))
        {
            bail!("training.labelled: expected at least 1 for an arm with few labels, got 0")
        }
        if self.training.labelled > self.training.batch {
            bail!(
                "training.labelled: expected at most the batch of {}, got {}",
                self.training.batch,
                self.training.labelled
            )
        }
        let weights = self.arm.iter().flat_map(|(name, arm)| {
            [
                (format!("arm.{name}.logits"), arm.logits),
                (format!("arm.{name}.features"), arm.features),
            ]
        });
        let not_negative = [
            ("teacher.learning_rate".to_owned(), self.teacher.learning_rate),
            ("teacher.weight_decay".to_owned(), self.teacher.weight_decay),
            ("training.learning_rate".to_owned(), self.training.learning_rate),
            ("training.weight_decay".to_owned(), self.training.weight_decay),
        ];
        for (key, value) in not_negative.into_iter().chain(weights) {
            if !(value >= 0. && value.is_finite()) {
                bail!("{key}: expected a finite value of at least 0, got {value}")
            }
        }
        let shares = [
            ("teacher.floor", self.teacher.floor),
            ("teacher.smoothing", self.teacher.smoothing),
            ("training.smoothing", self.training.smoothing),
        ];
        if let Some((key, value)) = shares.iter().find(|(_, v)| !(0. ..1.).contains(v)) {
            bail!("{key}: expected a value in [0, 1), got {value}")
        }
        Ok(())
    }
}

/// A TOML error with its file and line.
fn located(text: &str, source: &str, e: &toml::de::Error) -> String {
    let line = e.span().map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
    let line = line.map(|line| format!(" line {line}")).unwrap_or_default();
    format!("{source}{line}: {}", with_nearest(e.message()))
}

/// Whose fault it is that a recipe with its overrides is none: the file's, with its line, or the first override's after which
/// the whole is worse than before.
fn blame(text: &str, source: &str, overrides: &[String], e: &toml::de::Error) -> Result<String> {
    if let Err(own) = toml::from_str::<Recipe>(text)
        && own.message() == e.message()
    {
        return Ok(located(text, source, &own));
    }
    let mut table: toml::Table = toml::from_str(text).map_err(candle_core::Error::wrap)?;
    for change in overrides {
        set(&mut table, change)?;
        if let Err(own) = Recipe::deserialize(table.clone())
            && own.message() == e.message()
        {
            return Ok(format!("--set {change}: {}", with_nearest(own.message())));
        }
    }
    Ok(format!("{source}: {}", with_nearest(e.message())))
}

/// Puts one `a.b=value` into a table. The value is read as TOML, and as a plain string where that fails.
fn set(table: &mut toml::Table, text: &str) -> Result<()> {
    let Some((path, value)) = text.split_once('=') else {
        bail!("--set {text}: expected KEY=VALUE")
    };
    let value = match toml::from_str::<toml::Table>(&format!("x = {value}")) {
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove("x"),
        _ => None,
    }
    .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let Some(last) = keys.pop().filter(|k| !k.is_empty()) else {
        bail!("--set {text}: expected KEY=VALUE")
    };
    let mut at = table;
    for key in keys {
        let next = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = match next {
            toml::Value::Table(inner) => inner,
            other => bail!("--set {text}: expected {key} to be a table, got {}", other.type_str()),
        };
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

/// Adds "did you mean" to serde's message about an unknown field or variant.
fn with_nearest(message: &str) -> String {
    let message = message.trim_end();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let [unknown, known @ ..] = &quoted[..] else { return message.to_owned() };
    if !message.starts_with("unknown") {
        return message.to_owned();
    }
    let nearest = known.iter().max_by(|a, b| {
        strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b))
    });
    match nearest {
        Some(nearest) => format!("{message}; did you mean `{nearest}`?"),
        None => message.to_owned(),
    }
}
