//! The vkd command line: distil a big network into a small one.

mod bake;
mod compare;
mod detections;
mod distill;
mod doctor;
mod dry_run;
mod eval;
mod grid;
mod images;
mod inspect;
mod launch;
mod machine;
mod missing;
mod pool;
mod predict;
mod progress;
mod recipe_args;
mod report;
mod sample;
mod scenes;
mod shown;
mod summary;
mod tensor_file;
mod together;
mod worker;

use clap::{Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// Distil a big network into a small one, through orthogonal projections (V_kD, CVPR 2024).
#[derive(Parser)]
#[command(name = "vkd", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a teacher and distil students from it; without arguments, on the embedded handwritten digits
    Distill(distill::Args),
    /// Train a grid of arms and seeds, or what is missing of it, and compare them
    Compare(compare::Args),
    /// Check machine, data set and teacher for a recipe
    Doctor(doctor::Args),
    /// Score a distilled student on a data set
    Eval(eval::Args),
    /// Classify images, or find objects in them, with a distilled student
    Predict(predict::Args),
    /// Draw images with a distilled generator
    Sample(sample::Args),
    /// Write a small image folder in ImageNet's layout, to try recipes of image files
    Images(images::Args),
    /// Write scenes of handwritten digits as a COCO data set, to try detection without a download
    Scenes(scenes::Args),
    /// Turn orthogonally parametrised weights, PyTorch's or vkd's, into plain ones
    Bake(bake::Args),
    /// List the tensors of a file and how orthonormal they are
    Inspect(inspect::Args),
    /// Train one arm of a run; started by `distill`, which reads its events
    #[command(hide = true)]
    Worker(worker::Args),
}

/// Writes to standard output; a reader that has seen enough is no fault.
fn print(text: &str) -> candle_core::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// Writes a line to standard error, where nobody may listen.
fn note(text: &str) {
    writeln!(std::io::stderr(), "{text}").ok();
}

fn main() -> ExitCode {
    // A panic is our fault, never the user's: say so in one line instead of a stack trace.
    std::panic::set_hook(Box::new(|info| {
        note(&format!("error: internal fault, please report it: {info}"));
    }));
    let run = || match Cli::parse().command {
        Command::Distill(args) => distill::run(&args),
        // The others would do the same work several times over.
        _ if launch::size() > 1 => launch::refused(),
        Command::Compare(args) => compare::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Sample(args) => sample::run(&args),
        Command::Images(args) => images::run(&args),
        Command::Scenes(args) => scenes::run(&args),
        Command::Bake(args) => bake::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Worker(args) => worker::run(&args),
    };
    match std::panic::catch_unwind(run) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(e)) => {
            note(&format!("error: {}", vkd_train::plain(&e)));
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}
