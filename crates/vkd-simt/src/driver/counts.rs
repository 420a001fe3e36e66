//! What was asked of the device, counted; and the report of it at the end of the process.
#![allow(unsafe_code, reason = "the end of a process is a function of C")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::error::say;
use super::state::STATE;
use crate::Usage;

/// Names the file that [`report_at_exit`] writes.
const REPORT: &str = "VKD_SIMT_REPORT";

/// How many failures the report names.
const NAMED: usize = 20;

#[derive(Debug, Default)]
pub(super) struct Counts {
    /// By kernel.
    launches: Mutex<BTreeMap<String, u64>>,
    products: AtomicU64,
    pub(super) to_device: Copies,
    pub(super) to_host: Copies,
    pub(super) on_device: Copies,
    pub(super) fills: Copies,
    synchronized: AtomicU64,
    /// What broke a context.
    faults: AtomicU64,
    /// Calls that were refused, and changed nothing.
    refusals: AtomicU64,
    /// The first of both, as they were said.
    failures: Mutex<Vec<String>>,
}

/// Calls of one kind, and bytes.
#[derive(Debug, Default)]
pub(super) struct Copies {
    calls: AtomicU64,
    bytes: AtomicU64,
}

impl Copies {
    pub(super) fn count(&self, bytes: usize) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn json(&self) -> String {
        let (calls, bytes) =
            (self.calls.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        format!("{{\"calls\": {calls}, \"bytes\": {bytes}}}")
    }
}

impl Counts {
    pub(super) fn launch(&self, kernel: &str) {
        let mut launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        match launches.get_mut(kernel) {
            Some(count) => *count += 1,
            None => drop(launches.insert(kernel.to_owned(), 1)),
        }
    }

    pub(super) fn product(&self) {
        self.products.fetch_add(1, Ordering::Relaxed);
    }

    /// A wait of the host for the device.
    pub(super) fn synchronize(&self) {
        self.synchronized.fetch_add(1, Ordering::Relaxed);
    }

    /// A call that fails, and why. A program may well ignore it, as one does that frees in a `drop`.
    pub(super) fn failure(&self, is_lasting: bool, line: &str) {
        let count = if is_lasting { &self.faults } else { &self.refusals };
        count.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < NAMED {
            failures.push(line.to_owned());
        }
    }

    /// All counts as a JSON object.
    fn json(&self, usage: Usage) -> String {
        let launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = format!("{{\n  \"launches\": {},\n", launches.values().sum::<u64>());
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            // Writing into a string can't fail.
            let _ = writeln!(text, "  \"{name}\": {value},");
        };
        line("products", &self.products.load(Ordering::Relaxed));
        line("host_to_device", &self.to_device.json());
        line("device_to_host", &self.to_host.json());
        line("device_to_device", &self.on_device.json());
        line("memsets", &self.fills.json());
        line("synchronizations", &self.synchronized.load(Ordering::Relaxed));
        line("allocations", &usage.allocations);
        line("peak_bytes", &usage.peak_bytes);
        line("blocks_left", &usage.blocks);
        line("bytes_left", &usage.bytes);
        line("faults", &self.faults.load(Ordering::Relaxed));
        line("refusals", &self.refusals.load(Ordering::Relaxed));
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failures: Vec<String> = failures.iter().map(|failure| quoted(failure)).collect();
        line("failures", &format!("[{}]", failures.join(", ")));
        // A kernel's name is an identifier of PTX: nothing in it is to be escaped.
        let kernels: Vec<String> =
            launches.iter().map(|(name, count)| format!("    \"{name}\": {count}")).collect();
        let _ = write!(text, "  \"kernels\": {{\n{}\n  }}\n}}\n", kernels.join(",\n"));
        text
    }
}

/// A text as JSON has it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            // Writing into a string can't fail.
            '\0'..' ' => drop(write!(quoted, "\\u{:04x}", u32::from(letter))),
            _ => quoted.push(letter),
        }
    }
    quoted + "\""
}

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> i32;
}

/// Has the counts written at the end of the process, into the file that the environment names.
pub(super) fn report_at_exit() {
    if std::env::var_os(REPORT).is_some() {
        // SAFETY: the function is part of this library, which nobody unloads.
        if unsafe { atexit(write_report) } != 0 {
            say(format_args!("{REPORT}: no report, as the end of the process can't be watched"));
        }
    }
}

extern "C" fn write_report() {
    let Some(path) = std::env::var_os(REPORT) else { return };
    let text = STATE.counts.json(STATE.memory.usage());
    if let Err(error) = std::fs::write(&path, text) {
        say(format_args!("{}: {error}", std::path::Path::new(&path).display()));
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn the_report_has_every_count() {
        let counts = Counts::default();
        counts.launch("b");
        counts.launch("a");
        counts.launch("b");
        counts.product();
        counts.to_host.count(12);
        counts.to_host.count(3);
        counts.synchronize();
        counts.failure(true, "a \"fault\"\nin \\ two lines: ü");
        (0..30).for_each(|_| counts.failure(false, "no"));
        let memory = crate::Memory::default();
        let block = memory.allocate(40).unwrap();
        memory.allocate(2).unwrap();
        memory.free(block).unwrap();
        let report: serde_json::Value = serde_json::from_str(&counts.json(memory.usage())).unwrap();
        let failures: Vec<&str> =
            std::iter::once("a \"fault\"\nin \\ two lines: ü").chain(["no"; 19]).collect();
        let want = serde_json::json!({
            "launches": 3, "products": 1, "host_to_device": {"calls": 0, "bytes": 0},
            "device_to_host": {"calls": 2, "bytes": 15}, "device_to_device": {"calls": 0, "bytes": 0},
            "memsets": {"calls": 0, "bytes": 0}, "synchronizations": 1, "allocations": 2,
            "peak_bytes": 42, "blocks_left": 1, "bytes_left": 2, "faults": 1, "refusals": 30, "failures": failures,
            "kernels": {"a": 1, "b": 2},
        });
        assert_eq!(report, want);
    }
}
