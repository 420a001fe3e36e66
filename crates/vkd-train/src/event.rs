//! What a run tells its observer, and the rows of `metrics.jsonl`.

use crate::folder::{RunFolder, named};
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;

/// One row of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// `teacher`, or the name of an arm.
    pub arm: String,
    /// Updates done before this row.
    pub step: u64,
    /// What is reported.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Content of an [`Event`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EventKind {
    /// A training step.
    Step {
        /// Weighted sum of the terms.
        loss: f64,
        /// Terms before weighting, by name.
        terms: BTreeMap<String, f64>,
        /// Learning rate of the step.
        learning_rate: f64,
        /// `max|WᵀW − I|` in f64; null without an orthogonal projector.
        residual: Option<f64>,
    },
    /// A validation.
    Validation {
        /// Accuracy on the validation images.
        validation_accuracy: f64,
    },
    /// Numbers about features and gradients that come with a validation.
    Geometry {
        /// By name: `rank.TAP` and `teacher_rank.TAP` (effective ranks), `cka.TAP`, `gradient.TERM` (length of the gradient of a
        /// weighted term, where `training.term_gradients` is set).
        geometry: BTreeMap<String, f64>,
    },
}

/// Where events go. An error ends the run.
pub type Observer<'a> = dyn FnMut(&Event) -> Result<()> + 'a;

/// Writes events to `NAME.jsonl` and passes them on.
pub(crate) struct EventLog<'a, 'b> {
    path: std::path::PathBuf,
    file: std::io::LineWriter<std::fs::File>,
    observer: &'a mut Observer<'b>,
}

impl<'a, 'b> EventLog<'a, 'b> {
    pub(crate) fn create(
        run: &RunFolder,
        name: &str,
        observer: &'a mut Observer<'b>,
    ) -> Result<Self> {
        let path = run.events_path(name);
        match std::fs::File::create(&path) {
            Ok(file) => Ok(Self { path, file: std::io::LineWriter::new(file), observer }),
            Err(e) => bail!("{}: {e}", path.display()),
        }
    }

    pub(crate) fn write(&mut self, event: &Event) -> Result<()> {
        let line = serde_json::to_string(event).map_err(candle_core::Error::wrap)?;
        writeln!(self.file, "{line}").map_err(|e| named(&self.path, &e))?;
        (self.observer)(event)
    }
}
