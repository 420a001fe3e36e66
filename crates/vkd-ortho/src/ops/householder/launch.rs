//! The product of reflectors on a device: cuBLAS for the products, kernels for the triangle and for what surrounds them.

use crate::ops::kernels::{Sizes, place};
use candle_core::{DType, Result, Tensor};
use vkd_norm::program::{Arg, Last, Program, Runner, Size, chunks, count};

/// What the backward pass needs, in f64: unit reflectors, one over their lengths, `S⁻¹` and `Z`.
pub(super) struct Kept {
    u: Tensor,
    factors: Tensor,
    t: Tensor,
    z: Tensor,
}

/// All of the forward pass but for the launch that writes the frame.
pub(super) fn forward(runner: &dyn Runner, raw: &Tensor) -> Result<(Last, Kept)> {
    let sizes = Sizes::of(super::NAME, raw)?;
    let Sizes { op, batch, n, k, .. } = sizes;
    let [batches, rows, columns] = sizes.counts()?;
    let mut program = Program::default();
    let factors = program.buffer(DType::F64, batch * k);
    let u = program.buffer(DType::F64, batch * n * k);
    let (count_of_parts, per_part) = chunks(n);
    let parts = program.buffer(DType::F64, batch * count_of_parts * k);
    let (parts_, per_part) = (count(op, count_of_parts)?, count(op, per_part)?);
    let size = Size::columns(k, count_of_parts);
    let size = Size { grid: [size.grid[0], size.grid[1], batch.min(65535)], ..size };
    let args = [Arg::Input(0), parts, batches, rows, columns, parts_, per_part];
    program.launch(sizes.kernel("householder_squares")?, size, &args)?;
    let args = [parts, factors, batches, columns, parts_];
    sizes.each(&mut program, "householder_factors".to_owned(), k, &args)?;
    let args = [Arg::Input(0), factors, u, batches, rows, columns];
    sizes.each(&mut program, sizes.kernel("householder_unit")?, n * k, &args)?;
    let mut found = runner.run(&program, &[raw])?;
    let u = sizes.matrices(&found[1], n, k)?;

    let gram = u.t()?.matmul(&u)?;
    let mut invert = Program::default();
    let t = sizes.inverse(&mut invert, "householder_start", &[Arg::Input(0)])?;
    let t = runner.run(&invert, &[&gram])?.swap_remove(place(t));
    let t = sizes.matrices(&t, k, k)?;
    let z = t.matmul(&u.narrow(1, 0, k)?.t()?)?;

    let mut program = Program::default();
    let q = program.buffer(sizes.dtype, batch * n * k);
    let args = [Arg::Input(0), q, batches, rows, columns];
    sizes.each(&mut program, sizes.kernel("householder_frame")?, n * k, &args)?;
    let last = sizes.finish(runner, Last { program, inputs: vec![u.matmul(&z)?] })?;
    Ok((last, Kept { u, factors: found.swap_remove(0), t, z }))
}

/// The adjoint of `Q = E - U Z`, `S Z = U₁ᵀ`, in the type of `grad` and of its shape; see `docs/math/stiefel.md`.
pub(super) fn backward(runner: &dyn Runner, kept: &Kept, grad: &Tensor) -> Result<Tensor> {
    let Kept { u, factors, t, z } = kept;
    let sizes = Sizes::of(super::NAME, grad)?;
    let Sizes { batch, n, k, .. } = sizes;
    let [batches, rows, columns] = sizes.counts()?;
    let wide = sizes.matrices(&grad.to_dtype(DType::F64)?, n, k)?;
    // Both signs are left out here: W and -W Zᵀ.
    let w = t.t()?.matmul(&u.t()?.matmul(&wide)?)?;
    let of_s = w.matmul(&z.t()?)?;
    let mut program = Program::default();
    let both = program.buffer(DType::F64, batch * k * k);
    let args = [Arg::Input(0), both, batches, columns];
    sizes.each(&mut program, "householder_both".to_owned(), k * k, &args)?;
    let both = sizes.matrices(&runner.run(&program, &[&of_s])?[0], k, k)?;

    let mut program = Program::default();
    let out = program.buffer(sizes.dtype, batch * n * k);
    let inputs = vec![wide.matmul(&z.t()?)?, u.matmul(&both)?, w, factors.clone()];
    let args = [0, 1, 2, 3].map(Arg::Input);
    let args = [&args[..], &[out, batches, rows, columns]].concat();
    sizes.each(&mut program, sizes.kernel("householder_gradient")?, n * k, &args)?;
    Last { program, inputs }.run(runner)?.reshape(grad.shape())
}
