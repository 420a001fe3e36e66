//! `mpirun -n N vkd distill`: what N ranks leave, and what is left when one of them dies.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
#![cfg(all(target_os = "linux", feature = "mpi"))]

mod progress;

use candle_core::{DType, Device, Tensor};
use progress::{rows, wait_for};
use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vkd-train/tests");
const VKD: &str = env!("CARGO_BIN_EXE_vkd");

/// Everything that has a state of its own is on, and steps enough to be killed in.
const SETTINGS: [&str; 9] = [
    "arms=[\"vkd\"]",
    "teacher.steps=40",
    "training.steps=80",
    "training.checkpoint_every=4",
    "training.evaluate_every=20",
    "training.log_every=1",
    "training.accumulate=2",
    "training.ema_decay=0.9",
    "training.keep=3",
];

/// Longest that a run may take to end when a rank is dead.
const MINUTE: Duration = Duration::from_secs(60);

/// Whether MPI can start anything here; where it can't, the test says so.
fn can_start() -> bool {
    let mut command = mpirun();
    let found = command.args(["-n", "2", "true"]).output().is_ok_and(|o| o.status.success());
    if !found {
        println!("SKIPPED: mpirun is not installed, or can't start two processes");
    }
    found
}

/// `mpirun` that starts nothing yet: more ranks than cores are allowed, and the superuser of a container too.
fn mpirun() -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--bind-to", "none"]);
    for name in ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] {
        command.env(name, "1");
    }
    // A rank that waits gives its core to the other.
    command.env("OMPI_MCA_mpi_yield_when_idle", "1");
    command
}

fn arguments<'a>(recipe: &'a str, out: &'a Path, set: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["distill", recipe, "--out", out.to_str().unwrap()];
    fixed.into_iter().chain(set.iter().flat_map(|s| ["--set", s])).collect()
}

fn ranks(count: usize, recipe: &str, out: &Path, set: &[&str]) -> Command {
    let mut command = mpirun();
    command.args(["-n", &count.to_string(), VKD]).args(arguments(recipe, out, set));
    command
}

fn alone(recipe: &str, out: &Path, set: &[&str]) -> Command {
    let mut command = Command::new(VKD);
    command.args(arguments(recipe, out, set));
    command
}

/// Starts a command in a group of its own; what it says fits the pipes.
fn started(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().unwrap()
}

/// Waits for the end; whether it was a good one, and all that was said.
fn output(command: Command, limit: Duration) -> (bool, String) {
    ended(started(command), limit)
}

