//! What a machine with a GPU is asked: whether every op holds there, whether a distillation ends where the CPU's does, and how long the
//! works of `device.toml` take. One program without any file beside it, for machines that build nothing; on the device `cpu` it proves
//! itself.

mod args;
mod bench;
mod digits;
mod driver;
mod laws;

use args::{Args, Command};
use candle_core::Result;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match Args::parse(&words).and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", vkd_train::plain(&e));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if args.command == Command::Help {
        println!("{}", args::HELP);
        return Ok(());
    }
    println!("device: {}", args.device.describe()?);
    match args.command {
        Command::Laws => {
            let options = laws::Options { filter: args.filter.clone(), small: args.small };
            laws::run(&args.device.open()?, &options)
        }
        Command::Digits => digits::run(args.device, args.small),
        Command::Bench => bench::run(args),
        Command::Help => Ok(()),
    }
}
