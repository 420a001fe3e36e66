//! Runs works under criterion and writes one row each.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use candle_core::{Device, Error, Result, Shape, Tensor, Var, bail};
use criterion::Criterion;
use serde_json::{Value, json};

use crate::peer::Peer;
use crate::{Shapes, Work, alloc, floor, machine};

/// A peer that needs more seconds than this is asked once.
const PEER_ONCE: f64 = 5.0;

/// What one bench target was asked for.
#[derive(Debug, Default, PartialEq)]
struct Options {
    quick: bool,
    filter: String,
}

/// The works of one bench target.
pub struct Suite {
    shapes: Shapes,
    options: Options,
    criterion: Criterion,
    folder: PathBuf,
    peer: Peer,
}

/// The `main` of a bench target: reads its flags, runs `works`, prints an error.
pub fn run(works: impl FnOnce(&mut Suite) -> Result<()>) -> ExitCode {
    match Suite::new().and_then(|mut suite| works(&mut suite)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Values in (-1, 1) that depend on the seed alone; never zero, so nothing can be skipped.
///
/// # Errors
/// None on the CPU, unless the shape overflows.
pub fn data(shape: impl Into<Shape>, seed: u32) -> Result<Tensor> {
    let shape = shape.into();
    let values: Vec<f32> = (0..shape.elem_count() as u32)
        .map(|index| {
            // A round of integer mixing: enough for inputs of a benchmark.
            let mut bits = index.wrapping_add(seed << 16).wrapping_mul(0x9e37_79b1);
            bits = (bits ^ (bits >> 15)).wrapping_mul(0x85eb_ca77);
            bits ^= bits >> 13;
            (f64::from(bits | 1) / f64::from(u32::MAX) * 2.0 - 1.0) as f32
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The backward pass from a gradient of ones; it must reach `xs`, or nothing was measured.
///
/// # Errors
/// Those of the pass, or no gradient for `xs`.
pub fn gradient(ys: &Tensor, xs: &Var) -> Result<Tensor> {
    match ys.backward()?.remove(xs) {
        Some(gradient) => Ok(gradient),
        None => bail!("the backward pass did not reach the input"),
    }
}

impl Suite {
    fn new() -> Result<Self> {
        let options = options(std::env::args().skip(1)).map_err(Error::msg)?;
        // Set by `cargo xtask bench`; alone, a bench writes beside its own program.
        let folder = match std::env::var_os("VKD_BENCH_FOLDER") {
            Some(folder) => PathBuf::from(folder),
            None => std::env::current_exe()?.with_extension("rows"),
        };
        std::fs::create_dir_all(&folder)?;
        let criterion = Criterion::default()
            .without_plots()
            .warm_up_time(Duration::from_secs(1))
            .measurement_time(Duration::from_secs(if options.quick { 2 } else { 5 }))
            .output_directory(&folder.join("criterion"));
        Ok(Self { shapes: Shapes::read()?, options, criterion, folder, peer: Peer::default() })
    }

    /// Measures every work of `shapes.toml` that starts with `crate/work` and passes the filter.
    ///
    /// `prepare` builds the inputs, outside the measurement, and returns the step to measure.
    ///
    /// # Errors
    /// No such work, an error of the step, or a file that can't be written.
    pub fn works<S, T>(
        &mut self,
        start: &str,
        mut prepare: impl FnMut(&Work) -> Result<S>,
    ) -> Result<()>
    where
        S: FnMut() -> Result<T>,
    {
        self.each(start, |work| Ok((None, prepare(work)?)))
    }

    /// As [`works`](Self::works); `prepare` also returns the residual of the orthogonal result.
    ///
    /// # Errors
    /// Those of [`works`](Self::works), and those of the peer.
    pub fn orthogonal_works<S, T>(
        &mut self,
        start: &str,
        mut prepare: impl FnMut(&Work) -> Result<(f64, S)>,
    ) -> Result<()>
    where
        S: FnMut() -> Result<T>,
    {
        self.each(start, |work| prepare(work).map(|(residual, step)| (Some(residual), step)))
    }

    fn each<S, T>(
        &mut self,
        start: &str,
        mut prepare: impl FnMut(&Work) -> Result<(Option<f64>, S)>,
    ) -> Result<()>
    where
        S: FnMut() -> Result<T>,
    {
        let works = self.shapes.of(start);
        if works.is_empty() {
            bail!("shapes.toml has no work {start}")
        }
        for work in works {
            if !work.name.contains(&self.options.filter) {
                continue;
            }
            if let Some(threads) = work.threads
                && threads != machine::threads()
            {
                self.elsewhere(&work, threads)?;
            } else {
                let (residual, step) = prepare(&work)?;
                self.measure(&work, residual, step)?;
            }
        }
        Ok(())
    }

    /// Measures a work in a process with another number of threads, which thread pools read when they start.
    fn elsewhere(&self, work: &Work, threads: usize) -> Result<()> {
        let mut child = Command::new(std::env::current_exe()?);
        child.args(["--filter", &work.name]).env("VKD_BENCH_FOLDER", &self.folder);
        if self.options.quick {
            child.arg("--quick");
        }
        for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
            child.env(name, threads.to_string());
        }
        let status = child.status()?;
        if !status.success() {
            bail!("{}: with {threads} threads: {status}", work.name)
        }
        Ok(())
    }

    fn measure<T>(
        &mut self,
        work: &Work,
        residual: Option<f64>,
        mut step: impl FnMut() -> Result<T>,
    ) -> Result<()> {
        let repeats = if self.options.quick { 3 } else { 10 };
        // Caches and thread pools are filled by a first call that nobody counts.
        step()?;
        let start = Instant::now();
        let (result, peak) = alloc::peak_of(&mut step);
        result?;
        // Slow works have less relative noise, and samples of them cost more.
        let slow = start.elapsed() > Duration::from_millis(30);
        let samples = if self.options.quick || slow { 10 } else { 30 };
        self.criterion = std::mem::take(&mut self.criterion).sample_size(samples);
        // The floor before and after, so that a drift of the clock meets both.
        let before = floor::seconds(work, repeats)?;
        // The peer too, but not twice where one answer takes long.
        let first = self.peer.ask(work, "cpu")?;
        let mut failure = None;
        self.criterion.bench_function(work.name.as_str(), |bencher| {
            bencher.iter(|| {
                let result = step();
                failure = failure.take().or(result.as_ref().err().map(ToString::to_string));
                result.ok()
            });
        });
        if let Some(message) = failure {
            bail!("{}: {message}", work.name)
        }
        let peer = match first {
            Some(first) if first.peer_median_s < PEER_ONCE => {
                self.peer.ask(work, "cpu")?.map(|second| first.faster(second))
            }
            first => first,
        };
        let floor = before.min(floor::seconds(work, repeats)?);
        let estimates = estimates(&self.folder.join("criterion"), &work.name)?;
        let nanoseconds = |name: &str| match estimates[name]["point_estimate"].as_f64() {
            Some(value) => Ok(value * 1e-9),
            None => bail!("criterion's estimates have no {name}"),
        };
        let row = json!({
            "name": work.name,
            "device": "cpu",
            "threads": machine::threads(),
            "dtype": work.dtype.name(),
            "median_s": nanoseconds("median")?,
            "spread_s": nanoseconds("median_abs_dev")?,
            "floor_s": floor,
            "peer": peer.as_ref().map(|peer| &peer.peer),
            "peer_median_s": peer.as_ref().map(|peer| peer.peer_median_s),
            "peer_repeats": peer.as_ref().map(|peer| peer.peer_repeats),
            "peer_residual": peer.as_ref().and_then(|peer| peer.peer_residual),
            "residual": residual,
            "peak_bytes": peak,
            "commit": machine::commit(),
            "machine": machine::description(),
        });
        let path = self.folder.join("rows.jsonl");
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        writeln!(file, "{row}")?;
        Ok(())
    }
}

/// Reads the flags of a bench target; cargo itself adds `--bench`.
fn options(words: impl Iterator<Item = String>) -> std::result::Result<Options, String> {
    let mut options = Options::default();
    let mut words = words;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {}
            "--quick" => options.quick = true,
            "--filter" => options.filter = words.next().ok_or("--filter needs a text")?,
            _ => return Err(format!("unknown flag {word}; known: --quick, --filter S")),
        }
    }
    Ok(options)
}

/// Criterion shortens folder names, so the right one is found by the name it holds.
fn estimates(folder: &Path, name: &str) -> Result<Value> {
    let read = |path: PathBuf| -> Result<Value> {
        serde_json::from_str(&std::fs::read_to_string(path)?).map_err(Error::wrap)
    };
    for entry in std::fs::read_dir(folder)? {
        let newest = entry?.path().join("new");
        let benchmark = newest.join("benchmark.json");
        if benchmark.is_file() && read(benchmark)?["full_id"] == name {
            return read(newest.join("estimates.json"));
        }
    }
    bail!("criterion left no estimates of {name}")
}

#[cfg(test)]
mod tests {
    use super::{Options, data, options};

    #[test]
    fn flags_are_read_and_others_refused() {
        let read = |line: &str| options(line.split_whitespace().map(str::to_owned));
        let wanted = Options { quick: true, filter: "ortho".to_owned() };
        assert_eq!(read("--bench --quick --filter ortho"), Ok(wanted));
        assert!(read("--filter").is_err() && read("--slow").is_err());
    }

    #[test]
    fn data_are_spread_out_and_repeatable() {
        let values = data((100, 100), 3).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let again = data((100, 100), 3).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values, again);
        let mean = values.iter().sum::<f32>() / 1e4;
        let square = values.iter().map(|value| value * value).sum::<f32>() / 1e4;
        assert!(mean.abs() < 0.03 && (square - 1.0 / 3.0).abs() < 0.03, "{mean} {square}");
    }
}
