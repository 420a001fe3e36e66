//! ReLU, one value at a time.

use crate::ops::Real;

pub(super) fn value<T: Real>(x: T) -> T {
    // `x.max(0)` would turn NaN into 0 and hide a broken run.
    if x < T::zero() { T::zero() } else { x }
}

pub(super) fn gradient<T: Real>(x: T, grad: T) -> T {
    if x > T::zero() { grad } else { T::zero() }
}
