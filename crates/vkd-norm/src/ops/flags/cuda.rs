//! The words of CUDA devices, and the kernel that sets their bits.

use super::launch;
use crate::ops::program::{Source, run_on_tensors};
use candle_core::{DType, Device, Result, Tensor};
use std::sync::{Mutex, PoisonError};

const SOURCE: Source =
    Source { module: "vkd_norm::flags", ptx: include_str!(concat!(env!("OUT_DIR"), "/flags.ptx")) };

/// Each device that something was checked on, with its word.
static WORDS: Mutex<Vec<(Device, Tensor)>> = Mutex::new(Vec::new());

pub(super) fn outside(xs: &Tensor, range: [f64; 2], bit: u32) -> Result<()> {
    // Other integers are exact in f64 where they mean a place.
    let xs = match xs.dtype() {
        DType::F16 | DType::BF16 | DType::F32 | DType::F64 | DType::U32 => xs.detach(),
        _ => xs.detach().to_dtype(DType::F64)?,
    };
    let xs = xs.contiguous()?;
    let word = word_or_new(xs.device())?;
    let program = launch::outside(xs.dtype(), xs.elem_count(), range, bit)?;
    run_on_tensors(SOURCE, &program, &[&xs, &word]).map(drop)
}

/// Of two threads that come first one makes it.
fn word_or_new(device: &Device) -> Result<Tensor> {
    let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, word)) = words.iter().find(|(other, _)| other.same_device(device)) {
        return Ok(word.clone());
    }
    let word = Tensor::zeros(1, DType::U32, device)?;
    words.push((device.clone(), word.clone()));
    Ok(word)
}

pub(super) fn word(device: &Device) -> Option<Tensor> {
    let words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    words.iter().find(|(other, _)| other.same_device(device)).map(|(_, word)| word.clone())
}

pub(super) fn forget(device: &Device) {
    let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    words.retain(|(other, _)| !other.same_device(device));
}
