//! Spawning programs, and the list of timed steps that `ci` and `standalone` print.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Result;

/// The workspace's folder: the nearest one upwards whose manifest has a `[workspace]` table.
///
/// Looked up when run, not compiled in: a shared target folder may serve several clones.
pub(crate) fn root() -> Result<PathBuf> {
    let start = std::env::current_dir().map_err(|error| format!("current folder: {error}"))?;
    for folder in start.ancestors() {
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
        if manifest.lines().any(|line| line.trim() == "[workspace]") {
            return Ok(folder.to_owned());
        }
    }
    Err("no Cargo.toml with a [workspace] table here or above".to_owned())
}

/// The cargo that runs us.
pub(crate) fn cargo(folder: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(folder);
    command
}

/// Runs a command with its output visible; any status but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    println!("$ {line}");
    let status = command.status().map_err(|error| format!("`{line}` did not start: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{line}` failed ({status})")) }
}

/// Runs a command and returns what it wrote to stdout; stderr stays visible.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("`{line}` did not start: {error}"))?;
    if !output.status.success() {
        return Err(format!("`{line}` failed ({})", output.status));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("`{line}` did not print UTF-8"))
}

/// Whether a program can be started at all.
pub(crate) fn exists(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// `cargo metadata` of the workspace's own packages.
pub(crate) fn metadata(root: &Path) -> Result<Value> {
    let text = capture(cargo(root).args(["metadata", "--format-version", "1", "--no-deps"]))?;
    serde_json::from_str(&text).map_err(|error| format!("cargo metadata: {error}"))
}

/// The packages in the answer of [`metadata`].
pub(crate) fn packages(metadata: &Value) -> &[Value] {
    metadata["packages"].as_array().map_or(&[], Vec::as_slice)
}

/// The folder cargo builds into.
pub(crate) fn target_directory(metadata: &Value) -> Result<PathBuf> {
    let text = metadata["target_directory"].as_str();
    text.map(PathBuf::from).ok_or_else(|| "cargo metadata names no target folder".to_owned())
}

/// The program's name without its folder, and its arguments: no path of a machine is printed.
fn line_of(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default();
    let mut line = program.to_string_lossy().into_owned();
    for argument in command.get_args() {
        line += " ";
        line += &argument.to_string_lossy();
    }
    line
}

/// How a step ended when it did not fail.
pub(crate) enum Outcome {
    Passed,
    /// The tool is optional and absent; the text says which.
    Skipped(String),
}

/// Steps in order; the first failure ends the list.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<(String, Duration)>,
}

impl Steps {
    pub(crate) fn step(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<Outcome>,
    ) -> Result<()> {
        println!("\n==> {name}");
        let start = Instant::now();
        let outcome = work();
        let time = start.elapsed();
        match outcome {
            Ok(Outcome::Passed) => {
                println!("<== {name}: passed in {:.1} s", time.as_secs_f64());
                self.done.push((format!("passed   {name}"), time));
                Ok(())
            }
            Ok(Outcome::Skipped(reason)) => {
                println!("SKIPPED: {reason}");
                self.done.push((format!("SKIPPED  {name}: {reason}"), time));
                Ok(())
            }
            Err(message) => {
                println!("<== {name}: FAILED after {:.1} s", time.as_secs_f64());
                self.done.push((format!("FAILED   {name}"), time));
                self.summary();
                Err(format!("{name}: {message}"))
            }
        }
    }

    /// One line a step, and the total.
    pub(crate) fn summary(&self) {
        println!("\nsteps:");
        let mut total = Duration::ZERO;
        for (line, time) in &self.done {
            println!("{:>9.1} s  {line}", time.as_secs_f64());
            total += *time;
        }
        println!("{:>9.1} s  in all", total.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Steps, exists, root};

    #[test]
    fn the_root_is_found_from_a_member() {
        assert!(root().unwrap().join("xtask").is_dir());
    }

    #[test]
    fn a_failing_step_is_named() {
        let mut steps = Steps::default();
        steps.step("good", || Ok(Outcome::Passed)).unwrap();
        steps.step("absent", || Ok(Outcome::Skipped("no tool".to_owned()))).unwrap();
        let message = steps.step("bad", || Err("why".to_owned())).unwrap_err();
        assert_eq!(message, "bad: why");
        assert_eq!(steps.done.len(), 3);
    }

    #[test]
    fn a_missing_program_does_not_exist() {
        assert!(!exists("a-program-nobody-has"));
    }
}
