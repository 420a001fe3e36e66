//! The thin Cayley transform on a device: cuBLAS for the products, kernels for the core and for what surrounds them.

use crate::ops::kernels::{Sizes, place};
use candle_core::{DType, Result, Tensor};
use vkd_norm::program::{Arg, Last, Program, Runner};

/// What the backward pass needs: the lower rows `C` and `M`, both in f64.
pub(super) struct Kept {
    tall: Tensor,
    m: Tensor,
}

/// All of the forward pass but for the launch that writes the frame.
pub(super) fn forward(runner: &dyn Runner, raw: &Tensor) -> Result<(Last, Kept)> {
    let sizes = Sizes::of(super::NAME, raw)?;
    let Sizes { batch, n, k, .. } = sizes;
    let [batches, rows, columns] = sizes.counts()?;
    let mut unpack = Program::default();
    let tall = unpack.buffer(DType::F64, batch * (n - k) * k);
    let core = unpack.buffer(DType::F64, batch * k * k);
    let args = [Arg::Input(0), tall, core, batches, rows, columns];
    sizes.each(&mut unpack, sizes.kernel("cayley_unpack")?, n * k, &args)?;
    let unpacked = runner.run(&unpack, &[raw])?;
    let tall = sizes.matrices(&unpacked[0], n - k, k)?;

    let gram = (n > k).then(|| tall.t()?.matmul(&tall)).transpose()?;
    let mut invert = Program::default();
    let squares = if gram.is_some() { Arg::Input(1) } else { Arg::Null };
    let m = sizes.inverse(&mut invert, "cayley_start", &[Arg::Input(0), squares])?;
    let inputs: Vec<&Tensor> = [Some(&unpacked[1]), gram.as_ref()].into_iter().flatten().collect();
    let m = runner.run(&invert, &inputs)?.swap_remove(place(m));
    let m = sizes.matrices(&m, k, k)?;

    let below = if n > k { Some(tall.matmul(&m)?) } else { None };
    let mut program = Program::default();
    let q = program.buffer(sizes.dtype, batch * n * k);
    let under = if below.is_some() { Arg::Input(1) } else { Arg::Null };
    let args = [Arg::Input(0), under, q, batches, rows, columns];
    sizes.each(&mut program, sizes.kernel("cayley_frame")?, n * k, &args)?;
    let inputs = [Some(m.clone()), below].into_iter().flatten().collect();
    Ok((sizes.finish(runner, Last { program, inputs })?, Kept { tall, m }))
}

/// `Y₁ = Mᵀ(G₁ + CᵀG₂/2)`, `B̄ = Y₁Mᵀ` and `C̄ = G₂Mᵀ - C(B̄ + B̄ᵀ)/2`, in the type of `grad` and of its shape.
pub(super) fn backward(runner: &dyn Runner, kept: &Kept, grad: &Tensor) -> Result<Tensor> {
    let Kept { tall, m } = kept;
    let sizes = Sizes::of(super::NAME, grad)?;
    let Sizes { batch, n, k, .. } = sizes;
    let [batches, rows, columns] = sizes.counts()?;
    let wide = sizes.matrices(&grad.to_dtype(DType::F64)?, n, k)?;
    let g2 = wide.narrow(1, k, n - k)?;
    let turned = m.t()?;

    let across = (n > k).then(|| tall.t()?.matmul(&g2)).transpose()?;
    let mut program = Program::default();
    let inner = program.buffer(DType::F64, batch * k * k);
    let added = if across.is_some() { Arg::Input(1) } else { Arg::Null };
    let args = [Arg::Input(0), added, inner, batches, rows, columns];
    sizes.each(&mut program, "cayley_inner".to_owned(), k * k, &args)?;
    let inputs: Vec<&Tensor> = [Some(&wide), across.as_ref()].into_iter().flatten().collect();
    let inner = sizes.matrices(&runner.run(&program, &inputs)?[0], k, k)?;
    let of_b = turned.matmul(&inner)?.matmul(&turned)?;

    let mut inputs = vec![of_b];
    if n > k {
        let mut program = Program::default();
        let mean = program.buffer(DType::F64, batch * k * k);
        let args = [Arg::Input(0), mean, batches, columns];
        sizes.each(&mut program, "cayley_mean".to_owned(), k * k, &args)?;
        let mean = sizes.matrices(&runner.run(&program, &[&inputs[0]])?[0], k, k)?;
        inputs.extend([g2.matmul(&turned)?, tall.matmul(&mean)?]);
    }
    let mut program = Program::default();
    let out = program.buffer(sizes.dtype, batch * n * k);
    let [direct, through] = if n > k { [Arg::Input(1), Arg::Input(2)] } else { [Arg::Null; 2] };
    let args = [Arg::Input(0), direct, through, out, batches, rows, columns];
    sizes.each(&mut program, sizes.kernel("cayley_gradient")?, n * k, &args)?;
    Last { program, inputs }.run(runner)?.reshape(grad.shape())
}
