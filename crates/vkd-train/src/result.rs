//! One finished run of one arm as a small file of its own, found by what decided it.
//!
//! Invariant: two results with the same fingerprint and seed come from the same settings and the same labels, whatever
//! machine, folder or other arms they ran beside; so a grid of arms and seeds can be built over days, and its files can be
//! kept under version control. Changing code is not seen: each file names the version and the commit it was made with.

use crate::event::{Event, EventKind};
use crate::fingerprint::{fingerprint, hex};
use crate::folder::{RunFolderOf, named};
use crate::recipe::ComputeDevice;
use crate::report::{ArmReport, Report, TeacherReport};
use crate::workload::{Samples, Workload};
use candle_core::{Error, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vkd_models::write_atomically;

/// One arm, one seed, finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmResult {
    /// Version of this form; 2.
    pub schema: u32,
    /// Kind of task.
    pub task: String,
    /// Name of the recipe.
    pub recipe: String,
    /// Name of the data set.
    pub dataset: String,
    /// Seed.
    pub seed: u64,
    /// Hash of `settings`.
    pub fingerprint: String,
    /// Name, scores, weights and times.
    #[serde(flatten)]
    pub arm: ArmReport,
    /// Its teacher.
    pub teacher: TeacherReport,
    /// `(step, validation score)`: accuracy, or AP of detection.
    pub curve: Vec<(u64, f64)>,
    /// Each loss term before weighting, at the last step.
    pub losses: BTreeMap<String, f64>,
    /// The last measured geometry of the features.
    pub geometry: BTreeMap<String, f64>,
    /// How it ran; unknown for a result that was read from a `report.json`.
    pub run: Option<RunFacts>,
    /// What decided the result, seed apart: the resolved recipe by key, without what other arms or only files and logs need.
    pub settings: BTreeMap<String, Value>,
}

/// How a run was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunFacts {
    /// Images a step: the effective batch.
    pub batch: usize,
    /// Updates.
    pub steps: u64,
    /// Images seen, repeats counted.
    pub images: u64,
    /// Where it was computed: `cpu`, or a GPU with the name that the driver gives it; of each in turn where several trained it.
    #[serde(default = "cpu", skip_serializing_if = "is_cpu")]
    pub device: String,
    /// Threads of the process that trained it, or of each.
    pub threads: usize,
    /// Processes that trained it together, by whom it was begun or last gone on with.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ranks: usize,
    /// Threads that made its batches ahead of the step; 0 where the training did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub loader_threads: usize,
    /// Version of vkd; of each in turn where several trained it.
    pub version: String,
    /// Commit, where vkd ran out of its own repository; of each in turn where several trained it.
    pub commit: Option<String>,
    /// Processor.
    pub machine: String,
}

fn cpu() -> String {
    ComputeDevice::Cpu.to_string()
}

fn is_cpu(device: &String) -> bool {
    *device == cpu()
}

