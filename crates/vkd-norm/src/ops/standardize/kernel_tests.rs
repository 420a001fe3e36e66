//! The kernels of standardisation on the host, against the CPU op.

use super::launch::Columns;
use super::{ChannelMoments, Rows, Variance, standardize_masked};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, normal_scaled};

const EPS: f64 = 1e-3;

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    KernelHost::compile(&ops.join("standardize/standardize.cu"), &[&ops], sanitizer)
}

/// Starts at an offset in its storage.
fn input(dims: [usize; 2], dtype: DType, seed: u64) -> Result<Tensor> {
    normal(&[dims[0] + 1, dims[1]], dtype, seed)?.narrow(0, 1, dims[0])
}

fn check(
    host: &KernelHost,
    xs: &Tensor,
    mask: Option<&Tensor>,
    variance: Variance,
    tolerance: Tolerance,
) -> Result<()> {
    let ((rows, channels), dtype) = (xs.dims2()?, xs.dtype());
    let columns = Columns { dtype, rows, channels, masked: mask.is_some(), variance, eps: EPS };
    let grad = input([rows, channels], dtype, 2)?;
    let whole = (0, dtype, vec![rows, channels]);
    let inputs: Vec<&Tensor> = std::iter::once(xs).chain(mask).collect();
    let script = columns.forward()?.script();
    let got = host.run(&script, &inputs, &[whole.clone(), (1, DType::F64, vec![3, channels])])?;
    let var = Var::from_tensor(xs)?;
    let want = standardize_masked(&var, mask, variance, EPS)?;
    let name = format!("{dtype:?} [{rows}, {channels}] {variance:?}");
    assert_close(&name, &got[0], &want, tolerance)?;
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    let inputs: Vec<&Tensor> = [xs, &grad, &got[1]].into_iter().chain(mask).collect();
    let got = host.run(&columns.backward()?.script(), &inputs, &[whole])?;
    let want = grads.get(&var).unwrap();
    assert_close(&format!("{name} gradient"), &got[0], want, tolerance)
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for dims in [[1, 1], [1, 37], [19, 1], [70, 5], [33, 261]] {
        let tolerance = Tolerance::for_op(DType::F32, DType::F32, dims[0]);
        for variance in [Variance::Biased, Variance::Unbiased] {
            check(&host, &input(dims, DType::F32, 1)?, None, variance, tolerance)?;
        }
    }
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        let accumulator = if dtype == DType::F64 { dtype } else { DType::F32 };
        let tolerance = Tolerance::for_op(accumulator, dtype, 70);
        check(&host, &input([70, 9], dtype, 1)?, None, Variance::Unbiased, tolerance)?;
    }
    // Masks: rows of NaN that must not be read, one row that counts, and none.
    let xs = input([50, 7], DType::F32, 3)?;
    let nan = Tensor::full(f32::NAN, (50, 7), &Device::Cpu)?;
    let tolerance = Tolerance::for_op(DType::F32, DType::F32, 50);
    for keep in [|i: u32| !i.is_multiple_of(3), |i| i == 17, |_| false] {
        let mask: Vec<u8> = (0..50).map(|i| keep(i).into()).collect();
        let mask = Tensor::new(mask, &Device::Cpu)?;
        let wide = mask.unsqueeze(1)?.broadcast_as((50, 7))?;
        let xs = wide.where_cond(&xs, &nan)?;
        check(&host, &xs, Some(&mask), Variance::Biased, tolerance)?;
    }
    Ok(())
}

#[test]
fn far_means_and_extreme_sizes() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    let tolerance = Tolerance::for_op(DType::F32, DType::F32, 40);
    let far = (normal(&[40, 3], DType::F32, 1)? + 1e4)?;
    check(&host, &far, None, Variance::Biased, tolerance)?;
    for scale in [1e25, 1e-25, 1e37] {
        let xs = normal_scaled(&[40, 3], DType::F32, 4, scale)?;
        check(&host, &xs, None, Variance::Unbiased, tolerance)?;
    }
    // Constant channels: exactly zero, and a finite gradient; one that is all zero has none.
    let constant = Tensor::new(&[3.3f32, 0., -1e-3], &Device::Cpu)?.broadcast_as((40, 3))?;
    let constant = constant.contiguous()?;
    check(&host, &constant, None, Variance::Unbiased, tolerance)?;
    let columns = Columns {
        dtype: DType::F32,
        rows: 40,
        channels: 3,
        masked: false,
        variance: Variance::Biased,
        eps: EPS,
    };
    let outputs = [(0, DType::F32, vec![40, 3])];
    let got = host.run(&columns.forward()?.script(), &[&constant], &outputs)?;
    assert_close("constant", &got[0], &constant.zeros_like()?, Tolerance::EXACT)?;
    // Moments that are joined on the host.
    let parts = host.run(&columns.moments()?.script(), &[&far], &[(0, DType::F64, vec![9 * 3])])?;
    let (rows, moments) = ChannelMoments::joined(&parts[0].to_vec1::<f64>()?, 3);
    assert_eq!(rows, 40);
    let values = far.flatten_all()?.to_vec1::<f32>()?;
    let kept: Vec<usize> = (0..40).collect();
    let wanted = Rows { values: &values, channels: 3, kept: &kept }.moments();
    for (got, want) in moments.iter().zip(wanted) {
        assert!((got.mean - want.mean).abs() < 1e-9 * want.mean.abs(), "{got:?} {want:?}");
        assert!((got.squares - want.squares).abs() < 1e-4 * want.squares, "{got:?} {want:?}");
    }
    Ok(())
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    let tolerance = Tolerance::for_op(DType::F32, DType::F32, 20);
    check(&host, &input([20, 40], DType::F32, 1)?, None, Variance::Biased, tolerance)
}
