//! Pools, resampling and pixel shuffles against their twins, differences, laws and their own edge cases.

use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_nn::ops::reference;
use vkd_nn::{
    Pool2dConfig, avg_pool2d, global_avg_pool2d, max_pool2d, pixel_shuffle, pixel_unshuffle,
    upsample_bilinear2d, upsample_nearest2d,
};
use vkd_testkit::{OpCase, Tolerance, assert_close, normal};

/// Sums of `terms` values of order one, in the output or in a gradient.
fn case<'a>(what: &'a str, inputs: &'a [Tensor], terms: usize) -> OpCase<'a> {
    let root = (terms as f64).sqrt();
    OpCase {
        what,
        inputs,
        active: 1,
        f64_tolerance: 8. * root * f64::EPSILON,
        f32_tolerance: 8. * root * f64::from(f32::EPSILON),
    }
}

fn pools() -> Vec<([usize; 4], Pool2dConfig)> {
    let pool = |kernel, stride, padding, ceil| Pool2dConfig {
        kernel,
        stride,
        padding,
        ceil,
        ..Pool2dConfig::new(1)
    };
    vec![
        ([1, 1, 1, 1], Pool2dConfig::new(1)),
        ([2, 4, 6, 3], Pool2dConfig::new(2)),
        ([2, 7, 7, 17], Pool2dConfig::new(2)),
        ([1, 7, 9, 33], pool((3, 3), (2, 2), (1, 1), false)),
        ([1, 7, 8, 2], pool((3, 2), (2, 3), (1, 0), true)),
        ([1, 5, 6, 3], pool((3, 3), (1, 1), (1, 1), false)),
        ([1, 6, 5, 2], pool((2, 2), (3, 3), (1, 1), true)),
        ([2, 5, 7, 2], pool((5, 7), (5, 7), (0, 0), false)),
    ]
}

#[test]
fn pools_pass_the_op_harness() -> Result<()> {
    for (image, config) in pools() {
        let inputs = [normal(&image, DType::F64, 1)?];
        let what = format!("max_pool2d {image:?} {config:?}");
        let terms = config.kernel.0 * config.kernel.1;
        let (op, twin) = (
            |x: &[Tensor]| max_pool2d(&x[0], config),
            |x: &[Tensor]| reference::max_pool2d(&x[0], config),
        );
        case(&what, &inputs, terms).has_teeth(op, twin).map_err(|e| e.context(what.clone()))?;
        for count_padding in [false, true] {
            let config = Pool2dConfig { count_padding, ..config };
            let what = format!("avg_pool2d {image:?} {config:?}");
            let (op, twin) = (
                |x: &[Tensor]| avg_pool2d(&x[0], config),
                |x: &[Tensor]| reference::avg_pool2d(&x[0], config),
            );
            case(&what, &inputs, terms).has_teeth(op, twin).map_err(|e| e.context(what.clone()))?;
        }
    }
    Ok(())
}

#[test]
fn the_global_average_is_the_mean() -> Result<()> {
    for dims in [[2, 5, 7, 3], [1, 1, 1, 33], [9, 33, 33, 8]] {
        let inputs = [normal(&dims, DType::F64, 1)?];
        let mean = |x: &[Tensor]| x[0].mean((1, 2));
        case("global_avg_pool2d", &inputs, dims[1] * dims[2])
            .check(|x| global_avg_pool2d(&x[0]), mean)?;
    }
    Ok(())
}

