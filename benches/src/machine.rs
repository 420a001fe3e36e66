//! Where a row was measured: processor, threads, commit. No host name, no user, no path.

use std::process::Command;

/// Threads that candle and rayon use, from RAYON_NUM_THREADS or the machine.
pub fn threads() -> usize {
    candle_core::utils::get_num_threads()
}

/// The processor's model and how many hardware threads the process may use.
pub fn description() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model(&text).unwrap_or(std::env::consts::ARCH);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {cores} cores")
}

fn model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim()).filter(|model| !model.is_empty())
}

/// Tells the commit to a program that runs outside of its repository.
const COMMIT: &str = "VKD_BENCH_COMMIT";

/// The commit, `-dirty` where tracked files differ from it, `none` outside a repository.
pub fn commit() -> String {
    if let Ok(told) = std::env::var(COMMIT) {
        return told;
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "none".to_owned() };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}-dirty"),
    }
}

#[cfg(test)]
mod tests {
    use super::{model, threads};

    #[test]
    fn the_model_is_read_from_its_line() {
        assert_eq!(model("processor : 0\nmodel name\t: A 1 GHz\n"), Some("A 1 GHz"));
        assert_eq!(model("model name :\n"), None);
        assert_eq!(model(""), None);
    }

    #[test]
    fn there_is_a_thread() {
        assert!(threads() >= 1);
    }
}
