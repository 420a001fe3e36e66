//! The teacher or one arm in a process of its own.
//!
//! A process and not a thread: candle, its matrix products and ours each keep a pool, and with two arms in one process they
//! fight for the cores. A process with one thread each has no such fight, and an arm that fails takes no other along.

use crate::machine;
use crate::shown::for_task;
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vkd_train::{
    AnyRecipe, Event, RecipeOf, RunFolderOf, Samples, Worker, Workload, train_arm, train_teacher,
};

/// Name of the worker that trains the teacher.
pub(crate) const TEACHER: &str = "teacher";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run folder
    folder: PathBuf,
    /// Arm, or `teacher`
    part: String,
}

/// A step allocates and frees the same large tensors over and over. glibc would hand each back to the kernel and have it zeroed
/// anew; other allocators ignore the two.
pub(crate) const KEEP_MEMORY: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "4294967296"), ("MALLOC_TRIM_THRESHOLD_", "4294967296")];

/// One line of a worker's output.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Event(Event),
    /// Another process is at the same part; what is said of it.
    Waiting(String),
    /// The end, with the names of the images that could not be read and were passed over.
    Done {
        skipped: Vec<String>,
    },
    Failed(String),
}

/// The worker's side: trains and writes one message a line.
pub(crate) fn run(args: &Args) -> Result<()> {
    let work = || {
        let worker = this_process(|who| {
            // Where nobody listens any more, the first event will tell.
            send(&Message::Waiting(who.to_owned())).ok();
        });
        for_task!(AnyRecipe::of_run(&args.folder)?, recipe => train(args, recipe, worker))
    };
    match work() {
        Ok(skipped) => send(&Message::Done { skipped }),
        Err(e) => send(&Message::Failed(vkd_train::plain(&e))),
    }
}

/// What this process says of itself, and to whom that it waits.
pub(crate) fn this_process(waiting: fn(&str)) -> Worker {
    Worker { commit: machine::commit(), machine: machine::description(), waiting }
}

/// Trains the part; the names of the images that were passed over.
fn train<W: Workload>(args: &Args, recipe: RecipeOf<W>, worker: Worker) -> Result<Vec<String>> {
    let data = W::open(&recipe.data)?;
    let run = RunFolderOf::<W>::open(&args.folder)?.with_worker(worker);
    // A parent that is gone closes the pipe: the failed write ends this process too.
    let observer = &mut |e: &Event| send(&Message::Event(e.clone()));
    match args.part.as_str() {
        TEACHER => train_teacher(&run, &data, observer).map(|_| ()),
        arm => train_arm(&run, &data, arm, observer).map(|_| ()),
    }?;
    Ok(data.skipped())
}

fn send(message: &Message) -> Result<()> {
    let line = serde_json::to_string(message).map_err(candle_core::Error::wrap)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// The parent's side: runs the worker of one part on one thread to its end and hands its events on, and to `waiting` for whom
/// it waits. The result lies in the run folder; returned are the names of the images that it passed over.
pub(crate) fn train_in_process(
    folder: &Path,
    part: &str,
    mut observe: impl FnMut(&Event),
    waiting: impl Fn(&str),
) -> Result<Vec<String>> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([std::ffi::OsStr::new("worker"), folder.as_os_str(), std::ffi::OsStr::new(part)])
        .env("RAYON_NUM_THREADS", "1")
        .env("CANDLE_NUM_THREADS", "1")
        .envs(KEEP_MEMORY)
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("{part}: expected the worker's output, got none")
    };
    // Drained on the side, so that a worker with much to complain about can't block.
    let complaints = std::thread::spawn(move || {
        let mut text = String::new();
        BufReader::new(err).read_to_string(&mut text).ok();
        text
    });
    let mut end = None;
    for line in BufReader::new(out).lines() {
        match serde_json::from_str(&line?) {
            Ok(Message::Event(event)) => observe(&event),
            Ok(Message::Waiting(who)) => waiting(&who),
            Ok(message) => end = Some(message),
            Err(e) => bail!("{part}: expected a worker's message: {e}"),
        }
    }
    let status = child.wait()?;
    let complaints = complaints.join().unwrap_or_default();
    match end {
        Some(Message::Done { skipped }) => Ok(skipped),
        Some(Message::Failed(text)) => bail!("{text}"),
        _ => {
            let complaints = match complaints.trim() {
                "" => String::new(),
                text => format!(": {text}"),
            };
            bail!(
                "{part}: its process ended early ({status}){complaints}; what it had saved is in {}, and the same command \
                 goes on from there",
                folder.display()
            )
        }
    }
}
