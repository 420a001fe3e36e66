//! The kernels of convolutions on the host: alone against plain tensor ops, and with candle's own products between them, as a device
//! runs both passes, against the CPU ops.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use super::frame::Frame;
use super::launch::column_sums;
use super::products::{Kind, Products};
use super::{Conv2dConfig, Geometry, conv2d, conv2d_relu, geometry_of};
use crate::ops::{ConvTranspose2dConfig, conv_transpose2d};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use vkd_norm::program::{Program, Runner, accumulator};
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal};

#[derive(Clone)]
struct Host {
    kernels: Arc<KernelHost>,
    products: Arc<AtomicUsize>,
}

impl Host {
    fn new() -> Result<Option<Self>> {
        let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
        let shared = ops.join("../../../vkd-norm/src/ops");
        let source = ops.join("conv2d/conv2d.cu");
        let kernels = KernelHost::compile(&source, &[&shared], Sanitizer::Memory)?;
        Ok(kernels.map(|kernels| Self { kernels: Arc::new(kernels), products: Arc::default() }))
    }
}

impl Runner for Host {
    fn run(&self, program: &Program, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.kernels.run(&program.script(), inputs, &program.outputs())
    }

    /// candle has no product of bf16 on the CPU; cuBLAS sums it in f32 and rounds once.
    fn product(&self, lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
        self.products.fetch_add(1, Ordering::Relaxed);
        match lhs.dtype() {
            DType::BF16 => {
                let [lhs, rhs] = [lhs, rhs].map(|x| x.to_dtype(DType::F32));
                lhs?.matmul(&rhs?)?.to_dtype(DType::BF16)
            }
            _ => lhs.matmul(rhs),
        }
    }
}

/// Random values that start at an offset in their storage.
fn drawn(dims: [usize; 4], dtype: DType, seed: u64) -> Result<Tensor> {
    let [b, h, w, c] = dims;
    normal(&[b + 1, h, w, c], dtype, seed)?.narrow(0, 1, b)
}

fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON,
        DType::F32 => f64::from(f32::EPSILON),
        DType::F16 => 2f64.powi(-10),
        _ => 2f64.powi(-7),
    }
}

/// As `Tolerance::for_op`, where a value has been rounded to its type so many times, or is a sum of so many that were.
fn tolerance(dtype: DType, rounded: usize, terms: usize) -> Tolerance {
    let root = |n: usize| (n as f64).sqrt();
    let of_type = root(rounded) * epsilon(dtype);
    Tolerance::relative(4. * (of_type + root(terms) * epsilon(accumulator(dtype))))
}

/// The columns of images by plain tensor ops.
fn columns(xs: &Tensor, g: &Geometry) -> Result<Tensor> {
    let (w, [oh, ow, _], [cg, _]) = (&g.window, g.output, g.group());
    let padded = xs.pad_with_zeros(1, w.padding[0], w.padding[0])?;
    let padded = padded.pad_with_zeros(2, w.padding[1], w.padding[1])?;
    let steps = |axis: usize, count: usize, tap: usize| {
        let at = |i: usize| (i * w.stride[axis].min(1 << 20) + tap * w.dilation[axis]) as u32;
        Tensor::new((0..count).map(at).collect::<Vec<_>>(), &Device::Cpu)
    };
    let mut groups = Vec::new();
    for group in 0..g.groups {
        let xs = padded.narrow(3, group * cg, cg)?.contiguous()?;
        let mut taps = Vec::new();
        for i in 0..w.kernel[0] {
            for j in 0..w.kernel[1] {
                let rows = xs.index_select(&steps(0, oh, i)?, 1)?;
                let pixels = rows.index_select(&steps(1, ow, j)?, 2)?;
                taps.push(pixels.reshape((xs.dim(0)? * oh * ow, cg))?);
            }
        }
        groups.push(Tensor::cat(&taps, 1)?);
    }
    Tensor::stack(&groups, 0)
}

