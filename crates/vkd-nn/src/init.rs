//! Initial values, as hints for a [`VarBuilder`](candle_nn::VarBuilder).
//!
//! Each is a candle `Init`, so that any builder takes it; a [`VarStore`](crate::VarStore) draws it as a function of its seed
//! and of the variable's full name, whatever the order of construction.
//!
//! ```
//! use candle_core::{DType, Device};
//! use vkd_nn::{VarStore, init};
//! let vb = VarStore::new(7, DType::F32, &Device::Cpu).builder();
//! let position = vb.get_with_hints((1, 50, 192), "pos_embed", init::truncated_normal(0.02))?;
//! assert!(position.abs()?.max_all()?.to_scalar::<f32>()? <= 0.04);
//! vb.get_with_hints((64, 32), "weight", init::xavier_uniform(&[64, 32]))?;
//! vb.get_with_hints((64, 32, 3, 3), "kernel", init::kaiming_normal(init::FanInOut::FanOut))?;
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::Shape;
pub use candle_nn::init::FanInOut;
use candle_nn::init::{Init, NonLinearity, NormalOrUniform};
use rand::Rng;
use rand_distr::StandardNormal;

/// Where a truncated normal is cut, in standard deviations.
const CUT: f64 = 2.;

/// One value everywhere.
pub fn constant(value: f64) -> Init {
    Init::Const(value)
}

/// Normal with standard deviation `stdev` about zero, cut at two of them: draws beyond are drawn again.
///
/// As in PyTorch, `stdev` is that of the whole normal; what is left has 0.88 of it.
pub fn truncated_normal(stdev: f64) -> Init {
    // candle's list has no such entry. A negative gain means nothing else, and another builder would draw the whole normal.
    Init::Kaiming {
        dist: NormalOrUniform::Normal,
        fan: FanInOut::FanIn,
        non_linearity: NonLinearity::ExplicitGain(-stdev.abs()),
    }
}

/// Normal with variance `2 / (fan_in + fan_out)` (Glorot and Bengio, AISTATS 2010).
pub fn xavier_normal(dims: &[usize]) -> Init {
    Init::Randn { mean: 0., stdev: xavier(dims) }
}

/// Uniform with variance `2 / (fan_in + fan_out)`.
pub fn xavier_uniform(dims: &[usize]) -> Init {
    let bound = 3f64.sqrt() * xavier(dims);
    Init::Uniform { lo: -bound, up: bound }
}

fn xavier(dims: &[usize]) -> f64 {
    let shape = Shape::from(dims);
    let fans = FanInOut::FanIn.for_shape(&shape) + FanInOut::FanOut.for_shape(&shape);
    (2. / fans.max(1) as f64).sqrt()
}

/// Normal with variance `2 / fan`, which ReLU keeps (He et al., arXiv:1502.01852).
pub fn kaiming_normal(fan: FanInOut) -> Init {
    Init::Kaiming { dist: NormalOrUniform::Normal, fan, non_linearity: NonLinearity::ReLU }
}

/// Uniform with variance `2 / fan`.
pub fn kaiming_uniform(fan: FanInOut) -> Init {
    Init::Kaiming { dist: NormalOrUniform::Uniform, fan, non_linearity: NonLinearity::ReLU }
}

/// The values of `init` from one stream.
pub(crate) fn values(init: Init, shape: &Shape, rng: &mut impl Rng) -> Vec<f64> {
    let (mean, stdev, dist) = match init {
        Init::Const(value) => return vec![value; shape.elem_count()],
        Init::Randn { mean, stdev } => (mean, stdev, NormalOrUniform::Normal),
        Init::Uniform { lo, up } => return uniform(lo, up, shape, rng),
        Init::Kaiming { non_linearity: NonLinearity::ExplicitGain(gain), .. } if gain < 0. => {
            let inside = |rng: &mut _| loop {
                let z = normal(rng);
                if z.abs() <= CUT {
                    return -gain * z;
                }
            };
            return (0..shape.elem_count()).map(|_| inside(rng)).collect();
        }
        Init::Kaiming { dist, fan, non_linearity } => {
            (0., non_linearity.gain() / (fan.for_shape(shape).max(1) as f64).sqrt(), dist)
        }
    };
    match dist {
        NormalOrUniform::Normal => {
            (0..shape.elem_count()).map(|_| mean + stdev * normal(rng)).collect()
        }
        NormalOrUniform::Uniform => uniform(-3f64.sqrt() * stdev, 3f64.sqrt() * stdev, shape, rng),
    }
}

fn normal(rng: &mut impl Rng) -> f64 {
    rng.sample(StandardNormal)
}

fn uniform(lo: f64, up: f64, shape: &Shape, rng: &mut impl Rng) -> Vec<f64> {
    (0..shape.elem_count()).map(|_| lo + (up - lo) * rng.random::<f64>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean, deviation and largest magnitude of many draws.
    fn moments(init: Init, dims: &[usize]) -> (f64, f64, f64) {
        let drawn = values(init, &Shape::from(dims), &mut vkd_norm::stream(1, "w", 0, 0));
        let n = drawn.len() as f64;
        let mean = drawn.iter().sum::<f64>() / n;
        let variance = drawn.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt(), drawn.iter().fold(0f64, |m, v| m.max(v.abs())))
    }

    #[test]
    fn draws_have_the_stated_deviation() {
        // 36,864 draws: the deviation is known to 0.4 per cent, the mean to 0.6 per cent of it.
        let dims = [64, 64, 3, 3];
        let fan = 64. * 9.;
        let root = |x: f64| x.sqrt();
        for (init, want) in [
            (xavier_normal(&dims), root(2. / (2. * fan))),
            (xavier_uniform(&dims), root(2. / (2. * fan))),
            (kaiming_normal(FanInOut::FanIn), root(2. / fan)),
            (kaiming_uniform(FanInOut::FanOut), root(2. / fan)),
            // The deviation of a unit normal that is cut at two.
            (truncated_normal(0.02), 0.02 * 0.879_626),
        ] {
            let (mean, deviation, _) = moments(init, &dims);
            assert!((deviation / want - 1.).abs() < 0.015, "{init:?}: {deviation} {want}");
            assert!(mean.abs() < 0.03 * want, "{init:?}: mean {mean}");
        }
        assert_eq!(moments(constant(0.5), &dims), (0.5, 0., 0.5));
        assert!(moments(truncated_normal(0.02), &dims).2 <= 0.04);
        let bound = (3. / fan).sqrt();
        let largest = moments(xavier_uniform(&dims), &dims).2;
        assert!(largest <= bound && largest > 0.99 * bound);
        // Fans of a matrix that is not square: (out, in).
        let (_, wide, _) = moments(kaiming_normal(FanInOut::FanIn), &[16, 4096]);
        assert!((wide / root(2. / 4096.) - 1.).abs() < 0.015);
        let (_, wide, _) = moments(kaiming_normal(FanInOut::FanOut), &[16, 4096]);
        assert!((wide / root(2. / 16.) - 1.).abs() < 0.015);
    }

    #[test]
    fn odd_shapes_have_values_too() {
        for dims in [&[][..], &[3], &[0, 4]] {
            let shape = Shape::from(dims);
            for init in [xavier_normal(dims), kaiming_uniform(FanInOut::FanIn)] {
                let drawn = values(init, &shape, &mut vkd_norm::stream(1, "w", 0, 0));
                assert!(drawn.len() == shape.elem_count() && drawn.iter().all(|v| v.is_finite()));
            }
        }
    }
}