fn ended(mut child: Child, limit: Duration) -> (bool, String) {
    let limit = Instant::now() + limit;
    while child.try_wait().unwrap().is_none() {
        let late = Instant::now() > limit;
        if late {
            signal("-9", &format!("-{}", child.id()));
        }
        assert!(!late, "no end in time");
        std::thread::sleep(Duration::from_millis(2));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = [stdout, stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
    (status.success(), text)
}

fn good(command: Command) -> String {
    let (success, text) = output(command, 5 * MINUTE);
    assert!(success, "{text}");
    text
}

fn bad(command: Command) -> String {
    let (success, text) = output(command, MINUTE);
    assert!(!success && !text.contains("internal fault"), "{text}");
    text
}

fn recipe(name: &str) -> String {
    format!("{TESTS}/{name}.toml")
}

/// The student of an arm.
fn student(run: &Path, arm: &str) -> HashMap<String, Tensor> {
    let path = run.join("arms").join(arm).join("student.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn bits(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("arms/vkd/student.safetensors")).unwrap()
}

/// Largest difference of two students' weights, biases apart, which AdamW may move by rounding alone.
fn apart(a: &HashMap<String, Tensor>, b: &HashMap<String, Tensor>) -> f64 {
    assert_eq!(a.len(), b.len());
    let one = |(name, a): (&String, &Tensor)| {
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        let difference = (wide(a) - wide(&b[name])).unwrap().abs().unwrap().max_all().unwrap();
        match name.ends_with("bias") || name.ends_with("_mean") {
            true => 0.,
            false => difference.to_scalar::<f64>().unwrap(),
        }
    };
    a.iter().map(one).fold(0., f64::max)
}

#[test]
fn one_rank_is_no_rank_and_two_are_one_to_rounding() {
    if !can_start() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str| dir.path().join(name);
    for (name, arm) in [("tiny", "vkd"), ("scenes", "vkd"), ("gan", "vkd-whiten")] {
        let recipe = recipe(name);
        let set = [format!("arms=[\"{arm}\"]")];
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let folders = ["alone", "one", "two"].map(|kind| of(&format!("{name}-{kind}")));
        good(alone(&recipe, &folders[0], &set));
        good(ranks(1, &recipe, &folders[1], &set));
        let text = good(ranks(2, &recipe, &folders[2], &set));
        assert!(text.contains("2 ranks, each with its part of the"), "{text}");
        let facts = std::fs::read_to_string(folders[2].join("arms").join(arm).join("run.json"));
        assert!(facts.unwrap().contains("\"ranks\": 2"));
        let [want, one, two] = folders.each_ref().map(|folder| student(folder, arm));
        for (variable, tensor) in &want {
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(tensor), values(&one[variable]), "{name}: {variable}");
        }
        // Six steps in f32; measured 1e-5 and below.
        let found = apart(&want, &two);
        assert!(found < 1e-3, "{name}: two ranks are {found:e} from one");
        assert!(folders[2].join("report.html").exists());
    }
}

/// The processes that `mpirun` started, by rank.
fn processes(mpirun: &Child) -> Vec<String> {
    let path = format!("/proc/{0}/task/{0}/children", mpirun.id());
    let children = std::fs::read_to_string(path).unwrap_or_default();
    children.split_whitespace().map(str::to_owned).collect()
}

fn signal(name: &str, process: &str) {
    Command::new("kill").args([name, "--", process]).status().unwrap();
}

/// Waits for the end, which must come within a minute; all that was said.
fn end(child: Child) -> String {
    ended(child, MINUTE).1
}

#[test]
fn a_run_whose_ranks_are_killed_ends_named_and_goes_on_at_the_same_bits() {
    if !can_start() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (undisturbed, run) = (dir.path().join("undisturbed"), dir.path().join("run"));
    let tiny = recipe("tiny");
    good(ranks(2, &tiny, &undisturbed, &SETTINGS));
    let all = rows(&undisturbed);
    let mut kills = [0, 0];
    for turn in 0..12 {
        let mut child = started(ranks(2, &tiny, &run, &SETTINGS));
        wait_for(&mut child, &run, 1 + turn * all / 13 + turn % 5);
        let (rank, ranks) = (turn % 2, processes(&child));
        assert_eq!(ranks.len(), 2, "the run was over too early");
        // At whatever the machine does then.
        std::thread::sleep(Duration::from_micros(700 * turn as u64));
        signal("-9", &ranks[rank]);
        let text = end(child);
        if text.contains("exited on signal 9") {
            assert!(text.contains(&format!("process rank {rank} ")), "{text}");
            kills[rank] += 1;
        }
    }
    assert!(kills[0] + kills[1] >= 10 && kills.iter().all(|k| *k >= 4), "{kills:?}");
    good(ranks(2, &tiny, &run, &SETTINGS));
    assert!(bits(&run) == bits(&undisturbed), "another student than the undisturbed run's");
    let events = |run: &PathBuf| std::fs::read(run.join("metrics.jsonl")).unwrap();
    assert!(events(&run) == events(&undisturbed), "another log than the undisturbed run's");
}

#[test]
fn another_number_of_ranks_goes_on_and_a_slow_one_changes_nothing() {
    if !can_start() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (undisturbed, run) = (dir.path().join("undisturbed"), dir.path().join("run"));
    let tiny = recipe("tiny");
    good(alone(&tiny, &undisturbed, &SETTINGS));
    let start = |run: &Path| started(ranks(2, &tiny, run, &SETTINGS));
    let mut child = start(&run);
    let half = rows(&undisturbed) / 2;
    wait_for(&mut child, &run, half);
    processes(&child).iter().for_each(|rank| signal("-9", rank));
    end(child);
    assert!(!run.join("student.safetensors").exists(), "it was over before it was killed");
    let text = good(alone(&tiny, &run, &SETTINGS));
    assert!(text.contains("goes on after step"), "{text}");
    let found = apart(&student(&run, "vkd"), &student(&undisturbed, "vkd"));
    // Eighty steps in f32.
    assert!(found < 1e-2, "{found:e}");

    // And from one to two.
    let back = dir.path().join("back");
    let mut child = started(alone(&tiny, &back, &SETTINGS));
    wait_for(&mut child, &back, half);
    signal("-9", &format!("-{}", child.id()));
    end(child);
    assert!(!back.join("student.safetensors").exists(), "it was over before it was killed");
    let text = good(ranks(2, &tiny, &back, &SETTINGS));
    assert!(text.contains("goes on after step"), "{text}");
    let found = apart(&student(&back, "vkd"), &student(&undisturbed, "vkd"));
    assert!(found < 1e-2, "{found:e}");

    // One that stands still for a while holds the other up, and that is all.
    let (two, slow) = (dir.path().join("two"), dir.path().join("slow"));
    good(ranks(2, &tiny, &two, &SETTINGS));
    let mut child = start(&slow);
    wait_for(&mut child, &slow, half);
    let ranks = processes(&child);
    signal("-STOP", &ranks[1]);
    std::thread::sleep(Duration::from_millis(300));
    let before = rows(&slow);
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(rows(&slow), before, "the first rank must wait");
    signal("-CONT", &ranks[1]);
    end(child);
    assert!(bits(&slow) == bits(&two), "another student than that of two that were not slow");
}

#[test]
fn ranks_that_can_not_train_together_say_why_before_anything_is_written() {
    if !can_start() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (run, tiny) = (dir.path().join("run"), recipe("tiny"));
    let different = |first: &[&str], second: &[&str]| {
        let mut command = mpirun();
        command.args(["-n", "1", VKD]).args(arguments(&tiny, &run, first));
        command.args([":", "-n", "1", VKD]).args(arguments(&tiny, &run, second));
        bad(command)
    };
    let text = different(&[], &["training.steps=7"]);
    let want = "recipe.training.steps: expected the same on all, got 6 on rank 0 and 7 on rank 1";
    assert!(text.contains(want), "{text}");
    let text = different(&[], &["data.train=oops"]);
    assert!(text.contains("error: rank 1: ") && text.contains("data.train"), "{text}");
    let text = bad(ranks(3, &tiny, &run, &[]));
    assert!(text.contains("teacher.batch: expected a multiple of 3 ranks, got 20"), "{text}");
    let text = bad(ranks(2, &tiny, &run, &["training.labelled=3"]));
    assert!(text.contains("training.labelled: expected a multiple of 2 ranks, got 3"), "{text}");
    let mut command = ranks(2, &tiny, &run, &[]);
    command.arg("--dry-run");
    assert!(bad(command).contains("--dry-run: expected one process, got 2"));
    let mut command = mpirun();
    command.args(["-n", "2", VKD, "compare"]);
    assert!(bad(command).contains("expected one process, got 2 from a launcher"));
    assert!(!run.exists());
}

#[test]
fn an_unreadable_image_and_a_full_disk_end_all_and_lose_nothing() {
    if !can_start() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tiny = recipe("tiny");
    // Each rank has files of its own, as on nodes of a cluster; one has a broken one, which is read by that rank alone.
    for folder in ["here", "there"] {
        let out = dir.path().join(folder);
        let mut command = Command::new(VKD);
        command.args(["images", "--out", out.to_str().unwrap(), "--size", "16", "--count", "30"]);
        good(command);
    }
    let inside = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        let mut entries: Vec<PathBuf> = entries.collect();
        entries.sort();
        entries
    };
    let classes = inside(&dir.path().join("there/train"));
    let images: Vec<PathBuf> = classes.iter().flat_map(|class| inside(class)).collect();
    assert_eq!(images.len(), 300);
    // Every sixth image, from the first on, is looked at when ranks compare their data sets.
    for image in images.iter().skip(1).step_by(6) {
        std::fs::write(image, "no image").unwrap();
    }
    let at = |folder: &str| format!("data.dir={}", dir.path().join(folder).display());
    let (here, there) = (at("here"), at("there"));
    let common = ["data.kind=folder", "data.size=16", "data.train=250", "teacher.batch=100"];
    let of = |place: &str| -> Vec<String> {
        common.iter().copied().chain([place]).map(str::to_owned).collect()
    };
    let (of_first, of_second) = (of(&here), of(&there));
    let run = dir.path().join("run");
    let mut command = mpirun();
    let set = |all: &[String]| -> Vec<String> {
        all.iter().flat_map(|s| ["--set".to_owned(), s.clone()]).collect()
    };
    let fixed = ["distill", &tiny, "--out", run.to_str().unwrap()];
    command.args(["-n", "1", VKD]).args(fixed).args(set(&of_first));
    command.args([":", "-n", "1", VKD]).args(fixed).args(set(&of_second));
    let text = bad(command);
    assert!(text.contains("error: rank 1: ") && text.contains("train/"), "{text}");
    assert!(!text.contains("error: rank 0"), "{text}");

    // Files of the first rank that grow beyond 64 KiB fail as on a full disk.
    let run = dir.path().join("full");
    let limited = "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"";
    let mut command = mpirun();
    let wide = [&SETTINGS[..], &["student.width=64"]].concat();
    command.args(["-n", "1", "bash", "-c", limited, VKD]).args(arguments(&tiny, &run, &wide));
    command.args([":", "-n", "1", VKD]).args(arguments(&tiny, &run, &wide));
    let text = bad(command);
    assert!(text.contains("error: rank 0: ") && text.contains("File too large"), "{text}");
    let left: Vec<String> = std::fs::read_dir(run.join("arms/vkd"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".safetensors") || name.ends_with(".tmp"))
        .collect();
    assert!(left.is_empty(), "half a checkpoint: {left:?}");
    // With room it goes on.
    good(ranks(2, &tiny, &run, &wide));
    assert!(run.join("student.safetensors").exists());
}
