//! How long a step takes on a device whose work is queued.

use candle_core::{Device, Result};
use std::time::{Duration, Instant};
use vkd_benches::median;

/// A sample has as many passes as take so long, so that waiting for the device does not count.
const SAMPLE: Duration = Duration::from_millis(2);

/// Passes of a sample, at most.
const MOST: usize = 200;

/// Scales a median absolute deviation to the standard deviation of a normal distribution.
const TO_DEVIATION: f64 = 1.4826;

pub(super) struct Clock {
    pub(super) device: Device,
    pub(super) quick: bool,
}

/// Seconds of one pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) median: f64,
    pub(super) spread: f64,
}

impl Clock {
    /// Times `step`, after passes that nobody counts: they load kernels and take memory from the driver.
    pub(super) fn time(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Timing> {
        let (samples, budget) = match self.quick {
            true => (3, Duration::from_millis(200)),
            false => (50, Duration::from_secs(5)),
        };
        for _ in 0..3 {
            self.passes(step, 1)?;
        }
        let once = self.passes(step, 1)?.max(1e-9);
        let rounds = ((SAMPLE.as_secs_f64() / once).ceil() as usize).clamp(1, MOST);
        let started = Instant::now();
        let mut times = Vec::with_capacity(samples);
        while times.is_empty() || (times.len() < samples && started.elapsed() < budget) {
            times.push(self.passes(step, rounds)?);
        }
        Ok(timing(&mut times))
    }

    /// Mean seconds of so many passes, until the device has done them.
    fn passes(&self, step: &mut dyn FnMut() -> Result<()>, rounds: usize) -> Result<f64> {
        self.device.synchronize()?;
        let started = Instant::now();
        for _ in 0..rounds {
            step()?;
        }
        self.device.synchronize()?;
        Ok(started.elapsed().as_secs_f64() / rounds as f64)
    }
}

fn timing(times: &mut [f64]) -> Timing {
    let middle = median(times);
    let mut away: Vec<f64> = times.iter().map(|time| (time - middle).abs()).collect();
    Timing { median: middle, spread: TO_DEVIATION * median(&mut away) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_and_how_far_the_others_are() {
        let Timing { median, spread } = timing(&mut [5., 1., 2., 3., 100.]);
        assert_eq!((median, spread), (3., 2. * TO_DEVIATION));
    }

    #[test]
    fn passes_are_counted_once_each() -> Result<()> {
        let clock = Clock { device: Device::Cpu, quick: true };
        let mut passes = 0;
        let found = clock.time(&mut || {
            passes += 1;
            std::thread::sleep(Duration::from_millis(3));
            Ok(())
        })?;
        // Four before the samples; each of these takes longer than a sample must.
        assert_eq!(passes, 4 + 3);
        assert!(found.median >= 3e-3, "{found:?}");
        Ok(())
    }
}
