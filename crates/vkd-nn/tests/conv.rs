//! Convolutions against their twins, differences, laws and their own edge cases.

use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_nn::ops::{
    Conv2dConfig, ConvTranspose2dConfig, conv_transpose2d, conv2d, conv2d_relu, reference, relu,
};
use vkd_testkit::{OpCase, Tolerance, assert_close, gradcheck, normal, normal_scaled};

/// Image, filters, configuration: every way of computing, odd sizes, and one pixel.
fn cases() -> Vec<([usize; 4], [usize; 4], Conv2dConfig)> {
    let dense = Conv2dConfig::default();
    let padded = Conv2dConfig { padding: (1, 1), ..dense };
    vec![
        // Pointwise; gathered; sliding, in several blocks and with uneven padding.
        ([1, 1, 1, 1], [1, 1, 1, 1], dense),
        ([2, 3, 5, 7], [4, 7, 1, 1], dense),
        ([2, 7, 5, 3], [4, 3, 3, 3], padded),
        ([1, 33, 33, 6], [2, 6, 3, 3], padded),
        ([2, 7, 9, 8], [3, 8, 2, 3], Conv2dConfig { padding: (2, 3), ..dense }),
        ([1, 4, 20, 17], [1, 17, 5, 1], Conv2dConfig { padding: (2, 0), ..dense }),
        // Strided, dilated, grouped.
        ([2, 8, 7, 3], [5, 3, 3, 3], Conv2dConfig { stride: (2, 3), ..padded }),
        ([1, 7, 7, 2], [3, 2, 1, 1], Conv2dConfig { stride: (2, 2), ..dense }),
        ([1, 9, 8, 2], [3, 2, 3, 2], Conv2dConfig { dilation: (2, 3), padding: (2, 1), ..dense }),
        ([2, 6, 5, 6], [4, 3, 3, 3], Conv2dConfig { groups: 2, ..padded }),
        ([1, 6, 7, 6], [9, 2, 3, 3], Conv2dConfig { groups: 3, stride: (2, 1), ..padded }),
        ([1, 5, 5, 3], [6, 1, 3, 3], Conv2dConfig { groups: 3, ..padded }),
        // Depthwise: fewer channels than a register holds, more, strided, dilated.
        ([2, 5, 7, 3], [3, 1, 3, 3], Conv2dConfig { groups: 3, ..padded }),
        ([1, 4, 3, 33], [33, 1, 3, 3], Conv2dConfig { groups: 33, ..padded }),
        ([1, 7, 6, 5], [5, 1, 3, 2], Conv2dConfig { groups: 5, stride: (2, 2), ..padded }),
        ([1, 7, 7, 2], [2, 1, 3, 3], Conv2dConfig { groups: 2, dilation: (2, 2), ..padded }),
        // More padding than kernel: the gradient has no turned form.
        ([1, 7, 6, 2], [2, 2, 2, 2], Conv2dConfig { padding: (3, 2), ..dense }),
    ]
}

fn transposed(c: Conv2dConfig, output_padding: (usize, usize)) -> ConvTranspose2dConfig {
    ConvTranspose2dConfig {
        stride: c.stride,
        padding: c.padding,
        output_padding,
        dilation: c.dilation,
        groups: c.groups,
    }
}

/// Sums of `terms` values of order one: a random walk of roundings, with a margin of four as in `Tolerance::for_op`, and
/// of two more for the cotangent's products in a gradient.
fn case<'a>(what: &'a str, inputs: &'a [Tensor], active: usize, terms: usize) -> OpCase<'a> {
    let root = (terms as f64).sqrt();
    OpCase {
        what,
        inputs,
        active,
        f64_tolerance: 8. * root * f64::EPSILON,
        f32_tolerance: 8. * root * f64::from(f32::EPSILON),
    }
}

#[test]
fn convolutions_pass_the_op_harness() -> Result<()> {
    for (i, (image, filters, config)) in cases().into_iter().enumerate() {
        let what = format!("conv2d {image:?} {filters:?} {config:?}");
        let inputs = [
            normal(&image, DType::F64, 1)?,
            normal(&filters, DType::F64, 2)?,
            normal(&filters[..1], DType::F64, 3)?,
        ];
        // The longest sum is that of a filter's gradient, or of a window.
        let terms = (image[0] * image[1] * image[2]).max(filters[1..].iter().product());
        let op = |x: &[Tensor]| conv2d(&x[0], &x[1], x.get(2), config);
        let twin = |x: &[Tensor]| reference::conv2d(&x[0], &x[1], x.get(2), config);
        let case_of = |n: usize| case(&what, &inputs[..n], n, terms);
        case_of(3).check(op, twin).map_err(|e| e.context(what.clone()))?;
        if i % 3 == 0 {
            case_of(2).has_teeth(op, twin)?;
        }
    }
    Ok(())
}

