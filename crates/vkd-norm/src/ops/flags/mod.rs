//! What ops find wrong with values on a device, where nobody waits to hear of it: each check has a bit of one word, which stays on the
//! device until somebody reads it.
//!
//! A training loop copies [`word`] to the host with its loss and asks [`verdict`]; whoever has no loop calls [`check`]. A device has one
//! word: of several loops on it the first that reads it stops. On the CPU ops refuse values at once, and here is nothing to do.
//!
//! ```
//! use candle_core::Device;
//! use vkd_norm::flags;
//!
//! // After steps on a device, at any time: the first error names every check that found something since the last time.
//! flags::check(&Device::Cpu)?;
//! # Ok::<(), candle_core::Error>(())
//! ```

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;

use candle_core::{Device, Result, Tensor, bail};
use std::sync::{Mutex, PoisonError};

/// Bits of the word. The last one is of all checks that come after the others have been given away.
const BITS: usize = 32;

/// What each bit says, from the first on.
static SAYINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Sees to it that the word of the device of `xs` gets a bit where an entry is outside of `low` to `high`, or NaN; on the CPU and without
/// the feature `cuda` it does nothing. `op` and `what` make the message, `OP: expected WHAT`.
///
/// `xs` is of floats or integers. It launches one kernel and waits for nothing.
///
/// # Errors
/// What the driver says.
pub fn expect(op: &str, what: &str, xs: &Tensor, [low, high]: [f64; 2]) -> Result<()> {
    #[cfg(feature = "cuda")]
    if crate::ops::program::applies(xs) {
        return cuda::outside(xs, [low, high], bit(&format!("{op}: expected {what}")));
    }
    let _ = (op, what, xs, low, high);
    Ok(())
}

/// The word of a device in f64 and of rank 0, to be copied to the host with other numbers; none where nothing has been checked.
///
/// # Errors
/// What the driver says.
pub fn word(device: &Device) -> Result<Option<Tensor>> {
    #[cfg(feature = "cuda")]
    if let Some(word) = cuda::word(device) {
        return Ok(Some(word.get(0)?.to_dtype(candle_core::DType::F64)?));
    }
    let _ = device;
    Ok(None)
}

/// Turns a copied [`word`] into an error that names every check that found something. The device's word starts anew then.
///
/// # Errors
/// Any bit.
pub fn verdict(device: &Device, word: f64) -> Result<()> {
    let word = word as u32;
    if word == 0 {
        return Ok(());
    }
    #[cfg(feature = "cuda")]
    cuda::forget(device);
    let sayings = SAYINGS.lock().unwrap_or_else(PoisonError::into_inner);
    let raised: Vec<&str> = (0..BITS)
        .filter(|at| word >> at & 1 == 1)
        .map(|at| sayings.get(at).map_or("a check that nobody knows here", String::as_str))
        .collect();
    bail!("{}, got others on {:?}", raised.join("; "), device.location())
}

/// Copies the word of `device` to the host and says what it holds.
///
/// # Errors
/// Those of [`verdict`], and what the driver says.
pub fn check(device: &Device) -> Result<()> {
    match word(device)? {
        Some(word) => verdict(device, word.to_scalar::<f64>()?),
        None => Ok(()),
    }
}

/// The bit of what a check says: its own from its first use on.
#[cfg(any(feature = "cuda", test))]
fn bit(saying: &str) -> u32 {
    let mut sayings = SAYINGS.lock().unwrap_or_else(PoisonError::into_inner);
    let at = match sayings.iter().position(|other| other == saying) {
        Some(at) => at,
        None if sayings.len() < BITS - 1 => {
            sayings.push(saying.to_owned());
            sayings.len() - 1
        }
        None => {
            match sayings.get_mut(BITS - 1) {
                Some(last) if last.split(" or ").any(|part| part == saying) => {}
                Some(last) => {
                    last.push_str(" or ");
                    last.push_str(saying);
                }
                None => sayings.push(saying.to_owned()),
            }
            BITS - 1
        }
    };
    1 << at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_its_bit_and_its_words() -> Result<()> {
        let (a, b) = (bit("a: expected x"), bit("b: expected y"));
        assert!(a != b && a.is_power_of_two() && bit("a: expected x") == a);
        verdict(&Device::Cpu, 0.)?;
        let said = verdict(&Device::Cpu, f64::from(a | b)).unwrap_err().to_string();
        assert!(said.contains("a: expected x; b: expected y, got others"), "{said}");
        // When all are given away, those that come share the last.
        let bits: Vec<u32> = (0..40).map(|i| bit(&format!("op{i}: expected z"))).collect();
        assert_eq!(bits[39], 1 << 31);
        assert_eq!(bit("op38: expected z"), 1 << 31);
        let said = verdict(&Device::Cpu, 2f64.powi(31)).unwrap_err().to_string();
        assert!(said.contains("op38: expected z or op39: expected z"), "{said}");
        assert_eq!(bit("a: expected x"), a);
        check(&Device::Cpu)
    }
}
