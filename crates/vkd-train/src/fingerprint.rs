//! What decides a result, and the hash that it is found by.

use crate::folder::named;
use crate::recipe::{
    ArmConfig, CovarianceKind, LogitLossKind, LossKind, NEUTRAL, PaddingKind, RecipeOf,
};
use crate::workload::Workload;
use candle_core::{Error, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// The settings that decide the result of an arm, and their hash: 16 hexadecimal digits of SHA-256.
///
/// Left out are the seed, names, the other arms, where files lie, who makes the batches, and what only the logs show. An arm
/// that doesn't use the teacher doesn't depend on it, one without a feature term not on the projector's settings. In place of a
/// path stand the hashes of the teacher's file, of the labels and of some images. A recipe key that is not written while it has its default
/// changes nothing.
///
/// # Errors
/// An unknown arm, or a teacher's file that can't be read.
pub fn fingerprint<W: Workload>(
    recipe: &RecipeOf<W>,
    arm: &str,
    data: &W::Data,
) -> Result<(BTreeMap<String, Value>, String)> {
    let config = recipe.arm(arm)?;
    let mut settings = BTreeMap::new();
    let whole = serde_json::to_value(recipe).map_err(Error::wrap)?;
    for table in ["task", "data", "student", "training", "criterion"] {
        flatten(table, &whole[table], &mut settings);
    }
    forget::<W>(&mut settings);
    files(recipe, "", &mut settings)?;
    W::identify(recipe, data, &mut settings);
    if let Some(init) = &recipe.init {
        flatten("init", &whole["init"], &mut settings);
        settings.insert("init.checkpoint".to_owned(), file_hash(&init.checkpoint)?);
    }
    settings.insert("arm.labels".to_owned(), json!(config.labels));
    if W::wants_teacher(config) {
        teacher(recipe, &whole, &mut settings)?;
    }
    method(recipe, config, &mut settings)?;
    let hash = hash(&settings)?;
    Ok((settings, hash))
}

/// The hash of what decides a recipe's teacher: its settings, those of the training that it shares, the data and the seed.
///
/// # Errors
/// A teacher's file that can't be read.
pub fn teacher_fingerprint<W: Workload>(recipe: &RecipeOf<W>, data: &W::Data) -> Result<String> {
    let mut settings = BTreeMap::from([("seed".to_owned(), json!(recipe.seed))]);
    let whole = serde_json::to_value(recipe).map_err(Error::wrap)?;
    let training = recipe.training.of_teacher(&recipe.teacher);
    let training = serde_json::to_value(training).map_err(Error::wrap)?;
    flatten("data", &whole["data"], &mut settings);
    flatten("training", &training, &mut settings);
    flatten("criterion", &whole["criterion"], &mut settings);
    forget::<W>(&mut settings);
    // How many labels arms know, how often is validated, and how good a teacher must be, change none.
    settings.remove("data.labels");
    settings.remove("training.evaluate_every");
    files(recipe, "", &mut settings)?;
    // Nor does a network that measures what students make.
    settings.retain(|key, _| !key.starts_with("criterion.inception."));
    W::identify(recipe, data, &mut settings);
    teacher(recipe, &whole, &mut settings)?;
    settings.remove("teacher.floor");
    hash(&settings)
}

/// All that ranks which train together must have alike, by name: the program, the recipe and the data, wherever its files lie.
pub(crate) fn common<W: Workload>(
    recipe: &RecipeOf<W>,
    data: &W::Data,
    commit: Option<&str>,
) -> Result<BTreeMap<String, Value>> {
    let mut settings = BTreeMap::new();
    flatten("recipe", &serde_json::to_value(recipe).map_err(Error::wrap)?, &mut settings);
    for key in W::PATHS.iter().chain(&["data.workers"]) {
        settings.remove(&format!("recipe.{key}"));
    }
    W::identify(recipe, data, &mut settings);
    let mut named = vec![
        ("teacher.checkpoint".to_owned(), recipe.teacher.checkpoint.as_ref()),
        ("init.checkpoint".to_owned(), recipe.init.as_ref().map(|init| &init.checkpoint)),
        ("distill.texts".to_owned(), recipe.distill.texts.as_ref()),
    ];
    let arms = recipe.arm.iter();
    named.extend(arms.map(|(name, arm)| (format!("arm.{name}.texts"), arm.texts.as_ref())));
    for (key, path) in named {
        if let Some(path) = path {
            settings.insert(format!("recipe.{key}"), file_hash(path)?);
        }
    }
    files(recipe, "recipe.", &mut settings)?;
    settings.insert("vkd".to_owned(), json!([env!("CARGO_PKG_VERSION"), commit]));
    Ok(settings)
}

/// The hashes of the task's own files, in place of their paths.
fn files<W: Workload>(
    recipe: &RecipeOf<W>,
    before: &str,
    settings: &mut BTreeMap<String, Value>,
) -> Result<()> {
    for (key, path) in W::files(recipe) {
        settings.insert(format!("{before}{key}"), file_hash(path)?);
    }
    Ok(())
}

/// Removes what decides nothing.
fn forget<W: Workload>(settings: &mut BTreeMap<String, Value>) {
    NEUTRAL.iter().chain(W::PATHS).for_each(|key| drop(settings.remove(*key)));
}

/// The teacher's settings; in place of the path to a file stands the file's hash.
fn teacher<W: Workload>(
    recipe: &RecipeOf<W>,
    whole: &Value,
    settings: &mut BTreeMap<String, Value>,
) -> Result<()> {
    flatten("teacher", &whole["teacher"], settings);
    forget::<W>(settings);
    if let Some(path) = &recipe.teacher.checkpoint {
        settings.insert("teacher.checkpoint".to_owned(), file_hash(path)?);
    }
    Ok(())
}

/// The hash of a file, in place of its path.
pub(crate) fn file_hash(path: &Path) -> Result<Value> {
    let path = &crate::hub::local(path)?;
    let bytes = std::fs::read(path).map_err(|e| named(path, &e))?;
    Ok(hex(Sha256::new_with_prefix(bytes)).into())
}

fn hash(settings: &BTreeMap<String, Value>) -> Result<String> {
    let text = serde_json::to_string(settings).map_err(Error::wrap)?;
    Ok(hex(Sha256::new_with_prefix(text)))
}

/// The parts of the method that this arm uses.
fn method<W: Workload>(
    recipe: &RecipeOf<W>,
    config: &ArmConfig,
    settings: &mut BTreeMap<String, Value>,
) -> Result<()> {
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
        if method.padding != PaddingKind::default() {
            put("distill.padding", json!(method.padding));
        }
        if method.covariance != CovarianceKind::default() {
            put("distill.covariance", json!(method.covariance));
        }
        if let Some(shrinkage) = method.shrinkage {
            put("distill.shrinkage", json!(shrinkage));
        }
        if let (LossKind::KdDlgan, Some(texts)) = (method.loss, &method.texts) {
            put("distill.texts", file_hash(texts)?);
        }
        if let Some(generated) = config.generated {
            put("arm.generated", json!(generated));
        }
        put("distill.loss", json!(method.loss));
        put("distill.beta", json!(method.beta));
        put("distill.map", json!(method.map));
        put("distill.teacher_normalizer", json!(method.teacher_normalizer));
        put("distill.student_normalizer", json!(method.student_normalizer));
    }
    Ok(())
}

