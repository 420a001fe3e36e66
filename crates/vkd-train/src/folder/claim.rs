//! How a process comes to own a run folder: a new one, one that it goes on with, or one that it starts anew.

use super::{ARMS, LOCKS, RunFolderOf, WHOLE, named};
use crate::cache;
use crate::checkpoints::{Checkpoints, remove, unfinished};
use crate::lock::{Lock, named_holder};
use crate::recipe::{AnyRecipe, NEUTRAL, RecipeOf, TEACHER};
use crate::workload::Workload;
use candle_core::{Result, bail};
use std::path::Path;
use vkd_models::write_atomically;

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
const ARM_FILES: [&str; 5] =
    ["student.safetensors", "student.json", "result.json", "run.json", "events.jsonl"];

impl<W: Workload> RunFolderOf<W> {
    /// Creates the folder, or takes up one of the same recipe: finished parts are then reused, and unfinished ones go on from
    /// their last checkpoint. Which arms are chosen may differ, and what changes no bit of a result (`data.workers`, how often is
    /// logged and saved); every other value counts. Files that the recipe only names (`data.dir`, `teacher.checkpoint`) are taken
    /// to be what they were.
    ///
    /// # Errors
    /// What [`fits`](Self::fits) refuses, unless `overwrite`: then the run's own files are removed, and nothing else. A run
    /// that any process works on is not overwritten.
    pub fn create(dir: &Path, recipe: RecipeOf<W>, overwrite: bool) -> Result<Self> {
        if !overwrite {
            Self::fits(dir, &recipe)?;
        }
        let run = Self::of(dir, recipe);
        if overwrite {
            let _held = run.keep_all_off()?;
            run.clear()?;
            run.write_recipe()?;
        }
        run.begin(true)
    }

    /// Takes a folder whose name tells the settings that decide its result, as a fingerprint does: what lies in it is reused,
    /// though its recipe may differ in what decides nothing, and is written anew.
    ///
    /// # Errors
    /// A failed write.
    pub fn take(dir: &Path, recipe: RecipeOf<W>) -> Result<Self> {
        Self::of(dir, recipe).begin(false)
    }

    fn write_recipe(&self) -> Result<()> {
        std::fs::create_dir_all(&self.dir).map_err(|e| named(&self.dir, &e))?;
        Ok(write_atomically(&self.path("recipe.toml"), self.recipe.to_toml()?.as_bytes())?)
    }

    /// Keeps off who would start the run anew, then writes the recipe; with `check` only where the run is still one of it.
    fn begin(self, check: bool) -> Result<Self> {
        let run = self;
        let make = |folder| {
            std::fs::create_dir_all(run.path(folder)).map_err(|e| named(&run.path(folder), &e))
        };
        make(LOCKS)?;
        // What killed writes left behind, if nobody else writes here; the parts sweep their own folders.
        if let Ok(_alone) = Lock::alone(&run.lock_path(WHOLE))? {
            Checkpoints::new(run.dir.clone(), 1).sweep()?;
        }
        match Lock::shared(&run.lock_path(WHOLE))? {
            Ok(lock) => {
                if check {
                    Self::fits(&run.dir, &run.recipe)?;
                }
                // First: a folder with anything else in it and no recipe is nobody's run.
                run.write_recipe()?;
                make(ARMS)?;
                Ok(Self { _in_use: Some(lock), ..run })
            }
            Err(holder) => bail!(
                "{}: expected a run to train, got one that {} starts anew",
                run.dir.display(),
                named_holder(holder.as_ref())
            ),
        }
    }

