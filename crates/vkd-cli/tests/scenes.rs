//! `vkd scenes` from the outside.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::path::Path;
use std::process::{Command, Output};

fn scenes(dir: &Path, args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_vkd");
    Command::new(program).current_dir(dir).arg("scenes").args(args).output().unwrap()
}

#[test]
fn a_coco_data_set_is_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let small = ["--out", "scenes", "--count", "6", "--validation", "2", "--test", "3", "--color"];
    let args =
        [&small[..], &["--size", "96", "--objects", "2", "4", "--scales", "16", "48"]].concat();
    let out = scenes(dir, &args);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("96x96") && text.contains("train: 6 images, "), "{text}");
    // Images of all parts are counted through.
    for (part, count, first) in [("train", 6, 1), ("val", 2, 7), ("test", 3, 9)] {
        assert_eq!(std::fs::read_dir(dir.join("scenes").join(part)).unwrap().count(), count);
        let json = dir.join(format!("scenes/annotations/instances_{part}.json"));
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        assert_eq!(json["images"].as_array().unwrap().len(), count);
        assert_eq!(json["categories"][9]["name"], "9");
        assert_eq!(json["images"][0]["id"], first);
        let ids = json["annotations"].as_array().unwrap().iter().map(|a| a["id"].as_u64().unwrap());
        assert!(ids.min().unwrap() > 0);
    }
    let image = image::open(dir.join("scenes/test/000003.png")).unwrap();
    assert_eq!((image.width(), image.color()), (96, image::ColorType::Rgb8));

    let again = scenes(dir, &args);
    let message = String::from_utf8_lossy(&again.stderr);
    assert!(message.contains("scenes: expected a new or empty folder"), "{message}");
    let bad = scenes(dir, &["--out", "other", "--noise=-1"]);
    let message = String::from_utf8_lossy(&bad.stderr);
    assert!(!bad.status.success() && message.contains("noise"), "{message}");
    assert!(!dir.join("other").exists());
}
