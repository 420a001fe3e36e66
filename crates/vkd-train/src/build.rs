//! From a recipe to networks, distiller and batches.

use crate::batches::Batches;
use crate::checkpoint;
use crate::data::Dataset;
use crate::networks::{STUDENT_TAP, TEACHER_GRID, TEACHER_TAP};
use crate::recipe::{
    ArmConfig, LabelBudget, LogitLossKind, LossKind, ProjectorKind, Recipe, TapNames,
};
use candle_core::{DType, Device, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use vkd_models::{Cnn, CnnConfig, StudentCard, Vit, VitConfig};
use vkd_nn::VarStore;
use vkd_ortho::OrthogonalConfig;
use vkd_tasks::{Distiller, FeatureLoss, LogitDistance, LogitLoss, ProjectorConfig, TapConfig};

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
        None => build_teacher(recipe, data)?,
    };
    for name in &recipe.arms {
        let arm = recipe.arm(name)?;
        let store = VarStore::new(recipe.seed, DType::F32, &Device::Cpu);
        Vit::new(&student_card(recipe, data).model, store.builder().pp(STUDENT))?;
        distiller(recipe, arm, &store)?;
        batches(recipe, arm, data)?;
    }
    Ok(())
}

pub(crate) fn build_teacher(recipe: &Recipe, data: &Dataset) -> Result<(VarStore, Cnn)> {
    let store = VarStore::new(recipe.seed, DType::F32, &Device::Cpu);
    let config = CnnConfig {
        channels: data.channels,
        classes: data.class_names.len(),
        widths: recipe.teacher.widths.clone(),
    };
    let cnn = Cnn::new(&config, store.builder())?;
    Ok((store, cnn))
}

/// The teacher of `teacher.checkpoint`.
pub(crate) fn given_teacher(
    recipe: &Recipe,
    data: &Dataset,
    path: &Path,
) -> Result<(VarStore, Cnn)> {
    let (tensors, _) = checkpoint::load(path)?;
    let (store, cnn) = build_teacher(recipe, data)?;
    match store.load(&tensors) {
        Ok(()) => Ok((store, cnn)),
        Err(e) => bail!("{}: {}", path.display(), crate::plain(&e)),
    }
}

pub(crate) fn student_card(recipe: &Recipe, data: &Dataset) -> StudentCard {
    let s = &recipe.student;
    let model = VitConfig {
        image_size: data.size,
        channels: data.channels,
        classes: data.class_names.len(),
        patch: s.patch,
        width: s.width,
        depth: s.depth,
        heads: s.heads,
        mlp_ratio: s.mlp_ratio,
        drop_path: s.drop_path,
    };
    StudentCard {
        schema: 1,
        model,
        preprocessing: data.preprocessing(),
        class_names: data.class_names.clone(),
    }
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
    };
    let labels = labelled.len();
    // Without a teacher an unlabelled image says nothing, so the whole batch is labelled: the arm gets the same
    // number of images to learn from.
    let from_labelled = match (arm.labels, arm.uses_teacher()) {
        (LabelBudget::Few, true) => training.labelled,
        _ => training.batch,
    };
    let rest = training.batch - from_labelled;
    Ok((Batches::new(data, labelled, from_labelled, rest, &recipe.data, recipe.seed)?, labels))
}

pub(crate) fn term_weights(recipe: &Recipe, arm: &ArmConfig) -> BTreeMap<String, f64> {
    let mut terms = BTreeMap::from([("label".to_owned(), 1.)]);
    let features =
        recipe.distill.tap.iter().map(|tap| (format!("feature.{}", tap.student), arm.features));
    for (name, weight) in features.chain([("logits".to_owned(), arm.logits)]) {
        if weight > 0. {
            terms.insert(name, weight);
        }
    }
    terms
}

/// The widths of the two sides of a tap.
fn widths(recipe: &Recipe, names: &TapNames) -> Result<(usize, usize)> {
    if names.student != STUDENT_TAP {
        bail!("distill.tap: student: expected {STUDENT_TAP}, got {}", names.student)
    }
    if ![TEACHER_TAP, TEACHER_GRID].contains(&names.teacher.as_str()) {
        bail!(
            "distill.tap: teacher: expected {TEACHER_TAP} or {TEACHER_GRID}, got {}",
            names.teacher
        )
    }
    Ok((recipe.student.width, recipe.teacher.widths.last().copied().unwrap_or(0)))
}

pub(crate) fn distiller(recipe: &Recipe, arm: &ArmConfig, store: &VarStore) -> Result<Distiller> {
    let d = arm.method(&recipe.distill);
    let named = |key: &str, own: bool, e: candle_core::Error| {
        let table = if own { "arm" } else { "distill" };
        candle_core::Error::Msg(format!("{table}.{key}: {}", crate::plain(&e)))
    };
    let tap =
        |names: &TapNames| -> Result<TapConfig> {
            let (student_width, teacher_width) = widths(recipe, names)?;
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
    };
    Ok(Distiller::new(taps, logits, store.builder().pp(PROJECTOR))?.with_logit_distance(distance))
}