fn one() -> usize {
    1
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl RunFacts {
    /// How this process trains an arm of `run`, with so many batches a step, that goes on where `earlier` stopped, or begins.
    pub(crate) fn begun<W: Workload>(
        run: &RunFolderOf<W>,
        loader_threads: usize,
        rounds: u64,
        earlier: Option<Self>,
    ) -> Result<Self> {
        let (training, worker) = (&run.recipe().training, run.worker());
        let before = earlier.as_ref().map(|e| e.device.clone());
        let (version, commit) = earlier.map(|e| (e.version, e.commit)).unwrap_or_default();
        let version = in_turn(Some(version).filter(|v| !v.is_empty()), env!("CARGO_PKG_VERSION"));
        Ok(Self {
            batch: training.effective_batch(),
            steps: training.steps,
            images: training.images().saturating_mul(rounds),
            device: in_turn(before, &training.device.describe()?),
            threads: rayon::current_num_threads(),
            ranks: run.ranks().size(),
            loader_threads,
            version,
            commit: match &worker.commit {
                Some(now) => Some(in_turn(commit, now)),
                None => commit,
            },
            machine: worker.machine.clone(),
        })
    }
}

/// `a, b`, or `a` alone where it ends in `b`.
fn in_turn(before: Option<String>, now: &str) -> String {
    match before {
        Some(before) if before.rsplit(", ").next() != Some(now) => format!("{before}, {now}"),
        Some(before) => before,
        None => now.to_owned(),
    }
}

impl ArmResult {
    /// The result of a finished arm of `run`, with the facts of the process that trained it.
    ///
    /// # Errors
    /// An arm or a teacher that is not finished, or a log that can't be read.
    pub fn gather<W: Workload>(run: &RunFolderOf<W>, data: &W::Data, arm: &str) -> Result<Self> {
        let recipe = run.recipe();
        let (Some(report), Some(teacher)) = (run.arm_report(arm)?, run.teacher_report()?) else {
            bail!("{}: expected arm {arm} and the teacher finished", run.dir().display())
        };
        let (settings, fingerprint) = fingerprint(recipe, arm, data)?;
        let mut result = Self {
            schema: 2,
            task: W::KIND.name().to_owned(),
            recipe: recipe.name.clone(),
            dataset: data.name().to_owned(),
            seed: recipe.seed,
            fingerprint,
            arm: report,
            teacher,
            curve: Vec::new(),
            losses: BTreeMap::new(),
            geometry: BTreeMap::new(),
            run: run.facts(arm)?,
            settings,
        };
        for event in run.part_events(arm)? {
            match event.kind {
                EventKind::Validation(score) => result.curve.push((event.step, score.value)),
                EventKind::Geometry { geometry } => result.geometry = geometry,
                EventKind::Step { terms, .. } => result.losses = terms,
            }
        }
        Ok(result)
    }

    /// What files and folders of an arm and a seed are called.
    pub fn name(arm: &str, seed: u64, fingerprint: &str) -> String {
        format!("{arm}-seed{seed}-{fingerprint}")
    }

    /// Where the file of an arm and a seed lies in `folder`.
    pub fn path(folder: &Path, arm: &str, seed: u64, fingerprint: &str) -> PathBuf {
        folder.join(format!("{}.json", Self::name(arm, seed, fingerprint)))
    }

    /// Writes the file into `folder`, one line a key.
    ///
    /// # Errors
    /// A failed write.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let Value::Object(table) = serde_json::to_value(self).map_err(Error::wrap)? else {
            bail!("result: expected an object")
        };
        let lines: Vec<String> =
            table.iter().map(|(key, value)| format!("{}: {value}", json!(key))).collect();
        let text = format!("{{\n{}\n}}\n", lines.join(",\n"));
        std::fs::create_dir_all(folder).map_err(|e| named(folder, &e))?;
        let path = Self::path(folder, &self.arm.name, self.seed, &self.fingerprint);
        Ok(write_atomically(&path, text.as_bytes())?)
    }

    /// The result of an arm and a seed in `folder`, if it is there.
    ///
    /// # Errors
    /// A file of that name that is broken or holds something else.
    pub fn find(folder: &Path, arm: &str, seed: u64, fingerprint: &str) -> Result<Option<Self>> {
        let path = Self::path(folder, arm, seed, fingerprint);
        if !path.exists() {
            return Ok(None);
        }
        let read = Self::read(&path).map_err(|e| {
            Error::Msg(format!("{}; without this file the run is trained again", crate::plain(&e)))
        })?;
        match &read[..] {
            [one] if one.arm.name == arm && one.seed == seed && one.fingerprint == fingerprint => {
                Ok(Some(one.clone()))
            }
            _ => bail!(
                "{}: expected the result of arm {arm}, seed {seed}, got another",
                path.display()
            ),
        }
    }

    /// The results in a file: one of [`write`](Self::write), or one an arm of a run's `report.json`, whose fingerprint is empty.
    ///
    /// # Errors
    /// A file that can't be read or is neither, or whose fingerprint is not that of its settings.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        let text = std::fs::read_to_string(path).map_err(|e| named(path, &e))?;
        let wrong = |e: &dyn std::fmt::Display| Error::Msg(format!("{}: {e}", path.display()));
        let value: Value = serde_json::from_str(&text).map_err(|e| wrong(&e))?;
        if value["schema"] == 1 {
            let report: Report = serde_json::from_value(value).map_err(|e| wrong(&e))?;
            return Ok(Self::of_report(&report));
        }
        if value["schema"] != 2 {
            return Err(wrong(&format!("expected schema 1 or 2, got {}", value["schema"])));
        }
        let result: Self = serde_json::from_value(value).map_err(|e| wrong(&e))?;
        // The text as it stands, a line of its own: numbers that were read and written again may differ in the last digit.
        let settings = text.lines().find_map(|line| line.strip_prefix("\"settings\": "));
        let settings = settings.unwrap_or_default().trim_end_matches(',');
        let hash = hex(Sha256::new_with_prefix(settings));
        if hash != result.fingerprint {
            return Err(wrong(&format!(
                "expected the fingerprint of its settings, {hash}, got {}",
                result.fingerprint
            )));
        }
        Ok(vec![result])
    }

    fn of_report(report: &Report) -> Vec<Self> {
        let one = |arm: &ArmReport| Self {
            schema: report.schema,
            task: report.task.clone(),
            recipe: report.recipe.clone(),
            dataset: report.dataset.clone(),
            seed: report.seed,
            fingerprint: String::new(),
            arm: arm.clone(),
            teacher: report.teacher.clone(),
            curve: Vec::new(),
            losses: BTreeMap::new(),
            geometry: BTreeMap::new(),
            run: None,
            settings: BTreeMap::new(),
        };
        report.arms.iter().map(one).collect()
    }
}

