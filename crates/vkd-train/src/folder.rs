//! The folder of a run: what lies where, and what may be reused.

use crate::cache;
use crate::checkpoint;
use crate::checkpoints::{Checkpoints, unfinished};
use crate::event::Event;
use crate::recipe::{Recipe, TEACHER};
use crate::report::{ArmReport, Report, TeacherReport};
use candle_core::{Result, bail};
use serde::Serialize;
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
/// arms/NAME/student.safetensors, student.json, result.json, events.jsonl
/// arms/NAME/checkpoint-000240.safetensors, best.safetensors      the last `training.keep` states and the best one
/// student.safetensors, student.json      of the arm vkd, or of the first one where vkd did not run
/// metrics.jsonl, metrics.csv, report.json, report.html
/// tensorboard/PART/         event files of each part; new ones are added, none is removed
/// ```
pub struct RunFolder {
    dir: PathBuf,
    recipe: Recipe,
}

/// What a run writes at the top of its folder: all that `--overwrite` may remove.
const FILES: [&str; 9] = [
    "recipe.toml",
    "teacher.safetensors",
    "teacher.jsonl",
    "student.safetensors",
    "student.json",
    "metrics.jsonl",
    "metrics.csv",
    "report.json",
    "report.html",
];
/// What a run writes for each arm.
const ARM_FILES: [&str; 4] = ["student.safetensors", "student.json", "result.json", "events.jsonl"];
const ARMS: &str = "arms";

impl RunFolder {
    /// Creates the folder, or takes up one of the same recipe: finished parts are then reused, and unfinished ones go on from
    /// their last checkpoint. Which arms are chosen may differ; every other value counts. Files that the recipe only names (`data.dir`, `teacher.checkpoint`) are taken to
    /// be what they were.
    ///
    /// # Errors
    /// What [`fits`](Self::fits) refuses, unless `overwrite`: then the run's own files are removed, and nothing else.
    pub fn create(dir: &Path, recipe: Recipe, overwrite: bool) -> Result<Self> {
        let run = Self { dir: dir.to_owned(), recipe };
        if overwrite {
            run.clear()?;
        } else {
            Self::fits(dir, &run.recipe)?;
        }
        // The recipe first: a folder with anything else in it and no recipe is nobody's run.
        std::fs::create_dir_all(dir).map_err(|e| named(dir, &e))?;
        write_atomically(&run.path("recipe.toml"), run.recipe.to_toml()?.as_bytes())?;
        std::fs::create_dir_all(run.path(ARMS)).map_err(|e| named(&run.path(ARMS), &e))?;
        Ok(run)
    }

    /// Whether a run of `recipe` lies in `dir` already: a folder that is empty or not there yet fits too, and holds none.
    ///
    /// # Errors
    /// A folder of another recipe (the first difference is named) or one that is no run folder.
    pub fn fits(dir: &Path, recipe: &Recipe) -> Result<bool> {
        if dir.join("recipe.toml").exists() {
            let other = Self::open(dir)?.recipe;
            let blank = |r: &Recipe| Recipe { arms: vec![], ..r.clone() };
            if blank(&other) != blank(recipe) {
                bail!(
                    "{}: expected a run of this recipe, got one of another: {}",
                    dir.display(),
                    difference(recipe, &other)?
                )
            }
            return Ok(true);
        }
        if dir.is_dir() && holds_something(dir)? {
            bail!(
                "{}: expected an empty folder or a run of this recipe, got a folder without recipe.toml",
                dir.display()
            )
        }
        Ok(false)
    }

    /// Opens an existing run.
    ///
    /// # Errors
    /// No readable `recipe.toml`.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("recipe.toml");
        let text = std::fs::read_to_string(&path).map_err(|e| named(&path, &e))?;
        Ok(Self {
            dir: dir.to_owned(),
            recipe: Recipe::parse(&text, &path.display().to_string(), &[])?,
        })
    }

    fn clear(&self) -> Result<()> {
        for name in FILES {
            match std::fs::remove_file(self.path(name)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(named(&self.path(name), &e));
                }
                _ => {}
            }
        }
        self.remove_checkpoints(TEACHER)?;
        cache::clear(&self.path(cache::FOLDER))?;
        for arm in self.recipe.arm.keys() {
            self.checkpoints(arm).remove()?;
            for name in ARM_FILES {
                match std::fs::remove_file(self.arm_path(arm, name)) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(named(&self.arm_path(arm, name), &e));
                    }
                    _ => {}
                }
            }
            // Stays where something else lies in it.
            std::fs::remove_dir(self.arm_path(arm, "")).ok();
        }
        Ok(())
    }

    /// The run's recipe.
    pub fn recipe(&self) -> &Recipe {
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
        Checkpoints::new(dir, self.recipe.training.keep)
    }

    /// Removes all checkpoints of a part.
    pub(crate) fn remove_checkpoints(&self, name: &str) -> Result<()> {
        self.checkpoints(name).remove()?;
        // Stays where something else lies in it.
        std::fs::remove_dir(self.checkpoints(name).dir()).ok();
        Ok(())
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
        let path = self.arm_path(arm, "result.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(|e| named(&path, &e))?;
        match serde_json::from_str(&text) {
            Ok(report) => Ok(Some(report)),
            Err(e) => bail!("{}: {e}", path.display()),
        }
    }

    pub(crate) fn write_arm_report(&self, report: &ArmReport) -> Result<()> {
        write_json(&self.arm_path(&report.name, "result.json"), report)
    }

    /// Gathers the finished parts: `report.json`, `metrics.jsonl` and the run's student.
    ///
    /// # Errors
    /// A part that is not finished.
    pub fn finish(&self, dataset: &str, seconds: f64) -> Result<Report> {
        // What killed writes left behind; the parts have swept their own folders.
        Checkpoints::new(&self.dir, 1).sweep()?;
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
            task: "classification".to_owned(),
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

/// Whether a folder has anything in it but what a killed write left behind.
fn holds_something(dir: &Path) -> Result<bool> {
    for entry in std::fs::read_dir(dir).map_err(|e| named(dir, &e))? {
        if !unfinished(&entry.map_err(|e| named(dir, &e))?.file_name().to_string_lossy()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(value).map_err(candle_core::Error::wrap)?;
    json.push(b'\n');
    Ok(write_atomically(path, &json)?)
}

pub(crate) fn named(path: &Path, e: &std::io::Error) -> candle_core::Error {
    candle_core::Error::Msg(format!("{}: {e}", path.display()))
}

/// The first line in which two recipes differ, as `ours, theirs`.
fn difference(ours: &Recipe, theirs: &Recipe) -> Result<String> {
    let flat = |r: &Recipe| -> Result<Vec<(String, String)>> {
        let table = toml::Table::try_from(r).map_err(candle_core::Error::wrap)?;
        let mut all = Vec::new();
        flatten("", &toml::Value::Table(table), &mut all);
        all.retain(|(key, _)| key != "arms");
        Ok(all)
    };
    let (ours, theirs) = (flat(ours)?, flat(theirs)?);
    let other = |all: &[(String, String)], key: &str| {
        all.iter().find(|(k, _)| k == key).map_or("nothing".to_owned(), |(_, v)| v.clone())
    };
    for (key, _) in ours.iter().chain(&theirs) {
        let (a, b) = (other(&ours, key), other(&theirs, key));
        if a != b {
            return Ok(format!("{key} is {a} here and {b} there"));
        }
    }
    Ok("they are equal".to_owned())
}

fn flatten(prefix: &str, value: &toml::Value, out: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, value, out);
            }
        }
        other => out.push((prefix.to_owned(), other.to_string())),
    }
}
