//! GELU, one value at a time.

use crate::ops::Real;
use std::f64::consts::{FRAC_1_SQRT_2, PI};

fn distribution<T: Real>(x: T) -> T {
    T::from_f64(0.5) * (T::one() + (x * T::from_f64(FRAC_1_SQRT_2)).erf())
}

pub(super) fn value<T: Real>(x: T) -> T {
    x * distribution(x)
}

/// `grad · (Φ(x) + x φ(x))`.
pub(super) fn gradient<T: Real>(x: T, grad: T) -> T {
    let density = T::from_f64((2. * PI).sqrt().recip()) * (T::from_f64(-0.5) * x * x).exponential();
    grad * (distribution(x) + x * density)
}
