//! Proptest strategies that several crates share, and how a law reports that it does not hold.

use candle_core::Result;
use proptest::prelude::*;

/// Log-uniform sizes in `1..=largest`: small sizes, where edge cases live, come as often as large ones.
pub fn dimension(largest: usize) -> impl Strategy<Value = usize> {
    let top = (largest.max(1) as f64 + 1.).ln();
    (0f64..top).prop_map(move |l| (l.exp() as usize).clamp(1, largest.max(1)))
}

/// Log-uniform magnitudes between `low` and `high`.
pub fn scale(low: f64, high: f64) -> impl Strategy<Value = f64> {
    (low.ln()..high.ln()).prop_map(f64::exp)
}

/// The outcome of one proptest case, from the candle result of its body.
///
/// # Errors
/// Where the body has one, with its message.
pub fn holds(body: Result<()>) -> std::result::Result<(), TestCaseError> {
    body.map_err(|e| TestCaseError::fail(e.to_string()))
}
