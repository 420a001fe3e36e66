//! COCO's average precision against pycocotools' own figures, and laws of it.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::Result;
use serde_json::Value;
use std::path::PathBuf;
use vkd_tasks::Detection;
use vkd_train::metrics::{
    Annotation, AveragePrecision, GroundTruth, ScoredBox, average_precision, write_results,
};

fn golden(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../vkd-testkit/golden/coco_ap");
    let text = std::fs::read_to_string(PathBuf::from(folder).join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(list: &Value) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|v| v["id"].as_u64().unwrap()).collect()
}

fn truth(file: &Value) -> GroundTruth {
    let annotations = file["annotations"].as_array().unwrap().iter().map(|a| Annotation {
        image_id: a["image_id"].as_u64().unwrap(),
        category_id: a["category_id"].as_u64().unwrap(),
        bbox: std::array::from_fn(|i| a["bbox"][i].as_f64().unwrap()),
        area: a["area"].as_f64().unwrap(),
        crowd: a["iscrowd"].as_u64().unwrap() == 1,
    });
    GroundTruth {
        images: ids(&file["images"]),
        categories: ids(&file["categories"]),
        annotations: annotations.collect(),
    }
}

fn case(name: &str) -> (GroundTruth, Vec<ScoredBox>) {
    let found = serde_json::from_value(golden(&format!("{name}.dt.json"))).unwrap();
    (truth(&golden(&format!("{name}.gt.json"))), found)
}

#[test]
fn all_figures_are_pycocotools_own() -> Result<()> {
    let stats = golden("stats.json");
    let cases = stats["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 10);
    for (name, want) in cases {
        let (truth, found) = case(name);
        let got = average_precision(&truth, &found)?;
        for (i, value) in got.stats().into_iter().enumerate() {
            let want = want["stats"][i].as_f64().unwrap();
            // Only the order of sums differs.
            assert!((value - want).abs() < 1e-12, "{name} {}: {value} {want}", stats["names"][i]);
        }
        let by_category = want["per_category"].as_object().unwrap();
        assert_eq!(got.categories.len(), by_category.len(), "{name}");
        for one in &got.categories {
            let want = &by_category[&one.category_id.to_string()];
            for (key, value) in [("ap", one.ap), ("ap50", one.ap50), ("ar100", one.ar100)] {
                let (value, want) = (value.unwrap_or(-1.), want[key].as_f64().unwrap());
                assert!((value - want).abs() < 1e-12, "{name} {} {key}", one.category_id);
            }
        }
    }
    Ok(())
}

#[test]
fn the_number_of_threads_changes_no_bit() -> Result<()> {
    let (truth, found) = case("over_100_detections");
    let with = |threads| -> Result<AveragePrecision> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| average_precision(&truth, &found))
    };
    assert_eq!(with(1)?, with(3)?);
    Ok(())
}

#[test]
fn monotone_scores_and_new_ids_change_nothing() -> Result<()> {
    let (truth, found) = case("crowds");
    let want = average_precision(&truth, &found)?;
    let rescored = found.iter().map(|b| ScoredBox { score: b.score.powi(3) - 5., ..*b });
    assert_eq!(average_precision(&truth, &rescored.collect::<Vec<_>>())?.stats(), want.stats());
    // Other ids, in the same order.
    let id = |id: u64| 7 * id + 3;
    let mut renamed = truth.clone();
    renamed.images.iter_mut().chain(&mut renamed.categories).for_each(|old| *old = id(*old));
    for a in &mut renamed.annotations {
        (a.image_id, a.category_id) = (id(a.image_id), id(a.category_id));
    }
    let others = found.iter().map(|b| ScoredBox {
        image_id: id(b.image_id),
        category_id: id(b.category_id),
        ..*b
    });
    let got = average_precision(&renamed, &others.collect::<Vec<_>>())?;
    assert_eq!(got.stats(), want.stats());
    assert_eq!(got.categories[0].category_id, id(want.categories[0].category_id));
    // Twice the size, at twice the place: all but the size classes stay.
    let mut large = truth.clone();
    for a in &mut large.annotations {
        a.bbox = a.bbox.map(|v| 2. * v);
        a.area *= 4.;
    }
    let scaled = found.iter().map(|b| ScoredBox { bbox: b.bbox.map(|v| 2. * v), ..*b });
    let got = average_precision(&large, &scaled.collect::<Vec<_>>())?;
    assert_eq!((got.ap, got.ap50, got.ar1, got.ar100), (want.ap, want.ap50, want.ar1, want.ar100));
    Ok(())
}

#[test]
fn results_are_a_list_that_comes_back() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("results.json");
    let detection = Detection { bbox: [1., 2., 4., 8.], class: 0, score: 0.5 };
    let found = vec![ScoredBox::new(42, 90, &detection)];
    write_results(&path, &found)?;
    let text = std::fs::read_to_string(&path)?;
    assert_eq!(text, r#"[{"image_id":42,"category_id":90,"bbox":[1.0,2.0,3.0,6.0],"score":0.5}]"#);
    assert_eq!(serde_json::from_str::<Vec<ScoredBox>>(&text).unwrap(), found);
    let nan = ScoredBox { score: f64::NAN, ..found[0].clone() };
    let e = write_results(&path, &[nan]).unwrap_err().to_string();
    assert!(e.contains("results.json: detection 0: expected finite numbers"), "{e}");
    assert_eq!(std::fs::read_to_string(&path)?, text);
    Ok(())
}

#[test]
fn odd_entries_are_named() -> Result<()> {
    let (truth, found) = case("basic");
    let with_box = |edit: &dyn Fn(&mut ScoredBox)| {
        let mut found = found.clone();
        edit(&mut found[3]);
        average_precision(&truth, &found).unwrap_err().to_string()
    };
    assert!(with_box(&|b| b.bbox[2] = -1.).contains("detection 3: expected a finite box"));
    assert!(with_box(&|b| b.bbox[0] = f64::NAN).contains("detection 3: expected a finite box"));
    assert!(with_box(&|b| b.score = f64::NAN).contains("detection 3: expected a score, got NaN"));
    assert!(with_box(&|b| b.image_id = 1).contains("detection 3: expected a listed image, got 1"));
    let with_object = |edit: &dyn Fn(&mut Annotation)| {
        let mut truth = truth.clone();
        edit(&mut truth.annotations[2]);
        average_precision(&truth, &found).unwrap_err().to_string()
    };
    assert!(
        with_object(&|a| a.category_id = 9999).contains("annotation 2: expected a listed image")
    );
    assert!(with_object(&|a| a.area = f64::NAN).contains("annotation 2: expected a finite area"));
    assert!(
        with_object(&|a| a.bbox[3] = f64::INFINITY).contains("annotation 2: expected a finite box")
    );
    Ok(())
}
