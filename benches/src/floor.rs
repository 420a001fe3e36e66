//! The floor of a work, timed: candle matmuls and plain copies of the sizes in `shapes.toml`.

use std::hint::black_box;
use std::time::Instant;

use candle_core::Result;
use rayon::prelude::*;

use crate::suite::data;
use crate::{Product, Work, machine};

/// Seconds of one pass over the floor: each product's best time, as often as it occurs, and the best time of all copies.
///
/// The best and not the median, because a floor should not rise with the noise around it.
pub(crate) fn seconds(work: &Work, repeats: usize) -> Result<f64> {
    let mut total = 0.0;
    for product in &work.matmuls {
        let &Product { m, k, n, count, .. } = product;
        let dtype = work.dtype_of(product).candle();
        let (left, right) = (data((m, k), 1)?.to_dtype(dtype)?, data((k, n), 2)?.to_dtype(dtype)?);
        let best = best(repeats, || left.matmul(&right).map(drop))?;
        total += best * count as f64;
    }
    if !work.copies.is_empty() {
        // One after the other over their own arrays, as the work's passes are: a copy that is repeated on the same arrays
        // would stay in the cache where a work of that size can't.
        let mut arrays: Vec<(Vec<u8>, Vec<u8>)> =
            work.copies.iter().map(|&bytes| (vec![1u8; bytes], vec![0u8; bytes])).collect();
        total += best(repeats, || {
            for (source, target) in &mut arrays {
                let part = source.len().div_ceil(machine::threads()).max(1);
                let parts = target.par_chunks_mut(part).zip(source.par_chunks(part));
                parts.for_each(|(target, source)| target.copy_from_slice(source));
                black_box(target);
            }
            Ok(())
        })?;
    }
    Ok(total)
}

/// The shortest of several runs; small works are repeated inside one measurement.
fn best(repeats: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    const ENOUGH: f64 = 1e-3;
    let mut timed = |rounds: usize| {
        let start = Instant::now();
        for _ in 0..rounds {
            work()?;
        }
        Ok::<f64, candle_core::Error>(start.elapsed().as_secs_f64() / rounds as f64)
    };
    timed(1)?;
    let once = timed(1)?;
    let rounds = (ENOUGH / once.max(1e-9)).ceil().clamp(1.0, 1e4) as usize;
    let mut best = f64::INFINITY;
    for _ in 0..repeats {
        best = best.min(timed(rounds)?);
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::seconds;
    use crate::{Product, Work};

    fn work(sides: Option<(usize, usize)>, copies: Vec<usize>) -> Work {
        let product = |(n, count)| Product { m: n, k: n, n, count, dtype: None };
        Work {
            name: "a/b/c/d".to_owned(),
            shape: vec![],
            reason: String::new(),
            matmuls: sides.map(product).into_iter().collect(),
            copies,
            scale: 1.0,
            threads: None,
            dtype: Default::default(),
            peer: None,
        }
    }

    #[test]
    fn more_work_takes_longer() {
        let small = seconds(&work(Some((32, 1)), vec![]), 5).unwrap();
        let big = seconds(&work(Some((256, 4)), vec![1 << 20]), 5).unwrap();
        assert!(small > 0.0 && big > small, "{small} {big}");
    }
}