    /// The locks of the run and of all its parts, so that nobody works on any of them.
    fn keep_all_off(&self) -> Result<Vec<Lock>> {
        let folder = self.path(LOCKS);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(named(&folder, &e)),
        };
        let mut locks = Vec::new();
        for entry in entries {
            match Lock::alone(&entry.map_err(|e| named(&folder, &e))?.path())? {
                Ok(lock) => locks.push(lock),
                Err(holder) => bail!(
                    "{}: expected a run that nobody works on to start it anew, got one that is used by {}",
                    self.dir.display(),
                    named_holder(holder.as_ref())
                ),
            }
        }
        Ok(locks)
    }

    /// Whether a run of `recipe` lies in `dir` already: a folder that is empty or not there yet fits too, and holds none.
    ///
    /// # Errors
    /// A folder of another recipe (the first difference is named) or one that is no run folder.
    pub fn fits(dir: &Path, recipe: &RecipeOf<W>) -> Result<bool> {
        if dir.join("recipe.toml").exists() {
            if let Some(difference) = difference(recipe.table()?, AnyRecipe::of_run(dir)?.table()?)
            {
                bail!(
                    "{}: expected a run of this recipe, got one of another: {difference}",
                    dir.display()
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

    /// Takes over the finished teacher of another run: a link to the same file, a copy where the file system has no links.
    ///
    /// # Errors
    /// A teacher that is not finished, or a failed write.
    pub fn take_teacher(&self, other: &Self) -> Result<()> {
        let (from, to) = (other.teacher_path(), self.teacher_path());
        let link = self.path(&format!(".vkd-link-{}.tmp", std::process::id()));
        remove(&link)?;
        if std::fs::hard_link(&from, &link).is_ok() {
            std::fs::rename(&link, &to).map_err(|e| named(&to, &e))?;
            // Where both were the same file already, the rename has done nothing.
            return remove(&link);
        }
        let bytes = std::fs::read(&from).map_err(|e| named(&from, &e))?;
        Ok(write_atomically(&to, &bytes)?)
    }

    fn clear(&self) -> Result<()> {
        for name in FILES {
            remove(&self.path(name))?;
        }
        self.remove_checkpoints(TEACHER)?;
        cache::clear(&self.path(cache::FOLDER))?;
        // The arms of the run that goes too, where its recipe can still be read.
        let old = AnyRecipe::of_run(&self.dir).and_then(|recipe| recipe.table());
        let old = old.ok().and_then(|mut table| table.remove("arm"));
        let old = old.as_ref().and_then(toml::Value::as_table);
        for arm in self.recipe.arm.keys().chain(old.into_iter().flat_map(toml::Table::keys)) {
            self.checkpoints(arm).remove()?;
            for name in ARM_FILES {
                remove(&self.arm_path(arm, name))?;
            }
            for entry in std::fs::read_dir(self.arm_path(arm, "")).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with("samples-") && name.ends_with(".png") {
                    remove(&entry.path())?;
                }
            }
            // Stays where something else lies in it.
            std::fs::remove_dir(self.arm_path(arm, "")).ok();
        }
        Ok(())
    }
}

/// Whether a folder has anything in it but what a killed write left behind, and locks.
fn holds_something(dir: &Path) -> Result<bool> {
    for entry in std::fs::read_dir(dir).map_err(|e| named(dir, &e))? {
        let name = entry.map_err(|e| named(dir, &e))?.file_name();
        if name != LOCKS && !unfinished(&name.to_string_lossy()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The first value in which two recipes differ, but for the chosen arms and what changes no result.
fn difference(ours: toml::Table, theirs: toml::Table) -> Option<String> {
    let flat = |table: toml::Table| -> Vec<(String, String)> {
        let mut all = Vec::new();
        flatten("", &toml::Value::Table(table), &mut all);
        all.retain(|(key, _)| key != "arms" && !NEUTRAL.contains(&key.as_str()));
        all
    };
    let (ours, theirs) = (flat(ours), flat(theirs));
    let other = |all: &[(String, String)], key: &str| {
        all.iter().find(|(k, _)| k == key).map_or("nothing".to_owned(), |(_, v)| v.clone())
    };
    for (key, _) in ours.iter().chain(&theirs) {
        let (a, b) = (other(&ours, key), other(&theirs, key));
        if a != b {
            return Some(format!("{key} is {a} here and {b} there"));
        }
    }
    None
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
