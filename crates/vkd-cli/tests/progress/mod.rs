//! How far a run is, by its log.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

/// Rows that a run has logged.
pub(crate) fn rows(run: &Path) -> usize {
    let count = |name: &str| {
        let text = std::fs::read(run.join(name)).unwrap_or_default();
        text.iter().filter(|b| **b == b'\n').count()
    };
    count("teacher.jsonl") + count("arms/vkd/events.jsonl")
}

/// Waits for the log to reach `target` rows, or for the end.
pub(crate) fn wait_for(child: &mut Child, run: &Path, target: usize) {
    let limit = Instant::now() + Duration::from_secs(60);
    while rows(run) < target && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < limit, "no row {target} within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}
