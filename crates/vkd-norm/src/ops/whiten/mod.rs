//! Whitening of rows: the ops, their checks and their tape.

mod apply;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod factor;
mod fit;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
mod linalg;
mod newton_schulz;
#[cfg(test)]
pub(crate) mod reference;
mod shrink;
mod single;
mod spectrum;
mod tape;
#[cfg(test)]
mod tests;
mod transform;

#[cfg(feature = "cuda")]
use crate::ops::program;
use crate::{Replicas, Shrinkage, WhitenConfig, WhitenMethod};
use candle_core::{DType, Device, Error, Result, Tensor, bail};

pub(crate) use apply::apply;
pub(crate) use cpu::Centred;
pub(crate) use fit::Fit;
use tape::Whiten;

/// Whitens the rows of a batch by their own covariance: decorrelated channels of variance 1.
///
/// With `Xc` the rows less their mean and `S = Xcᵀ Xc / (N - 1)` shrunk to `(1 - ρ) S + ρ τ I`
/// ([`Shrinkage`]), the result is `Y = Xc Wᵀ` with `Wᵀ W` the inverse of the shrunk covariance
/// ([`WhitenMethod`]). Without shrinkage the covariance of `Y` is the identity on the directions that the
/// rows span, and zero on the others; [`Deficient`](crate::Deficient) says what `W` itself does there, and
/// whether `N <= d` is refused.
///
/// # Shapes
/// - `xs`: `(N, d)` with `N >= 1`, `d >= 1`, any strides; f32 or f64, or a half type, which is computed in f32
/// - output: `(N, d)`, contiguous, same dtype and device
///
/// # Gradient
/// Flows to `xs` through mean, covariance, the estimated intensity of the shrinkage, and the factorisation. The
/// `d x d` factors are kept for one backward pass; the rows are centred again. ZCA's gradient is defined for repeated
/// eigenvalues too. PCA's is an error where two neighbouring eigenvalues are closer than 1e-9 of
/// `sqrt(value * largest)`: its components are then no function of the input.
///
/// # Numerics
/// All arithmetic is in f64, also for f32 tensors, but for one gradient: Cholesky's with a given intensity and
/// `N >= 2 d` takes its products with rows in f32, on whitened rows, and is within 1e-6 of its largest entry. Where it
/// would not be, because less than a quarter of a channel's incoming gradient is left in it or numbers leave f32, f64
/// computes it again. Results have the same bits for any number of threads.
///
/// Without shrinkage the covariance of the result is within 1e-10 of the identity in f64, 1e-5 in f32, for moderate
/// correlation; channels of very different size cost Cholesky nothing, ZCA and PCA `100 d eps` times the ratio of their
/// deviations. A batch without any spread (`N = 1`, equal rows) gives 0.
///
/// On a CUDA device these stay there, in f64: Newton-Schulz unless rows are to be refused, and under
/// [`Deficient::Full`](crate::Deficient) Cholesky of any width and ZCA and PCA up to 1024 channels, with a `Fixed` shrinkage that
/// lifts all directions over the rounding of the others, any `Absolute` one above zero, or an estimated one, which is then no less than
/// what lifts them. All other configurations go to the CPU and back. Values are not looked at there, and what is an error here gives
/// NaN: values that are none, fourth powers outside f64, PCA's gradient without an eigengap; so does a trace so far above an absolute
/// target that the factor breaks down (about 1e11 times at 512 rows).
///
/// Never NaN for finite input, unless a variance overflows f64, which is an error. Ledoit-Wolf and OAS need fourth powers
/// of the deviations: between about 1e-70 and 1e70; far beyond, that is an error too. Gradients of ZCA, PCA and Newton-Schulz
/// have that range as well.
///
/// # Errors
/// A rank other than two, `N` or `d` of 0, another dtype, a shrinkage outside its range, no iterations, a variance that
/// is not finite (which channel), fourth powers outside f64 for an estimated shrinkage, rows that do not span all channels under [`Deficient::Refuse`](crate::Deficient) (N, d,
/// and the smallest pivot with its channel), and, from the backward pass, an eigengap that is too small for PCA (which
/// eigenvalues). Does not panic.
///
/// # References
/// V_kD (arXiv:2403.06213) whitens the teacher's features in generation. The methods are compared by Kessy, Lewin and
/// Strimmer, arXiv:1512.00809; Newton-Schulz is IterNorm's, arXiv:1904.03441. Adjoints: `docs/math/whitening.md`.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::{Shrinkage, WhitenConfig, WhitenMethod, whiten};
/// let xs = Tensor::new(&[[0f64, 0.], [2., 3.], [4., 1.]], &Device::Cpu)?;
/// let config = WhitenConfig { method: WhitenMethod::Zca, shrinkage: Shrinkage::Fixed(0.), ..Default::default() };
/// let ys = whiten(&xs, config)?;
/// let covariance = (ys.t()?.matmul(&ys)? / 2.)?.to_vec2::<f64>()?;
/// assert!((covariance[0][0] - 1.).abs() < 1e-12 && covariance[0][1].abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn whiten(xs: &Tensor, config: WhitenConfig) -> Result<Tensor> {
    run("whiten", xs, config)
}

