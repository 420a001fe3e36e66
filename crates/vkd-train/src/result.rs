//! One finished run of one arm as a small file of its own, found by what decided it.
//!
//! Invariant: two results with the same fingerprint and seed come from the same settings and the same labels, whatever
//! machine, folder or other arms they ran beside; so a grid of arms and seeds can be built over days, and its files can be
//! kept under version control. Changing code is not seen: each file names the version and the commit it was made with.

use crate::data::Dataset;
use crate::event::{Event, EventKind};
use crate::folder::{RunFolder, named};
use crate::recipe::{ArmConfig, LogitLossKind, Recipe};
use crate::report::{ArmReport, Report, TeacherReport};
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
    /// `(step, validation accuracy)`.
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
    /// Threads of the process that trained it.
    pub threads: usize,
    /// Version of vkd.
    pub version: String,
    /// Commit, where vkd ran out of its own repository.
    pub commit: Option<String>,
    /// Processor.
    pub machine: String,
}

/// The settings that decide the result of an arm, and their hash: 16 hexadecimal digits of SHA-256.
///
/// Left out are the seed, names, the other arms, where files lie, who makes the batches, and what only the logs show. An arm that doesn't use the
/// teacher doesn't depend on it, one without a feature term not on the projector's settings. In place of a path stand the
/// hashes of the teacher's file and of the labels. A recipe key that is not written while it has its default changes nothing.
///
/// # Errors
/// An unknown arm, or a teacher's file that can't be read.
pub fn fingerprint(
    recipe: &Recipe,
    arm: &str,
    data: &Dataset,
) -> Result<(BTreeMap<String, Value>, String)> {
    let config = recipe.arm(arm)?;
    let mut settings = BTreeMap::new();
    let whole = serde_json::to_value(recipe).map_err(Error::wrap)?;
    for table in ["task", "data", "student", "training"] {
        flatten(table, &whole[table], &mut settings);
    }
    for unimportant in [
        "data.dir",
        "data.workers",
        "training.log_every",
        "training.checkpoint_every",
        "training.keep",
        "training.term_gradients",
    ] {
        settings.remove(unimportant);
    }
    let mut labels = Sha256::new();
    for index in 0..data.len() {
        labels.update(format!("{},", data.label(index)));
    }
    settings.insert("data.hash".to_owned(), hex(labels).into());
    settings.insert("arm.labels".to_owned(), json!(config.labels));
    if config.uses_teacher() {
        flatten("teacher", &whole["teacher"], &mut settings);
        // Changes no bit.
        settings.retain(|key, _| !key.starts_with("teacher.cache."));
        if let Some(path) = &recipe.teacher.checkpoint {
            let bytes = std::fs::read(path).map_err(|e| named(path, &e))?;
            let hash = hex(Sha256::new_with_prefix(bytes));
            settings.insert("teacher.checkpoint".to_owned(), hash.into());
        }
    }
    method(recipe, config, &mut settings);
    let text = serde_json::to_string(&settings).map_err(Error::wrap)?;
    Ok((settings, hex(Sha256::new_with_prefix(text))))
}

/// The parts of the method that this arm uses.
fn method(recipe: &Recipe, config: &ArmConfig, settings: &mut BTreeMap<String, Value>) {
    let method = config.method(&recipe.distill);
    let mut put = |key: &str, value: Value| settings.insert(key.to_owned(), value);
    if config.logits > 0. {
        put("arm.logits", json!(config.logits));
        put("distill.temperature", json!(method.temperature));
        if let Some(kind) = config.logit_loss {
            put("arm.logit_loss", json!(kind));
            if kind == LogitLossKind::Dkd {
                let (alpha, beta) = config.dkd_weights();
                put("arm.dkd_alpha", json!(alpha));
                put("arm.dkd_beta", json!(beta));
            }
        }
    }
    if config.features > 0. {
        put("arm.features", json!(config.features));
        put("arm.projector", json!(config.projector));
        if let Some(hidden) = config.hidden {
            put("arm.hidden", json!(hidden));
        }
        // As with every key: where it is not written it has its default.
        if let Some(taps) = json!(method).get("tap") {
            put("distill.tap", taps.clone());
        }
        put("distill.loss", json!(method.loss));
        put("distill.beta", json!(method.beta));
        put("distill.map", json!(method.map));
        put("distill.teacher_normalizer", json!(method.teacher_normalizer));
        put("distill.student_normalizer", json!(method.student_normalizer));
    }
}

pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn flatten(prefix: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                flatten(&format!("{prefix}.{key}"), value, out);
            }
        }
        Value::Null => {}
        other => {
            out.insert(prefix.to_owned(), other.clone());
        }
    }
}

impl ArmResult {
    /// The result of a finished arm of `run`; `facts` are completed from the recipe.
    ///
    /// # Errors
    /// An arm or a teacher that is not finished, or a log that can't be read.
    pub fn gather(run: &RunFolder, data: &Dataset, arm: &str, facts: RunFacts) -> Result<Self> {
        let recipe = run.recipe();
        let (Some(report), Some(teacher)) = (run.arm_report(arm)?, run.teacher_report()?) else {
            bail!("{}: expected arm {arm} and the teacher finished", run.dir().display())
        };
        let (settings, fingerprint) = fingerprint(recipe, arm, data)?;
        let mut result = Self {
            schema: 2,
            task: "classification".to_owned(),
            recipe: recipe.name.clone(),
            dataset: data.name.clone(),
            seed: recipe.seed,
            fingerprint,
            arm: report,
            teacher,
            curve: Vec::new(),
            losses: BTreeMap::new(),
            geometry: BTreeMap::new(),
            run: Some(RunFacts {
                batch: recipe.training.effective_batch(),
                steps: recipe.training.steps,
                images: recipe.training.images(),
                ..facts
            }),
            settings,
        };
        for event in run.part_events(arm)? {
            match event.kind {
                EventKind::Validation { validation_accuracy } => {
                    result.curve.push((event.step, validation_accuracy));
                }
                EventKind::Geometry { geometry } => result.geometry = geometry,
                EventKind::Step { terms, .. } => result.losses = terms,
            }
        }
        Ok(result)
    }

    /// Where the file of an arm and a seed lies in `folder`.
    pub fn path(folder: &Path, arm: &str, seed: u64, fingerprint: &str) -> PathBuf {
        folder.join(format!("{arm}-seed{seed}-{fingerprint}.json"))
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

impl RunFolder {
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

    const TINY: &str = include_str!("../tests/tiny.toml");

    fn hash(arm: &str, set: &[&str]) -> Result<String> {
        let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
        let recipe = Recipe::parse(TINY, "tiny.toml", &set)?;
        Ok(fingerprint(&recipe, arm, &Dataset::open(&recipe.data)?)?.1)
    }

    #[test]
    fn only_what_decides_an_arm_changes_its_fingerprint() -> Result<()> {
        let vkd = hash("vkd", &[])?;
        assert_eq!(vkd.len(), 16);
        for same in [
            "seed=3",
            "name=other",
            "arm.linear.features=9",
            "training.log_every=2",
            "data.workers=2",
            // The same by another way.
            "arm.vkd.map=cayley",
        ] {
            assert_eq!(hash("vkd", &[same])?, vkd, "{same}");
        }
        for other in [
            "training.steps=7",
            "arm.vkd.features=6",
            "arm.vkd.map=householder",
            "distill.map=householder",
            "teacher.steps=31",
            "data.labels=30",
            "data.train=210",
        ] {
            assert_ne!(hash("vkd", &[other])?, vkd, "{other}");
        }
        let (none, logits) = (hash("none", &[])?, hash("logits", &[])?);
        assert_ne!(none, logits);
        assert_eq!(hash("none", &["teacher.steps=31", "distill.temperature=2"])?, none);
        assert_eq!(hash("logits", &["distill.map=householder"])?, logits);
        assert_ne!(hash("logits", &["distill.temperature=2"])?, logits);
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
