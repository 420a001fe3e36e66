//! What ranks cost: sums over them beside a plain loop of MPI, and the paper's step shared by one, two and four ranks.
//!
//! Started by hand it starts itself under `mpirun` once for each measurement that `--json FILE` does not hold yet; started by
//! `mpirun` it is one rank of a measurement, whose first rank prints one line. `--model FILE` prints what follows from such a file.

mod model;

use std::process::{Command, ExitCode};
use std::time::Instant;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use mpi::collective::{CommunicatorCollectives, SystemOperation};
use mpi::topology::SimpleCommunicator;
use serde_json::{Value, json};
use vkd_benches::{commit, data, machine, median};
use vkd_models::{Architecture, DeitConfig, ModelConfig, RegnetConfig};
use vkd_nn::VarStore;
use vkd_norm::Normalizer;
use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
use vkd_tasks::{
    Batch, ClassificationTask, Distiller, FeatureLoss, LogitLoss, ProjectorConfig, TapConfig,
    Teacher,
};
use vkd_train::{
    Checkpoints, EventKind, Goal, Ranks, Recipe, STUDENT_TAP, TEACHER_TAP, TrainerConfig, network,
    train,
};

/// Ranks, threads of each, images of each: two sizes for one thread alone, which tell what a step costs apart from its images, the
/// whole, its halves and its quarters, and a size that no fit has seen.
const STEPS: [(usize, usize, usize); 6] =
    [(1, 1, 4), (1, 1, 8), (1, 2, 16), (2, 1, 8), (4, 1, 4), (4, 1, 6)];
/// Names of rows.
const SUM: &str = "scale/sum";
const STEP: &str = "scale/vkd_step_s224";
/// Steps of a measurement; the first two are not counted.
const COUNT: usize = 7;
/// Numbers of f32 in a sum.
const SUMS: [usize; 6] = [1, 1 << 8, 1 << 12, 1 << 16, 1 << 20, 1 << 23];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["sums"] => rank(sums),
        ["step", images] => rank(|ranks| step(ranks, images.parse().map_err(Error::wrap)?)),
        ["--json", file] => all(file),
        ["--model", file] => model::print(file),
        _ => Err(Error::Msg("expected --json FILE or --model FILE".to_owned())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", vkd_train::plain(&e));
            ExitCode::FAILURE
        }
    }
}

/// Every measurement that the file does not hold, in turn.
fn all(file: &str) -> Result<()> {
    let mut rows: Vec<Value> = match std::fs::read_to_string(file) {
        Ok(text) => serde_json::from_str(&text).map_err(Error::wrap)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => bail!("{file}: {e}"),
    };
    if let Some(other) = rows.iter().find(|row| row["machine"] != machine()) {
        bail!("{file}: expected rows of {}, got some of {}", machine(), other["machine"])
    }
    let mut todo: Vec<(usize, usize, Vec<String>)> = Vec::new();
    for ranks in [2, 4] {
        if !rows.iter().any(|row| row["name"] == SUM && row["ranks"] == ranks) {
            todo.push((ranks, 1, vec!["sums".to_owned()]));
        }
    }
    for (ranks, threads, images) in STEPS {
        let same = |row: &&Value| {
            let size = [&row["ranks"], &row["threads"], &row["images_a_rank"]];
            row["name"] == STEP && size == [&json!(ranks), &json!(threads), &json!(images)]
        };
        if !rows.iter().any(|row| same(&row)) {
            todo.push((ranks, threads, vec!["step".to_owned(), images.to_string()]));
        }
    }
    for (ranks, threads, what) in todo {
        rows.extend(measured(ranks, threads, &what)?);
        let lines: Vec<String> = rows.iter().map(|row| format!("  {row}")).collect();
        std::fs::write(file, format!("[\n{}\n]\n", lines.join(",\n")))?;
    }
    println!("{} rows in {file}", rows.len());
    Ok(())
}

/// What the first of some ranks prints.
fn measured(ranks: usize, threads: usize, what: &[String]) -> Result<Vec<Value>> {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--bind-to", "none", "-n", &ranks.to_string()]);
    command.arg(std::env::current_exe()?).args(what);
    for name in ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] {
        command.env(name, "1");
    }
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        command.env(name, threads.to_string());
    }
    // Memory as in a rank of `vkd distill`; and, unlike there, a rank that waits gives its core to others.
    for name in ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"] {
        command.env(name, "4294967296");
    }
    command.env("OMPI_MCA_mpi_yield_when_idle", "1");
    let output = command.output()?;
    if !output.status.success() {
        bail!("{what:?} on {ranks} ranks: {}", String::from_utf8_lossy(&output.stderr))
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = |line: &str| -> Result<Value> {
        let mut row: Value = serde_json::from_str(line).map_err(Error::wrap)?;
        row["ranks"] = json!(ranks);
        row["threads"] = json!(threads);
        row["commit"] = json!(commit());
        row["machine"] = json!(machine());
        println!("{row}");
        Ok(row)
    };
    text.lines().filter(|line| line.starts_with('{')).map(row).collect()
}