/// Columns to the bit, and their adjoint.
fn check_frame(host: &Host, g: &Geometry, frame: &Frame, dtype: DType) -> Result<()> {
    let what = format!("{dtype:?} {g:?}");
    let xs = drawn(frame.images(g.batch), dtype, 1)?;
    let shape = frame.columns(g.batch);
    let got = host.run(&frame.windows(&xs)?, &[&xs])?.swap_remove(0).reshape(&shape[..])?;
    let var = Var::from_tensor(&xs.to_dtype(DType::F64)?)?;
    let want = columns(&var, g)?;
    assert_close(&format!("windows {what}"), &got.to_dtype(DType::F64)?, &want, Tolerance::EXACT)?;

    let grad = normal(&shape, dtype, 2)?;
    let bias = normal(&frame.images(1)[3..], dtype, 3)?;
    let program = frame.fold(dtype, g.batch, true, false)?;
    let got = host.run(&program, &[&grad, &bias])?.swap_remove(0).reshape(xs.shape())?;
    let grads = (&want * grad.to_dtype(DType::F64)?)?.sum_all()?.backward()?;
    let want = grads.get(&var).unwrap().broadcast_add(&bias.to_dtype(DType::F64)?)?;
    let tolerance = tolerance(dtype, 1, g.taps() + 1);
    assert_close(&format!("fold {what}"), &got.to_dtype(DType::F64)?, &want, tolerance)
}

type Case = ([usize; 4], [usize; 4], Conv2dConfig);

/// Images, filters, configuration.
fn cases() -> Vec<Case> {
    let dense = Conv2dConfig::default();
    let padded = Conv2dConfig { padding: (1, 1), ..dense };
    vec![
        ([1, 1, 1, 1], [1, 1, 1, 1], dense),
        ([2, 3, 5, 7], [4, 7, 1, 1], dense),
        ([3, 7, 5, 3], [4, 3, 3, 3], padded),
        ([2, 7, 9, 8], [3, 8, 2, 3], Conv2dConfig { padding: (2, 3), ..dense }),
        // Patches; windows over one another whose rows are runs, with pixels left over; steps beyond the window.
        ([2, 8, 12, 4], [5, 4, 4, 4], Conv2dConfig { stride: (4, 4), ..dense }),
        ([2, 7, 8, 3], [5, 3, 3, 2], Conv2dConfig { stride: (2, 1), ..dense }),
        ([1, 9, 8, 2], [3, 2, 2, 2], Conv2dConfig { stride: (3, 4), ..dense }),
        ([1, 7, 7, 2], [3, 2, 1, 1], Conv2dConfig { stride: (2, 2), ..dense }),
        ([2, 4, 3, 2], [3, 2, 3, 2], Conv2dConfig { stride: (usize::MAX, usize::MAX), ..padded }),
        // Dilated, with steps that share a divisor with it and that share none.
        ([1, 9, 8, 2], [3, 2, 3, 2], Conv2dConfig { dilation: (2, 3), padding: (2, 1), ..dense }),
        (
            [1, 13, 12, 2],
            [3, 2, 3, 3],
            Conv2dConfig { dilation: (4, 3), stride: (2, 2), padding: (3, 1), ..dense },
        ),
        // Grouped.
        ([2, 6, 5, 6], [4, 3, 3, 3], Conv2dConfig { groups: 2, ..padded }),
        ([3, 6, 7, 8], [12, 2, 3, 3], Conv2dConfig { groups: 4, stride: (2, 1), ..padded }),
        ([2, 4, 3, 16], [8, 8, 1, 1], Conv2dConfig { groups: 2, ..dense }),
        ([1, 5, 5, 3], [6, 1, 3, 3], Conv2dConfig { groups: 3, ..padded }),
        // More padding than kernel.
        ([1, 4, 3, 2], [2, 2, 2, 2], Conv2dConfig { padding: (3, 2), ..dense }),
    ]
}

/// Channels by themselves.
fn depthwise_cases() -> Vec<Case> {
    let padded = Conv2dConfig { padding: (1, 1), ..Conv2dConfig::default() };
    vec![
        ([2, 5, 7, 3], [3, 1, 3, 3], Conv2dConfig { groups: 3, ..padded }),
        ([1, 4, 3, 33], [33, 1, 3, 3], Conv2dConfig { groups: 33, ..padded }),
        ([3, 7, 6, 5], [5, 1, 3, 2], Conv2dConfig { groups: 5, stride: (2, 3), ..padded }),
        ([1, 7, 9, 2], [2, 1, 3, 3], Conv2dConfig { groups: 2, dilation: (2, 4), ..padded }),
        ([2, 3, 3, 2], [2, 1, 1, 1], Conv2dConfig { groups: 2, ..Conv2dConfig::default() }),
    ]
}

fn sizes((image, filters, config): &Case) -> Result<Geometry> {
    let [xs, weight] = [image, filters].map(|dims| Tensor::zeros(dims, DType::F32, &Device::Cpu));
    geometry_of("test", &xs?, &weight?, None, *config)
}

