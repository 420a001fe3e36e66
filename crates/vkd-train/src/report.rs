//! The content of `report.json`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Result of a run: what `report.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this form; 1.
    pub schema: u32,
    /// Kind of task.
    pub task: String,
    /// Name of the recipe.
    pub recipe: String,
    /// Name of the data set.
    pub dataset: String,
    /// Seed.
    pub seed: u64,
    /// Wall-clock seconds of the whole run; where parts were reused, of what was run this time.
    pub seconds: f64,
    /// Version of vkd.
    pub version: String,
    /// Teacher.
    pub teacher: TeacherReport,
    /// Arms in the recipe's order.
    pub arms: Vec<ArmReport>,
}

/// Result of the teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherReport {
    /// Scores by name; `accuracy` is of the test images, `validation_accuracy` of the validation images.
    pub metrics: BTreeMap<String, f64>,
    /// Number of trainable values.
    pub parameters: usize,
    /// Seconds of training; 0 for a loaded one.
    pub seconds: f64,
}

/// Result of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmReport {
    /// Name.
    pub name: String,
    /// Weight of each loss term.
    pub terms: BTreeMap<String, f64>,
    /// Number of training labels that it knew.
    pub labels: usize,
    /// Scores by name, as for the teacher.
    pub metrics: BTreeMap<String, f64>,
    /// What made the features that scores of generated images are of, a file by its name and hash; `None` where it was the run's own judge,
    /// and where there are no such scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extractor: Option<String>,
    /// Largest `max|WᵀW − I|` over the whole run, measured in f64; null where no projector is orthogonal.
    pub projector_residual_max: Option<f64>,
    /// Number of trainable values of the exported student.
    pub parameters: usize,
    /// Seconds of training.
    pub seconds: f64,
}
