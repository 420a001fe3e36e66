//! The kernels of checks on the host.

use super::launch;
use candle_core::{DType, Device, Result, Tensor};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer};

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    KernelHost::compile(&ops.join("flags/flags.cu"), &[&ops], sanitizer)
}

/// The word after a check of `xs` against 0 to 1 with the bit 4, which had the bit 1 before.
fn word(host: &KernelHost, xs: &Tensor) -> Result<u32> {
    let script = launch::outside(xs.dtype(), xs.elem_count(), [0., 1.], 4)?.script();
    let before = Tensor::new(&[1u32], &Device::Cpu)?;
    host.run_in_place(&script, &[xs, &before], &[1])?[0].get(0)?.to_scalar::<u32>()
}

#[test]
fn what_is_outside_sets_its_bit_alone() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16, DType::U32] {
        for entries in [1, 31, 700] {
            let within = vec![1f64; entries];
            let tensor =
                |values: Vec<f64>| Tensor::from_vec(values, entries, &Device::Cpu)?.to_dtype(dtype);
            assert_eq!(word(&host, &tensor(within.clone())?)?, 1, "{dtype:?} {entries}");
            let mut odd = vec![2., f64::INFINITY];
            if dtype != DType::U32 {
                odd.extend([-0.5, f64::NAN, f64::NEG_INFINITY]);
            }
            for odd in odd {
                for at in [0, entries - 1] {
                    let mut values = within.clone();
                    values[at] = odd;
                    assert_eq!(word(&host, &tensor(values)?)?, 5, "{dtype:?} {odd} at {at}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    let xs = Tensor::full(3f32, 3000, &Device::Cpu)?;
    assert_eq!(word(&host, &xs)?, 5);
    Ok(())
}
