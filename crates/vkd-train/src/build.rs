//! From a recipe to networks, distiller and batches.

use crate::batches::Batches;
use crate::cache;
use crate::data::Dataset;
use crate::hub;
use crate::networks::{frozen_network, training_network};
use crate::recipe::{
    ArmConfig, LabelBudget, LogitLossKind, LossKind, ProjectorKind, Recipe, TapNames,
};
use candle_core::{DType, Device, Error, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use vkd_models::{Architecture, LoadOptions, ModelConfig, StudentCard, load_weights};
use vkd_nn::VarStore;
use vkd_ortho::OrthogonalConfig;
use vkd_tasks::{
    Distiller, FeatureLoss, LogitDistance, LogitLoss, Network, ProjectorConfig, TapConfig,
};

/// Variables of the student in the run's store; the prefix is dropped from the exported file.
pub(crate) const STUDENT: &str = "student";
/// Variables of the projectors in the run's store.
const PROJECTOR: &str = "projector";

/// Builds everything that a recipe asks for once and throws it away: sizes that don't fit, unknown maps and normalisers
/// and splits that the data can't give are found before anything is trained or written.
///
/// # Errors
/// The first thing that can't be built.
pub fn check(recipe: &Recipe, data: &Dataset) -> Result<()> {
    match &recipe.teacher.checkpoint {
        Some(path) => given_teacher(recipe, data, path)?,
        None => fresh_teacher(recipe, data)?,
    };
    for name in &recipe.arms {
        let arm = recipe.arm(name)?;
        let store = VarStore::new(recipe.seed, DType::F32, &Device::Cpu);
        student_network(recipe, data, &store)?;
        distiller(recipe, arm, data, &store)?;
        batches(recipe, arm, data)?;
    }
    cache::plan(recipe, data)?;
    Ok(())
}

/// A model as this data set wants it.
pub(crate) fn model(architecture: &Architecture, data: &Dataset) -> ModelConfig {
    ModelConfig {
        image_size: data.size,
        channels: data.channels,
        classes: data.class_names.len(),
        architecture: architecture.clone(),
    }
}

/// The student in training, its variables in `store`.
pub(crate) fn student_network(
    recipe: &Recipe,
    data: &Dataset,
    store: &VarStore,
) -> Result<impl Network + use<>> {
    let named = |e| Error::Msg(format!("student: {}", crate::plain(&e)));
    let (model, compute) = (model(&recipe.student, data), recipe.training.compute);
    training_network(model, compute, store, Some(STUDENT)).map_err(named)
}

/// The variables of the teacher as it begins.
pub(crate) fn fresh_teacher(recipe: &Recipe, data: &Dataset) -> Result<VarStore> {
    let store = VarStore::new(recipe.seed, DType::F32, &Device::Cpu);
    let named = |e| Error::Msg(format!("teacher.model: {}", crate::plain(&e)));
    model(&recipe.teacher.model, data).build(store.builder()).map_err(named)?;
    Ok(store)
}

/// The teacher that is asked: what `store` holds of it, as constants.
pub(crate) fn frozen_teacher(
    recipe: &Recipe,
    data: &Dataset,
    store: &VarStore,
) -> Result<impl Network + use<>> {
    frozen_network(&model(&recipe.teacher.model, data), recipe.teacher.compute, store)
}

/// The variables of `teacher.checkpoint`.
pub(crate) fn given_teacher(recipe: &Recipe, data: &Dataset, path: &Path) -> Result<VarStore> {
    let store = fresh_teacher(recipe, data)?;
    let named = |e| Error::Msg(format!("teacher.checkpoint: {}", crate::plain(&e)));
    let path = &hub::local(path).map_err(named)?;
    // So that a recipe for a .pth also takes the same weights as .safetensors.
    let flat = path.extension().is_some_and(|e| e == "safetensors");
    let key = recipe.teacher.checkpoint_key.clone().filter(|_| !flat);
    let under = recipe.teacher.checkpoint_prefix.clone();
    let options = LoadOptions { key, under, ..LoadOptions::default() };
    load_weights(&store, path, &options).map_err(named)?;
    Ok(store)
}

pub(crate) fn student_card(recipe: &Recipe, data: &Dataset) -> StudentCard {
    let preprocessing = data.preprocessing().clone();
    StudentCard::new(model(&recipe.student, data), preprocessing, data.class_names.clone())
}

/// The training batches of an arm, and how many labels they tell.
pub(crate) fn batches(
    recipe: &Recipe,
    arm: &ArmConfig,
    data: &Dataset,
) -> Result<(Batches, usize)> {
    let training = &recipe.training;
    let labelled = match arm.labels {
        LabelBudget::Few => data.labelled(recipe.data.labels, recipe.seed)?,
        LabelBudget::All => data.train.clone(),
        LabelBudget::None => Vec::new(),
    };
    let labels = labelled.len();
    // Without a teacher an unlabelled image says nothing, so the whole batch is labelled: the arm gets the same
    // number of images to learn from.
    let from_labelled = match (arm.labels, arm.uses_teacher()) {
        (LabelBudget::Few, true) => training.labelled,
        (LabelBudget::None, _) => 0,
        _ => training.batch,
    };
    let rest = training.batch - from_labelled;
    Ok((Batches::new(data, labelled, from_labelled, rest, &recipe.data, recipe.seed)?, labels))
}

pub(crate) fn term_weights(recipe: &Recipe, arm: &ArmConfig) -> BTreeMap<String, f64> {
    let label = f64::from(arm.labels != LabelBudget::None);
    let mut terms = BTreeMap::new();
    let features =
        recipe.distill.tap.iter().map(|tap| (format!("feature.{}", tap.student), arm.features));
    for (name, weight) in
        features.chain([("logits".to_owned(), arm.logits), ("label".to_owned(), label)])
    {
        if weight > 0. {
            terms.insert(name, weight);
        }
    }
    terms
}

/// The width of a model's tap.
fn width(side: &str, model: &ModelConfig, name: &str) -> Result<usize> {
    let taps = model.taps();
    match taps.get(name) {
        Some(width) => Ok(*width),
        None => {
            let known: Vec<&str> = taps.keys().map(String::as_str).collect();
            bail!("distill.tap: {side}: expected one of {}, got {name}", known.join(", "))
        }
    }
}

pub(crate) fn distiller(
    recipe: &Recipe,
    arm: &ArmConfig,
    data: &Dataset,
    store: &VarStore,
) -> Result<Distiller> {
    let (student, teacher) = (model(&recipe.student, data), model(&recipe.teacher.model, data));
    let d = arm.method(&recipe.distill);
    let named = |key: &str, own: bool, e: Error| {
        let table = if own { "arm" } else { "distill" };
        Error::Msg(format!("{table}.{key}: {}", crate::plain(&e)))
    };
    let tap =
        |names: &TapNames| -> Result<TapConfig> {
            let student_width = width("student", &student, &names.student)?;
            let teacher_width = width("teacher", &teacher, &names.teacher)?;
            let map = d.map.parse().map_err(|e| named("map", arm.map.is_some(), e))?;
            Ok(TapConfig {
                student: names.student.clone(),
                student_width,
                teacher: names.teacher.clone(),
                teacher_width,
                projector: match arm.projector {
                    ProjectorKind::Orthogonal => {
                        ProjectorConfig::Orthogonal(OrthogonalConfig::new(map, recipe.seed))
                    }
                    ProjectorKind::Linear => ProjectorConfig::Linear,
                    ProjectorKind::Mlp => {
                        ProjectorConfig::Mlp { hidden: arm.hidden.unwrap_or(teacher_width) }
                    }
                    ProjectorKind::AsPublished => ProjectorConfig::Published { seed: recipe.seed },
                    ProjectorKind::None => ProjectorConfig::Identity,
                },
                student_normalizer: d.student_normalizer.parse().map_err(|e| {
                    named("student_normalizer", arm.student_normalizer.is_some(), e)
                })?,
                teacher_normalizer: d.teacher_normalizer.parse().map_err(|e| {
                    named("teacher_normalizer", arm.teacher_normalizer.is_some(), e)
                })?,
                loss: match d.loss {
                    LossKind::SmoothL1 => FeatureLoss::SmoothL1 { beta: d.beta },
                    LossKind::Mse => FeatureLoss::Mse,
                    LossKind::Spkd => FeatureLoss::Spkd,
                    LossKind::Pkt => FeatureLoss::Pkt,
                    LossKind::RkdDistance => FeatureLoss::RkdDistance,
                    LossKind::RkdAngle => FeatureLoss::RkdAngle,
                },
                weight: arm.features,
            })
        };
    // Built even where the arm has no feature term, so that a wrong name never rests in a recipe.
    let taps = d.tap.iter().map(tap).collect::<Result<Vec<_>>>()?;
    let taps = if arm.features > 0. { taps } else { vec![] };
    let logits =
        (arm.logits > 0.).then_some(LogitLoss { temperature: d.temperature, weight: arm.logits });
    let distance = match arm.logit_loss {
        None | Some(LogitLossKind::Kl) => LogitDistance::Kl,
        Some(LogitLossKind::Dist) => LogitDistance::Dist,
        Some(LogitLossKind::LogitStandardization) => LogitDistance::Standardized,
        Some(LogitLossKind::Dkd) => {
            let (alpha, beta) = arm.dkd_weights();
            LogitDistance::Decoupled { alpha, beta }
        }
    };
    Ok(Distiller::new(taps, logits, store.builder().pp(PROJECTOR))?.with_logit_distance(distance))
}
