//! Runs that are killed, again and again, and end at the bits of one that was left alone.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
#![cfg(target_os = "linux")]

mod progress;

use progress::{rows, wait_for};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vkd-train/tests/tiny.toml");

/// Everything that has a state of its own is on: moments, averages, stochastic depth, several batches a step, a
/// projector; and steps enough to be killed in.
const SETTINGS: [&str; 10] = [
    "arms=[\"vkd\"]",
    "teacher.steps=60",
    "training.steps=100",
    "training.checkpoint_every=4",
    "training.evaluate_every=6",
    "training.log_every=1",
    "training.accumulate=2",
    "training.clip_norm=0.5",
    "training.ema_decay=0.9",
    "training.keep=3",
];

fn distill(dir: &Path, out: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vkd"));
    command.current_dir(dir).args(["distill", TINY, "--out", out]);
    command.args(SETTINGS.iter().flat_map(|s| ["--set", s]));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn good(mut command: Command) -> String {
    let Output { status, stderr, .. } = command.stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&stderr).into_owned();
    assert!(status.success(), "{text}");
    text
}

fn kill(target: &str) {
    assert!(Command::new("kill").args(["-9", "--", target]).status().unwrap().success());
}

/// Everything that a run is, but for the seconds it took.
fn result(run: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let read = |name| std::fs::read(run.join(name)).unwrap();
    let without_seconds = |name| {
        let mut json: serde_json::Value = serde_json::from_slice(&read(name)).unwrap();
        json.as_object_mut().unwrap().remove("seconds");
        json.to_string().into_bytes()
    };
    let teacher = read("teacher.safetensors");
    let header = 8 + u64::from_le_bytes(teacher[..8].try_into().unwrap()) as usize;
    vec![
        ("student.safetensors", read("student.safetensors")),
        ("teacher.safetensors", teacher[header..].to_vec()),
        ("arms/vkd/result.json", without_seconds("arms/vkd/result.json")),
        ("metrics.jsonl", read("metrics.jsonl")),
    ]
}

fn assert_same(run: &Path, alone: &Path) {
    for ((name, got), (_, want)) in result(run).into_iter().zip(result(alone)) {
        assert!(got == want, "{name} differs from the undisturbed run's");
    }
}

#[test]
fn a_run_killed_again_and_again_ends_at_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (alone, run) = (dir.path().join("alone"), dir.path().join("run"));
    good(distill(dir.path(), "alone"));
    let all = rows(&alone);
    // A small generator: the kills are at the same rows each time, between two of them at whatever the machine does then.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut below = |n: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut kills = 0;
    for turn in 0..14 {
        let target = turn * all / 14 + below(all as u64 / 10) as usize;
        let mut child = distill(dir.path(), "run").process_group(0).spawn().unwrap();
        wait_for(&mut child, &run, target);
        std::thread::sleep(Duration::from_micros(below(3000)));
        if child.try_wait().unwrap().is_some() {
            continue;
        }
        // Now and then only the parent: its worker meets the closed pipe while the next run is waiting for its log.
        match turn % 4 {
            3 => child.kill().unwrap(),
            _ => kill(&format!("-{}", child.id())),
        }
        if child.wait().unwrap().signal() == Some(9) {
            kills += 1;
        }
        if turn == 9 {
            a_half_written_row_and_a_damaged_checkpoint(&run);
        }
    }
    assert!(kills >= 10, "{kills} kills");
    good(distill(dir.path(), "run"));
    assert_same(&run, &alone);
    let names = |run: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(run.join("arms/vkd"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    };
    let want = [
        "best.safetensors",
        "checkpoint-000092.safetensors",
        "checkpoint-000096.safetensors",
        "checkpoint-000100.safetensors",
        "events.jsonl",
        "result.json",
        "run.json",
        "student.json",
        "student.safetensors",
    ];
    assert_eq!(names(&run), want);
    assert_eq!(names(&alone), want);
}

/// What a machine that lost its power can leave.
fn a_half_written_row_and_a_damaged_checkpoint(run: &Path) {
    use std::io::Write;
    // The dead worker's lock goes with it.
    let log = run.join("arms/vkd/events.jsonl");
    let mut log = std::fs::File::options().append(true).open(log).unwrap();
    log.write_all(b"{\"arm\":\"vkd\",\"st").unwrap();
    let newest = newest(run).unwrap();
    let whole = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &whole[..whole.len() / 2]).unwrap();
}

