//! Torch beside us: one long-lived Python process that answers a work's request with its times.
//!
//! Only used where `cargo xtask bench --against torch` names a Python; otherwise nothing is asked.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use candle_core::{Error, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Work, machine};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/torch_ortho.py");
const PYTHON: &str = "VKD_BENCH_PEER_PYTHON";

/// Seconds of timed passes in one answer, unless one pass alone takes longer.
const BUDGET_S: f64 = 2.0;

/// One answer, set-up included, may take this long; then the work has no peer.
const PATIENCE: Duration = Duration::from_secs(90);

/// What the peer measured: the keys of a row.
#[derive(Debug, Deserialize, PartialEq)]
pub(crate) struct Answer {
    pub(crate) peer: String,
    pub(crate) peer_median_s: f64,
    pub(crate) peer_repeats: usize,
    pub(crate) peer_residual: f64,
}

impl Answer {
    /// The one of two answers with the smaller median: a noisy moment must not slow the peer.
    pub(crate) fn faster(self, other: Self) -> Self {
        if other.peer_median_s < self.peer_median_s { other } else { self }
    }
}

/// The process, started by the first question.
#[derive(Default)]
pub(crate) struct Peer {
    running: Option<Process>,
}

struct Process {
    child: Child,
    questions: ChildStdin,
    answers: Receiver<std::io::Result<String>>,
}

impl Peer {
    /// Asks about a work; `None` where it names no peer, no Python is set, or patience ran out.
    pub(crate) fn ask(&mut self, work: &Work) -> Result<Option<Answer>> {
        let (Some(peer), Some(python)) = (&work.peer, std::env::var_os(PYTHON)) else {
            return Ok(None);
        };
        let (n, k) = work.matrix()?;
        let question = json!({
            "map": peer.map,
            "trivialization": peer.trivialization,
            "n": n,
            "k": k,
            "scale": work.scale,
            "threads": machine::threads(),
            "budget_s": BUDGET_S,
            "dtype": "f32",
        });
        let process = match self.running.take() {
            Some(process) => self.running.insert(process),
            None => self.running.insert(Process::start(&python)?),
        };
        writeln!(process.questions, "{question}")?;
        match process.answers.recv_timeout(PATIENCE) {
            Ok(line) => read(&line?)
                .map(Some)
                .map_err(|error| Error::msg(format!("{}: peer: {error}", work.name))),
            Err(RecvTimeoutError::Timeout) => {
                eprintln!("{}: the peer took more than {PATIENCE:?}: no peer", work.name);
                self.running = None;
                Ok(None)
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.running = None;
                bail!("{}: the peer ended without an answer", work.name)
            }
        }
    }
}

impl Process {
    fn start(python: &std::ffi::OsStr) -> Result<Self> {
        let mut child = Command::new(python)
            .arg(SCRIPT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Error::msg(format!("{PYTHON} did not start: {error}")))?;
        let (Some(questions), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the peer has no pipes")
        };
        // A thread reads, because a pipe knows no time limit.
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, questions, answers })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It holds nothing worth saving, and may be in the middle of a long pass.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(line: &str) -> Result<Answer> {
    let value: Value = serde_json::from_str(line).map_err(Error::wrap)?;
    if let Some(message) = value["error"].as_str() {
        bail!("{message}")
    }
    serde_json::from_value(value).map_err(Error::wrap)
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn answers_are_read_and_errors_passed_on() {
        let answer = |median: f64| {
            read(&format!(
                r#"{{"peer":"p","peer_median_s":{median},"peer_repeats":3,"peer_residual":1e-7}}"#
            ))
            .unwrap()
        };
        assert_eq!(answer(2.0).faster(answer(1.0)), answer(1.0));
        assert_eq!(answer(1.0).faster(answer(2.0)), answer(1.0));
        assert!(read(r#"{"error":"no torch"}"#).unwrap_err().to_string().contains("no torch"));
        assert!(read("{}").is_err() && read("text").is_err());
    }
}
