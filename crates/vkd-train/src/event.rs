//! What a run tells its observer, and the rows of `metrics.jsonl`.

use crate::folder::{RunFolderOf, named};
use crate::lock::Lock;
use crate::workload::Workload;
use candle_core::Result;
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
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
    Validation(Validation),
    /// Numbers about features and gradients that come with a validation.
    Geometry {
        /// By name: `rank.TAP` and `teacher_rank.TAP` (effective ranks), `cka.TAP`, `gradient.TERM` (length of the gradient of a
        /// weighted term, where `training.term_gradients` is set).
        geometry: BTreeMap<String, f64>,
    },
}

/// The score of a validation. In a row it is `validation_accuracy`, `validation_ap`, `validation_frechet`, by its metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Validation {
    /// `accuracy` and `ap`, of which more is better, or `frechet`, of which less is.
    pub metric: String,
    /// Its value on the validation images.
    pub value: f64,
}

const VALIDATION: &str = "validation_";

impl Serialize for Validation {
    fn serialize<S: Serializer>(&self, out: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = out.serialize_map(Some(1))?;
        map.serialize_entry(&format!("{VALIDATION}{}", self.metric), &self.value)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Validation {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        let map = BTreeMap::<String, f64>::deserialize(input)?;
        let score = |(key, value): (String, f64)| {
            let metric = key.strip_prefix(VALIDATION)?.to_owned();
            Some(Self { metric, value })
        };
        map.into_iter().find_map(score).ok_or_else(|| D::Error::custom("expected validation_*"))
    }
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
    pub(crate) fn open<W: Workload>(
        run: &RunFolderOf<W>,
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
