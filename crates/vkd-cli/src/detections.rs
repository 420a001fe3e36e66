//! What a saved detector finds: scores, results and pictures.

use crate::eval::Args;
use crate::report::scenes::{self, Scene};
use candle_core::{Error, Result, bail};
use vkd_models::{DetectorStudent, write_atomically};
use vkd_train::metrics::{AveragePrecision, ScoredBox, write_results};
use vkd_train::{DetectionDataConfig, DetectionDataset, DetectionRecipe, evaluate_detector};

/// Images of a file of pictures.
const PICTURES: usize = 12;

/// `vkd eval` of a detector.
pub(crate) fn eval(args: &Args, recipe: &DetectionRecipe) -> Result<()> {
    let device = args.device.open(recipe.training.device)?;
    let student = DetectorStudent::load(&args.student, &device)?;
    let data = DetectionDataset::open(&recipe.data)?;
    let (indices, name) = args.split.of([&data.train, &data.validation, &data.test]);
    if indices.is_empty() {
        bail!("eval: expected {name} images, got none in {}", data.name)
    }
    let batch = recipe.training.batch;
    let (scores, found) = evaluate_detector(&student, &data, &recipe.data, indices, batch)?;
    if let Some(path) = &args.results {
        write_results(path, &found)?;
    }
    if let Some(path) = &args.pictures {
        let first = &indices[..indices.len().min(PICTURES)];
        let drawn = drawn(&data, first, &found)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write_atomically(path, scenes::picture(&drawn).as_bytes())?;
    }
    if args.json {
        let mut json = serde_json::to_value(&scores).map_err(Error::wrap)?;
        json["student"] = args.student.display().to_string().into();
        json["dataset"] = data.name.clone().into();
        json["split"] = name.into();
        json["images"] = indices.len().into();
        json["class_names"] = data.class_names.clone().into();
        let text = serde_json::to_string(&json).map_err(Error::wrap)?;
        return crate::print(&format!("{text}\n"));
    }
    crate::print(&format!(
        "{}: AP {} on {} {name} images of {} (recipe {})\n{}",
        args.student.display(),
        share(scores.ap),
        indices.len(),
        data.name,
        recipe.name,
        table(&scores, &data)?
    ))
}

/// Four digits, and a dash where there was nothing to find.
fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"))
}

fn table(scores: &AveragePrecision, data: &DetectionDataset) -> Result<String> {
    let mut text = format!(
        "AP50 {}, AP75 {}; small {}, medium {}, large {}\nAR1 {}, AR10 {}, AR100 {}; small {}, medium {}, large {}\n\n",
        share(scores.ap50),
        share(scores.ap75),
        share(scores.ap_small),
        share(scores.ap_medium),
        share(scores.ap_large),
        share(scores.ar1),
        share(scores.ar10),
        share(scores.ar100),
        share(scores.ar_small),
        share(scores.ar_medium),
        share(scores.ar_large)
    );
    let width = data.class_names.iter().map(|n| n.chars().count()).fold(5, usize::max);
    text += &format!("{:>width$} {:>7} {:>7} {:>7}\n", "class", "AP", "AP50", "AR100");
    for (class, name) in data.class_names.iter().enumerate() {
        let id = data.category_id(class as u32)?;
        let Some(own) = scores.categories.iter().find(|c| c.category_id == id) else { continue };
        let [ap, ap50, ar] = [own.ap, own.ap50, own.ar100].map(share);
        text += &format!("{name:>width$} {ap:>7} {ap50:>7} {ar:>7}\n");
    }
    Ok(text)
}

/// The pictures of images `indices` with what is there and what was found in them.
pub(crate) fn drawn(
    data: &DetectionDataset,
    indices: &[usize],
    found: &[ScoredBox],
) -> Result<Vec<Scene>> {
    let name = |category: u64| {
        let classes = data.class_names.iter().enumerate();
        let mut own = classes
            .filter(|(class, _)| data.category_id(*class as u32).is_ok_and(|id| id == category));
        own.next().map_or_else(|| category.to_string(), |(_, name)| name.clone())
    };
    let one = |index: &usize| -> Result<Scene> {
        let (image, _) = data.sample(*index)?;
        let id = data.image_id(*index)?;
        let there = data.annotations(*index)?;
        let of = |class: u32| data.class_names.get(class as usize).cloned().unwrap_or_default();
        let here = found.iter().filter(|b| b.image_id == id);
        Ok(Scene {
            image,
            truth: there.iter().map(|a| (a.bbox, of(a.class))).collect(),
            found: here.map(|b| (b.bbox, name(b.category_id), b.score)).collect(),
        })
    };
    indices.iter().map(one).collect()
}

/// What a saved detector finds in images `indices`.
pub(crate) fn of_student(
    student: &DetectorStudent,
    data: &DetectionDataset,
    config: &DetectionDataConfig,
    indices: &[usize],
) -> Result<Vec<Scene>> {
    let (_, found) = evaluate_detector(student, data, config, indices, indices.len())?;
    drawn(data, indices, &found)
}
