//! The binary as a user meets it.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vkd-train/tests/tiny.toml");

fn vkd(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vkd")).current_dir(dir).args(args).output().unwrap()
}

fn good(dir: &Path, args: &[&str]) -> String {
    let out = vkd(dir, args);
    assert!(out.status.success(), "vkd {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn bad(dir: &Path, args: &[&str]) -> String {
    let out = vkd(dir, args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "vkd {args:?} must fail");
    assert!(!text.contains("panicked") && !text.contains("internal fault"), "{text}");
    text
}

#[test]
fn distil_eval_predict() {
    let dir = tempfile::tempdir().unwrap();
    let table = good(dir.path(), &["distill", TINY, "--seed", "4"]);
    for part in ["teacher", "none-all-labels", "5·feature.tokens", "max|WᵀW−I|", "runs/tiny-seed4"]
    {
        assert!(table.contains(part), "{part}: {table}");
    }
    let run = dir.path().join("runs/tiny-seed4");
    for file in [
        "student.safetensors",
        "student.json",
        "recipe.toml",
        "metrics.jsonl",
        "metrics.csv",
        "tensorboard/teacher",
        "tensorboard/vkd",
        "report.json",
        "report.html",
    ] {
        assert!(run.join(file).exists(), "{file}");
    }
    for arm in ["none", "logits", "linear", "vkd", "none-all-labels"] {
        assert!(run.join("arms").join(arm).join("student.safetensors").exists(), "{arm}");
    }
    let report = std::fs::read(run.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!((&report["schema"], &report["seed"]), (&1.into(), &4.into()));
    assert_eq!(report["task"], "classification");
    let accuracy = report["arms"][3]["metrics"]["accuracy"].as_f64().unwrap();
    assert!(report["arms"][0]["projector_residual_max"].is_null());
    assert!(report["arms"][3]["projector_residual_max"].as_f64().unwrap() <= 1e-6);

    // Inside its run folder a student knows its data.
    let line = good(dir.path(), &["eval", "runs/tiny-seed4/student.safetensors"]);
    assert!(line.contains(&format!("accuracy {accuracy:.4} on 1547 test images")), "{line}");
    assert!(line.contains("calibration error") && line.contains("recall"), "{line}");
    let json = good(dir.path(), &["eval", "runs/tiny-seed4/student.safetensors", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["accuracy"], &json["images"]), (&accuracy.into(), &1547.into()));
    assert_eq!(json["confusion"][9].as_array().map(Vec::len), Some(10));
    let none = "runs/tiny-seed4/arms/none/student.safetensors";
    let line = good(dir.path(), &["eval", none, "--split", "validation"]);
    assert!(line.contains("on 50 validation images"), "{line}");

    let bar = |x, y| image::Luma([if x > 6 && x < 10 && y > 2 { 255u8 } else { 0 }]);
    image::GrayImage::from_fn(16, 16, bar).save(dir.path().join("digit.png")).unwrap();
    let predict = ["predict", "runs/tiny-seed4/student.safetensors", "digit.png", "digit.png"];
    let line = good(dir.path(), &predict);
    assert_eq!(line.lines().count(), 2);
    assert!(line.contains("digit.png: ") && line.contains(" %"), "{line}");

    // Again: nothing is trained anew, and the result is the same file.
    let before = std::fs::read(run.join("student.safetensors")).unwrap();
    std::fs::write(run.join(".vkd-killed.tmp"), "half a file").unwrap();
    let out = vkd(dir.path(), &["distill", TINY, "--seed", "4"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("finished earlier and reused"));
    assert_eq!(std::fs::read(run.join("student.safetensors")).unwrap(), before);
    assert!(!run.join(".vkd-killed.tmp").exists());
    // From scratch: the same bits, whatever the number of jobs.
    good(dir.path(), &["distill", TINY, "--seed", "4", "--overwrite", "--jobs", "1"]);
    assert_eq!(std::fs::read(run.join("student.safetensors")).unwrap(), before);
}

#[test]
fn bad_input_is_named_and_nothing_panics() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    assert!(bad(at, &["distill", "nowhere.toml"]).contains("nowhere.toml: expected a recipe"));
    assert!(bad(at, &["distill", "--set", "training.stepz=1"]).contains("did you mean `steps`?"));
    let heads = bad(at, &["distill", "--set", "student.heads=5"]);
    assert!(heads.contains("heads: expected a divisor of the width 32, got 5"), "{heads}");
    assert!(bad(at, &["distill", TINY, "--jobs", "0"]).contains("--jobs"));
    // A GPU that no machine has.
    let far = bad(at, &["distill", TINY, "--set", "training.device=cuda:999"]);
    assert!(far.contains("error: device cuda:999: expected"), "{far}");
    assert!(!at.join("runs").exists(), "nothing is written for a recipe that can't run");
    let idx = ["distill", TINY, "--set", "data.kind=idx", "--set", "data.dir=absent"];
    assert!(bad(at, &idx).contains("train-images-idx3-ubyte"));
    let low = ["distill", TINY, "--set", "teacher.floor=0.9999", "--out", "low"];
    assert!(bad(at, &low).contains("teacher.floor"));
    let none = ["--out", "run", "--set", "arms=[\"none\"]"];
    good(at, &[&["distill", TINY], &none[..]].concat());
    let other = bad(at, &["distill", TINY, "--out", "run", "--set", "training.steps=9"]);
    assert!(other.contains("training.steps is 9 here and 6 there"), "{other}");
    assert!(other.contains("--overwrite"), "{other}");
    let broken =
        ["--out", "nan", "--set", "arms=[\"vkd\"]", "--set", "training.learning_rate=1e30"];
    let message = bad(at, &[&["distill", TINY], &broken[..]].concat());
    assert!(message.contains("error: vkd: step"), "{message}");
    assert!(bad(at, &["eval", "absent.safetensors"]).contains("absent.json"));
    std::fs::write(at.join("text.png"), "no image").unwrap();
    let predict = ["predict", "run/student.safetensors", "text.png"];
    assert!(bad(at, &predict).contains("text.png: expected an image"));
    for command in ["eval", "predict"] {
        let odd = [command, "run/student.safetensors", "--device", "cuda:999"];
        let odd = bad(at, &[&odd[..], &["text.png"][..usize::from(command == "predict")]].concat());
        assert!(odd.contains("error: device cuda:999: expected"), "{odd}");
    }
    assert!(bad(at, &["eval", "run/student.safetensors", "--device", "gpu"]).contains("cuda:N"));
    let student = at.join("run/student.safetensors");
    let whole = std::fs::read(&student).unwrap();
    std::fs::write(&student, &whole[..100]).unwrap();
    assert!(bad(at, &predict).contains("whole safetensors file"));
    std::fs::write(at.join("run/arms/none/result.json"), "{").unwrap();
    let broken = bad(at, &[&["distill", TINY], &none[..]].concat());
    assert!(broken.contains("result.json"), "{broken}");
}

#[test]
fn a_dry_run_and_the_doctor_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let text = good(at, &["distill", TINY, "--dry-run"]);
    for part in ["6 steps of 10 images, 60 in all", "vkd  ", "5·feature.tokens", "runs/tiny-seed0"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Several batches a step: images, and not steps of one batch, are what a run costs.
    let text = good(at, &["distill", TINY, "--dry-run", "--set", "training.accumulate=3"]);
    assert!(text.contains("6 steps of 30 images, 180 in all"), "{text}");
    let text = good(at, &["doctor", TINY]);
    assert!(text.contains("ok       teacher") && !text.contains("PROBLEM"), "{text}");
    assert!(text.contains("ok       device: CPU; built with"), "{text}");
    let out = vkd(at, &["doctor", TINY, "--set", "training.device=cuda:999"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("PROBLEM  device: device cuda:999: expected"), "{text}");
    let out = vkd(at, &["doctor", TINY, "--set", "data.kind=idx", "--set", "data.dir=absent"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(!out.status.success() && text.contains("PROBLEM  data: absent"), "{text}");
    assert!(bad(at, &["distill", TINY, "--dry-run", "--set", "student.heads=3"]).contains("heads"));
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0);
    std::fs::create_dir(at.join("full")).unwrap();
    std::fs::write(at.join("full/thesis.tex"), "years").unwrap();
    let full = bad(at, &["distill", TINY, "--dry-run", "--out", "full"]);
    assert!(full.contains("got a folder without recipe.toml"), "{full}");
}

#[test]
fn a_grid_is_built_in_parts_and_never_twice() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let grid = |arms: &str, seeds: &str, more: &[&str]| {
        let words = ["compare", TINY, "--arms", arms, "--seeds", seeds, "--results", "kept"];
        let out = vkd(at, &[&words, more].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(out.status.success(), "{}", text(&out.stderr));
        (text(&out.stdout), text(&out.stderr))
    };
    let (table, log) = grid("none,vkd", "2", &[]);
    assert!(log.contains("0 of 4 runs found in kept, 4 to train"), "{log}");
    assert!(table.contains("| vkd − none ") && table.contains("n = 2 (seed 0, 1)"), "{table}");
    assert!(table.contains("6 steps of 10 images (effective batch), 60 images seen"), "{table}");
    let files = |folder: &str| std::fs::read_dir(at.join(folder)).unwrap().count();
    assert_eq!(files("kept"), 4);
    assert!(!table.contains("left out"), "{table}");
    // A kill between an arm's end and its file, and a program of another commit after it: the file names the one that trained.
    let one = |folder: &str, start: &str| {
        let mut all = std::fs::read_dir(at.join(folder)).unwrap().map(|e| e.unwrap().path());
        all.find(|p| p.file_name().unwrap().to_str().unwrap().starts_with(start)).unwrap()
    };
    let read = |path: &Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let (file, notes) = (one("kept", "vkd-seed1-"), one("runs/tiny-compare/runs", "vkd-seed1-"));
    let notes = notes.join("arms/vkd/run.json");
    let mut facts = read(&notes);
    assert_eq!(facts, read(&file)["run"]);
    assert_eq!((&facts["threads"], &facts["images"]), (&1.into(), &60.into()));
    facts["commit"] = "before".into();
    std::fs::write(&notes, facts.to_string()).unwrap();
    std::fs::remove_file(&file).unwrap();
    let (_, log) = grid("none,vkd", "2", &[]);
    assert!(log.contains("3 of 4 runs found") && !log.contains("validation"), "{log}");
    assert_eq!(read(&file)["run"], facts);
    let page = std::fs::read_to_string(at.join("runs/tiny-compare/report.html")).unwrap();
    assert!(page.contains("class=\"band\"") && page.contains("effective batch"));
    // Another arm and seed: only what is missing is trained, and the numbers of the rest stay, even without their run folders.
    std::fs::remove_dir_all(at.join("runs")).unwrap();
    let (wider, log) = grid("none,logits,vkd", "3", &["--reference", "logits"]);
    assert!(log.contains("4 of 9 runs found in kept, 5 to train"), "{log}");
    assert!(wider.contains("| vkd − logits ") && wider.contains("| none − logits "), "{wider}");
    let (again, log) = grid("none,vkd", "2", &[]);
    assert!(log.contains("4 of 4 runs found") && !log.contains("validation"), "{log}");
    let rows = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with('|')).map(str::to_owned).collect()
    };
    assert_eq!(rows(&again), rows(&table));
    assert!(again.contains("left out: logits not asked for, seeds 0, 1, 2\n"), "{again}");
    assert!(again.contains("left out: none of other seeds, seed 2\n"), "{again}");
    // Other settings are another arm: nothing of the old is taken for it, and the teachers stay.
    let (changed, log) = grid("none,vkd", "2", &["--set", "arm.vkd.features=6"]);
    assert!(log.contains("2 of 4 runs found"), "{log}");
    for teacher in ["seed 0 teacher test", "seed 1 teacher test"] {
        let line = log.lines().find(|l| l.contains(teacher)).unwrap();
        assert!(line.contains("finished earlier and reused"), "{log}");
    }
    assert!(changed.contains("left out: vkd of other settings, seeds 0, 1, 2\n"), "{changed}");
    // A folder with both can't be summed up, and says what differs.
    let mixed = bad(at, &["compare", "--from", "kept"]);
    assert!(mixed.contains("differ: arm.features is "), "{mixed}");
    let kept = good(at, &["compare", "--from", "kept", "--arms", "none,logits", "--out", "page"]);
    assert!(kept.contains("| logits − none ") && at.join("page/report.md").exists(), "{kept}");
    // The curves, twice the same bytes.
    let plot = |file: &str| {
        good(at, &["compare", "--from", "kept", "--arms", "none,logits", "--plot", file]);
        std::fs::read_to_string(at.join(file)).unwrap()
    };
    let picture = plot("pictures/curves.svg");
    assert!(picture.starts_with("<svg xmlns") && picture.contains(">logits</text>"), "{picture}");
    assert!(picture.contains("class=\"band\"") && plot("again.svg") == picture);
    let report = at.join("report");
    std::fs::create_dir(&report).unwrap();
    // The report of a run has numbers and no curves.
    good(at, &["distill", TINY, "--set", "arms=[\"none\"]", "--out", "run"]);
    std::fs::copy(at.join("run/report.json"), report.join("seed-0.json")).unwrap();
    let none = bad(at, &["compare", "--from", "report", "--plot", "none.svg"]);
    assert!(none.contains("none.svg: expected results with learning curves"), "{none}");
    assert!(bad(at, &["compare", TINY, "--arms", "none,vkt"]).contains("got vkt"));
    assert!(bad(at, &["compare", "--from", "kept", "--arms", "none,vkt"]).contains("got vkt"));
    let one = one("kept", "none-seed0");
    let whole = std::fs::read(&one).unwrap();
    std::fs::write(&one, &whole[..whole.len() / 2]).unwrap();
    let half = ["compare", TINY, "--arms", "none", "--seeds", "1", "--results", "kept"];
    let half = bad(at, &half);
    assert!(half.contains("none-seed0") && half.contains("trained again"), "{half}");
    assert!(bad(at, &["compare", "--from", "nowhere"]).contains("nowhere"));
}

#[test]
fn two_comparisons_beside_each_other_train_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let start = |arms: &str| {
        let words =
            ["compare", TINY, "--arms", arms, "--seeds", "2", "--jobs", "2", "--out", "both"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_vkd"));
        command.current_dir(dir.path()).args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let both = [start("none,vkd"), start("vkd,none,linear")];
    let logs = both.map(|child| {
        let out = child.wait_with_output().unwrap();
        let log = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{log}");
        log
    });
    let logs = logs.concat();
    // Only who trains a part sees its last validation.
    for (part, steps) in [("teacher", 30), ("none", 6), ("vkd", 6), ("linear", 6)] {
        for seed in 0..2 {
            let part = format!("seed {seed} {part} ");
            let last = format!(" {steps}/{steps} ");
            let ends = logs.lines().filter(|l| l.contains(&part) && l.contains(&last)).count();
            assert_eq!(ends, 1, "{part}: {logs}");
        }
    }
    let files = |folder: &str| std::fs::read_dir(dir.path().join(folder)).unwrap().count();
    assert_eq!((files("both/teachers"), files("both/runs"), files("both/results")), (2, 6, 6));
}

#[test]
fn a_closed_pipe_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vkd"))
        .current_dir(dir.path())
        .args(["distill", TINY, "--set", "arms=[\"none\"]"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert!(dir.path().join("runs/tiny-seed0/report.html").exists());
}
