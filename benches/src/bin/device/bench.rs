//! The works of `device.toml`, timed on a device.

mod clock;
mod works;

use crate::args::Args;
use candle_core::{DType, Result, Tensor, bail};
use clock::Clock;
use serde_json::{Value, json};
use std::io::Write;
use vkd_benches::{Answer, Peer, Product, Shapes, Work, commit, data, machine, threads};
use vkd_train::ComputeDevice;

/// A peer that needs more seconds than this is asked once.
const PEER_ONCE: f64 = 5.;

/// Each side of a tiny matrix is this part of the work's own.
const TINY: usize = 16;

/// Measures all works that pass the filter, with their floors and peers, and prints a line each.
///
/// # Errors
/// Whatever a work or its peer refuses, a filter that none passes, or a file that can't be written.
pub(crate) fn run(args: &Args) -> Result<()> {
    let device = args.device.open()?;
    let tiny = args.device == ComputeDevice::Cpu;
    let clock = Clock { device: device.clone(), quick: args.quick || tiny };
    let (place, peer_place) = (place(args.device)?, args.device.to_string());
    let mut peer = Peer::default();
    let mut rows = Vec::new();
    for work in Shapes::of_devices()?.all() {
        if !work.name.contains(&args.filter) {
            continue;
        }
        let work = if tiny { shrunk(work) } else { work.clone() };
        let (residual, mut step) = works::prepare(&work, &device)?;
        // The floor and the peer before and after, so that a drift of the clock meets all.
        let floor = floor(&work, &clock)?;
        let first = peer.ask(&work, &peer_place)?;
        let found = clock.time(&mut step)?;
        let peer = match first {
            Some(first) if first.peer_median_s < PEER_ONCE => {
                peer.ask(&work, &peer_place)?.map(|second| first.faster(second))
            }
            first => first,
        };
        let floor = floor.min(self::floor(&work, &clock)?);
        println!("{}", line(&work, found.median, found.spread, floor, peer.as_ref()));
        rows.push(json!({
            "name": work.name,
            "device": peer_place,
            "threads": threads(),
            "dtype": work.dtype.name(),
            "median_s": found.median,
            "spread_s": found.spread,
            "floor_s": floor,
            "peer": peer.as_ref().map(|peer| &peer.peer),
            "peer_median_s": peer.as_ref().map(|peer| peer.peer_median_s),
            "peer_repeats": peer.as_ref().map(|peer| peer.peer_repeats),
            "peer_residual": peer.as_ref().and_then(|peer| peer.peer_residual),
            "residual": residual,
            "peak_bytes": null,
            "commit": commit(),
            "machine": place,
        }));
    }
    if rows.is_empty() {
        bail!("bench: expected a work whose name contains {:?}, got none", args.filter)
    }
    if tiny {
        println!("{} works ran with tiny sizes: no measurement", rows.len());
    }
    match &args.json {
        Some(path) => write(path, &rows),
        None => Ok(()),
    }
}

/// One row a line.
fn write(path: &std::path::Path, rows: &[Value]) -> Result<()> {
    let lines: Vec<String> = rows.iter().map(|row| format!("  {row}")).collect();
    let mut file = std::fs::File::create(path)?;
    writeln!(file, "[\n{}\n]", lines.join(",\n"))?;
    println!("{} rows written to {}", rows.len(), path.display());
    Ok(())
}

/// Card, driver and processor.
fn place(device: ComputeDevice) -> Result<String> {
    if device == ComputeDevice::Cpu {
        return Ok(machine());
    }
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let driver = driver(&text).unwrap_or("of unknown version");
    Ok(format!("{}, driver {driver}; {}", device.describe()?, machine()))
}

/// The version in what the driver says of itself: the first word of numbers and points.
fn driver(text: &str) -> Option<&str> {
    let number =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(number)
}

fn line(work: &Work, median: f64, spread: f64, floor: f64, peer: Option<&Answer>) -> String {
    let ms = |seconds: f64| format!("{:.4} ms", 1e3 * seconds);
    let against = match peer {
        Some(peer) => {
            let times = peer.peer_median_s / median;
            format!("; {} {}, {times:.1} times", peer.peer, ms(peer.peer_median_s))
        }
        None => String::new(),
    };
    format!(
        "{:<46} {} (spread {}), floor {}, {:.2} of it{against}",
        work.name,
        ms(median),
        ms(spread),
        ms(floor),
        median / floor
    )
}

/// The same with sizes that any machine does at once.
fn shrunk(work: &Work) -> Work {
    let part = |n: usize| n.div_ceil(TINY);
    let shape = match work.shape[..] {
        // Two small images.
        _ if work.name.starts_with("step/") => vec![2, 32],
        _ => work.shape.iter().map(|n| part(*n)).collect(),
    };
    let product = |p: &Product| Product {
        m: part(p.m),
        k: part(p.k),
        n: part(p.n),
        count: p.count.min(4),
        dtype: p.dtype,
    };
    Work {
        name: format!("tiny/{}", work.name),
        shape,
        matmuls: work.matmuls.iter().map(product).collect(),
        copies: work.copies.iter().map(|bytes| bytes.div_ceil(TINY * TINY)).collect(),
        ..work.clone()
    }
}

/// Seconds of the work's products and copies on the device: each product as often as it occurs, and all copies.
fn floor(work: &Work, clock: &Clock) -> Result<f64> {
    let device = &clock.device;
    let mut total = 0.;
    for product in &work.matmuls {
        let &Product { m, k, n, count, .. } = product;
        let dtype = work.dtype_of(product).candle();
        let matrix = |dims: (usize, usize), seed| -> Result<Tensor> {
            data(dims, seed)?.to_device(device)?.to_dtype(dtype)
        };
        let (left, right) = (matrix((m, k), 1)?, matrix((k, n), 2)?);
        total += count as f64 * clock.time(&mut || left.matmul(&right).map(drop))?.median;
    }
    if !work.copies.is_empty() {
        let bytes = |bytes: &usize| Tensor::zeros(*bytes, DType::U8, device);
        let arrays = work.copies.iter().map(bytes).collect::<Result<Vec<_>>>()?;
        let copy = &mut || arrays.iter().try_for_each(|array| array.copy().map(drop));
        total += clock.time(copy)?.median;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_driver_is_read_from_its_line() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\nGCC version:  gcc 12.3.0";
        assert_eq!(driver(text), Some("580.65.06"));
        assert_eq!(driver(""), None);
    }

    #[test]
    fn every_work_runs_with_tiny_sizes() -> Result<()> {
        let works = Shapes::of_devices()?;
        // The whole steps have a teacher of 80 million weights; their part is here.
        for work in works.all().iter().filter(|work| !work.name.ends_with("/step")) {
            let (residual, mut step) = works::prepare(&shrunk(work), &Device::Cpu)?;
            step()?;
            assert_eq!(residual.is_some(), !work.name.starts_with("loss/"), "{}", work.name);
            assert!(residual.is_none_or(|r| r <= 1e-6), "{}: {residual:?}", work.name);
        }
        Ok(())
    }
}
