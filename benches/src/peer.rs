//! Another library beside us: a long-lived Python process per script that answers a work's request with its times.
//!
//! Only used where `cargo xtask bench --against LIBRARY` names a Python and the script's name begins with the library's.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use candle_core::{Error, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::shapes::peers;
use crate::{Work, machine};

const PYTHON: &str = "VKD_BENCH_PEER_PYTHON";
const LIBRARY: &str = "VKD_BENCH_PEER_LIBRARY";

/// Seconds of timed passes in one answer, unless one pass alone takes longer.
const BUDGET_S: f64 = 2.0;

/// One answer, set-up included, may take this long; then the work has no peer.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the peer measured: the keys of a row.
#[derive(Debug, Deserialize, PartialEq)]
pub struct Answer {
    /// Library, version and function.
    pub peer: String,
    /// Median of its passes.
    pub peer_median_s: f64,
    /// How many passes were timed.
    pub peer_repeats: usize,
    /// How far its result is from orthonormal, where it should be.
    pub peer_residual: Option<f64>,
}

impl Answer {
    /// The one of two answers with the smaller median: a noisy moment must not slow the peer.
    pub fn faster(self, other: Self) -> Self {
        if other.peer_median_s < self.peer_median_s { other } else { self }
    }
}

/// The processes by script, each started by its first question.
#[derive(Default)]
pub struct Peer {
    running: BTreeMap<String, Process>,
}

struct Process {
    child: Child,
    questions: ChildStdin,
    answers: Receiver<std::io::Result<String>>,
}

impl Peer {
    /// Asks about a work on `device`, `cpu` or `cuda`; `None` where it names no peer, no Python is set, or patience ran out.
    ///
    /// # Errors
    /// A Python that does not start, and what the peer complains of.
    pub fn ask(&mut self, work: &Work, device: &str) -> Result<Option<Answer>> {
        let (Some(peer), Some(python)) = (&work.peer, std::env::var_os(PYTHON)) else {
            return Ok(None);
        };
        let library = std::env::var(LIBRARY).unwrap_or_default();
        if !peer.script.starts_with(&format!("{library}_")) {
            return Ok(None);
        }
        let mut question = peer.request.clone();
        if let [n, k] = work.shape[..] {
            question.extend([("n".to_owned(), json!(n)), ("k".to_owned(), json!(k))]);
        }
        let sizes = [
            ("shape", json!(work.shape)),
            ("scale", json!(work.scale)),
            ("threads", json!(machine::threads())),
            ("budget_s", json!(BUDGET_S)),
            ("dtype", json!(work.dtype.name())),
            ("device", json!(device)),
        ];
        question.extend(sizes.map(|(key, value)| (key.to_owned(), value)));
        let question = Value::Object(question);
        let process = match self.running.entry(peer.script.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Process::start(&python, &peer.script)?),
        };
        writeln!(process.questions, "{question}")?;
        match process.answers.recv_timeout(PATIENCE) {
            Ok(line) => read(&line?)
                .map(Some)
                .map_err(|error| Error::msg(format!("{}: peer: {error}", work.name))),
            Err(RecvTimeoutError::Timeout) => {
                eprintln!("{}: the peer took more than {PATIENCE:?}: no peer", work.name);
                self.running.remove(&peer.script);
                Ok(None)
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.running.remove(&peer.script);
                bail!("{}: the peer ended without an answer", work.name)
            }
        }
    }
}

impl Process {
    fn start(python: &std::ffi::OsStr, script: &str) -> Result<Self> {
        let mut child = Command::new(python)
            // No bytecode of the shared module in the source tree.
            .arg("-B")
            .arg(peers().join(script))
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
        let none = r#"{"peer":"p","peer_median_s":1,"peer_repeats":3,"peer_residual":null}"#;
        assert_eq!(read(none).unwrap().peer_residual, None);
        assert!(read(r#"{"error":"no torch"}"#).unwrap_err().to_string().contains("no torch"));
        assert!(read("{}").is_err() && read("text").is_err());
    }
}