impl<W: Workload> RunFolderOf<W> {
    /// The events of one part so far, its last unfinished line left out; none where it has not begun or was loaded.
    ///
    /// # Errors
    /// A row that is none of ours, by its line.
    pub fn part_events(&self, part: &str) -> Result<Vec<Event>> {
        let path = self.events_path(part);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(named(&path, &e)),
        };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let parse = |(i, line): (usize, &str)| {
            serde_json::from_str(line)
                .map_err(|e| Error::Msg(format!("{} line {}: {e}", path.display(), i + 1)))
        };
        text[..whole].lines().enumerate().map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dataset, Recipe, RunFolder, Worker};

    const TINY: &str = include_str!("../tests/tiny.toml");

    #[test]
    fn facts_name_each_program_in_turn() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let begun = |commit: Option<&str>, earlier| -> Result<RunFacts> {
            let recipe = Recipe::parse(TINY, "tiny.toml", &[])?;
            let worker = Worker { commit: commit.map(str::to_owned), ..Worker::default() };
            let run = RunFolder::take(folder.path(), recipe)?.with_worker(worker);
            RunFacts::begun(&run, 3, 1, earlier)
        };
        let first = begun(Some("a"), None)?;
        assert_eq!(
            (first.commit.as_deref(), first.loader_threads, first.images),
            (Some("a"), 3, 60)
        );
        assert_eq!(first.device, "cpu");
        assert_eq!(begun(Some("a"), Some(first.clone()))?, first);
        let second = begun(Some("b"), Some(first.clone()))?;
        assert_eq!(second.commit.as_deref(), Some("a, b"));
        assert_eq!(second.version, first.version);
        assert_eq!(begun(None, Some(first.clone()))?.commit, first.commit);
        // Files of before have no loader threads and no device, and those of training without any are as before.
        let none =
            serde_json::to_value(RunFacts { loader_threads: 0, ..first }).map_err(Error::wrap)?;
        assert!(none.get("loader_threads").is_none() && none.get("device").is_none());
        assert_eq!(
            serde_json::from_value::<RunFacts>(none).map_err(Error::wrap)?.loader_threads,
            0
        );
        Ok(())
    }

    #[test]
    fn a_file_comes_back_and_a_changed_one_is_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let recipe = Recipe::parse(TINY, "tiny.toml", &[])?;
        let (settings, fingerprint) = fingerprint(&recipe, "vkd", &Dataset::open(&recipe.data)?)?;
        let scores = BTreeMap::from([("accuracy".to_owned(), 0.1 + 0.2)]);
        let arm = ArmReport {
            name: "vkd".to_owned(),
            terms: BTreeMap::from([("label".to_owned(), 1.)]),
            labels: 20,
            metrics: scores.clone(),
            extractor: None,
            projector_residual_max: Some(3e-8),
            parameters: 7,
            seconds: 1.5,
        };
        let teacher = TeacherReport { metrics: scores, parameters: 9, seconds: 2. };
        let report = Report {
            schema: 1,
            task: "classification".to_owned(),
            recipe: "tiny".to_owned(),
            dataset: "digits".to_owned(),
            seed: 4,
            seconds: 3.,
            version: "0".to_owned(),
            teacher,
            arms: vec![arm],
        };
        let mut result = ArmResult::of_report(&report).remove(0);
        (result.schema, result.settings) = (2, settings);
        (result.fingerprint, result.curve) = (fingerprint.clone(), vec![(3, 0.5), (6, 0.75)]);
        result.write(folder.path())?;
        let found = ArmResult::find(folder.path(), "vkd", 4, &fingerprint)?;
        assert_eq!(found.as_ref(), Some(&result));
        assert_eq!(ArmResult::find(folder.path(), "vkd", 5, &fingerprint)?, None);
        let path = ArmResult::path(folder.path(), "vkd", 4, &fingerprint);
        let text = std::fs::read_to_string(&path)?;
        assert!(text.len() < 4000 && text.lines().count() < 25, "small, a line a key");
        let changed = text.replace("\"training.steps\":6", "\"training.steps\":9");
        std::fs::write(&path, changed)?;
        let message = ArmResult::read(&path).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("expected the fingerprint of its settings"), "{message}");
        // A run's own report counts as its arms.
        std::fs::write(&path, serde_json::to_string(&report).map_err(Error::wrap)?)?;
        let read = ArmResult::read(&path)?;
        assert_eq!((read.len(), read[0].seed, read[0].run.clone()), (1, 4, None));
        Ok(())
    }
}