fn rank(measure: impl FnOnce(&Ranks) -> Result<Vec<Value>>) -> Result<()> {
    let (session, ranks) = vkd_train::mpi_ranks()?;
    match measure(&ranks) {
        Ok(rows) if ranks.leads() => rows.iter().for_each(|row| println!("{row}")),
        Ok(_) => {}
        Err(e) => {
            eprintln!("error: {}", vkd_train::plain(&e));
            session.abort()
        }
    }
    Ok(())
}

/// Sums of several sizes by ours and by a plain call of MPI, one after the other.
fn sums(ranks: &Ranks) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for count in SUMS {
        let (mut ours, mut plain) = (Vec::new(), Vec::new());
        let (mut values, mut sum) = (vec![1f32; count], vec![0f32; count]);
        let repeats = (1usize << 22).div_ceil(count).clamp(20, 400);
        for _ in 0..repeats {
            values.fill(1.);
            ranks.barrier()?;
            let started = Instant::now();
            ranks.sum_f32(&mut values)?;
            ours.push(started.elapsed().as_secs_f64());
            ranks.barrier()?;
            let started = Instant::now();
            let world = SimpleCommunicator::world();
            world.all_reduce_into(&values[..], &mut sum[..], SystemOperation::sum());
            plain.push(started.elapsed().as_secs_f64());
        }
        rows.push(json!({
            "name": SUM,
            "bytes": count * size_of::<f32>(),
            "median_s": median(&mut ours),
            "plain_median_s": median(&mut plain),
        }));
    }
    Ok(rows)
}

/// RegNetY-160 to DeiT-Ti by the trainer itself, with so many images on each rank.
fn step(ranks: &Ranks, images: usize) -> Result<Vec<Value>> {
    let sized =
        |architecture| ModelConfig { image_size: 224, channels: 3, classes: 1000, architecture };
    let store = VarStore::new(7, DType::F32, &Device::Cpu);
    let frozen = VarStore::new(8, DType::F32, &Device::Cpu);
    let student = sized(Architecture::Deit(DeitConfig::student(192)));
    let student = network(student.build(store.builder().pp("student"))?);
    let regnet = sized(Architecture::Regnet(RegnetConfig::regnety_160()));
    // Built twice: to have variables that are drawn, then of constants, as a run does.
    regnet.build(frozen.builder())?;
    let teacher = Teacher::new(network(regnet.build(frozen.frozen())?));
    let tap = TapConfig {
        student: STUDENT_TAP.to_owned(),
        student_width: 192,
        teacher: TEACHER_TAP.to_owned(),
        teacher_width: 3024,
        projector: ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, 0)),
        student_normalizer: Normalizer::Identity,
        teacher_normalizer: Normalizer::LayerNorm { eps: 1e-5 },
        loss: FeatureLoss::SmoothL1 { beta: 1. },
        weight: 1.,
    };
    let logits = Some(LogitLoss { temperature: 1., weight: 1. });
    let distiller = Distiller::new(vec![tap], logits, store.builder().pp("projector"))?;
    let task = ClassificationTask::new(student, Some((teacher, distiller)), 0.1)?;
    let batch = Batch {
        images: data((images, 3, 224, 224), 9 + ranks.rank() as u32)?,
        labels: Tensor::arange(0u32, images as u32, &Device::Cpu)?,
        sample_ids: (0..images as u64).map(|id| id + (ranks.rank() * images) as u64).collect(),
    };
    let recipe = include_str!("../../../../recipes/digits.toml");
    let mut training = Recipe::parse(recipe, "digits.toml", &[])?.training;
    training.steps = COUNT as u64;
    training.log_every = 1;
    // Only after the last step.
    (training.evaluate_every, training.checkpoint_every) = (training.steps, training.steps);
    let folder = tempfile::tempdir()?;
    let config = TrainerConfig {
        arm: "vkd",
        seed: 0,
        goal: Goal::more("accuracy"),
        training: &training,
        checkpoints: &Checkpoints::new(folder.path(), 1),
        ranks,
    };
    // Of the rank that logs.
    let mut marks = Vec::new();
    train(&task, &store, &config, None, |_| Ok(batch.clone()), || Ok(0.), &mut |event| {
        if let EventKind::Step { .. } = event.kind {
            marks.push((Instant::now(), ranks.traffic()));
        }
        Ok(())
    })?;
    let pairs = marks.windows(2).skip(1);
    let (mut seconds, mut waited): (Vec<f64>, Vec<f64>) = pairs
        .clone()
        .map(|pair| {
            let step = (pair[1].0 - pair[0].0).as_secs_f64();
            (step, pair[1].1.seconds - pair[0].1.seconds)
        })
        .unzip();
    let last = pairs.last().map(|pair| (pair[0].1, pair[1].1));
    let (calls, bytes) = last.map_or((0, 0), |(a, b)| (b.calls - a.calls, b.bytes - a.bytes));
    Ok(vec![json!({
        "name": STEP,
        "images_a_rank": images,
        "median_s": median(&mut seconds),
        "in_calls_s": median(&mut waited),
        "calls": calls,
        "bytes": bytes,
    })])
}
