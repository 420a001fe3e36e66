//! From image files to a student with the recipe of the paper, at small size.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::process::{Command, Output};
use vkd_models::Student;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vkd-train/tests/tiny.toml");
const PAPER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes/imagenet-deit-ti-paper.toml");
const REGNET: &str = r#"teacher.model={kind="regnet", stem=8, widths=[8, 8, 16, 32], depths=[1, 1, 1, 1], group_width=8, squeeze=0.25}"#;
const FOLDER: [&str; 5] =
    ["data.kind=folder", "data.dir=images", "data.size=32", "data.validation=10", REGNET];

fn vkd(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vkd")).current_dir(dir).args(args).output().unwrap()
}

fn good(dir: &Path, args: &[&str], set: &[&str]) -> String {
    let set = set.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> = args.iter().copied().chain(set).collect();
    let out = vkd(dir, &args);
    assert!(out.status.success(), "vkd {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn deit_ti_trains_with_the_papers_recipe_on_jpegs() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let text = good(dir, &["images", "--out", "images", "--size", "48", "--count", "8"], &[]);
    assert!(text.contains("80 training and 20 test images"), "{text}");
    // A teacher first: the recipe takes it from a file.
    let teacher = ["data.train=60", "teacher.steps=2", "teacher.floor=0", r#"arms=["none"]"#];
    let set = [&FOLDER[..], &teacher, &["training.steps=1"]].concat();
    good(dir, &["distill", TINY, "--out", "first"], &set);
    let small = [
        "teacher.checkpoint=first/teacher.safetensors",
        "teacher.floor=0",
        "student.width=24",
        "student.heads=3",
        "student.depth=1",
        "training.steps=2",
        "training.batch=8",
        "training.log_every=1",
        "training.evaluate_every=2",
        "training.checkpoint_every=2",
    ];
    let table = good(dir, &["distill", PAPER, "--out", "run"], &[&FOLDER[..], &small].concat());
    assert!(table.contains("feature.tokens"), "{table}");
    let events = std::fs::read_to_string(dir.join("run/metrics.jsonl")).unwrap();
    assert!(events.contains("feature.tokens") && events.contains("\"logits\""), "{events}");

    let student = dir.join("run/student.safetensors");
    let loaded = Student::load(&student, &Device::Cpu).unwrap();
    let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(loaded.logits(&images).unwrap().dims(), [2, 10]);
    // The run's own recipe says which images.
    let scores = good(dir, &["eval", "run/student.safetensors", "--json"], &[]);
    let scores: serde_json::Value = serde_json::from_str(&scores).unwrap();
    assert_eq!((&scores["images"], &scores["split"]), (&20.into(), &"test".into()));
}

#[test]
fn the_doctor_decodes_every_image() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    good(dir, &["images", "--out", "images", "--size", "24", "--count", "4"], &[]);
    let doctor = |more: &[&str]| {
        let set: Vec<&str> = FOLDER.iter().chain(&["data.train=20"]).chain(more).copied().collect();
        let set = set.iter().flat_map(|set| ["--set", set]);
        let args: Vec<&str> = ["doctor", TINY, "--decode"].into_iter().chain(set).collect();
        let out = vkd(dir, &args);
        (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let (well, text) = doctor(&[]);
    assert!(well && text.contains("ok       images: all 50 decoded"), "{text}");
    // A good header, and then nothing of the picture.
    let broken = dir.join("images/train/3/0.jpg");
    let whole = std::fs::read(&broken).unwrap();
    let scan = whole.windows(2).position(|pair| pair == b"\xff\xda").unwrap();
    std::fs::write(&broken, &whole[..scan]).unwrap();
    let (well, text) = doctor(&[]);
    assert!(!well && text.contains("PROBLEM  images: 1 of 50 can't be read:"), "{text}");
    assert!(text.contains("0.jpg: expected a JPEG"), "{text}");
    let (well, text) = doctor(&["data.on_corrupt=skip"]);
    assert!(well && text.contains("note     images: 1 of 50"), "{text}");
}

#[test]
fn a_folder_that_holds_something_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine"), b"x").unwrap();
    for (args, part) in [
        (&["--out", "."][..], "expected a new or empty folder"),
        (&["--out", "new", "--count", "1000"], "expected at most the"),
        (&["--out", "other", "--size", "0"], "expected sizes and counts of at least 1"),
    ] {
        let out = vkd(folder.path(), &[&["images"], args].concat());
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && text.contains(part), "{args:?}: {text}");
    }
}
