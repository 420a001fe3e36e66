//! Ranges that several norms share.

use candle_core::{Result, bail};

/// The absolute eps of layer, RMS, batch and group norm.
///
/// Below the smallest normal f32, 1 / sqrt(eps) is no longer safe in f32.
pub(crate) fn check_eps(op: &str, eps: f64) -> Result<()> {
    if !(eps >= f64::from(f32::MIN_POSITIVE) && eps.is_finite()) {
        bail!("{op}: expected a finite eps of at least {:e}, got {eps:e}", f32::MIN_POSITIVE)
    }
    Ok(())
}

/// The eps of standardisation, which is relative to the channel.
pub(crate) fn check_relative_eps(op: &str, eps: f64) -> Result<()> {
    if !(eps > 0. && eps < 1.) {
        bail!("{op}: expected 0 < eps < 1, got {eps:e}")
    }
    Ok(())
}
