//! The kernels of deformable attention on the host, against the CPU op.

use super::{deformable_attention, geometry, launch};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::path::Path;
use vkd_norm::program::accumulator;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, to_f64, uniform};

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let shared = ops.join("../../../vkd-norm/src/ops");
    let source = ops.join("deformable_attention/deformable_attention.cu");
    KernelHost::compile(&source, &[&shared], sanitizer)
}

/// Batch, queries, heads, width and points.
type Sizes = [usize; 5];

/// Values that start at an offset, locations of which a good part is outside, and weights.
fn inputs([b, q, h, d, p]: Sizes, levels: &[(usize, usize)], dtype: DType) -> Result<[Tensor; 3]> {
    let pixels = levels.iter().map(|(rows, cols)| rows * cols).sum();
    Ok([
        normal(&[b + 1, pixels, h, d], dtype, 1)?.narrow(0, 1, b)?,
        uniform(&[b, q, h, levels.len(), p, 2], dtype, 2, -0.4, 1.4)?,
        normal(&[b, q, h, levels.len(), p], dtype, 3)?,
    ])
}

fn check(host: &KernelHost, sizes: Sizes, levels: &[(usize, usize)], dtype: DType) -> Result<()> {
    let [b, q, h, d, p] = sizes;
    let inputs = inputs(sizes, levels, dtype)?;
    let [values, locations, weights] = &inputs;
    let g = geometry(values.dims(), levels, locations.dims(), weights.dims())?;
    let vars = [values, locations, weights].map(Var::from_tensor);
    let [values_var, locations_var, weights_var] = vars;
    let vars = [values_var?, locations_var?, weights_var?];
    let want = deformable_attention(&vars[0], levels, &vars[1], &vars[2])?;
    let name = format!("{sizes:?} {levels:?} {dtype:?}");
    let tolerance = Tolerance::for_op(accumulator(dtype), dtype, 4 * levels.len() * p);
    let outputs = [(0, dtype, want.dims().to_vec())];
    let mut operands: Vec<&Tensor> = inputs.iter().collect();
    let got = host.run(&launch::forward(&g, dtype)?.script(), &operands, &outputs)?;
    assert_close(&name, &got[0], &want, tolerance)?;

    let grad = normal(&[b + 1, q, h * d], dtype, 4)?.narrow(0, 1, b)?;
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    operands.push(&grad);
    let outputs: Vec<_> =
        inputs.iter().enumerate().map(|(i, x)| (i, dtype, x.dims().to_vec())).collect();
    let script = launch::backward(&g, dtype, true, true)?.script();
    let got = host.run(&script, &operands, &outputs)?;
    // A pixel sums points of all queries, a point the columns of four pixels.
    let tolerance = Tolerance::for_op(accumulator(dtype), dtype, (4 * d).max(q * p));
    for ((what, got), var) in ["values", "locations", "weights"].iter().zip(&got).zip(&vars) {
        let what = format!("{name}: gradient of the {what}");
        assert_close(&what, got, grads.get(var).unwrap(), tolerance)?;
    }
    // Those of one kind alone are the same.
    let script = launch::backward(&g, dtype, true, false)?.script();
    let alone = host.run(&script, &operands, &outputs[..1])?;
    assert_close(&name, &alone[0], &got[0], Tolerance::EXACT)?;
    let script = launch::backward(&g, dtype, false, true)?.script();
    let alone = host.run(&script, &operands, &outputs[1..])?;
    assert_close(&name, &alone[0], &got[1], Tolerance::EXACT)
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    check(&host, [1, 1, 1, 1, 1], &[(1, 1)], DType::F32)?;
    check(&host, [2, 3, 2, 5, 2], &[(3, 2), (1, 4)], DType::F32)?;
    // Maps of more pixels than a warp sums, more columns than it has lanes, more points than it asks at once.
    check(&host, [2, 40, 2, 35, 3], &[(9, 8), (1, 65), (2, 3)], DType::F32)?;
    check(&host, [1, 0, 1, 2, 1], &[(2, 2)], DType::F32)?;
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        check(&host, [2, 9, 2, 5, 2], &[(6, 7), (1, 2)], dtype)?;
    }
    Ok(())
}

#[test]
fn a_nan_stays_with_its_query_and_head() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    let (sizes, levels) = ([1, 2, 2, 3, 2], [(2, 3), (1, 4)]);
    let [values, locations, weights] = inputs(sizes, &levels, DType::F32)?;
    let g = geometry(values.dims(), &levels, locations.dims(), weights.dims())?;
    // The second head of the first query, in the second level; and the other locations far away, one of them infinite.
    let mut all = locations.flatten_all()?.to_vec1::<f32>()?;
    all[12] = f32::NAN;
    all[0] = f32::INFINITY;
    all[3] = -1e30;
    let locations = Tensor::from_vec(all, locations.dims(), &Device::Cpu)?;
    let vars = (Var::from_tensor(&values)?, Var::from_tensor(&locations)?);
    let want = deformable_attention(&vars.0, &levels, &vars.1, &weights)?;
    let outputs = [(0, DType::F32, want.dims().to_vec())];
    let operands = [&values, &locations, &weights];
    let got = host.run(&launch::forward(&g, DType::F32)?.script(), &operands, &outputs)?;
    let grads = want.sum_all()?.backward()?;
    let grad = want.ones_like()?;
    let script = launch::backward(&g, DType::F32, true, true)?.script();
    let outputs =
        [(0, DType::F32, values.dims().to_vec()), (1, DType::F32, locations.dims().to_vec())];
    let operands = [&values, &locations, &weights, &grad];
    let gradients = host.run(&script, &operands, &outputs)?;
    for (got, want) in [
        (&got[0], &want),
        (&gradients[0], grads.get(&vars.0).unwrap()),
        (&gradients[1], grads.get(&vars.1).unwrap()),
    ] {
        for (got, want) in to_f64(got)?.into_iter().zip(to_f64(want)?) {
            assert!(got.is_nan() == want.is_nan());
            assert!(got.is_nan() || (got - want).abs() < 1e-4, "{got} {want}");
        }
    }
    assert!(to_f64(&got[0])?[3].is_nan());
    Ok(())
}

#[test]
#[ignore = "several seconds on the host; `cargo xtask ci --full` runs it"]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, [1, 12, 2, 33, 3], &[(9, 8), (2, 3)], DType::F32)
}