/// The first 16 hexadecimal digits.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dataset, Generation, GenerationRecipe, Recipe};

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
            "training.device=cpu",
            // The same by another way.
            "arm.vkd.map=cayley",
        ] {
            assert_eq!(hash("vkd", &[same])?, vkd, "{same}");
        }
        for other in [
            "training.steps=7",
            "training.device=cuda",
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
    fn files_that_a_recipe_names_count_by_what_they_hold() -> Result<()> {
        const GAN: &str = include_str!("../tests/gan.toml");
        let folder = tempfile::tempdir()?;
        let recipe = |file: &str| {
            let path = folder.path().join(file).display().to_string();
            let set = [
                format!(
                    r#"criterion.inception={{ weights = "{path}", variant = "fid", width = 2 }}"#
                ),
                format!("arm.kd-dlgan.texts={path}"),
            ];
            GenerationRecipe::parse(GAN, "gan.toml", &set)
        };
        for (file, content) in [("a.pth", "same"), ("b.pth", "same"), ("c.pth", "other")] {
            std::fs::write(folder.path().join(file), content)?;
        }
        let (a, b, c) = (recipe("a.pth")?, recipe("b.pth")?, recipe("c.pth")?);
        let data = Generation::open(&a.data)?;
        assert_eq!(common(&a, &data, None)?, common(&b, &data, None)?);
        let (ours, theirs) = (common(&a, &data, None)?, common(&c, &data, None)?);
        let apart: Vec<&String> =
            ours.iter().filter(|(key, value)| theirs[*key] != **value).map(|(k, _)| k).collect();
        assert_eq!(apart, ["recipe.arm.kd-dlgan.texts", "recipe.criterion.inception.weights"]);
        let hash = |recipe, arm| Ok::<_, Error>(fingerprint(recipe, arm, &data)?.1);
        for arm in ["none", "kd-dlgan"] {
            assert_eq!(hash(&a, arm)?, hash(&b, arm)?);
            assert_ne!(hash(&a, arm)?, hash(&c, arm)?);
        }
        // What measures students moves no teacher.
        let without = GenerationRecipe::parse(GAN, "gan.toml", &[])?;
        let teacher = |recipe| teacher_fingerprint(recipe, &data);
        assert_eq!((teacher(&a)?, teacher(&c)?), (teacher(&without)?, teacher(&without)?));
        assert!(common(&recipe("absent.pth")?, &data, None).is_err());
        Ok(())
    }

    #[test]
    fn a_teacher_is_named_by_what_decides_it() -> Result<()> {
        let hash = |set: &[&str]| -> Result<String> {
            let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
            let recipe = Recipe::parse(TINY, "tiny.toml", &set)?;
            teacher_fingerprint(&recipe, &Dataset::open(&recipe.data)?)
        };
        let plain = hash(&[])?;
        assert_eq!(plain.len(), 16);
        for same in [
            "name=other",
            r#"arms=["vkd"]"#,
            "arm.vkd.features=9",
            "distill.map=householder",
            "student.depth=2",
            "training.steps=7",
            "training.learning_rate=0.1",
            "training.momentum=0.5",
            "training.decay_factor=0.5",
            "training.log_every=2",
            "training.evaluate_every=2",
            "data.workers=2",
            "data.labels=30",
            "teacher.floor=0.2",
        ] {
            assert_eq!(hash(&[same])?, plain, "{same}");
        }
        for other in [
            "seed=1",
            "teacher.steps=31",
            "teacher.model.widths=[4, 9]",
            // Shared with the student.
            "training.warmup=3",
            "training.device=cuda:1",
            "data.shift=0",
            "data.train=210",
        ] {
            assert_ne!(hash(&[other])?, plain, "{other}");
        }
        Ok(())
    }
}
