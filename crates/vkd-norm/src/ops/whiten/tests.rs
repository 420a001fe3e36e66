//! Whiten: against its twins, finite differences, in every layout, and at its edges.

use super::{reference, whiten};
use crate::{Deficient, Shrinkage, WhitenConfig, WhitenMethod};
use candle_core::{DType, Device, Result, Tensor};
use vkd_testkit::{OpCase, gradcheck, normal};

const METHODS: [WhitenMethod; 4] = [
    WhitenMethod::Cholesky,
    WhitenMethod::Zca,
    WhitenMethod::Pca,
    WhitenMethod::NewtonSchulz { iterations: 5 },
];

const SHRINKAGES: [Shrinkage; 5] = [
    Shrinkage::Fixed(0.),
    Shrinkage::Fixed(0.2),
    Shrinkage::Absolute(0.1),
    Shrinkage::LedoitWolf,
    Shrinkage::Oas,
];

/// In f64 the twin's elimination or iteration and the kernel's factors differ by rounding times the condition number,
/// 1e3 at most here; in f32 only the storage rounds.
fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "whiten", inputs, active: 1, f64_tolerance: 1e-9, f32_tolerance: 1e-6 }
}

fn config(method: WhitenMethod, shrinkage: Shrinkage) -> WhitenConfig {
    WhitenConfig { method, shrinkage, deficient: Deficient::Full }
}

/// Channels of variance from 0.2 to 2, correlated, with a mean.
fn features(rows: usize, channels: usize, seed: u64) -> Result<Tensor> {
    let scales: Vec<f64> = (0..channels).map(|j| 0.5 + j as f64 / channels as f64).collect();
    let xs = normal(&[rows, channels], DType::F64, seed)?;
    let mix = (normal(&[channels, channels], DType::F64, seed ^ 77)? * 0.2)?;
    (&xs + xs.matmul(&mix)?)?.broadcast_mul(&Tensor::new(scales, &Device::Cpu)?)? + 0.7
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    for method in METHODS {
        if method == WhitenMethod::Pca {
            continue;
        }
        for shrinkage in SHRINKAGES {
            let config = config(method, shrinkage);
            for (dims, seed) in [([2, 1], 1), ([9, 3], 2), ([33, 7], 3), ([70, 33], 4)] {
                // A single channel is its own target: the twin's estimate is 0 / 0.
                let estimated = matches!(shrinkage, Shrinkage::LedoitWolf | Shrinkage::Oas);
                if estimated && dims[1] == 1 {
                    continue;
                }
                let inputs = [features(dims[0], dims[1], seed)?];
                case(&inputs)
                    .check(|x| whiten(&x[0], config), |x| reference::whiten(&x[0], config))?;
            }
            // Fewer rows than channels: the shrinkage carries it.
            if shrinkage != Shrinkage::Fixed(0.) {
                let inputs = [features(5, 7, 5)?];
                case(&inputs)
                    .check(|x| whiten(&x[0], config), |x| reference::whiten(&x[0], config))?;
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_of_every_method_shrinkage_and_rank() -> Result<()> {
    for method in METHODS {
        for shrinkage in SHRINKAGES {
            for deficient in [Deficient::Full, Deficient::Truncate] {
                for (rows, channels) in [(12, 4), (5, 5), (4, 7), (2, 3)] {
                    let config = WhitenConfig { method, shrinkage, deficient };
                    // Components that the rows don't span are in no order: see the test of the eigengap.
                    let full = deficient == Deficient::Full;
                    if method == WhitenMethod::Pca && full && rows < channels {
                        continue;
                    }
                    let xs = features(rows, channels, 9)?;
                    gradcheck(|x| whiten(&x[0], config), &[xs]).map_err(|e| {
                        candle_core::Error::Msg(format!("{config:?} {rows}x{channels}: {e}"))
                    })?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for method in [WhitenMethod::Cholesky, WhitenMethod::Zca] {
        let config = config(method, Shrinkage::LedoitWolf);
        for dims in [[6, 3], [33, 7]] {
            let inputs = [features(dims[0], dims[1], 1)?];
            case(&inputs)
                .has_teeth(|x| whiten(&x[0], config), |x| reference::whiten(&x[0], config))?;
        }
    }
    Ok(())
}