/// The newest checkpoint of the arm.
fn newest(run: &Path) -> Option<std::path::PathBuf> {
    let files = std::fs::read_dir(run.join("arms/vkd")).ok()?;
    let files = files.map(|e| e.unwrap().path());
    files.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("checkpoint-")).max()
}

/// The number of the process that trains for `child`.
fn worker(child: &Child) -> String {
    // Arms are started from a thread of their own: the worker is the child of one of the parent's threads.
    let mut workers = String::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap() {
        let children = task.unwrap().path().join("children");
        workers.push_str(&std::fs::read_to_string(children).unwrap_or_default());
    }
    workers.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_worker_that_outlived_its_parent_is_named_and_not_run_over() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut first = distill(dir.path(), "run").spawn().unwrap();
    wait_for(&mut first, &run, 80);
    let orphan = worker(&first);
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, "--", &orphan]).status().unwrap().success());
    };
    // It stands still, so that it neither ends nor meets the closed pipe.
    signal("-STOP");
    let anew = |expected: &str| {
        let out =
            distill(dir.path(), "run").arg("--overwrite").stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            !out.status.success() && text.contains("expected a run that nobody works on"),
            "{text}"
        );
        assert!(text.contains(expected), "{text}");
    };
    // Beside a live run.
    anew("is used by process ");
    first.kill().unwrap();
    first.wait().unwrap();
    anew(&format!("used by process {orphan} since 20"));
    let mut second = distill(dir.path(), "run").stderr(Stdio::piped()).spawn().unwrap();
    let mut log = std::io::BufReader::new(second.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("waits: ") {
        line.clear();
        assert!(
            std::io::BufRead::read_line(&mut log, &mut line).unwrap() > 0,
            "no word of waiting"
        );
    }
    let who = format!("vkd of run is being trained by process {orphan} since 20");
    assert!(line.contains(&who) && line.contains("UTC, which outlived the command"), "{line}");
    signal("-CONT");
    std::io::copy(&mut log, &mut std::io::sink()).unwrap();
    assert!(second.wait().unwrap().success());
    good(distill(dir.path(), "alone"));
    assert_same(&run, &dir.path().join("alone"));
    // Nobody works on it any more.
    let mut again = distill(dir.path(), "run");
    again.arg("--overwrite");
    good(again);
}

#[test]
fn a_dead_worker_is_named_and_its_work_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut child = distill(dir.path(), "run").stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&mut child, &run, 80);
    kill(&worker(&child));
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success());
    assert!(text.contains("vkd: its process ended early (signal: 9 (SIGKILL))"), "{text}");
    assert!(text.contains("the same command goes on from there"), "{text}");

    // A disk without room, in effect: no file may grow beyond a few KiB, and writing more is an error.
    let before = newest(&run).expect("saved before the end");
    let whole = std::fs::read(&before).unwrap();
    let mut full = Command::new("sh");
    full.current_dir(dir.path())
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_vkd"))
        .args(["distill", "--resume", "run"]);
    let out = full.output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && text.contains("goes on after step"), "{text}");
    assert!(text.contains(".safetensors: File too large"), "{text}");
    assert!(text.contains("holds the state after step"), "{text}");
    assert_eq!(std::fs::read(&before).unwrap(), whole, "the older checkpoint stays");

    // The run knows its recipe; other settings are another run.
    let resume = |dir: &Path, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vkd"));
        command.current_dir(dir).args(["distill", "--resume", "run"]).args(args);
        command
    };
    let text = good(resume(dir.path(), &[]));
    assert!(text.contains("finished earlier and reused") && text.contains("vkd goes on after"));
    good(distill(dir.path(), "alone"));
    assert_same(&run, &dir.path().join("alone"));
    let refused = |dir: &Path, args: &[&str]| {
        let out = resume(dir, args).output().unwrap();
        assert!(!out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let other = refused(dir.path(), &["--set", "training.ema_decay=0.8"]);
    assert!(other.contains("training.ema_decay is 0.8 here and 0.9 there"), "{other}");
    let nothing = refused(&run, &[]);
    assert!(
        nothing.contains("run: expected a run to resume, got no recipe.toml there"),
        "{nothing}"
    );
}
