//! From a recipe to networks, distiller and batches.

use crate::batches::Batches;
use crate::checkpoint;
use crate::data::Dataset;
use crate::networks::{STUDENT_TAP, TEACHER_TAP};
use crate::recipe::{ArmConfig, LabelBudget, LossKind, ProjectorKind, Recipe};
use candle_core::{DType, Device, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use vkd_models::{Cnn, CnnConfig, StudentCard, Vit, VitConfig};
use vkd_nn::VarStore;
use vkd_ortho::OrthogonalConfig;
use vkd_tasks::{Distiller, FeatureLoss, LogitLoss, ProjectorConfig, TapConfig};

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

pub(crate) fn term_weights(arm: &ArmConfig) -> BTreeMap<String, f64> {
    let mut terms = BTreeMap::from([("label".to_owned(), 1.)]);
    for (name, weight) in
        [("logits".to_owned(), arm.logits), (format!("feature.{STUDENT_TAP}"), arm.features)]
    {
        if weight > 0. {
            terms.insert(name, weight);
        }
    }
    terms
}

pub(crate) fn distiller(recipe: &Recipe, arm: &ArmConfig, store: &VarStore) -> Result<Distiller> {
    let d = &recipe.distill;
    let teacher_width = recipe.teacher.widths.last().copied().unwrap_or(0);
    let named = |key: &str, e: candle_core::Error| {
        candle_core::Error::Msg(format!("distill.{key}: {}", crate::plain(&e)))
    };
    let tap = || -> Result<TapConfig> {
        Ok(TapConfig {
            student: STUDENT_TAP.to_owned(),
            student_width: recipe.student.width,
            teacher: TEACHER_TAP.to_owned(),
            teacher_width,
            projector: match arm.projector {
                ProjectorKind::Orthogonal => ProjectorConfig::Orthogonal(OrthogonalConfig::new(
                    d.map.parse().map_err(|e| named("map", e))?,
                    recipe.seed,
                )),
                ProjectorKind::Linear => ProjectorConfig::Linear,
            },
            student_normalizer: d
                .student_normalizer
                .parse()
                .map_err(|e| named("student_normalizer", e))?,
            teacher_normalizer: d
                .teacher_normalizer
                .parse()
                .map_err(|e| named("teacher_normalizer", e))?,
            loss: match d.loss {
                LossKind::SmoothL1 => FeatureLoss::SmoothL1 { beta: d.beta },
                LossKind::Mse => FeatureLoss::Mse,
            },
            weight: arm.features,
        })
    };
    // Built even where the arm has no feature term, so that a wrong name never rests in a recipe.
    let tap = tap()?;
    let taps = if arm.features > 0. { vec![tap] } else { vec![] };
    let logits =
        (arm.logits > 0.).then_some(LogitLoss { temperature: d.temperature, weight: arm.logits });
    Distiller::new(taps, logits, store.builder().pp(PROJECTOR))
}
