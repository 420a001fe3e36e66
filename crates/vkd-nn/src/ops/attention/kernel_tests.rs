//! The kernels of attention on the host, against the CPU op.

use super::cpu::Sizes;
use super::launch::Attention;
use super::{counts, cross_attention, cross_sizes, multi_head_attention, packed_sizes};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::path::Path;
use vkd_norm::program::accumulator;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, to_f64};

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let shared = ops.join("../../../vkd-norm/src/ops");
    KernelHost::compile(&ops.join("attention/attention.cu"), &[&shared], sanitizer)
}

/// Batch, queries, keys, heads and width of a head; without keys everything is packed.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    queries: usize,
    keys: Option<usize>,
    heads: usize,
    dim: usize,
    dtype: DType,
}

const fn packed(batch: usize, queries: usize, heads: usize, dim: usize) -> Case {
    Case { batch, queries, keys: None, heads, dim, dtype: DType::F32 }
}

const fn cross(batch: usize, queries: usize, keys: usize, heads: usize, dim: usize) -> Case {
    Case { batch, queries, keys: Some(keys), heads, dim, dtype: DType::F32 }
}

impl Case {
    /// Operands without a bias, of which the first starts at an offset in its storage.
    fn operands(self) -> Result<Vec<Tensor>> {
        let Self { batch, queries, keys, heads, dim, dtype } = self;
        let width = heads * dim;
        let shifted = |tokens: usize, blocks: usize, seed| {
            normal(&[batch + 1, tokens, blocks * width], dtype, seed)?.narrow(0, 1, batch)
        };
        Ok(match keys {
            None => vec![shifted(queries, 3, 1)?],
            Some(keys) => vec![shifted(queries, 1, 1)?, shifted(keys, 2, 2)?],
        })
    }

    fn sizes(self, operands: &[Tensor]) -> Result<Sizes> {
        match self.keys {
            None => packed_sizes(operands[0].dims(), self.heads),
            Some(_) => cross_sizes(operands[0].dims(), operands[1].dims(), self.heads),
        }
    }

    fn cpu(self, operands: &[Var], bias: Option<&Tensor>) -> Result<Tensor> {
        match self.keys {
            None => multi_head_attention(&operands[0], bias, self.heads),
            Some(_) => cross_attention(&operands[0], &operands[1], bias, self.heads),
        }
    }

    fn launch(self, operands: &[Tensor], bias: Option<&Tensor>) -> Result<Attention> {
        let sizes = self.sizes(operands)?;
        let counts = bias.map(|bias| counts(bias.dims(), sizes)).transpose()?;
        Ok(Attention { sizes, counts, packed: self.keys.is_none(), dtype: self.dtype })
    }
}

fn check(host: &KernelHost, case: Case, bias: Option<&Tensor>) -> Result<()> {
    let (dtype, operands) = (case.dtype, case.operands()?);
    let attention = case.launch(&operands, bias)?;
    let s = attention.sizes;
    let mut vars = operands.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    vars.extend(bias.map(Var::from_tensor).transpose()?);
    let added = bias.and(vars.last()).map(|var| var.as_tensor());
    let want = case.cpu(&vars, added)?;
    let name = format!("{case:?}, bias {:?}", bias.map(Tensor::dims));
    let mut inputs: Vec<&Tensor> = operands.iter().chain(bias).collect();
    let outputs = [
        (0, dtype, vec![s.batch, s.queries, s.width()]),
        (1, accumulator(dtype), vec![s.batch, s.heads, s.queries]),
    ];
    let got = host.run(&attention.forward()?.script(), &inputs, &outputs)?;
    let tolerance = Tolerance::for_op(accumulator(dtype), dtype, s.dim + s.keys);
    assert_close(&name, &got[0], &want, tolerance)?;

    let grad = normal(&[s.batch + 1, s.queries, s.width()], dtype, 4)?.narrow(0, 1, s.batch)?;
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    let wanted = vec![true; vars.len()];
    let outputs: Vec<_> =
        vars.iter().enumerate().map(|(i, var)| (i, dtype, var.dims().to_vec())).collect();
    inputs.extend([&got[0], &grad, &got[1]]);
    let gradients = host.run(&attention.backward(&wanted)?.script(), &inputs, &outputs)?;
    // What shares a bias is summed as well.
    let shared =
        bias.map_or(1, |bias| s.batch * s.heads * s.queries * s.keys / bias.elem_count().max(1));
    let tolerance =
        Tolerance::for_op(accumulator(dtype), dtype, s.dim + s.queries + s.keys + shared);
    for (i, (got, var)) in gradients.iter().zip(&vars).enumerate() {
        let what = format!("{name}: gradient of operand {i}");
        assert_close(&what, got, grads.get(var).unwrap(), tolerance)?;
    }
    Ok(())
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    check(&host, packed(2, 5, 2, 3), None)?;
    check(&host, packed(1, 1, 1, 1), None)?;
    // Tiles that are not full in every direction: queries, keys, and columns of a head.
    check(&host, cross(1, 70, 67, 2, 35), None)?;
    check(&host, cross(1, 3, 130, 1, 68), None)?;
    check(&host, cross(2, 3, 0, 2, 4), None)?;
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        check(&host, Case { dtype, ..packed(2, 9, 2, 5) }, None)?;
        let bias = normal(&[2, 1, 6, 4], dtype, 3)?;
        check(&host, Case { dtype, ..cross(2, 6, 4, 2, 7) }, Some(&bias))?;
    }
    check(&host, Case { dtype: DType::F64, ..cross(1, 35, 33, 1, 34) }, None)
}

