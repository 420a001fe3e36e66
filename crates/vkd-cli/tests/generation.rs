//! Generation as a user meets it: distil, look, score, draw, compare.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use candle_core::{Device, Tensor};
use common::{bad, good, vkd};
use std::collections::HashMap;
use std::path::Path;
use vkd_models::{InceptionConfig, InceptionVariant};

const GAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vkd-train/tests/gan.toml");

#[test]
fn a_generator_is_distilled_scored_and_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let plan = good(at, &["distill", GAN, "--dry-run"]);
    assert!(plan.contains("generator.hinge") && plan.contains("nothing was written"), "{plan}");
    let table = good(at, &["distill", GAN]);
    for part in ["teacher", "fitnet", "discriminator.real.pooled", "max|WᵀW−I|"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let run = at.join("runs/gan-seed0");
    let report = std::fs::read(run.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["task"], "generation");
    let frechet = report["arms"][2]["metrics"]["frechet"].as_f64().unwrap();
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    for part in [
        "<h2>Samples</h2>",
        "data:image/png;base64,",
        "test Fréchet distance",
        "Validation Fréchet distance",
        "Discriminator on real images",
        "accuracy on the test images",
        "with the lowest test Fréchet distance",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("binomial") && !page.contains("(pp)"), "a distance is no share");

    // The run's student is vkd's or the first arm's.
    let student = "runs/gan-seed0/arms/vkd-whiten/student.safetensors";
    let text = good(at, &["eval", student]);
    assert!(text.contains("40 samples against 1647 test images"), "{text}");
    assert!(text.contains(&format!("frechet          {frechet:.4}")), "{text}");
    let json = good(at, &["eval", student, "--split", "validation", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["coverage"].is_f64() && json["split"] == "validation", "{json}");

    let text = good(at, &["sample", student, "--count", "7", "--out", "a/grid.png"]);
    assert!(text.contains("7 samples in a/grid.png"), "{text}");
    let size = |name: &str| image::image_dimensions(at.join(name)).unwrap();
    assert_eq!(size("a/grid.png"), (7 * 9 - 1, 8));
    let drawn = ["sample", student, "--count", "5", "--classes", "3,8", "--dir", "drawn"];
    good(at, &drawn);
    for name in ["3/000000", "8/000001", "3/000002", "8/000003", "3/000004"] {
        assert_eq!(size(&format!("drawn/{name}.png")), (8, 8));
    }
    let before = std::fs::read(at.join("drawn/3/000004.png")).unwrap();
    good(at, &[&drawn[..], &["--seed", "1"]].concat());
    assert_ne!(std::fs::read(at.join("drawn/3/000004.png")).unwrap(), before);

    let no = bad(at, &["sample", student, "--classes", "x", "--out", "b.png"]);
    assert!(no.contains("--classes: expected some of 0, 1, 2") && no.contains("got x"), "{no}");
    assert!(bad(at, &["sample", student, "--count", "0", "--out", "b.png"]).contains("--count"));
    let png = ["predict", student, "a/grid.png"];
    assert!(bad(at, &png).contains("vkd sample"), "{}", bad(at, &png));
    std::fs::create_dir(at.join("bare")).unwrap();
    for name in ["student.safetensors", "student.json"] {
        std::fs::copy(at.join(student).with_file_name(name), at.join("bare").join(name)).unwrap();
    }
    let bare = bad(at, &["eval", "bare/student.safetensors"]);
    assert!(bare.contains("expected a generator in the folder of its run"), "{bare}");
    good(at, &["sample", "bare/student.safetensors", "--out", "c.png"]);
    assert!(good(at, &["doctor", GAN]).contains("is trained first; all sizes fit"));
}

#[test]
fn gans_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let args = ["compare", GAN, "--arms", "none,vkd-whiten", "--seeds", "2", "--out", "grid"];
    let text = good(at, &args);
    for part in ["test Fréchet distance, mean ± sd", "coverage (%)", "vkd-whiten − none"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let page = std::fs::read_to_string(at.join("grid/report.html")).unwrap();
    assert!(page.contains("Validation Fréchet distance"));
    // A distance speaks for whom it is smaller for.
    let row = text.lines().find(|l| l.contains("vkd-whiten − none")).unwrap();
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    let mean: f64 = cells[2].replace('−', "-").parse().unwrap();
    let counts: Vec<u32> = cells[6].split(" / ").map(|n| n.parse().unwrap()).collect();
    assert_eq!(counts.iter().sum::<u32>(), 2, "{row}");
    if counts[0] == 2 {
        assert!(mean <= 0., "{row}");
    }
    if counts[2] == 2 {
        assert!(mean >= 0., "{row}");
    }
    let again = String::from_utf8_lossy(&vkd(at, &args).stderr).into_owned();
    assert!(again.contains("4 of 4 runs found"), "{again}");
}

/// A narrow Inception-v3: norms that change nothing, and other weights that differ from place to place.
fn inception(path: &Path) {
    let config =
        InceptionConfig { variant: InceptionVariant::Torchvision, image_size: 75, width: 2 };
    let weight = |name: &str, dims: &[usize]| -> candle_core::Result<Tensor> {
        let count: usize = dims.iter().product();
        match (dims.len(), name.ends_with("bn.weight") || name.ends_with("running_var")) {
            (1, gain) => Tensor::full(f32::from(u8::from(gain)), dims, &Device::Cpu),
            _ => {
                let bound = (6. * dims[0] as f64 / count as f64).sqrt();
                Tensor::arange(0f32, count as f32, &Device::Cpu)?.sin()?.reshape(dims)? * bound
            }
        }
    };
    let variables = config.variables().unwrap().into_iter();
    let tensors: HashMap<_, _> =
        variables.map(|(n, s)| (n.clone(), weight(&n, s.dims()).unwrap())).collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

#[test]
fn reports_say_whose_features_scores_are_of() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    inception(&at.join("weights.safetensors"));
    let table = r#"criterion.inception={ weights = "weights.safetensors", variant = "torchvision", image_size = 75, width = 2 }"#;
    // Few images for the test, and one arm.
    let set = ["--set", table, "--set", "data.train=1600", "--set", "training.steps=3"];
    good(at, &[&["distill", GAN, "--set", r#"arms=["none"]"#], &set[..]].concat());
    let run = at.join("runs/gan-seed0");
    let name =
        "Inception-v3 (torchvision of width 2) at 75x75 pixels, weights.safetensors, SHA-256 ";
    let report = std::fs::read(run.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let extractor = report["arms"][0]["extractor"].as_str().unwrap();
    assert!(extractor.starts_with(name), "{extractor}");
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains(&format!("pooled features of {extractor}")), "{page}");
    assert!(!page.contains("pooled features of the judge"));
    let student = "runs/gan-seed0/student.safetensors";
    let text = good(at, &["eval", student]);
    assert!(text.contains(&format!("by the features of {extractor}")), "{text}");
    let json = good(at, &["eval", student, "--json"]);
    assert!(json.contains(&format!(r#""extractor":"{extractor}""#)), "{json}");
    let args = [&["compare", GAN, "--arms", "none", "--seeds", "1", "--out", "grid"], &set[..]];
    let text = good(at, &args.concat());
    assert!(text.contains(&format!("pooled features of {extractor}")), "{text}");
    let missing = set.map(|part| part.replace("weights.safetensors", "absent.safetensors"));
    let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
    let no = bad(at, &[&["distill", GAN, "--out", "other"], &missing[..]].concat());
    assert!(no.contains("criterion.inception.weights: absent.safetensors"), "{no}");
    assert!(!at.join("other").exists(), "nothing was begun");
}