/// [`whiten`] through the Cholesky factor, shrunk by an absolute `eps` towards the identity.
///
/// With `Xc` the rows less their mean,
/// ```text
/// S = (1 − eps) · XcᵀXc / (N − 1) + eps · I = L Lᵀ,   Y = Xc L⁻ᵀ
/// ```
/// `eps` acts on the scale of the features: where that is not about 1, take [`Shrinkage::Fixed`]. Channels that are
/// sums of others to working precision, which only an `eps` of 0 or one far below the variances leaves, give 0.
/// The result depends on the order of the channels.
///
/// # Shapes, Gradient, Numerics
/// Those of [`whiten`]. Channels of very different size do not disturb each other.
///
/// # Errors
/// `eps` outside `[0, 1)`, and those of [`whiten`].
///
/// # References
/// V_kD (arXiv:2403.06213) points to the form of W-MSE (Ermolov et al., arXiv:2007.06346), which this is. Adjoint of the
/// factor: Murray, arXiv:1602.07527.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::whiten_cholesky;
/// let xs = Tensor::new(&[[0f64, 0.], [2., 3.], [4., 1.]], &Device::Cpu)?;
/// let ys = whiten_cholesky(&xs, 0.)?;
/// let covariance = (ys.t()?.matmul(&ys)? / 2.)?.to_vec2::<f64>()?;
/// assert!((covariance[0][0] - 1.).abs() < 1e-12 && covariance[0][1].abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn whiten_cholesky(xs: &Tensor, eps: f64) -> Result<Tensor> {
    let op = "whiten_cholesky";
    if !(0. ..1.).contains(&eps) {
        bail!("{op}: expected 0 <= eps < 1, got {eps:e}")
    }
    run(op, xs, WhitenConfig { shrinkage: Shrinkage::Absolute(eps), ..Default::default() })
}

/// [`whiten`] of the rows of all replicas together, of which `xs` are this one's.
///
/// Mean and covariance are those of all rows, with a gradient that goes through them: replicas that share a batch compute what
/// one would with all of it, for every method, shrinkage and rank.
///
/// Replicas exchange `d + 1` numbers, then `d² + 1`; in the backward pass `d + 1`, `d`, then `d²`, and `d + 1` more where the
/// shrinkage is Ledoit and Wolf's, which has one number more in the forward pass too. All are summed in f64.
///
/// # Shapes
/// - `xs`: `(N, d)`, with an `N >= 1` of each replica's own; otherwise as [`whiten`]
///
/// # Errors
/// Those of [`whiten`] for all rows together, on every replica alike, and those of the way to the others.
pub fn whiten_synchronised(
    xs: &Tensor,
    config: WhitenConfig,
    replicas: &Replicas,
) -> Result<Tensor> {
    let op = "whiten_synchronised";
    check_config(op, config)?;
    if matches!(xs.dtype(), DType::F16 | DType::BF16) {
        let wide = whiten_synchronised(&xs.to_dtype(DType::F32)?, config, replicas)?;
        return wide.to_dtype(xs.dtype());
    }
    check(op, xs)?;
    let device = xs.device().clone();
    let xs = xs.to_device(&Device::Cpu)?.contiguous()?;
    let whiten = Whiten::new(op, config, xs.track_op()).over(replicas);
    xs.apply_op1(whiten)?.to_device(&device)
}

fn run(op: &'static str, xs: &Tensor, config: WhitenConfig) -> Result<Tensor> {
    check_config(op, config)?;
    #[cfg(feature = "cuda")]
    if let (true, &[rows, channels]) = (program::applies(xs), xs.dims())
        && let Some(plan) = launch::Plan::new(config, rows, channels)
    {
        return cuda::whiten(op, plan, xs);
    }
    if matches!(xs.dtype(), DType::F16 | DType::BF16) {
        return run(op, &xs.to_dtype(DType::F32)?, config)?.to_dtype(xs.dtype());
    }
    check(op, xs)?;
    // What the rows decide is decided on the CPU; the tape records both ways.
    let device = xs.device().clone();
    let xs = xs.to_device(&Device::Cpu)?.contiguous()?;
    xs.apply_op1(Whiten::new(op, config, xs.track_op()))?.to_device(&device)
}

/// Errors on numbers outside their range.
pub(crate) fn check_config(op: &'static str, config: WhitenConfig) -> Result<()> {
    match config.shrinkage {
        Shrinkage::Fixed(rho) if !(0. ..=1.).contains(&rho) => {
            bail!("{op}: expected a shrinkage 0 <= rho <= 1, got {rho:e}")
        }
        Shrinkage::Absolute(eps) if !(0. ..1.).contains(&eps) => {
            bail!("{op}: expected a shrinkage 0 <= eps < 1, got {eps:e}")
        }
        _ => {}
    }
    if config.method == (WhitenMethod::NewtonSchulz { iterations: 0 }) {
        bail!("{op}: expected at least one Newton-Schulz iteration, got 0")
    }
    Ok(())
}

/// Rows and channels of `(N, d)`, f32 or f64.
pub(crate) fn check(op: &'static str, xs: &Tensor) -> Result<(usize, usize)> {
    if !matches!(xs.dtype(), DType::F32 | DType::F64) {
        return Err(Error::UnsupportedDTypeForOp(xs.dtype(), op).bt());
    }
    match *xs.dims() {
        [rows, channels] if rows > 0 && channels > 0 => Ok((rows, channels)),
        ref dims => bail!("{op}: expected (N, d) with N >= 1 and d >= 1, got {dims:?}"),
    }
}