#[test]
fn the_first_maximum_gets_the_gradient() -> Result<()> {
    let values =
        [1f32, 3., 3., 0., 3., 3., f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY];
    let xs = Var::from_tensor(&Tensor::new(&values, &Device::Cpu)?.reshape((1, 3, 3, 1))?)?;
    let whole = Pool2dConfig { kernel: (2, 2), stride: (1, 1), ..Pool2dConfig::new(1) };
    let grads = max_pool2d(&xs, whole)?.sum_all()?.backward()?;
    let got = grads.get(&xs).map(|g| g.flatten_all()?.to_vec1::<f32>()).transpose()?;
    // Windows: rows 0-1 (the first 3 twice), rows 1-2 (the 3 in the middle, for both).
    assert_eq!(got, Some(vec![0., 2., 0., 0., 2., 0., 0., 0., 0.]));
    let last = Pool2dConfig { kernel: (1, 3), ..Pool2dConfig::new(1) };
    let ys = max_pool2d(&xs.narrow(1, 2, 1)?, last)?;
    assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [f32::NEG_INFINITY]);
    let grads = ys.sum_all()?.backward()?;
    let got = grads.get(&xs).map(|g| g.flatten_all()?.to_vec1::<f32>()).transpose()?;
    assert_eq!(got, Some(vec![0., 0., 0., 0., 0., 0., 1., 0., 0.]));
    let nan = Tensor::new(&[f32::NAN, 1.], &Device::Cpu)?.reshape((1, 1, 2, 1))?;
    let nan = Var::from_tensor(&Tensor::cat(&[&nan, &nan.flip(&[2])?], 0)?)?;
    let ys = max_pool2d(&nan, Pool2dConfig { kernel: (1, 2), ..Pool2dConfig::new(1) })?;
    assert!(ys.flatten_all()?.to_vec1::<f32>()?.iter().all(|y| y.is_nan()));
    let grads = ys.sum_all()?.backward()?;
    let got = grads.get(&nan).map(|g| g.flatten_all()?.to_vec1::<f32>()).transpose()?;
    assert_eq!(got, Some(vec![1., 0., 0., 1.]), "the NaN gets the gradient");
    Ok(())
}

#[test]
fn resampling_passes_the_op_harness() -> Result<()> {
    for (dims, size) in [
        ([1, 1, 1, 1], (1, 1)),
        ([1, 1, 1, 3], (7, 3)),
        ([2, 3, 4, 3], (6, 8)),
        ([1, 5, 3, 2], (7, 33)),
        ([2, 7, 7, 17], (3, 5)),
        ([1, 33, 2, 1], (1, 7)),
    ] {
        let inputs = [normal(&dims, DType::F64, 1)?];
        // Results that one pixel has a part in.
        let terms = 4 * (size.0 / dims[1] + 1) * (size.1 / dims[2] + 1);
        let what = format!("upsample_nearest2d {dims:?} {size:?}");
        case(&what, &inputs, terms).has_teeth(
            |x| upsample_nearest2d(&x[0], size),
            |x| reference::upsample_nearest2d(&x[0], size),
        )?;
        for corners in [false, true] {
            let what = format!("upsample_bilinear2d {dims:?} {size:?} corners {corners}");
            case(&what, &inputs, terms).has_teeth(
                |x| upsample_bilinear2d(&x[0], size, corners),
                |x| reference::upsample_bilinear2d(&x[0], size, corners),
            )?;
        }
    }
    Ok(())
}

#[test]
fn interpolation_keeps_constants_and_straight_lines() -> Result<()> {
    let ones = Tensor::ones((1, 5, 7, 2), DType::F64, &Device::Cpu)?;
    let ys = upsample_bilinear2d(&ones, (13, 4), false)?;
    assert_close("ones", &ys, &ys.ones_like()?, Tolerance::relative(4. * f64::EPSILON))?;
    let line = Tensor::arange(0f64, 5., &Device::Cpu)?.reshape((1, 5, 1, 1))?;
    let ys = upsample_bilinear2d(&line, (9, 1), true)?.flatten_all()?;
    let want = (Tensor::arange(0f64, 9., &Device::Cpu)? * 0.5)?;
    assert_close("line", &ys, &want, Tolerance::relative(4. * f64::EPSILON))?;
    // Weight zero is no weight: an infinite neighbour does not turn a copy into NaN.
    let infinite = Tensor::new(&[1f32, f32::INFINITY], &Device::Cpu)?.reshape((1, 2, 1, 1))?;
    let ys = upsample_bilinear2d(&infinite, (2, 1), false)?.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(ys, [1., f32::INFINITY]);
    Ok(())
}

