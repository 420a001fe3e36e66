//! How an arm's discriminator meets the teacher.

use super::JudgedTeacher;
use super::classification::model;
use super::texts::texts;
use crate::batches::readable_images;
use crate::build::{feature_loss, normalizers, projector, width};
use crate::data::Dataset;
use crate::metrics::Moments;
use crate::recipe::{
    ArmConfig, CovarianceKind, GanTeacherModel, GenerationRecipe, LabelBudget, LossKind,
};
use crate::score::EVALUATION_BATCH;
use candle_core::{Result, bail};
use vkd_models::ModelConfig;
use vkd_nn::VarStore;
use vkd_norm::{Normalizer, Shrinkage, WhitenConfig, Whitener};
use vkd_tasks::{
    ClassificationAdapter, DISCRIMINATOR, FeatureAdapter, GenerationDistiller, GenerationLoss,
    GenerationTap, Teacher, TeacherNormalizer,
};

/// Share of a gathered covariance that a batch leaves: it is that of some hundred batches.
const KEEP: f64 = 0.99;

/// The judge as this data set wants it.
pub(super) fn judge_model(recipe: &GenerationRecipe, data: &Dataset) -> Result<ModelConfig> {
    match (&recipe.criterion.judge, &recipe.teacher.model) {
        (Some(architecture), _) | (None, GanTeacherModel::Classifier(architecture)) => {
            Ok(model(architecture, data))
        }
        (None, GanTeacherModel::Clip(_)) => {
            bail!("criterion.judge: expected a classifier beside a teacher that is none, got none")
        }
    }
}

/// The images that an arm's GAN may see.
pub(super) fn seen(
    recipe: &GenerationRecipe,
    data: &Dataset,
    arm: &ArmConfig,
) -> Result<Vec<usize>> {
    match arm.labels {
        LabelBudget::Few => data.labelled(recipe.data.labels, recipe.seed),
        _ => Ok(data.train.clone()),
    }
}

/// The whitening of the teacher's features of the images that the GAN may see.
fn whitening(
    teacher: &Teacher,
    tap: &str,
    config: WhitenConfig,
    data: &Dataset,
    indices: &[usize],
) -> Result<Normalizer> {
    let mut gathered: Option<Moments> = None;
    for chunk in indices.chunks(EVALUATION_BATCH) {
        let (images, read) = readable_images(data, chunk, data.preprocessing())?;
        if read.is_empty() {
            continue;
        }
        let taps = teacher.forward(&images)?.taps;
        let Some(features) = taps.get(tap) else {
            bail!("distill.tap: expected the teacher's tap {tap}, got none")
        };
        let rows = Moments::from_rows(&ClassificationAdapter.adapt(features)?, None)?;
        match &mut gathered {
            Some(all) => all.merge(&rows)?,
            None => gathered = Some(rows),
        }
    }
    match gathered {
        Some(moments) => Ok(Normalizer::Precomputed(Whitener::new(&moments, config)?)),
        None => bail!("distill.covariance: expected images to gather it from, got none"),
    }
}

/// The distiller of an arm; see [`Workload::distiller`](crate::Workload::distiller).
pub(super) fn distiller(
    recipe: &GenerationRecipe,
    arm: &ArmConfig,
    data: &Dataset,
    store: &VarStore,
    teacher: Option<&JudgedTeacher>,
) -> Result<GenerationDistiller> {
    let method = arm.method(&recipe.distill);
    let [names] = &method.tap[..] else {
        bail!("distill.tap: expected one for a GAN, got {}", method.tap.len())
    };
    let taps = match &recipe.teacher.model {
        GanTeacherModel::Classifier(m) => model(m, data).taps(),
        GanTeacherModel::Clip(clip) => clip.sizes.taps(),
    };
    let student_width = width("student", &recipe.student.discriminator.taps(), &names.student)?;
    let teacher_width = width("teacher", &taps, &names.teacher)?;
    let [student_normalizer, normalizer] = normalizers(arm, &method)?;
    let teacher_normalizer = match normalizer {
        Normalizer::Whiten(config) => {
            let own = method.shrinkage.map(Shrinkage::Fixed);
            let whiten = WhitenConfig { shrinkage: own.unwrap_or(config.shrinkage), ..config };
            match (method.covariance, teacher) {
                (CovarianceKind::Running, _) => TeacherNormalizer::Running { whiten, keep: KEEP },
                (CovarianceKind::Data, Some(teacher)) => {
                    let seen = seen(recipe, data, arm)?;
                    TeacherNormalizer::Fixed(whitening(
                        &teacher.teacher,
                        &names.teacher,
                        whiten,
                        data,
                        &seen,
                    )?)
                }
                // Without a teacher yet only numbers are checked.
                _ => TeacherNormalizer::Fixed(Normalizer::Whiten(whiten)),
            }
        }
        other => TeacherNormalizer::Fixed(other),
    };
    let tap = GenerationTap {
        student: names.student.clone(),
        student_width,
        teacher: names.teacher.clone(),
        teacher_width,
        projector: projector(arm, &method, teacher_width, recipe.seed)?,
        student_normalizer,
        teacher_normalizer,
        together: true,
        loss: match method.loss {
            LossKind::KdDlgan => {
                let file = method.texts.as_deref();
                let texts = file.map(|path| texts(path, data, teacher_width)).transpose()?;
                GenerationLoss::KdDlgan { texts }
            }
            _ => GenerationLoss::Feature(feature_loss(&method)?),
        },
        real_weight: arm.features * names.weight,
        generated_weight: arm.generated.unwrap_or(arm.features) * names.weight,
    };
    GenerationDistiller::new(tap, store.builder().pp(DISCRIMINATOR).pp("projector"))
}
