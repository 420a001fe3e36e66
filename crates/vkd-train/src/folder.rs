//! The folder of a run: what lies where, and who works on it.

mod claim;

use crate::checkpoint;
use crate::checkpoints::Checkpoints;
use crate::event::Event;
use crate::lock::{Lock, named_holder};
use crate::ranks::Ranks;
use crate::recipe::{RecipeOf, TEACHER};
use crate::report::{ArmReport, Report, TeacherReport};
use crate::result::RunFacts;
use crate::workload::{Classification, Workload};
use candle_core::{Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use vkd_models::{card_path, write_atomically};

/// A folder that belongs to one recipe.
///
/// ```text
/// recipe.toml              all values resolved
/// teacher.safetensors      the teacher, with its scores in the metadata
/// teacher.jsonl            its events
/// teacher/                 its checkpoints, until it is finished
/// teacher-cache/           its answers, where `[teacher.cache]` names no other folder
/// arms/NAME/student.safetensors, student.json, result.json, run.json, events.jsonl
/// arms/NAME/checkpoint-000240.safetensors, best.safetensors      the last `training.keep` states and the best one
/// student.safetensors, student.json      of the arm vkd, or of the first one where vkd did not run
/// metrics.jsonl, metrics.csv, report.json, report.html
/// tensorboard/PART/         event files of each part; new ones are added, none is removed
/// locks/PART                who trains this part, or was the last to
/// ```
pub struct RunFolderOf<W: Workload> {
    dir: PathBuf,
    recipe: RecipeOf<W>,
    worker: Worker,
    ranks: Ranks,
    /// While it lives nobody starts the run anew; only of who trains in the folder.
    _in_use: Option<Lock>,
}

/// A folder of classification.
pub type RunFolder = RunFolderOf<Classification>;

/// What a process that trains says of itself in the notes of its runs, and how it says that it has to wait.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Commit of the program, where it is known.
    pub commit: Option<String>,
    /// Processor.
    pub machine: String,
    /// Is told which part of which run another process trains, which one, and since when, before this one waits for it.
    pub waiting: fn(&str),
}

impl Default for Worker {
    fn default() -> Self {
        Self { commit: None, machine: std::env::consts::ARCH.to_owned(), waiting: |_| {} }
    }
}

const ARMS: &str = "arms";
const LOCKS: &str = "locks";
/// The lock of the run as a whole. No part has this name: arms' are of letters, digits, `-` and `_`.
const WHOLE: &str = ".run";

