//! The works of `device.toml`, timed on a device.

mod clock;
mod rows;
mod works;

use crate::args::Args;
use candle_core::{DType, Result, Tensor, bail};
use clock::Clock;
use rows::Rows;
use serde_json::{Value, json};
use vkd_benches::{Answer, Peer, Product, Shapes, Work, commit, data, machine, threads};
use vkd_train::ComputeDevice;

/// A peer that needs more seconds than this is asked once.
const PEER_ONCE: f64 = 5.;

/// Each side of a tiny matrix is this part of the work's own.
const TINY: usize = 16;

/// Measures all works that pass the filter, with their floors and peers, and prints a line each. Rows are on the disk as they come.
///
/// # Errors
/// Whatever a work or its peer refuses, a filter that none passes, or a file that can't be written.
pub(crate) fn run(args: &Args) -> Result<()> {
    let device = args.device.open()?;
    let tiny = args.device == ComputeDevice::Cpu;
    let clock = Clock { device, quick: args.quick || tiny };
    let (place, peer_place) = (place(args.device)?, args.device.to_string());
    let mut peer = Peer::default();
    let works: Vec<Work> = Shapes::of_devices()?
        .all()
        .iter()
        .filter(|work| work.name.contains(&args.filter))
        .map(|work| if tiny { shrunk(work) } else { work.clone() })
        .collect();
    if works.is_empty() {
        bail!("bench: expected a work whose name contains {:?}, got none", args.filter)
    }
    let mut rows = Rows::new(args.json.as_deref())?;
    each(&works, &mut rows, |work| row(work, &clock, &mut peer, [&place, &peer_place]))?;
    if tiny {
        println!("{} works ran with tiny sizes: no measurement", rows.count());
    }
    if let Some(path) = &args.json {
        println!("{} rows written to {}", rows.count(), path.display());
    }
    Ok(())
}

/// Measures one work after the other; what was measured before an error stays.
fn each(
    works: &[Work],
    rows: &mut Rows,
    mut row: impl FnMut(&Work) -> Result<Value>,
) -> Result<()> {
    works.iter().try_for_each(|work| rows.add(row(work)?))
}

/// Measures a work, its floor and its peer.
fn row(
    work: &Work,
    clock: &Clock,
    peer: &mut Peer,
    [place, peer_place]: [&str; 2],
) -> Result<Value> {
    let (residual, mut step) = works::prepare(work, &clock.device)?;
    // The floor and the peer before and after, so that a drift of the clock meets all.
    let before = floor(work, clock)?;
    let first = peer.ask(work, peer_place)?;
    let found = clock.time(&mut step)?;
    let peer = match first {
        Some(first) if first.peer_median_s < PEER_ONCE => {
            peer.ask(work, peer_place)?.map(|second| first.faster(second))
        }
        first => first,
    };
    let floor = before.min(floor(work, clock)?);
    println!("{}", line(work, found.median, found.spread, floor, peer.as_ref()));
    Ok(json!({
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
    }))
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
    fn what_was_measured_before_an_error_stays() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("rows.json");
        let works = Shapes::of_devices()?;
        let mut rows = Rows::new(Some(&path))?;
        let mut done = 0;
        let ended = each(works.all(), &mut rows, |work| match done {
            2 => bail!("the driver is gone"),
            _ => {
                done += 1;
                Ok(json!({ "name": work.name }))
            }
        });
        assert!(ended.is_err());
        let left: Value =
            serde_json::from_slice(&std::fs::read(&path)?).map_err(candle_core::Error::wrap)?;
        let names = works.all()[..2].iter().map(|work| json!({ "name": work.name }));
        assert_eq!(left, Value::Array(names.collect()));
        Ok(())
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