#[test]
fn a_convolution_with_relu_is_both_in_turn() -> Result<()> {
    for (image, filters, config) in cases() {
        let what = format!("conv2d_relu {image:?} {filters:?} {config:?}");
        let inputs = [
            normal(&image, DType::F64, 1)?,
            normal(&filters, DType::F64, 2)?,
            normal(&filters[..1], DType::F64, 3)?,
        ];
        let terms = (image[0] * image[1] * image[2]).max(filters[1..].iter().product());
        let op = |x: &[Tensor]| conv2d_relu(&x[0], &x[1], x.get(2), config);
        let twin = |x: &[Tensor]| relu(&reference::conv2d(&x[0], &x[1], x.get(2), config)?);
        case(&what, &inputs, 3, terms).check(op, twin).map_err(|e| e.context(what.clone()))?;
        case(&what, &inputs[..2], 2, terms).check(op, twin).map_err(|e| e.context(what.clone()))?;
    }
    Ok(())
}

#[test]
fn transposed_convolutions_pass_the_op_harness() -> Result<()> {
    for (i, (image, filters, config)) in cases().into_iter().enumerate() {
        // The filters of the convolution whose adjoint it is: its results are our inputs.
        let image = [image[0], image[1].min(7), image[2].min(7), filters[0]];
        for output_padding in [(0, 0), (1, 1)] {
            let config = transposed(config, output_padding);
            let width = filters[1] * config.groups;
            let inputs = [
                normal(&image, DType::F64, 1)?,
                normal(&filters, DType::F64, 2)?,
                normal(&[width], DType::F64, 3)?,
            ];
            let op = |x: &[Tensor]| conv_transpose2d(&x[0], &x[1], x.get(2), config);
            let twin = |x: &[Tensor]| reference::conv_transpose2d(&x[0], &x[1], x.get(2), config);
            let what = format!("conv_transpose2d {image:?} {filters:?} {config:?}");
            let (s, d) = (config.stride, config.dilation);
            if output_padding.0 >= s.0.max(d.0) || output_padding.1 >= s.1.max(d.1) {
                let message = op(&inputs).unwrap_err().to_string();
                assert!(message.contains("expected output padding below"), "{message}");
                continue;
            }
            let kernel: usize = filters[2..].iter().product();
            let terms = (image[0] * image[1] * image[2] * 4).max(filters[0] * kernel);
            let case_of = |n: usize| case(&what, &inputs[..n], n, terms);
            case_of(3).check(op, twin).map_err(|e| e.context(what.clone()))?;
            if i % 3 == 0 {
                case_of(2).has_teeth(op, twin)?;
            }
        }
    }
    Ok(())
}

/// `<conv(x), y> = <x, transpose(y)>` for every configuration, with the output padding that gives back the size.
#[test]
fn the_transposed_convolution_is_the_adjoint() -> Result<()> {
    for (image, filters, config) in cases() {
        let x = normal(&image, DType::F64, 1)?;
        let weight = normal(&filters, DType::F64, 2)?;
        let ys = conv2d(&x, &weight, None, config)?;
        let y = normal(ys.dims(), DType::F64, 3)?;
        let lost = |axis: usize, padding: usize, kernel: usize, stride: usize, dilation: usize| {
            (image[axis] + 2 * padding - dilation * (kernel - 1) - 1) % stride
        };
        let output_padding = (
            lost(1, config.padding.0, filters[2], config.stride.0, config.dilation.0),
            lost(2, config.padding.1, filters[3], config.stride.1, config.dilation.1),
        );
        let back = conv_transpose2d(&y, &weight, None, transposed(config, output_padding))?;
        assert_eq!(back.dims(), image);
        let left = (&ys * &y)?.sum_all()?.to_scalar::<f64>()?;
        let right = (&x * &back)?.sum_all()?.to_scalar::<f64>()?;
        let scale = (ys.abs()? * y.abs()?)?.sum_all()?.to_scalar::<f64>()?;
        assert!((left - right).abs() <= 1e-13 * scale, "{image:?} {config:?}: {left} {right}");
    }
    Ok(())
}