#[test]
#[ignore = "several seconds on the host; `cargo xtask ci --full` runs it"]
fn a_bias_is_added_and_has_its_gradient() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for dims in [
        vec![2, 3, 5, 5],
        vec![1, 3, 5, 5],
        vec![2, 1, 5, 5],
        vec![1, 1, 1, 5],
        vec![2, 3, 1, 5],
        vec![3, 5, 5],
        vec![2, 1, 5],
    ] {
        check(&host, packed(2, 5, 3, 2), Some(&normal(&dims, DType::F32, 3)?))?;
    }
    check(&host, cross(1, 66, 70, 1, 3), Some(&normal(&[1, 1, 66, 70], DType::F32, 3)?))?;
    check(&host, cross(1, 66, 70, 1, 3), Some(&normal(&[1, 1, 1, 70], DType::F32, 3)?))
}

#[test]
#[ignore = "several seconds on the host; `cargo xtask ci --full` runs it"]
fn masked_keys_are_left_out() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    // Of the first query a whole tile of keys is masked before the first that counts.
    let (queries, keys) = (2, 70);
    let mask = |from: usize| (0..keys).map(move |j| if j < from { f32::NEG_INFINITY } else { 0. });
    let bias: Vec<f32> = mask(66).chain(mask(1)).collect();
    let bias = Tensor::from_vec(bias, (1, 1, queries, keys), &Device::Cpu)?;
    let case = cross(1, queries, keys, 1, 3);
    check(&host, case, Some(&bias))?;
    // A query without any key has no softmax, and the other one is as before.
    let bias: Vec<f32> = mask(keys).chain(mask(1)).collect();
    let bias = Tensor::from_vec(bias, (1, 1, queries, keys), &Device::Cpu)?;
    let operands = case.operands()?;
    let attention = case.launch(&operands, Some(&bias))?;
    let outputs = [(0, DType::F32, vec![queries, 3])];
    let inputs = [&operands[0], &operands[1], &bias];
    let got = to_f64(&host.run(&attention.forward()?.script(), &inputs, &outputs)?[0])?;
    assert!(got[..3].iter().all(|x| x.is_nan()) && got[3..].iter().all(|x| x.is_finite()));
    Ok(())
}

#[test]
fn gradients_that_nobody_wants_change_none_of_the_others() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    let case = cross(2, 3, 4, 2, 3);
    let bias = normal(&[1, 2, 3, 4], DType::F32, 3)?;
    let operands = case.operands()?;
    let attention = case.launch(&operands, Some(&bias))?;
    let s = attention.sizes;
    let out = normal(&[s.batch, s.queries, s.width()], DType::F32, 4)?;
    let (grad, logs) = (normal(out.dims(), DType::F32, 5)?, normal(&[12], DType::F32, 6)?);
    let inputs = [&operands[0], &operands[1], &bias, &out, &grad, &logs];
    let run = |wanted: [bool; 3]| {
        let shapes = [&operands[0], &operands[1], &bias].map(|t| t.dims().to_vec());
        let outputs = shapes.into_iter().enumerate().map(|(i, dims)| (i, DType::F32, dims));
        let outputs: Vec<_> = outputs.filter(|(i, ..)| wanted[*i]).collect();
        host.run(&attention.backward(&wanted)?.script(), &inputs, &outputs)
    };
    let all = run([true; 3])?;
    for i in 0..3 {
        let mut wanted = [false; 3];
        wanted[i] = true;
        assert_close("alone", &run(wanted)?[0], &all[i], Tolerance::EXACT)?;
    }
    Ok(())
}

#[test]
#[ignore = "several seconds on the host; `cargo xtask ci --full` runs it"]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, cross(1, 3, 66, 1, 34), Some(&normal(&[1, 1, 1, 66], DType::F32, 3)?))
}