#[test]
fn a_shuffle_is_undone_by_its_inverse() -> Result<()> {
    for (dims, r) in [([1, 1, 1, 4], 2), ([2, 3, 5, 18], 3), ([1, 7, 2, 3], 1), ([0, 2, 2, 4], 2)] {
        let xs = normal(&dims, DType::F32, 1)?;
        let ys = pixel_shuffle(&xs, r)?;
        assert_eq!(ys.dims(), [dims[0], dims[1] * r, dims[2] * r, dims[3] / r / r]);
        assert_close("unshuffle", &pixel_unshuffle(&ys, r)?, &xs, Tolerance::EXACT)?;
    }
    let inputs = [normal(&[2, 3, 2, 8], DType::F64, 1)?];
    let slow = |x: &[Tensor]| {
        let parts = (0..4).map(|i| {
            let at = [i as u32, 4 + i as u32];
            x[0].contiguous()?.index_select(&Tensor::new(&at, &Device::Cpu)?, 3)
        });
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| parts.clone().nth(i));
        let (a, b) = (a.transpose()?, b.transpose()?);
        let (c, d) = (c.transpose()?, d.transpose()?);
        let row = |left: Option<Tensor>, right: Option<Tensor>| -> Result<Tensor> {
            let both: Vec<Tensor> = [left, right].into_iter().flatten().collect();
            Tensor::stack(&both, 3)?.reshape((2, 3, 4, 2))
        };
        Tensor::stack(&[row(a, b)?, row(c, d)?], 2)?.reshape((2, 6, 4, 2))
    };
    case("pixel_shuffle", &inputs, 1).has_teeth(|x| pixel_shuffle(&x[0], 2), slow)?;
    let inputs = [normal(&[2, 6, 4, 2], DType::F64, 1)?];
    case("pixel_unshuffle", &inputs, 1)
        .check(|x| pixel_unshuffle(&x[0], 2), |x| pixel_unshuffle(&x[0], 2))
}

#[test]
fn an_empty_batch_is_an_empty_result() -> Result<()> {
    let xs = Var::zeros((0, 4, 6, 3), DType::F32, &Device::Cpu)?;
    let x = xs.as_tensor();
    for (ys, dims) in [
        (max_pool2d(x, Pool2dConfig::new(2))?, vec![0, 2, 3, 3]),
        (avg_pool2d(x, Pool2dConfig::new(2))?, vec![0, 2, 3, 3]),
        (global_avg_pool2d(x)?, vec![0, 3]),
        (upsample_nearest2d(x, (5, 5))?, vec![0, 5, 5, 3]),
        (upsample_bilinear2d(x, (5, 5), true)?, vec![0, 5, 5, 3]),
    ] {
        assert_eq!(ys.dims(), dims);
        assert_eq!(ys.sum_all()?.backward()?.get(&xs).map(Tensor::dims), Some(x.dims()));
    }
    Ok(())
}

#[test]
fn bad_input_is_named() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let (image, flat) = (zeros(&[1, 4, 4, 2])?, zeros(&[4, 4, 2])?);
    let pool = Pool2dConfig::new(2);
    let bad = [
        (flat.clone(), pool),
        (zeros(&[1, 4, 4, 0])?, pool),
        (zeros(&[1, 0, 4, 1])?, pool),
        (image.clone(), Pool2dConfig { kernel: (0, 1), ..pool }),
        (image.clone(), Pool2dConfig { stride: (0, 1), ..pool }),
        (image.clone(), Pool2dConfig { padding: (2, 0), ..pool }),
        (image.clone(), Pool2dConfig::new(5)),
        (image.clone(), Pool2dConfig { kernel: (usize::MAX, 1), ..pool }),
    ];
    for (xs, config) in bad {
        for (name, result) in [("max", max_pool2d(&xs, config)), ("avg", avg_pool2d(&xs, config))] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(&format!("{name}_pool2d: expected")), "{message}");
        }
    }
    for message in [
        upsample_nearest2d(&image, (0, 1)),
        upsample_nearest2d(&flat, (1, 1)),
        upsample_bilinear2d(&image, (usize::MAX, 1), false),
        upsample_bilinear2d(&zeros(&[0, 4, 4, 1])?, (1 << 62, 1), false),
        upsample_nearest2d(&zeros(&[1, 0, 4, 1])?, (1, 1)),
        pixel_shuffle(&image, 2),
        pixel_shuffle(&image, 0),
        pixel_shuffle(&image, 1 << 32),
        pixel_unshuffle(&image, 3),
        pixel_unshuffle(&image, 0),
        global_avg_pool2d(&flat),
        global_avg_pool2d(&zeros(&[1, 0, 4, 1])?),
    ] {
        let message =
            message.map(|ys| format!("{:?}", ys.dims())).unwrap_or_else(|e| e.to_string());
        assert!(message.contains(": expected"), "{message}");
    }
    assert!(max_pool2d(&image.to_dtype(DType::U32)?, pool).is_err());
    Ok(())
}