/// Sizes at which the work is shared among threads: the bits must be those of one thread.
#[test]
fn the_number_of_threads_moves_no_bit() -> Result<()> {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let dense = Conv2dConfig { padding: (1, 1), ..Conv2dConfig::default() };
    for (image, filters, config) in [
        ([4, 40, 40, 16], [8, 16, 3, 3], dense),
        ([4, 28, 28, 1], [32, 1, 3, 3], dense),
        ([4, 20, 20, 16], [32, 16, 3, 3], Conv2dConfig { stride: (2, 2), ..dense }),
        ([4, 28, 28, 40], [40, 1, 3, 3], Conv2dConfig { groups: 40, ..dense }),
        ([4, 28, 28, 24], [32, 24, 1, 1], Conv2dConfig::default()),
        // Filters so large that there is one partial sum, whose products are shared instead.
        ([2, 4, 4, 768], [512, 768, 3, 3], dense),
    ] {
        let run = || -> Result<Vec<Tensor>> {
            let xs = Var::from_tensor(&normal(&image, DType::F32, 1)?)?;
            let weight = Var::from_tensor(&normal(&filters, DType::F32, 2)?)?;
            let bias = Var::from_tensor(&normal(&filters[..1], DType::F32, 3)?)?;
            let ys = conv2d(&xs, &weight, Some(bias.as_tensor()), config)?;
            let grads = ys.sqr()?.sum_all()?.backward()?;
            let all = [&xs, &weight, &bias].map(|var| grads.get(var).cloned());
            Ok([Some(ys)].into_iter().chain(all).flatten().collect())
        };
        let pools = [pool(1), pool(2), pool(3)].map(|p| p.map_err(candle_core::Error::wrap));
        let [one, two, three] = pools;
        let want = one?.install(run)?;
        assert_eq!(want.len(), 4);
        for got in [two?.install(run)?, three?.install(run)?] {
            for (got, want) in got.iter().zip(&want) {
                assert_close(&format!("{image:?} {config:?}"), got, want, Tolerance::EXACT)?;
            }
        }
    }
    Ok(())
}

#[test]
fn an_empty_batch_is_an_empty_result() -> Result<()> {
    let weight = Var::ones((2, 3, 3, 3), DType::F32, &Device::Cpu)?;
    let bias = Var::ones(2, DType::F32, &Device::Cpu)?;
    let xs = Var::zeros((0, 4, 5, 3), DType::F32, &Device::Cpu)?;
    let ys = conv2d(&xs, &weight, Some(bias.as_tensor()), Conv2dConfig::default())?;
    assert_eq!(ys.dims(), [0, 2, 3, 2]);
    let grads = ys.sum_all()?.backward()?;
    let sum = |var: &Var| grads.get(var).map(|g| g.abs()?.sum_all()?.to_scalar::<f32>());
    assert_eq!(sum(&weight).transpose()?, Some(0.));
    assert_eq!(sum(&bias).transpose()?, Some(0.));
    assert_eq!(grads.get(&xs).map(Tensor::dims), Some(&[0, 4, 5, 3][..]));
    let filters = Tensor::ones((3, 2, 2, 2), DType::F32, &Device::Cpu)?;
    let ys = conv_transpose2d(&xs, &filters, None, ConvTranspose2dConfig::default())?;
    assert_eq!(ys.dims(), [0, 5, 6, 2]);
    assert!(reference::conv2d(&xs, &weight, None, Conv2dConfig::default())?.dims() == [0, 2, 3, 2]);
    Ok(())
}

/// A convolution is linear: values near the ends of f32 come through scaled, not lost.
#[test]
fn large_and_tiny_values_come_through() -> Result<()> {
    let weight = normal(&[4, 6, 3, 3], DType::F32, 2)?;
    let config = Conv2dConfig { padding: (1, 1), ..Conv2dConfig::default() };
    let xs = normal(&[2, 33, 33, 6], DType::F32, 1)?;
    let want = conv2d(&xs, &weight, None, config)?;
    for scale in [2f64.powi(-100), 2f64.powi(100)] {
        let scaled = normal_scaled(&[2, 33, 33, 6], DType::F32, 1, scale)?;
        let got = (conv2d(&scaled, &weight, None, config)? / scale)?;
        // Powers of two commute with every rounding.
        assert_close("scaled", &got, &want, Tolerance::EXACT)?;
    }
    Ok(())
}