#[test]
fn windows_and_their_adjoint_agree_with_tensor_ops() -> Result<()> {
    let Some(host) = Host::new()? else { return Ok(()) };
    for case in cases() {
        let g = sizes(&case)?;
        check_frame(&host, &g, &g.windows(), DType::F32)?;
    }
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        for case in [2, 4, 10, 12, 13].map(|i| cases().swap_remove(i)) {
            let g = sizes(&case)?;
            check_frame(&host, &g, &g.windows(), dtype)?;
        }
    }
    // Units of every size: rows of so many entries, that start anywhere.
    for (dtype, channels, start) in [
        (DType::F32, 8, 0),
        (DType::F32, 8, 4),
        (DType::F32, 8, 6),
        (DType::F32, 8, 1),
        (DType::F16, 4, 1),
    ] {
        let g = sizes(&([2, 3, 4, channels], [1, channels, 2, 2], Conv2dConfig::default()))?;
        let all = normal(&[g.batch * g.input_len() + start], dtype, 4)?;
        let xs = all.narrow(0, start, g.batch * g.input_len())?.reshape((2, 3, 4, channels))?;
        let got = host.run(&g.windows().windows(&xs)?, &[&xs])?.swap_remove(0);
        let want = columns(&xs, &g)?.flatten_all()?;
        assert_close(&format!("from {start}"), &got, &want, Tolerance::EXACT)?;
    }
    Ok(())
}

/// How a case is computed.
#[derive(Clone, Copy, Debug)]
struct Run {
    kind: Kind,
    dtype: DType,
    bias: bool,
    room: usize,
    /// Rows and columns that a transposed convolution's result has beyond its windows.
    more: (usize, usize),
}

const ALL_AT_ONCE: usize = 1 << 20;

/// One image at a time.
const PLAIN: Run = Run { kind: Kind::Conv, dtype: DType::F32, bias: true, room: 1, more: (0, 0) };

/// The op on the tape of `vars`: images, of which the first is left out, filters and bias.
fn op(run: Run, case: &Case, vars: &[Tensor], host: Option<&Host>) -> Result<Tensor> {
    let (config, bias) = (case.2, vars.get(2));
    let (xs, weight) = (vars[0].narrow(0, 1, vars[0].dim(0)? - 1)?, &vars[1]);
    let turned = ConvTranspose2dConfig {
        stride: config.stride,
        padding: config.padding,
        dilation: config.dilation,
        groups: config.groups,
        output_padding: run.more,
    };
    let Some(host) = host else {
        return match run.kind {
            Kind::Conv => conv2d(&xs, weight, bias, config),
            Kind::ConvRelu => conv2d_relu(&xs, weight, bias, config),
            Kind::Transposed => conv_transpose2d(&xs, weight, bias, turned),
        };
    };
    let geometry = match run.kind {
        Kind::Transposed => crate::ops::conv_transpose2d::geometry_of(&xs, weight, bias, turned)?,
        _ => geometry_of("test", &xs, weight, bias, config)?,
    };
    Products::new(geometry).with_room(run.room).record(host.clone(), run.kind, (&xs, weight, bias))
}

