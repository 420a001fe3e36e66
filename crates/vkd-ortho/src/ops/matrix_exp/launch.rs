//! The thin exponential on a device: cuBLAS for the products, kernels for the polynomial, the doublings and the rest.
//!
//! `Q = E + U φ₁(N) WᵀE` with `N = WᵀU`, `U = [L, -sE]` and `W = [E, L/s]`, for any `s`. The adjoint of the derivative of a
//! function at N is its derivative at Nᵀ, so that the backward pass is the forward one with a direction.

use super::phi::{Dual, phi};
use crate::ops::kernels::Sizes;
use candle_core::{DType, Result, Tensor};
use vkd_norm::program::{Arg, Last, Program, Runner, Size};

/// What the backward pass needs, in f64: `L`, `LᵀL` and `s`.
pub(super) struct Kept {
    lower: Tensor,
    gram: Tensor,
    balance: Tensor,
}

/// All of the forward pass but for the launch that writes the frame.
pub(super) fn forward(runner: &dyn Runner, raw: &Tensor) -> Result<(Last, Kept)> {
    let sizes = Sizes::of(super::NAME, raw)?;
    let Sizes { batch, n, k, .. } = sizes;
    let [batches, rows, columns] = sizes.counts()?;
    let mut program = Program::default();
    let lower = program.buffer(DType::F64, batch * n * k);
    let args = [Arg::Input(0), lower, batches, rows, columns];
    sizes.each(&mut program, sizes.kernel("matrix_exp_unpack")?, n * k, &args)?;
    let lower = sizes.matrices(&runner.run(&program, &[raw])?[0], n, k)?;
    let gram = lower.t()?.matmul(&lower)?;
    let mut program = Program::default();
    let balance = program.buffer(DType::F64, batch);
    let args = [Arg::Input(0), balance, batches, columns];
    program.launch("matrix_exp_balance".to_owned(), Size::rows(batch, k), &args)?;
    let balance = runner.run(&program, &[&gram])?.swap_remove(0);
    let kept = Kept { lower, gram, balance };

    let (inner, right) = kept.parts(runner, sizes, false)?;
    let y = phi(runner, sizes, Dual { value: inner, tangent: None })?.value.matmul(&right)?;
    let product = kept.lower.matmul(&y.narrow(1, 0, k)?)?;
    let mut program = Program::default();
    let q = program.buffer(sizes.dtype, batch * n * k);
    let args = [0, 1, 2].map(Arg::Input);
    let args = [&args[..], &[q, batches, rows, columns]].concat();
    sizes.each(&mut program, sizes.kernel("matrix_exp_frame")?, n * k, &args)?;
    let inputs = vec![product, y, kept.balance.clone()];
    Ok((sizes.finish(runner, Last { program, inputs })?, kept))
}

impl Kept {
    /// `N`, or its transpose if `turned`, and `WᵀE`.
    fn parts(&self, runner: &dyn Runner, sizes: Sizes, turned: bool) -> Result<(Tensor, Tensor)> {
        let Sizes { batch, k, .. } = sizes;
        let [batches, rows, columns] = sizes.counts()?;
        let mut program = Program::default();
        let inner = program.buffer(DType::F64, batch * 4 * k * k);
        let right = program.buffer(DType::F64, batch * 2 * k * k);
        let args = [0, 1, 2].map(Arg::Input);
        let rest = [inner, batches, rows, columns, Arg::U32(u32::from(turned))];
        let all = [&args[..], &rest].concat();
        sizes.each(&mut program, "matrix_exp_inner".to_owned(), 4 * k * k, &all)?;
        let all = [args[0], args[2], right, batches, rows, columns];
        sizes.each(&mut program, "matrix_exp_right".to_owned(), 2 * k * k, &all)?;
        let found = runner.run(&program, &[&self.lower, &self.gram, &self.balance])?;
        let inner = sizes.matrices(&found[0], 2 * k, 2 * k)?;
        Ok((inner, sizes.matrices(&found[1], 2 * k, k)?))
    }
}

/// With `Y = φ₁(N) WᵀE` and `Z = UᵀG (WᵀE)ᵀ`: the gradient of `N` is the derivative of φ₁ at `Nᵀ` along `Z`, that of `WᵀE` is
/// `φ₁(N)ᵀ UᵀG`, and that of the first columns of `U` is `G Y₁ᵀ`. In the type of `grad` and of its shape.
pub(super) fn backward(runner: &dyn Runner, kept: &Kept, grad: &Tensor) -> Result<Tensor> {
    let sizes = Sizes::of(super::NAME, grad)?;
    let Sizes { batch, n, k, .. } = sizes;
    let [batches, rows, columns] = sizes.counts()?;
    let Kept { lower, balance, .. } = kept;
    let wide = sizes.matrices(&grad.to_dtype(DType::F64)?, n, k)?;
    let (inner, right) = kept.parts(runner, sizes, true)?;
    let product = lower.t()?.matmul(&wide)?;
    let mut program = Program::default();
    let left = program.buffer(DType::F64, batch * 2 * k * k);
    let args = [0, 1, 2].map(Arg::Input);
    let args = [&args[..], &[left, batches, rows, columns]].concat();
    sizes.each(&mut program, "matrix_exp_left".to_owned(), 2 * k * k, &args)?;
    let left = runner.run(&program, &[&product, &wide, balance])?.swap_remove(0);
    let left = sizes.matrices(&left, 2 * k, k)?;

    let direction = left.matmul(&right.t()?)?;
    let Dual { value, tangent } =
        phi(runner, sizes, Dual { value: inner, tangent: Some(direction) })?;
    let Some(of_n) = tangent else {
        candle_core::bail!("{}: expected a derivative of the core, got none", super::NAME)
    };
    let y = value.t()?.matmul(&right)?;
    let of_start = value.matmul(&left)?;
    let mut program = Program::default();
    let both = program.buffer(DType::F64, batch * k * k);
    let args = [Arg::Input(0), Arg::Input(1), both, batches, columns];
    sizes.each(&mut program, "matrix_exp_both".to_owned(), k * k, &args)?;
    let both = sizes.matrices(&runner.run(&program, &[&of_n, balance])?[0], k, k)?;

    let direct = wide.matmul(&y.narrow(1, 0, k)?.t()?)?;
    let inputs = vec![direct, lower.matmul(&both)?, of_n, of_start, balance.clone()];
    let mut program = Program::default();
    let out = program.buffer(sizes.dtype, batch * n * k);
    let args = [0, 1, 2, 3, 4].map(Arg::Input);
    let args = [&args[..], &[out, batches, rows, columns]].concat();
    sizes.each(&mut program, sizes.kernel("matrix_exp_gradient")?, n * k, &args)?;
    Last { program, inputs }.run(runner)?.reshape(grad.shape())
}
