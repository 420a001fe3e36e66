//! Detection as a user meets it: distil, score, draw, predict, compare.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::{bad, good, vkd};

const SCENES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vkd-train/tests/scenes.toml");
/// Long enough that something is found.
const LONGER: [&str; 6] = [
    "--set",
    "training.steps=80",
    "--set",
    "training.evaluate_every=40",
    "--set",
    "teacher.steps=80",
];

#[test]
fn a_detector_is_distilled_scored_drawn_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let table = good(at, &[&["distill", SCENES], &LONGER[..]].concat());
    for part in ["teacher", "token-matching", "4·feature.neck1", "2·feature.neck2", "max|WᵀW−I|"]
    {
        assert!(table.contains(part), "{part}: {table}");
    }
    let run = at.join("runs/scenes-seed0");
    let report = std::fs::read(run.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["task"], "detection");
    let ap = report["arms"][2]["metrics"]["ap"].as_f64().unwrap();
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    for part in ["<h2>Test images</h2>", "data:image/png;base64,", "test AP (%)", "Validation AP"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("binomial"), "an AP is no share of images");

    let student = "runs/scenes-seed0/student.safetensors";
    let text = good(at, &["eval", student]);
    assert!(text.contains(&format!("AP {ap:.4} on 6 test images")), "{text}");
    let files = ["--results", "found.json", "--pictures", "pictures/found.svg", "--json"];
    let json = good(at, &[&["eval", student], &files[..]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["ap"], &json["images"]), (&ap.into(), &6.into()));
    let found: serde_json::Value =
        serde_json::from_slice(&std::fs::read(at.join("found.json")).unwrap()).unwrap();
    assert!(found.as_array().is_some_and(|all| !all.is_empty() && all[0]["score"].is_f64()));
    let svg = std::fs::read_to_string(at.join("pictures/found.svg")).unwrap();
    assert_eq!(svg.matches("<image ").count(), 6);

    good(at, &["scenes", "--out", "coco", "--count", "1", "--validation", "1", "--test", "1"]);
    let text = good(at, &["predict", student, "coco/test/000001.png"]);
    assert!(text.starts_with("coco/test/000001.png: ") && text.contains("found with"), "{text}");

    let digits = bad(at, &["eval", student, SCENES, "--set", "student.neck=4", "--set", "x=1"]);
    assert!(digits.contains("--set x=1"), "{digits}");
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../vkd-train/tests/tiny.toml");
    assert!(bad(at, &["eval", student, tiny]).contains("expected a recipe of the detector's task"));
}

#[test]
fn arms_are_compared_over_seeds_and_never_twice() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let words = ["compare", SCENES, "--arms", "none,vkd", "--seeds", "2", "--results", "kept"];
    let out = vkd(at, &words);
    let log = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && log.contains("0 of 4 runs found in kept"), "{log}");
    let table = String::from_utf8_lossy(&out.stdout).into_owned();
    for part in ["Task detection", "test AP (%), mean ± sd", "| vkd − none ", "AP50 (%)"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let page = || std::fs::read_to_string(at.join("runs/scenes-compare/report.html")).unwrap();
    let drawn = page();
    for part in ["<h3>none, seed 0</h3>", "<h3>vkd, seed 0</h3>", "data:image/png;base64,"] {
        assert!(drawn.contains(part), "{part}");
    }
    assert!(!drawn.contains("seed 1</h3>"), "of one seed alone");
    // Results without the runs that made them.
    std::fs::remove_dir_all(at.join("runs/scenes-compare/runs")).unwrap();
    let again = vkd(at, &words);
    assert!(!page().contains("data:image/png"));
    let log = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(log.contains("4 of 4 runs found in kept") && !log.contains("validation"), "{log}");
    let plot = good(at, &["compare", "--from", "kept", "--plot", "curves.svg"]);
    assert!(plot.contains("Task detection"));
    let svg = std::fs::read_to_string(at.join("curves.svg")).unwrap();
    assert!(svg.contains("Validation AP: scenes of UCI handwritten digits"), "{svg}");
}

#[test]
fn a_dry_run_and_the_doctor_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let text = good(at, &["distill", SCENES, "--dry-run"]);
    assert!(text.contains("12 training, 4 validation, 6 test images, 10 classes"), "{text}");
    assert!(text.contains("multiply-adds an image"), "{text}");
    let text = good(at, &["doctor", SCENES, "--decode"]);
    assert!(text.contains("boxes") && text.contains("all 22 decoded"), "{text}");
    let source = "data.source={ kind = \"coco\", dir = \"absent\", validation = 1 }";
    let absent = bad(at, &["distill", SCENES, "--set", source]);
    assert!(absent.contains("absent"), "{absent}");
    let taps = "distill.tap=[{ student = \"neck1\", teacher = \"neck2\" }]";
    let apart = bad(at, &["distill", SCENES, "--dry-run", "--set", taps]);
    assert!(apart.contains("neck1") && apart.contains("without channels"), "{apart}");
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0);
}
