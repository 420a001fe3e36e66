//! What a run tells its observer, and the rows of `metrics.jsonl`.

use crate::folder::{RunFolder, named};
use crate::lock::Lock;
use candle_core::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

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

/// Writes events to `NAME.jsonl` and passes them on. While it lives nobody else trains this part: a worker whose parent was
/// killed may still be at its last step when the next one comes.
pub(crate) struct EventLog<'a, 'b> {
    path: PathBuf,
    file: File,
    _lock: Lock,
    observer: &'a mut Observer<'b>,
}

impl<'a, 'b> EventLog<'a, 'b> {
    /// Opens the log, rows of an earlier start included, and waits until it is nobody else's.
    pub(crate) fn open(
        run: &RunFolder,
        name: &str,
        observer: &'a mut Observer<'b>,
    ) -> Result<Self> {
        let lock = run.lock(name)?;
        let path = run.events_path(name);
        let file = File::options().read(true).append(true).create(true).open(&path);
        let file = file.map_err(|e| named(&path, &e))?;
        // Its name must be on the disk as well; not every platform lets a folder be opened.
        if let Some(folder) = path.parent().and_then(|folder| File::open(folder).ok()) {
            folder.sync_all().ok();
        }
        Ok(Self { path, file, _lock: lock, observer })
    }

    /// Cuts the log back to the rows that were written before the state after `step` updates was saved, a row half written
    /// included: the training goes on from there.
    pub(crate) fn cut(&mut self, step: u64) -> Result<()> {
        let text = std::fs::read(&self.path).map_err(|e| named(&self.path, &e))?;
        let stays = |row: &&[u8]| match serde_json::from_slice::<Event>(row) {
            Ok(event) => match event.kind {
                EventKind::Step { .. } => event.step < step,
                _ => event.step <= step,
            },
            Err(_) => false,
        };
        let rows = text.split_inclusive(|b| *b == b'\n').take_while(|row| row.ends_with(b"\n"));
        let length: usize = rows.take_while(stays).map(<[u8]>::len).sum();
        self.file.set_len(length as u64).map_err(|e| named(&self.path, &e))
    }

    pub(crate) fn write(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_string(event).map_err(candle_core::Error::wrap)?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| named(&self.path, &e))?;
        (self.observer)(event)
    }
}