impl<W: Workload> RunFolderOf<W> {
    /// Opens an existing run.
    ///
    /// # Errors
    /// No readable `recipe.toml`.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("recipe.toml");
        let text = std::fs::read_to_string(&path).map_err(|e| named(&path, &e))?;
        let recipe = RecipeOf::parse(&text, &path.display().to_string(), &[])?;
        Ok(Self::of(dir, recipe))
    }

    fn of(dir: &Path, recipe: RecipeOf<W>) -> Self {
        let (worker, ranks) = (Worker::default(), Ranks::alone());
        Self { dir: dir.to_owned(), recipe, worker, ranks, _in_use: None }
    }

    /// The same run, trained by several ranks together: each calls [`train_teacher`](crate::train_teacher) and
    /// [`train_arm`](crate::train_arm) for the same parts in the same order, on a folder that all of them see. The first one alone writes.
    pub fn with_ranks(self, ranks: Ranks) -> Self {
        Self { ranks, ..self }
    }

    pub(crate) fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// The same run with what this process says of itself; without it there is no commit, and waiting is silent.
    pub fn with_worker(self, worker: Worker) -> Self {
        Self { worker, ..self }
    }

    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// The run's recipe.
    pub fn recipe(&self) -> &RecipeOf<W> {
        &self.recipe
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file at the top of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A file of one arm.
    pub fn arm_path(&self, arm: &str, name: &str) -> PathBuf {
        self.dir.join(ARMS).join(arm).join(name)
    }

    /// The checkpoints of `teacher` or of an arm.
    pub fn checkpoints(&self, name: &str) -> Checkpoints {
        let dir = if name == TEACHER { self.path(TEACHER) } else { self.arm_path(name, "") };
        Checkpoints::new(dir, self.recipe.training.keep).after(self.events_path(name))
    }

    /// Removes all checkpoints of a part.
    pub(crate) fn remove_checkpoints(&self, name: &str) -> Result<()> {
        self.checkpoints(name).remove()?;
        // Stays where something else lies in it.
        std::fs::remove_dir(self.checkpoints(name).dir()).ok();
        Ok(())
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.dir.join(LOCKS).join(name)
    }

    /// Waits until nobody else trains the part, then keeps others off.
    pub(crate) fn lock(&self, part: &str) -> Result<Lock> {
        let folder = self.path(LOCKS);
        std::fs::create_dir_all(&folder).map_err(|e| named(&folder, &e))?;
        Lock::wait(&self.lock_path(part), |holder| {
            let (dir, holder) = (self.dir.display(), named_holder(holder));
            (self.worker.waiting)(&format!("{part} of {dir} is being trained by {holder}"));
        })
    }

    /// Which process trains a part at this moment and since when, if any does.
    ///
    /// # Errors
    /// A lock that can't be looked at.
    pub fn trained_by(&self, part: &str) -> Result<Option<String>> {
        let holder = Lock::holder(&self.lock_path(part))?;
        Ok(holder.map(|holder| named_holder(holder.as_ref())))
    }

    pub(crate) fn teacher_path(&self) -> PathBuf {
        self.path("teacher.safetensors")
    }

    pub(crate) fn events_path(&self, name: &str) -> PathBuf {
        if name == TEACHER {
            self.path("teacher.jsonl")
        } else {
            self.arm_path(name, "events.jsonl")
        }
    }

    /// The finished teacher's report, if there is one.
    ///
    /// # Errors
    /// A file that is there but broken.
    pub fn teacher_report(&self) -> Result<Option<TeacherReport>> {
        if !self.teacher_path().exists() {
            return Ok(None);
        }
        let (_, note) = checkpoint::load(&self.teacher_path())?;
        match serde_json::from_value(note) {
            Ok(report) => Ok(Some(report)),
            Err(e) => bail!(
                "{}: expected the teacher's scores in the metadata: {e}",
                self.teacher_path().display()
            ),
        }
    }

    /// The report of an arm that is finished, if it is.
    ///
    /// # Errors
    /// A file that is there but broken.
    pub fn arm_report(&self, arm: &str) -> Result<Option<ArmReport>> {
        read_json(&self.arm_path(arm, "result.json"))
    }

    pub(crate) fn write_arm_report(&self, report: &ArmReport) -> Result<()> {
        write_json(&self.arm_path(&report.name, "result.json"), report)
    }

    /// How an arm was trained, or is being; `None` for one that has not begun.
    ///
    /// # Errors
    /// A file that is there but broken.
    pub fn facts(&self, arm: &str) -> Result<Option<RunFacts>> {
        read_json(&self.arm_path(arm, "run.json"))
    }

    pub(crate) fn write_facts(&self, arm: &str, facts: &RunFacts) -> Result<()> {
        write_json(&self.arm_path(arm, "run.json"), facts)
    }

    /// Refuses scores of other features than those that finished arms have.
    pub(crate) fn check_extractor(&self, extractor: Option<&str>) -> Result<()> {
        for arm in &self.recipe.arms {
            let Some(report) = self.arm_report(arm)? else { continue };
            if report.extractor.as_deref() != extractor {
                bail!(
                    "{}: expected the extractor that arm {arm} was scored by, {}, got {}",
                    self.dir.display(),
                    report.extractor.as_deref().unwrap_or("the judge"),
                    extractor.unwrap_or("the judge")
                )
            }
        }
        Ok(())
    }

    /// Gathers the finished parts: `report.json`, `metrics.jsonl` and the run's student.
    ///
    /// # Errors
    /// A part that is not finished.
    pub fn finish(&self, dataset: &str, seconds: f64) -> Result<Report> {
        let unfinished = |what: &str| {
            candle_core::Error::Msg(format!(
                "{}: expected a finished {what}, got none",
                self.dir.display()
            ))
        };
        let mut arms = Vec::new();
        for name in &self.recipe.arms {
            arms.push(self.arm_report(name)?.ok_or_else(|| unfinished(&format!("arm {name}")))?);
        }
        let report = Report {
            schema: 1,
            task: W::KIND.name().to_owned(),
            recipe: self.recipe.name.clone(),
            dataset: dataset.to_owned(),
            seed: self.recipe.seed,
            seconds,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            teacher: self.teacher_report()?.ok_or_else(|| unfinished("teacher"))?,
            arms,
        };
        let mut metrics = String::new();
        for name in std::iter::once(TEACHER).chain(self.recipe.arms.iter().map(String::as_str)) {
            // A teacher that was loaded has no events.
            metrics.push_str(&std::fs::read_to_string(self.events_path(name)).unwrap_or_default());
        }
        write_atomically(&self.path("metrics.jsonl"), metrics.as_bytes())?;
        let chosen = self.recipe.arms.iter().find(|a| *a == "vkd").or(self.recipe.arms.first());
        if let Some(arm) = chosen {
            let (from, to) =
                (self.arm_path(arm, "student.safetensors"), self.path("student.safetensors"));
            for (from, to) in [(card_path(&from), card_path(&to)), (from, to)] {
                let bytes = std::fs::read(&from).map_err(|e| named(&from, &e))?;
                write_atomically(&to, &bytes)?;
            }
        }
        write_json(&self.path("report.json"), &report)?;
        Ok(report)
    }

    /// The rows of `metrics.jsonl`.
    ///
    /// # Errors
    /// A missing file or a row that is none of ours, by its line.
    pub fn events(&self) -> Result<Vec<Event>> {
        let path = self.path("metrics.jsonl");
        let text = std::fs::read_to_string(&path).map_err(|e| named(&path, &e))?;
        let parse = |(i, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|e| {
                candle_core::Error::Msg(format!("{} line {}: {e}", path.display(), i + 1))
            })
        };
        text.lines().enumerate().map(parse).collect()
    }
}

/// What a file holds; `None` where it is not there.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(named(path, &e)),
    };
    match serde_json::from_str(&text) {
        Ok(value) => Ok(Some(value)),
        Err(e) => bail!("{}: {e}", path.display()),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(value).map_err(candle_core::Error::wrap)?;
    json.push(b'\n');
    Ok(write_atomically(path, &json)?)
}

pub(crate) fn named(path: &Path, e: &std::io::Error) -> candle_core::Error {
    candle_core::Error::Msg(format!("{}: {e}", path.display()))
}
