//! What detection does beside its networks: matching, COCO's metric, batches of scenes.

use std::process::ExitCode;

use candle_core::{DType, Result, bail};
use vkd_benches::{Suite, Work, data, run};
use vkd_tasks::{DetectionBatch, ImageSize, Objects, SetCriterion, hungarian};
use vkd_train::metrics::{Annotation, AveragePrecision, GroundTruth, ScoredBox, average_precision};
use vkd_train::{DetectionBatches, DetectionDataset, DetectionRecipe};

const SCENES: &str = include_str!("../../recipes/scenes.toml");

/// Width and height of an image.
const IMAGE: [u64; 2] = [640, 480];
const CLASSES: u64 = 80;

/// Queries and objects of each image.
type Pairs = Vec<Vec<(usize, usize)>>;

/// A number of the work's request to its peer: what both must find, so that both did the same.
fn wanted(work: &Work, key: &str) -> Result<f64> {
    match work.peer.as_ref().and_then(|peer| peer.request.get(key)?.as_f64()) {
        Some(value) => Ok(value),
        None => bail!("{}: expected a number {key} in peer", work.name),
    }
}

fn same(work: &Work, key: &str, got: f64) -> Result<()> {
    let want = wanted(work, key)?;
    if (got - want).abs() > 1e-9 {
        bail!("{}: expected {key} {want}, got {got}", work.name)
    }
    Ok(())
}

/// The assignment alone, of random costs.
fn solver(work: &Work) -> Result<impl FnMut() -> Result<Vec<(usize, usize)>> + use<>> {
    let (rows, columns) = work.matrix()?;
    let costs = data((rows, columns), 1)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let total = hungarian(&costs, rows, columns)?.iter().map(|(r, c)| costs[r * columns + c]).sum();
    same(work, "total", total)?;
    Ok(move || hungarian(&costs, rows, columns))
}

/// Costs of classes and boxes, and the assignment, of one image in one level of a decoder.
fn matcher(work: &Work) -> Result<impl FnMut() -> Result<Pairs> + use<>> {
    let (queries, count) = work.matrix()?;
    let size = ImageSize { width: IMAGE[0] as usize, height: IMAGE[1] as usize };
    let logits = data((1, queries, CLASSES as usize), 1)?.affine(4., -3.)?;
    let boxes = data((1, queries, 4), 2)?.affine(0.2, 0.4)?;
    let object = |entry: u64| {
        let (class, [x, y, w, h]) = drawn_box(0, entry);
        (class as u32, [x, y, x + w, y + h].map(|v| v as f32))
    };
    let (classes, boxes_of) = (0..count as u64).map(object).unzip();
    let objects = [Objects { classes, boxes: boxes_of }];
    let criterion = SetCriterion::default();
    Ok(move || criterion.pairs(&logits, &boxes, &objects, &[size]))
}

/// A number that depends on image, entry and field alone: SplitMix64 of their place in a list. The peer draws the same.
fn draw(image: u64, entry: u64, field: u64) -> u64 {
    let place = (image * 128 + entry) * 8 + field;
    let mut z = (place + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A class and a box `[x, y, width, height]` within the image.
fn drawn_box(image: u64, entry: u64) -> (u64, [f64; 4]) {
    let of = |field| draw(image, entry, field);
    let (w, h) = (8 + of(1) % 192, 8 + of(2) % 192);
    let (x, y) = (of(3) % (IMAGE[0] - w), of(4) % (IMAGE[1] - h));
    (of(0) % CLASSES, [x, y, w, h].map(|v| v as f64))
}

/// What is there and what was found: about seven objects an image, as on COCO, one in a hundred a crowd; each is found a
/// little beside its place, an eighth of them in another class, and the other detections are of twenty classes anywhere.
fn coco(images: u64, detections: u64) -> (GroundTruth, Vec<ScoredBox>) {
    let (mut annotations, mut found) = (Vec::new(), Vec::new());
    for image in 0..images {
        let count = 1 + draw(image, 127, 0) % 14;
        let first = draw(image, 126, 0) % CLASSES;
        let image_id = image + 1;
        for entry in 0..count {
            let (class, bbox) = drawn_box(image, entry);
            let crowd = draw(image, entry, 5).is_multiple_of(100);
            let area = bbox[2] * bbox[3];
            annotations.push(Annotation { image_id, category_id: class + 1, bbox, area, crowd });
        }
        for at in 0..detections {
            let of = |field| draw(image, 16 + at, field);
            let (class, bbox, score) = if at < count {
                let (mut class, mut bbox) = drawn_box(image, at);
                for (field, side) in (1..).zip(&mut bbox) {
                    *side += (of(field) % 13) as f64 - 6.;
                }
                if of(0) % 8 == 0 {
                    class = of(0) / 8 % CLASSES;
                }
                (class, bbox, 500_000 + of(5) % 500_000)
            } else {
                let (class, bbox) = drawn_box(image, 16 + at);
                ((first + class % 20) % CLASSES, bbox, of(5) % 600_000)
            };
            let score = score as f64 / 1e6;
            found.push(ScoredBox { image_id, category_id: class + 1, bbox, score });
        }
    }
    let truth = GroundTruth {
        images: (1..=images).collect(),
        categories: (1..=CLASSES).collect(),
        annotations,
    };
    (truth, found)
}

/// All twelve figures.
fn metric(work: &Work) -> Result<impl FnMut() -> Result<AveragePrecision> + use<>> {
    let (images, detections) = work.matrix()?;
    let (truth, found) = coco(images as u64, detections as u64);
    same(work, "ap", average_precision(&truth, &found)?.stats()[0])?;
    Ok(move || average_precision(&truth, &found))
}

/// One training batch of the recipe, made within the step as it is there: a scene is drawn anew each time.
fn scenes(work: &Work) -> Result<impl FnMut() -> Result<DetectionBatch> + use<>> {
    let [batch, size] = work.shape[..] else {
        bail!("{}: expected batch and size of the image", work.name)
    };
    let set = [format!("data.source.size={size}")];
    let recipe = DetectionRecipe::parse(SCENES, "scenes.toml", &set)?;
    let data = DetectionDataset::open(&recipe.data)?;
    let mut batches = DetectionBatches::new(&data, &recipe.data, batch, recipe.seed)?;
    let mut next = 0..;
    Ok(move || batches.get(next.next().unwrap_or_default()))
}

fn main() -> ExitCode {
    run(|suite: &mut Suite| {
        suite.works("tasks/hungarian", solver)?;
        suite.works("tasks/matcher", matcher)?;
        suite.works("train/average_precision", metric)?;
        suite.works("train/scenes", scenes)
    })
}
