//! What a recipe of generation can't ask for.

use super::extractor::Extractor;
use super::judge;
use super::matching::judge_model;
use crate::data::Dataset;
use crate::recipe::{
    ArmConfig, ComputeKind, DistillConfig, GanTeacherModel, GenerationRecipe, LabelBudget,
    LossKind, TaskKind, not_with,
};
use candle_core::{Device, Result, bail};

/// See [`Workload::check`](crate::Workload::check).
pub(super) fn recipe(recipe: &GenerationRecipe) -> Result<()> {
    recipe.data.check()?;
    recipe.criterion.check()?;
    let (data, training, teacher) = (&recipe.data, &recipe.training, &recipe.teacher);
    let mut refused = vec![
        // The generator's values run from -1 to 1, so real ones do too.
        ("data.mean".to_owned(), data.mean.is_some()),
        ("data.std".to_owned(), data.std.is_some()),
        ("data.augment.mixup and cutmix".to_owned(), data.augment.mixes()),
        ("training.labelled".to_owned(), training.labelled > 0),
        ("training.smoothing".to_owned(), training.smoothing > 0.),
        ("training.compute = \"bf16\"".to_owned(), training.compute != ComputeKind::F32),
        ("teacher.cache".to_owned(), teacher.cache.is_some()),
        ("init".to_owned(), recipe.init.is_some()),
        (
            "teacher.compute = \"bf16\" of CLIP".to_owned(),
            teacher.compute != ComputeKind::F32
                && matches!(teacher.model, GanTeacherModel::Clip(_)),
        ),
        ("distill.padding".to_owned(), recipe.distill.padding != Default::default()),
    ];
    for (name, arm) in &recipe.arm {
        let method = arm.method(&recipe.distill);
        refused.extend([
            (format!("arm.{name}.labels = \"none\""), arm.labels == LabelBudget::None),
            (format!("arm.{name}.logits"), arm.logits > 0.),
            (format!("arm.{name}.logit_loss"), arm.logit_loss.is_some()),
            (format!("arm.{name}: the loss token_matching"), method.loss.is_rooted()),
        ]);
        let whitens = method.teacher_normalizer.starts_with("whiten");
        let own =
            [("covariance", arm.covariance.is_some()), ("shrinkage", arm.shrinkage.is_some())];
        if let Some((key, _)) = own.iter().find(|(_, given)| *given && !whitens) {
            bail!("arm.{name}.{key}: expected it beside a teacher_normalizer that whitens")
        }
        if arm.texts.is_some() && method.loss != LossKind::KdDlgan {
            bail!("arm.{name}.texts: expected it beside the loss kd_dlgan, got another")
        }
        if has_texts(&method) && method.teacher_normalizer != "identity" {
            bail!(
                "arm.{name}: expected teacher_normalizer = \"identity\" beside texts, which are compared with the teacher's features \
                 as they are, got {}",
                method.teacher_normalizer
            )
        }
        if arm.generated.is_some() && arm.features == 0. {
            bail!("arm.{name}.generated: expected it beside features above 0, got no features")
        }
    }
    let refused: Vec<(&str, bool)> = refused.iter().map(|(key, on)| (key.as_str(), *on)).collect();
    not_with(TaskKind::Generation, &refused)?;
    let compares = |arm: &ArmConfig| has_texts(&arm.method(&recipe.distill));
    if recipe.distill.texts.is_some() && !recipe.arm.values().any(compares) {
        bail!("distill.texts: expected an arm with the loss kd_dlgan, got none")
    }
    if recipe.distill.tap.len() != 1 {
        bail!("distill.tap: expected one for a GAN, got {}", recipe.distill.tap.len())
    }
    if let GanTeacherModel::Clip(_) = teacher.model {
        if teacher.checkpoint.is_none() {
            bail!(
                "teacher.checkpoint: expected CLIP's weights with teacher.model.kind = \"clip\", got none"
            )
        }
        if recipe.criterion.judge.is_none() {
            bail!("criterion.judge: expected a classifier beside CLIP, which is none, got none")
        }
    }
    Ok(())
}

/// See [`Workload::check_data`](crate::Workload::check_data).
pub(super) fn with_data(recipe: &GenerationRecipe, data: &Dataset) -> Result<()> {
    let made = recipe.student.generator.image_size();
    if made != data.size {
        bail!(
            "student.generator: expected bottom · 2^stages to be the data's {} pixels, got {made}",
            data.size
        )
    }
    let (samples, classes) = (recipe.criterion.samples, data.class_names.len());
    if samples < classes {
        bail!(
            "criterion.samples: expected at least one for each of {classes} classes, got {samples}"
        )
    }
    let needed = recipe.criterion.neighbours + 1;
    for (part, indices) in [("validation", &data.validation), ("test", &data.test)] {
        if indices.len() < needed {
            bail!(
                "data: expected at least {needed} {part} images for the {} neighbours of criterion.neighbours, got {}",
                recipe.criterion.neighbours,
                indices.len()
            )
        }
    }
    Extractor::of(&recipe.criterion, &Device::Cpu)?;
    judge::width(&judge_model(recipe, data)?).map(|_| ())
}

/// Whether the loss has terms of texts.
pub(super) fn has_texts(method: &DistillConfig) -> bool {
    method.loss == LossKind::KdDlgan && method.texts.is_some()
}