/// Result and gradients against those of the CPU in f64, from the same rounded values.
fn check(host: &Host, case: &Case, run: Run) -> Result<()> {
    let what = format!("{run:?} {case:?}");
    let g = sizes(case)?;
    // A transposed convolution goes from the result of the other to its images.
    let (image, width) = match run.kind {
        Kind::Transposed => ([g.batch, g.output[0], g.output[1], g.output[2]], g.input[2]),
        _ => (case.0, g.output[2]),
    };
    let [b, h, w, c] = image;
    let mut inputs = vec![normal(&[b + 1, h, w, c], run.dtype, 1)?, normal(&case.1, run.dtype, 2)?];
    if run.bias {
        inputs.push(normal(&[width], run.dtype, 3)?);
    }
    let vars = |dtype: DType| -> Result<Vec<Var>> {
        inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype)?)).collect()
    };
    let of = |vars: &[Var]| -> Vec<Tensor> { vars.iter().map(|v| v.as_tensor().clone()).collect() };
    let (own, wide) = (vars(run.dtype)?, vars(DType::F64)?);
    let got = op(run, case, &of(&own), Some(host))?;
    let want = op(run, case, &of(&wide), None)?;
    let chunks = g.batch * usize::from(run.room < ALL_AT_ONCE) + 1;
    let overlap =
        (0..2).map(|a| g.window.kernel[a].div_ceil(g.window.stride[a])).product::<usize>();
    let places = g.batch * g.output[0] * g.output[1];
    // Windows are added up after the product has rounded what they have for a pixel.
    let (of_result, of_images) = match run.kind {
        Kind::Transposed => (overlap + 1, 2),
        _ => (2, overlap + 1),
    };
    let terms = (g.depth() * overlap).max(g.group()[1] * g.taps());
    let near = |name: &str, got: &Tensor, want: &Tensor, rounded, terms| {
        assert_eq!(got.dtype(), run.dtype);
        let tolerance = tolerance(run.dtype, rounded, terms);
        assert_close(&format!("{name} of {what}"), &got.to_dtype(DType::F64)?, want, tolerance)
    };
    near("result", &got, &want, of_result, terms)?;

    let grad = normal(got.dims(), run.dtype, 5)?;
    let wide_grad = grad.to_dtype(DType::F64)?;
    let grads = (&got * &grad)?.sum_all()?.backward()?;
    let wants = (&want * wide_grad)?.sum_all()?.backward()?;
    let names = [("images", of_images, terms), ("filters", chunks, places), ("bias", 1, places)];
    for ((own, wide), (name, rounded, terms)) in own.iter().zip(&wide).zip(names) {
        let (got, want) = (grads.get(own).unwrap(), wants.get(wide).unwrap());
        near(name, got, want, rounded, terms)?;
    }
    Ok(())
}

#[test]
fn both_passes_agree_with_the_cpu() -> Result<()> {
    let Some(host) = Host::new()? else { return Ok(()) };
    let run = Run { room: ALL_AT_ONCE, ..PLAIN };
    for (i, case) in cases().iter().chain(&depthwise_cases()).enumerate() {
        check(&host, case, Run { bias: i % 3 != 1, ..run })?;
        // A step that leaves nothing but the padding has no transposed convolution of this size.
        if case.2.stride.0 < 100 {
            let bias = i % 2 == 0;
            check(&host, case, Run { kind: Kind::Transposed, bias, ..run })?;
        }
    }
    Ok(())
}

#[test]
fn so_do_chunks_of_images_and_all_types() -> Result<()> {
    let Some(host) = Host::new()? else { return Ok(()) };
    let run = PLAIN;
    let some = |i: usize| cases().swap_remove(i);
    for case in [some(1), some(2), some(12), some(13)] {
        let per_image = sizes(&case)?.windows().columns(1).iter().product::<usize>() * 4;
        // One image at a time, and two of three.
        for room in [1, 2 * per_image + 3] {
            check(&host, &case, Run { room, ..run })?;
            check(&host, &case, Run { room, kind: Kind::Transposed, bias: false, ..run })?;
        }
    }
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        for case in [some(2), some(4), some(12), depthwise_cases().swap_remove(2)] {
            check(&host, &case, Run { dtype, ..run })?;
            check(&host, &case, Run { dtype, kind: Kind::Transposed, ..run })?;
            check(&host, &case, Run { dtype, room: ALL_AT_ONCE, bias: false, ..run })?;
        }
    }
    // Rounding a result turns no sign, so the ReLU lets the same through; rounding it before a bias is added does.
    let relu = Run { kind: Kind::ConvRelu, room: ALL_AT_ONCE, ..run };
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        check(&host, &some(2), Run { dtype, bias: false, ..relu })?;
        check(&host, &some(11), Run { dtype, bias: dtype == DType::F64, ..relu })?;
        check(&host, &depthwise_cases().swap_remove(0), Run { dtype, ..relu })?;
    }
    Ok(())
}

/// Pixels that no window holds: there the result is the bias.
#[test]
fn a_transposed_result_may_go_beyond_its_windows() -> Result<()> {
    let Some(host) = Host::new()? else { return Ok(()) };
    let dense = Conv2dConfig::default();
    let dilated = |groups| Conv2dConfig { dilation: (2, 2), groups, ..dense };
    let cases: [(Case, (usize, usize)); 4] = [
        (([2, 4, 3, 2], [3, 2, 1, 1], dilated(1)), (1, 1)),
        (([2, 4, 3, 4], [6, 2, 1, 1], dilated(2)), (1, 0)),
        (([1, 3, 3, 2], [2, 1, 1, 1], dilated(2)), (0, 1)),
        (([2, 6, 7, 2], [3, 2, 2, 3], Conv2dConfig { stride: (2, 2), ..dense }), (1, 1)),
    ];
    for (case, more) in cases {
        for bias in [false, true] {
            check(&host, &case, Run { kind: Kind::Transposed, bias, more, ..PLAIN })?;
        }
    }
    Ok(())
}

