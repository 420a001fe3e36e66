//! A step of AdamW on a device: one kernel for many parameters where there is one, plain tensor ops elsewhere. The CPU's is in `optim`.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;

use candle_core::{DType, Result, Tensor};

/// Numbers of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    /// Factor of the gradient.
    pub(crate) scale: f64,
    /// What weight decay leaves of the value.
    pub(crate) keep: f64,
    pub(crate) step_size: f64,
    /// Factor of the root of the second moment.
    pub(crate) root: f64,
    pub(crate) eps: f64,
}

/// The new value and the new first and second moment of flat f32 or f64 tensors, from plain tensor ops; nothing is recorded.
pub(crate) fn step(numbers: Step, [p, g, m, v]: [&Tensor; 4]) -> Result<[Tensor; 3]> {
    let [m, v] = moments([g, m, v], numbers)?;
    let direction = (&m / ((v.sqrt()? * numbers.root)? + numbers.eps)?)?;
    Ok([((p * numbers.keep)? - (direction * numbers.step_size)?)?, m, v])
}

/// Steps of parameters of one dtype on one CUDA device, in one launch. The tensors of each are value, gradient, first and second
/// moment, and the master of a half type, all dense, all but the value in what it is computed in; all but the gradient are
/// changed in place, so none of them may stand twice. They share all numbers but `keep` and `step_size`. `clip`, one number in f64 on
/// the device, is one more factor of all gradients; where it is NaN nothing is changed.
#[cfg(feature = "cuda")]
pub(crate) fn steps_in_place(
    dtype: DType,
    parameters: &[(Step, Vec<&Tensor>)],
    clip: Option<&Tensor>,
) -> Result<()> {
    cuda::steps(dtype, parameters, clip)
}

/// First and second moment with the new gradient taken in, from plain tensor ops.
pub(crate) fn moments([g, m, v]: [&Tensor; 3], numbers: Step) -> Result<[Tensor; 2]> {
    // The share of the new is what the dtype leaves of one, as on the CPU: 0.999 in f32 leaves 1.3e-5 less.
    let own = |b: f64| if g.dtype() == DType::F32 { f64::from(b as f32) } else { b };
    let (b1, b2) = (own(numbers.beta1), own(numbers.beta2));
    let g = (g * numbers.scale)?;
    Ok([((m * b1)? + (&g * (1. - b1))?)?, ((v * b2)? + (g.sqr()? * (1. - b2))?)?])
}
