//! Activations on slices: the value and the slope of each, and the passes over them.

use super::Activation;
use crate::ops::{Real, for_chunks, for_chunks2};
use std::f64::consts::{FRAC_1_SQRT_2, PI};
use vkd_norm::lanes::vectorized;

/// Values in one chunk of a pass.
const CHUNK: usize = 1 << 13;

/// A function of one value with its derivative. Everything is inlined, so that loops over it become vector code.
trait Pointwise: Copy + Send + Sync {
    /// The function and its derivative, which share most of their work.
    fn both<T: Real>(self, x: T) -> (T, T);

    fn value<T: Real>(self, x: T) -> T;
}

#[derive(Clone, Copy)]
struct Identity;
#[derive(Clone, Copy)]
struct Gelu;
#[derive(Clone, Copy)]
struct GeluTanh;
#[derive(Clone, Copy)]
struct Relu;
#[derive(Clone, Copy)]
struct Relu6;
#[derive(Clone, Copy)]
struct Silu;

/// Runs `$body` with `$f` bound to the function that `$activation` names.
macro_rules! with_pointwise {
    ($activation:expr, $f:ident => $body:expr) => {
        match $activation {
            Activation::Identity => {
                let $f = Identity;
                $body
            }
            Activation::Gelu => {
                let $f = Gelu;
                $body
            }
            Activation::GeluTanh => {
                let $f = GeluTanh;
                $body
            }
            Activation::Relu => {
                let $f = Relu;
                $body
            }
            Activation::Relu6 => {
                let $f = Relu6;
                $body
            }
            Activation::Silu => {
                let $f = Silu;
                $body
            }
        }
    };
}

impl Pointwise for Identity {
    #[inline(always)]
    fn both<T: Real>(self, x: T) -> (T, T) {
        (x, T::one())
    }

    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        x
    }
}

#[inline(always)]
fn distribution<T: Real>(x: T) -> T {
    T::from_f64(0.5) * (T::one() + (x * T::from_f64(FRAC_1_SQRT_2)).erf())
}

impl Pointwise for Gelu {
    /// The slope is Φ(x) + x φ(x).
    #[inline(always)]
    fn both<T: Real>(self, x: T) -> (T, T) {
        let density =
            T::from_f64((2. * PI).sqrt().recip()) * (T::from_f64(-0.5) * x * x).exponential();
        let below = distribution(x);
        (x * below, below + x * density)
    }

    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        x * distribution(x)
    }
}

/// `(1 + tanh u) / 2` of GELU's `u` is the logistic function of `2u`, which is `x (a + b x²)`.
const TANH: (f64, f64) = (1.595_769_121_605_730_8, 1.595_769_121_605_730_8 * 0.044_715);

#[inline(always)]
fn logistic<T: Real>(x: T) -> T {
    T::one() / (T::one() + (-x).exponential())
}

impl Pointwise for GeluTanh {
    #[inline(always)]
    fn both<T: Real>(self, x: T) -> (T, T) {
        let (a, b) = (T::from_f64(TANH.0), T::from_f64(TANH.1));
        let square = x * x;
        let gate = logistic(x * (a + b * square));
        let steep = a + T::from_f64(3.) * b * square;
        // Far out the gate is 0 or 1 and its slope 0, however large the other factor: not 0 · ∞.
        let rest = gate * (T::one() - gate);
        let bend = if rest == T::zero() { T::zero() } else { x * rest * steep };
        (x * gate, gate + bend)
    }

    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        x * logistic(x * (T::from_f64(TANH.0) + T::from_f64(TANH.1) * (x * x)))
    }
}

impl Pointwise for Relu {
    #[inline(always)]
    fn both<T: Real>(self, x: T) -> (T, T) {
        (self.value(x), if x > T::zero() { T::one() } else { T::zero() })
    }

    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        // `x.max(0)` would turn NaN into 0 and hide a broken run.
        if x < T::zero() { T::zero() } else { x }
    }
}

impl Pointwise for Relu6 {
    #[inline(always)]
    fn both<T: Real>(self, x: T) -> (T, T) {
        let inside = x > T::zero() && x < T::from_f64(6.);
        (self.value(x), if inside { T::one() } else { T::zero() })
    }

    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        let six = T::from_f64(6.);
        let x = Relu.value(x);
        if x > six { six } else { x }
    }
}

impl Pointwise for Silu {
    #[inline(always)]
    fn both<T: Real>(self, x: T) -> (T, T) {
        let gate = logistic(x);
        (x * gate, gate * (T::one() + x * (T::one() - gate)))
    }

    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        x * logistic(x)
    }
}

pub(super) fn forward<T: Real>(activation: Activation, xs: &[T]) -> Vec<T> {
    let mut ys = vec![T::zero(); xs.len()];
    with_pointwise!(activation, f => for_chunks(&mut ys, CHUNK, |at, ys| {
        let xs = &xs[at * CHUNK..][..ys.len()];
        vectorized(
            #[inline(always)]
            || {
                for (y, x) in ys.iter_mut().zip(xs) {
                    *y = f.value(*x);
                }
            },
        );
    }));
    ys
}

pub(super) fn backward<T: Real>(activation: Activation, xs: &[T], grad: &[T]) -> Vec<T> {
    let mut dxs = vec![T::zero(); xs.len()];
    with_pointwise!(activation, f => for_chunks(&mut dxs, CHUNK, |at, dxs| {
        let (xs, grad) = (&xs[at * CHUNK..][..dxs.len()], &grad[at * CHUNK..][..dxs.len()]);
        vectorized(
            #[inline(always)]
            || {
                for ((d, x), g) in dxs.iter_mut().zip(xs).zip(grad) {
                    *d = *g * f.both(*x).1;
                }
            },
        );
    }));
    dxs
}

/// Values of the activation; `xs` becomes its slopes.
pub(crate) fn forward_with_slopes<T: Real>(activation: Activation, xs: &mut [T]) -> Vec<T> {
    let mut ys = vec![T::zero(); xs.len()];
    with_pointwise!(activation, f => for_chunks2(&mut ys, xs, CHUNK, |ys, xs| {
        vectorized(
            #[inline(always)]
            || {
                for (y, x) in ys.iter_mut().zip(xs) {
                    (*y, *x) = f.both(*x);
                }
            },
        );
    }));
    ys
}

/// The activation in place.
pub(crate) fn in_place<T: Real>(activation: Activation, xs: &mut [T]) {
    if activation == Activation::Identity {
        return;
    }
    with_pointwise!(activation, f => for_chunks(xs, CHUNK, |_, xs| {
        vectorized(
            #[inline(always)]
            || {
                for x in xs {
                    *x = f.value(*x);
                }
            },
        );
    }));
}

#[cfg(test)]
mod tests {
    use super::TANH;

    #[test]
    fn the_constant_is_what_it_is_called() {
        assert_eq!(TANH.0, 2. * std::f64::consts::FRAC_2_PI.sqrt());
    }
}