/// One compilation of the kernels serves both.
#[test]
fn gradients_go_where_they_are_wanted() -> Result<()> {
    let Some(host) = Host::new()? else { return Ok(()) };
    nothing_is_computed_for_what_nobody_tracks(&host)?;
    a_relu_lets_nan_through_and_long_sums_are_joined(&host)
}

fn nothing_is_computed_for_what_nobody_tracks(host: &Host) -> Result<()> {
    let case = cases().swap_remove(2);
    let run = Run { room: ALL_AT_ONCE, ..PLAIN };
    let [b, h, w, c] = case.0;
    let inputs = [
        Var::from_tensor(&normal(&[b + 1, h, w, c], DType::F32, 1)?)?,
        Var::from_tensor(&normal(&case.1, DType::F32, 2)?)?,
        Var::from_tensor(&normal(&case.1[..1], DType::F32, 3)?)?,
    ];
    for tracked in 0..3 {
        let mut args: Vec<Tensor> = inputs.iter().map(|x| x.as_detached_tensor()).collect();
        args[tracked] = inputs[tracked].as_tensor().clone();
        let ys = op(run, &case, &args, Some(host))?;
        let before = host.products.load(Ordering::Relaxed);
        let grads = ys.sum_all()?.backward()?;
        let products = host.products.load(Ordering::Relaxed) - before;
        assert_eq!(products, usize::from(tracked < 2), "input {tracked}");
        for (i, arg) in args.iter().enumerate() {
            assert_eq!(grads.get(arg).is_some(), i == tracked, "{i} of {tracked}");
        }
    }
    let args: Vec<Tensor> = inputs.iter().map(|x| x.as_detached_tensor()).collect();
    assert!(!op(run, &case, &args, Some(host))?.track_op());
    Ok(())
}

fn a_relu_lets_nan_through_and_long_sums_are_joined(host: &Host) -> Result<()> {
    let xs = Tensor::new(&[f32::NAN, -1., 0., 2.], &Device::Cpu)?.reshape((1, 2, 2, 1))?;
    let weight = Tensor::ones((1, 1, 1, 1), DType::F32, &Device::Cpu)?;
    let g = geometry_of("test", &xs, &weight, None, Conv2dConfig::default())?;
    let xs = Var::from_tensor(&xs)?;
    let ys = Products::new(g).record(host.clone(), Kind::ConvRelu, (&xs, &weight, None))?;
    let values = ys.flatten_all()?.to_vec1::<f32>()?;
    assert!(values[0].is_nan() && values[1..] == [0., 0., 2.], "{values:?}");
    let grad = ys.sum_all()?.backward()?;
    let grad = grad.get(&xs).unwrap().flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(grad, [0., 0., 0., 1.]);
    for (rows, width) in [(1, 1), (700, 3), (33, 300)] {
        let xs = normal(&[rows, width], DType::BF16, 6)?;
        let got = host.run(&column_sums(DType::BF16, rows, width)?, &[&xs])?.swap_remove(0);
        let want = xs.to_dtype(DType::F64)?.sum(0)?;
        let tolerance = tolerance(DType::BF16, 1, rows);
        assert_close(&format!("{rows} rows"), &got.to_dtype(DType::F64)?, &want, tolerance)?;
    }
    Ok(())
}

#[test]
fn sizes_that_no_kernel_counts_are_refused() -> Result<()> {
    let case = ([1, 2, 2, 1], [1, 1, 1, 1], Conv2dConfig::default());
    let mut g = sizes(&case)?;
    g.window.padding = [1 << 30; 2];
    let xs = Tensor::zeros(&case.0[..], DType::F32, &Device::Cpu)?;
    let words = g.windows().windows(&xs).unwrap_err().to_string();
    assert!(words.contains("less than 2^31 pixels a side"), "{words}");
    let words = sizes(&case)?.windows().windows(&xs.to_dtype(DType::U32)?);
    assert!(words.unwrap_err().to_string().contains("unsupported dtype"));
    Ok(())
}
