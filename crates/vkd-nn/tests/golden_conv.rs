//! Convolutions, pools and resampling against torch's results and gradients.

use candle_core::{DType, Result, Tensor, Var, bail};
use vkd_nn::ops::{
    Conv2dConfig, ConvTranspose2dConfig, Pool2dConfig, avg_pool2d, conv_transpose2d, conv2d,
    max_pool2d, pixel_shuffle, pixel_unshuffle, upsample_bilinear2d, upsample_nearest2d,
};
use vkd_testkit::{Golden, Tolerance, assert_close};

/// The op of a case with its recorded numbers, in the order of `make_nn_conv.py`.
fn run(name: &str, config: &[usize], x: &[Tensor]) -> Result<Tensor> {
    let kind = name.rsplit_once('.').map_or(name, |(kind, _)| kind);
    match (kind, config) {
        ("conv", &[sy, sx, py, px, dy, dx, groups]) => {
            let (stride, padding, dilation) = ((sy, sx), (py, px), (dy, dx));
            let config = Conv2dConfig { stride, padding, dilation, groups };
            conv2d(&x[0], &x[1], Some(&x[2]), config)
        }
        ("transposed", &[sy, sx, py, px, ey, ex, dy, dx, groups]) => {
            let (stride, padding, dilation) = ((sy, sx), (py, px), (dy, dx));
            let output_padding = (ey, ex);
            let config =
                ConvTranspose2dConfig { stride, padding, output_padding, dilation, groups };
            conv_transpose2d(&x[0], &x[1], Some(&x[2]), config)
        }
        ("pool.max" | "pool.avg" | "pool.avg_inside", &[ky, kx, sy, sx, py, px, ceil]) => {
            let (kernel, stride, padding) = ((ky, kx), (sy, sx), (py, px));
            let (ceil, count_padding) = (ceil == 1, kind == "pool.avg");
            let config = Pool2dConfig { kernel, stride, padding, ceil, count_padding };
            if kind == "pool.max" { max_pool2d(&x[0], config) } else { avg_pool2d(&x[0], config) }
        }
        ("upsample.nearest", &[h, w]) => upsample_nearest2d(&x[0], (h, w)),
        ("upsample.bilinear", &[h, w]) => upsample_bilinear2d(&x[0], (h, w), false),
        ("upsample.bilinear.corners", &[h, w]) => upsample_bilinear2d(&x[0], (h, w), true),
        ("shuffle", &[r]) => pixel_shuffle(&x[0], r),
        ("unshuffle", &[r]) => pixel_unshuffle(&x[0], r),
        _ => bail!("no op for case {name} with {config:?}"),
    }
}

#[test]
fn results_and_gradients_are_torchs() -> Result<()> {
    let golden = Golden::open("nn_conv")?;
    let names: Vec<&str> =
        golden.keys().into_iter().filter_map(|key| key.strip_suffix(".config")).collect();
    assert_eq!(names.len(), 10 + 5 + 3 * 6 + 3 * 4 + 4);
    for name in names {
        let get = |key: &str| golden.get(&format!("{name}.{key}"));
        let config: Vec<usize> =
            get("config")?.to_vec1::<i64>()?.into_iter().map(|n| n as usize).collect();
        for dtype in [DType::F32, DType::F64] {
            let inputs: Vec<&str> =
                ["x", "weight", "bias"].into_iter().filter(|key| get(key).is_ok()).collect();
            let vars = inputs
                .iter()
                .map(|key| Var::from_tensor(&get(key)?.to_dtype(dtype)?))
                .collect::<Result<Vec<_>>>()?;
            let xs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let y = run(name, &config, &xs)?;
            // The longest sums here have fewer than 256 terms; an average's or a bilinear weight's own rounding is one more.
            let tolerance = Tolerance::for_op(dtype, dtype, 256);
            assert_close(&format!("{name} {dtype:?}"), &y, &get("y")?, tolerance)?;
            let grads = (y * get("cot")?.to_dtype(dtype)?)?.sum_all()?.backward()?;
            for (key, var) in inputs.iter().zip(&vars) {
                let what = format!("{name} {dtype:?}: gradient of {key}");
                let Some(grad) = grads.get(var) else { bail!("{what}: none") };
                assert_close(&what, grad, &get(&format!("grad.{key}"))?, tolerance)?;
            }
        }
    }
    Ok(())
}
