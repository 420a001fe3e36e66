//! From a recipe to networks, distiller and batches.

use crate::fingerprint::common;
use crate::hub;
use crate::ranks::Ranks;
use crate::recipe::{
    ArmConfig, DistillConfig, LabelBudget, LogitLossKind, LossKind, ProjectorKind, RecipeOf,
    TapNames,
};
use crate::workload::{Stream, Workload};
use candle_core::{DType, Device, Error, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use vkd_models::{LoadOptions, load_weights};
use vkd_nn::VarStore;
use vkd_norm::Normalizer;
use vkd_ortho::OrthogonalConfig;
use vkd_tasks::{Distiller, FeatureLoss, LogitDistance, LogitLoss, ProjectorConfig, TapConfig};

/// Variables of the student in the run's store; the prefix is dropped from the exported file.
pub(crate) const STUDENT: &str = "student";
/// Variables of the projectors in the run's store.
const PROJECTOR: &str = "projector";

/// Builds everything that a recipe asks for once and throws it away: a device that there isn't, sizes that don't fit, unknown maps and
/// normalisers and splits that the data can't give are found before anything is trained or written.
///
/// # Errors
/// The first thing that can't be built.
pub fn check<W: Workload>(recipe: &RecipeOf<W>, data: &W::Data) -> Result<()> {
    // The rest on the CPU, whatever the device: it is about sizes and names.
    recipe.training.device.probe()?;
    W::check_data(recipe, data)?;
    starting_teacher(recipe, data, &Device::Cpu)?;
    for name in &recipe.arms {
        let arm = recipe.arm(name)?;
        let store = VarStore::new(recipe.seed, DType::F32, &Device::Cpu);
        W::student_task(recipe, data, &store, None, None)?;
        start_student(recipe, &store)?;
        W::distiller(recipe, arm, data, &store, None)?;
        W::batches(recipe, data, arm)?;
    }
    Ok(())
}

/// Refuses ranks that can't train a recipe together: others on another program, recipe or data set, or batches that can't be shared out.
///
/// # Errors
/// On every rank: what differs, with both values, or the key of the recipe with what was expected.
pub fn check_ranks<W: Workload>(
    recipe: &RecipeOf<W>,
    data: &W::Data,
    ranks: &Ranks,
    commit: Option<&str>,
) -> Result<()> {
    ranks.agree(&common(recipe, data, commit)?)?;
    recipe.training.device.for_ranks(ranks.size())?;
    let share = ranks.share()?;
    let shared = || {
        // A teacher that is given sees no batches.
        if W::teacher_task(recipe, data, &fresh_teacher(recipe, data, &Device::Cpu)?)?.is_some() {
            W::teacher_batches(recipe, data)?.share(share)?;
        }
        let of_arm = |name: &String| W::batches(recipe, data, recipe.arm(name)?)?.0.share(share);
        recipe.arms.iter().try_for_each(of_arm)
    };
    ranks.all_well(shared())
}

/// The variables of the teacher as it begins.
pub(crate) fn fresh_teacher<W: Workload>(
    recipe: &RecipeOf<W>,
    data: &W::Data,
    device: &Device,
) -> Result<VarStore> {
    let store = VarStore::new(recipe.seed, DType::F32, device);
    let named = |e| Error::Msg(format!("teacher.model: {}", crate::plain(&e)));
    W::declare_teacher(recipe, data, store.builder()).map_err(named)?;
    Ok(store)
}

/// The variables of the teacher before any training here: those of `teacher.checkpoint`, where there is one.
pub(crate) fn starting_teacher<W: Workload>(
    recipe: &RecipeOf<W>,
    data: &W::Data,
    device: &Device,
) -> Result<VarStore> {
    let store = fresh_teacher(recipe, data, device)?;
    let Some(path) = &recipe.teacher.checkpoint else { return Ok(store) };
    let named = |e| Error::Msg(format!("teacher.checkpoint: {}", crate::plain(&e)));
    let path = &hub::local(path).map_err(named)?;
    let key = key_of(path, &recipe.teacher.checkpoint_key);
    let under = recipe.teacher.checkpoint_prefix.clone();
    let prefix = W::TEACHER_PREFIX.map(str::to_owned);
    let options = LoadOptions { key, under, prefix, ..LoadOptions::default() };
    load_weights(&store, path, &options).map_err(named)?;
    Ok(store)
}

/// Trainable values of the teacher alone.
pub(crate) fn teacher_parameters<W: Workload>(store: &VarStore) -> usize {
    let own = |name: &str| {
        W::TEACHER_PREFIX.is_none_or(|p| name.strip_prefix(p).is_some_and(|n| n.starts_with('.')))
    };
    let all = store.parameters().into_iter().filter(|(name, _)| own(name));
    all.map(|(_, var)| var.elem_count()).sum()
}

/// Sets the student's variables, which `store` holds already, to those of the recipe's `[init]`, if it has one.
pub(crate) fn start_student<W: Workload>(recipe: &RecipeOf<W>, store: &VarStore) -> Result<()> {
    let Some(init) = &recipe.init else { return Ok(()) };
    let named = |e: Error| Error::Msg(format!("init: {}", crate::plain(&e)));
    let path = &hub::local(&init.checkpoint).map_err(named)?;
    let options = LoadOptions {
        key: key_of(path, &init.key),
        under: init.prefix.clone(),
        prefix: Some(match &init.part {
            Some(part) => format!("{STUDENT}.{part}"),
            None => STUDENT.to_owned(),
        }),
        allow: init.allow.clone(),
    };
    let found = load_weights(store, path, &options).map_err(named)?;
    match found.matched.is_empty() {
        true => {
            bail!("init: {}: expected weights of the student, got none: {found}", path.display())
        }
        false => Ok(()),
    }
}

/// The key of a checkpoint; a `.safetensors` file has none, so that a recipe for a .pth also takes the same weights as that.
fn key_of(path: &Path, key: &Option<String>) -> Option<String> {
    let flat = path.extension().is_some_and(|e| e == "safetensors");
    key.clone().filter(|_| !flat)
}

pub(crate) fn term_weights<W: Workload>(
    recipe: &RecipeOf<W>,
    arm: &ArmConfig,
) -> BTreeMap<String, f64> {
    let label = f64::from(arm.labels != LabelBudget::None);
    let taps = recipe.distill.tap.iter();
    let mut all: Vec<(String, f64)> = match arm.method(&recipe.distill).loss.is_rooted() {
        true => vec![("feature".to_owned(), arm.features)],
        false => taps
            .map(|tap| (format!("feature.{}", tap.student), arm.features * tap.weight))
            .collect(),
    };
    all.extend([("logits".to_owned(), arm.logits), ("label".to_owned(), label)]);
    all.into_iter().filter(|(_, weight)| *weight > 0.).collect()
}

/// The width of a network's tap.
pub(crate) fn width(side: &str, taps: &BTreeMap<String, usize>, name: &str) -> Result<usize> {
    match taps.get(name) {
        Some(width) => Ok(*width),
        None => {
            let known: Vec<&str> = taps.keys().map(String::as_str).collect();
            bail!("distill.tap: {side}: expected one of {}, got {name}", known.join(", "))
        }
    }
}

/// A distiller of rows of features; `widths` are those of the student's and the teacher's taps, `stacked` the layers that a tap
/// stacks.
pub(crate) fn distiller<W: Workload>(
    recipe: &RecipeOf<W>,
    arm: &ArmConfig,
    widths: &[BTreeMap<String, usize>; 2],
    stacked: impl Fn(&TapNames) -> usize,
    store: &VarStore,
) -> Result<Distiller> {
    let method = arm.method(&recipe.distill);
    // Built even where the arm has no feature term, so that a wrong name never rests in a recipe.
    let tap = |names: &TapNames| tap(names, widths, stacked(names), arm, &method, recipe.seed);
    let taps = method.tap.iter().map(tap).collect::<Result<Vec<_>>>()?;
    let taps = if arm.features > 0. { taps } else { vec![] };
    let logits = (arm.logits > 0.)
        .then_some(LogitLoss { temperature: method.temperature, weight: arm.logits });
    let distance = match arm.logit_loss {
        None | Some(LogitLossKind::Kl) => LogitDistance::Kl,
        Some(LogitLossKind::Dist) => LogitDistance::Dist,
        Some(LogitLossKind::LogitStandardization) => LogitDistance::Standardized,
        Some(LogitLossKind::Dkd) => {
            let (alpha, beta) = arm.dkd_weights();
            LogitDistance::Decoupled { alpha, beta }
        }
    };
    let distiller = Distiller::new(taps, logits, store.builder().pp(PROJECTOR))?;
    let distiller = distiller.with_logit_distance(distance);
    match method.loss.is_rooted() {
        true => distiller.with_root(arm.features),
        false => Ok(distiller),
    }
}

/// The projector of an arm.
pub(crate) fn projector(
    arm: &ArmConfig,
    method: &DistillConfig,
    teacher_width: usize,
    seed: u64,
) -> Result<ProjectorConfig> {
    let map = method.map.parse().map_err(|e| of_method("map", arm.map.is_some(), &e))?;
    Ok(match arm.projector {
        ProjectorKind::Orthogonal => ProjectorConfig::Orthogonal(OrthogonalConfig::new(map, seed)),
        ProjectorKind::OrthogonalAffine => {
            ProjectorConfig::OrthogonalAffine(OrthogonalConfig::new(map, seed))
        }
        ProjectorKind::Linear => ProjectorConfig::Linear,
        ProjectorKind::Mlp => ProjectorConfig::Mlp { hidden: arm.hidden.unwrap_or(teacher_width) },
        ProjectorKind::AsPublished => ProjectorConfig::Published { seed },
        ProjectorKind::None => ProjectorConfig::Identity,
    })
}

/// The normalisers of an arm, the student's and the teacher's.
pub(crate) fn normalizers(arm: &ArmConfig, method: &DistillConfig) -> Result<[Normalizer; 2]> {
    let student = method.student_normalizer.parse();
    let teacher = method.teacher_normalizer.parse();
    Ok([
        student
            .map_err(|e| of_method("student_normalizer", arm.student_normalizer.is_some(), &e))?,
        teacher
            .map_err(|e| of_method("teacher_normalizer", arm.teacher_normalizer.is_some(), &e))?,
    ])
}

/// A fault of a key that stands in the arm's table or in the one that all share.
fn of_method(key: &str, own: bool, e: &Error) -> Error {
    let table = if own { "arm" } else { "distill" };
    Error::Msg(format!("{table}.{key}: {}", crate::plain(e)))
}

/// What an arm compares features by.
pub(crate) fn feature_loss(method: &DistillConfig) -> Result<FeatureLoss> {
    Ok(match method.loss {
        LossKind::SmoothL1 => FeatureLoss::SmoothL1 { beta: method.beta },
        LossKind::Mse => FeatureLoss::Mse,
        LossKind::Spkd => FeatureLoss::Spkd,
        LossKind::Pkt => FeatureLoss::Pkt,
        LossKind::RkdDistance => FeatureLoss::RkdDistance,
        LossKind::RkdAngle => FeatureLoss::RkdAngle,
        LossKind::TokenMatching => FeatureLoss::TokenL2,
        LossKind::KdDlgan => {
            bail!("distill.loss: expected kd_dlgan with task = \"generation\" alone")
        }
    })
}

/// One tap of an arm; `widths` are the two networks' by name.
fn tap(
    names: &TapNames,
    widths: &[BTreeMap<String, usize>; 2],
    stacked: usize,
    arm: &ArmConfig,
    method: &DistillConfig,
    seed: u64,
) -> Result<TapConfig> {
    let student_width = width("student", &widths[0], &names.student)?;
    let teacher_width = width("teacher", &widths[1], &names.teacher)?;
    let [student_normalizer, teacher_normalizer] = normalizers(arm, method)?;
    Ok(TapConfig {
        student: names.student.clone(),
        student_width,
        teacher: names.teacher.clone(),
        teacher_width,
        projector: projector(arm, method, teacher_width, seed)?,
        student_normalizer,
        teacher_normalizer,
        loss: feature_loss(method)?,
        weight: match method.loss.is_rooted() {
            // The arm's weight stands before the root.
            true => names.weight * stacked as f64,
            false => arm.features * names.weight,
        },
    })
}