#[test]
fn frozen_parts_get_no_gradient_and_cost_none() -> Result<()> {
    let xs = normal(&[1, 4, 4, 2], DType::F64, 1)?;
    let weight = Var::from_tensor(&normal(&[3, 2, 3, 3], DType::F64, 2)?)?;
    let grads =
        conv2d(&xs, &weight, None, Conv2dConfig::default())?.sqr()?.sum_all()?.backward()?;
    assert!(grads.get(&xs).is_none() && grads.get(&weight).is_some());
    let frozen = weight.as_detached_tensor();
    gradcheck(|x| conv2d(&x[0], &frozen, None, Conv2dConfig::default()), &[xs])
}

#[test]
fn bad_input_is_named() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let dense = Conv2dConfig::default();
    let image = [1, 4, 4, 6];
    for (image, filters, config) in [
        (&image[..3], vec![2, 6, 1, 1], dense),
        (&image[..], vec![2, 6, 1], dense),
        (&image[..], vec![2, 5, 1, 1], dense),
        (&image[..], vec![0, 6, 1, 1], dense),
        (&image[..], vec![2, 6, 0, 1], dense),
        (&image[..], vec![2, 6, 5, 1], dense),
        (&image[..], vec![2, 6, 1, 1], Conv2dConfig { stride: (1, 0), ..dense }),
        (&image[..], vec![2, 6, 1, 1], Conv2dConfig { dilation: (0, 1), ..dense }),
        (&image[..], vec![2, 6, 1, 1], Conv2dConfig { groups: 0, ..dense }),
        (&image[..], vec![3, 3, 1, 1], Conv2dConfig { groups: 2, ..dense }),
        (&image[..], vec![2, 6, 2, 2], Conv2dConfig { dilation: (usize::MAX, 1), ..dense }),
        (&image[..], vec![2, 6, 1, 1], Conv2dConfig { padding: (1 << 40, 1 << 40), ..dense }),
        (&image[..], vec![2, 6, 1, 1], Conv2dConfig { padding: (usize::MAX, 0), ..dense }),
        (&image[..], vec![2, 6, 1, 1], Conv2dConfig { groups: usize::MAX, ..dense }),
    ] {
        let (xs, weight) = (zeros(image)?, zeros(&filters)?);
        let message = conv2d(&xs, &weight, None, config).unwrap_err().to_string();
        assert!(message.contains("conv2d: expected"), "{filters:?} {config:?}: {message}");
    }
    let (xs, weight) = (zeros(&image)?, zeros(&[6, 2, 3, 3])?);
    let message = conv2d(&xs, &zeros(&[2, 6, 1, 1])?, Some(&zeros(&[3])?), dense);
    assert!(message.unwrap_err().to_string().contains("expected a bias of 2, got [3]"));
    let half = xs.to_dtype(DType::BF16)?;
    let message = conv2d(&half, &zeros(&[2, 6, 1, 1])?, None, dense).unwrap_err().to_string();
    assert!(message.contains("expected weight of dtype BF16, got F32"), "{message}");
    let whole = weight.to_dtype(DType::U32)?;
    assert!(conv2d(&xs.to_dtype(DType::U32)?, &whole, None, dense).is_err());
    assert!(conv2d(&xs.to_dtype(DType::F64)?, &zeros(&[2, 6, 1, 1])?, None, dense).is_err());
    for (image, config) in [
        (&image[..], transposed(Conv2dConfig { padding: (3, 0), ..dense }, (0, 0))),
        (&image[..], transposed(Conv2dConfig { groups: 4, ..dense }, (0, 0))),
        (&image[..], transposed(Conv2dConfig { stride: (0, 1), ..dense }, (0, 0))),
        (&image[..], transposed(Conv2dConfig { stride: (usize::MAX, 1), ..dense }, (0, 0))),
        (&image[..], transposed(dense, (1, 0))),
        (&[1, 0, 4, 6], transposed(dense, (0, 0))),
        (&[1, 4, 4, 5], transposed(dense, (0, 0))),
    ] {
        let message = conv_transpose2d(&zeros(image)?, &weight, None, config);
        let message =
            message.map(|ys| format!("{:?}", ys.dims())).unwrap_or_else(|e| e.to_string());
        assert!(message.contains("conv_transpose2d: expected"), "{image:?} {config:?}: {message}");
    }
    Ok(())
}
