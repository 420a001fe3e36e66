//! The words of the command line.

use candle_core::{Result, bail};
use std::path::PathBuf;
use vkd_train::ComputeDevice;

pub(crate) const HELP: &str = "\
Usage: vkd-device <laws|digits|bench> [--device cpu|cuda|cuda:N] [FLAGS]

  laws     every op against the same op in f64 on the CPU, results and gradients
  digits   the first steps of a classifier, a GAN and a detector, and a whole distillation, on the device beside the CPU
  bench    the works of device.toml: median, spread, floor, and a peer's time

Flags:
  --device D     where [default: cuda]
  --filter S     of laws and bench: only what has S in its name
  --small        of laws: only cases of few values, as under a sanitizer; of digits: a shorter distillation
  --quick        of bench: few samples
  --json FILE    of bench: also write the rows, anew after each work
Where VKD_BENCH_PEER_PYTHON and VKD_BENCH_PEER_LIBRARY=torch are set, bench also asks torch in that Python, with the scripts in VKD_BENCH_PEERS.
On the device cpu it has tiny sizes and writes no file: it shows that it runs.";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Command {
    Laws,
    Digits,
    Bench,
    Help,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Args {
    pub(crate) command: Command,
    pub(crate) device: ComputeDevice,
    pub(crate) filter: String,
    pub(crate) small: bool,
    pub(crate) quick: bool,
    pub(crate) json: Option<PathBuf>,
}

impl Args {
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut args = Self {
            command: Command::Help,
            device: ComputeDevice::Cuda(0),
            filter: String::new(),
            small: false,
            quick: false,
            json: None,
        };
        let mut words = words.iter();
        args.command = match words.next().map(String::as_str) {
            Some("laws") => Command::Laws,
            Some("digits") => Command::Digits,
            Some("bench") => Command::Bench,
            None | Some("help" | "--help" | "-h") => return Ok(args),
            Some(other) => bail!("expected laws, digits or bench, got {other}\n\n{HELP}"),
        };
        while let Some(word) = words.next() {
            let mut value = || match words.next() {
                Some(value) => Ok(value.clone()),
                None => bail!("{word}: expected a value, got none"),
            };
            match word.as_str() {
                "--device" => args.device = value()?.parse()?,
                "--filter" => args.filter = value()?,
                "--small" => args.small = true,
                "--quick" => args.quick = true,
                "--json" => args.json = Some(value()?.into()),
                "--help" | "-h" => args.command = Command::Help,
                other => bail!("expected a flag, got {other}\n\n{HELP}"),
            }
        }
        if args.device == ComputeDevice::Cpu && args.json.is_some() {
            bail!("--json: expected a GPU, got the device cpu, whose sizes are tiny")
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args> {
        Args::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_are_read_and_odd_ones_named() -> Result<()> {
        let args = parse("bench --device cuda:1 --filter ortho --quick --json f.json")?;
        assert_eq!((args.command, args.device), (Command::Bench, ComputeDevice::Cuda(1)));
        assert_eq!((args.filter.as_str(), args.quick, args.small), ("ortho", true, false));
        assert_eq!(parse("laws")?.device, ComputeDevice::Cuda(0));
        assert_eq!(parse("")?.command, Command::Help);
        for (line, part) in [
            ("law", "expected laws, digits or bench, got law"),
            ("laws --device gpu", "expected cpu, cuda or cuda:N"),
            ("laws --filter", "--filter: expected a value"),
            ("laws --fast", "expected a flag, got --fast"),
            ("bench --device cpu --json f", "--json: expected a GPU"),
        ] {
            let message = parse(line).map(|_| ()).unwrap_err().to_string();
            assert!(message.contains(part), "{line}: {message}");
        }
        Ok(())
    }
}
