//! What every op must do: half types are its f32 results rounded once, and no bit depends on the run or the threads.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use vkd_nn::ops::{
    Body, conv_transpose2d, conv2d, conv2d_relu, linear, modulate, modulate_relu, sublayer,
};
use vkd_nn::{
    Activation, AdamW, AdamWConfig, BatchNormConfig, Context, Conv2dConfig, ConvTranspose2dConfig,
    Ema, GradAccumulator, Lamb, LambConfig, Pool2dConfig, Sgd, SgdConfig, VarStore, avg_pool2d,
    batch_norm2d, cross_attention, deformable_attention, dropout, gather_rows, gelu, gelu_tanh,
    global_avg_pool2d, global_norm, log_softmax, max_pool2d, multi_head_attention, pixel_shuffle,
    pixel_unshuffle, relu, silu, softmax, upsample_bilinear2d, upsample_nearest2d,
};
use vkd_testkit::{normal, uniform};

type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

/// An op, and the shapes of its inputs: large enough that its passes are spread over threads.
struct Case {
    name: &'static str,
    op: Op,
    shapes: Vec<Vec<usize>>,
}

fn case(
    name: &'static str,
    shapes: &[&[usize]],
    op: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Case {
    let shapes = shapes.iter().map(|dims| dims.to_vec()).collect();
    Case { name, op: Box::new(op), shapes }
}

fn transformers(all: &mut Vec<Case>) {
    all.push(case("gelu", &[&[300, 250]], |x| gelu(&x[0])));
    all.push(case("gelu_tanh", &[&[300, 250]], |x| gelu_tanh(&x[0])));
    all.push(case("relu", &[&[300, 250]], |x| relu(&x[0])));
    all.push(case("silu", &[&[300, 250]], |x| silu(&x[0])));
    for activation in [Activation::Identity, Activation::Gelu, Activation::Relu] {
        all.push(case("linear", &[&[3, 150, 96], &[200, 96], &[200]], move |x| {
            linear(&x[0], &x[1], Some(&x[2]), activation)
        }));
    }
    all.push(case("attention", &[&[5, 50, 192]], |x| multi_head_attention(&x[0], None, 4)));
    for bias in [[1, 4, 50, 50], [5, 1, 50, 50], [1, 1, 1, 50]] {
        all.push(case("attention with bias", &[&[5, 50, 192], &bias], |x| {
            multi_head_attention(&x[0], Some(&x[1]), 4)
        }));
    }
    all.push(case("cross_attention", &[&[5, 9, 96], &[5, 70, 192], &[4, 9, 70]], |x| {
        cross_attention(&x[0], &x[1], Some(&x[2]), 4)
    }));
    for (body, inner, outer) in
        [(Body::Mlp(Activation::Gelu), 96, 96), (Body::Attention { heads: 2 }, 144, 48)]
    {
        let shapes: [&[usize]; 7] =
            [&[8, 50, 48], &[48], &[48], &[inner, 48], &[inner], &[48, outer], &[48]];
        all.push(case("sublayer", &shapes, move |x| {
            let parameters = [&x[1], &x[2], &x[3], &x[4], &x[5], &x[6]];
            sublayer(&x[0], parameters, body, 1e-6, Some(&[1.25; 8]))
        }));
    }
    let deformable: [&[usize]; 3] = [&[2, 62, 4, 24], &[2, 40, 4, 2, 3, 2], &[2, 40, 4, 2, 3]];
    all.push(case("deformable_attention", &deformable, |x| {
        deformable_attention(&x[0], &[(6, 9), (2, 4)], &x[1], &x[2])
    }));
    all.push(case("gather_rows", &[&[600, 128]], |x| {
        let ids = (0..900u32).map(|i| i * i % 600);
        gather_rows(&x[0], &Tensor::from_iter(ids, &Device::Cpu)?)
    }));
    let ctx = Context::train(3, 7, (0..300).collect::<Vec<u64>>());
    all.push(case("dropout", &[&[300, 250]], move |x| dropout(&x[0], 0.25, "d", &ctx)));
    let affine: [&[usize]; 3] = [&[300, 250], &[250], &[250]];
    all.push(case("layer_norm", &affine, |x| {
        vkd_norm::layer_norm_affine(&x[0], &x[1], &x[2], 1e-6)
    }));
    all.push(case("rms_norm", &affine[..2], |x| vkd_norm::rms_norm(&x[0], &x[1], 1e-6)));
    all.push(case("softmax", &[&[300, 250]], |x| softmax(&x[0])));
    all.push(case("log_softmax", &[&[300, 250]], |x| log_softmax(&x[0])));
}

fn images(all: &mut Vec<Case>) {
    let same = Conv2dConfig { padding: (1, 1), ..Conv2dConfig::default() };
    for (name, channels, filters, config) in [
        ("conv2d 3x3", 16, [32, 16, 3, 3], same),
        ("conv2d 1x1", 16, [32, 16, 1, 1], Conv2dConfig::default()),
        ("conv2d strided", 16, [24, 8, 3, 3], Conv2dConfig { stride: (2, 2), groups: 2, ..same }),
        ("conv2d depthwise", 32, [32, 1, 3, 3], Conv2dConfig { groups: 32, ..same }),
        (
            "conv2d dilated depthwise",
            32,
            [32, 1, 3, 3],
            Conv2dConfig { groups: 32, dilation: (2, 2), ..same },
        ),
    ] {
        let shapes: [&[usize]; 3] = [&[4, 26, 24, channels], &filters, &filters[..1]];
        all.push(case(name, &shapes, move |x| conv2d(&x[0], &x[1], Some(&x[2]), config)));
    }
    all.push(case("conv2d_relu", &[&[4, 26, 24, 16], &[32, 16, 3, 3]], move |x| {
        conv2d_relu(&x[0], &x[1], None, same)
    }));
    let double = ConvTranspose2dConfig { stride: (2, 2), ..ConvTranspose2dConfig::default() };
    all.push(case("conv_transpose2d", &[&[4, 12, 12, 32], &[32, 32, 2, 2], &[32]], move |x| {
        conv_transpose2d(&x[0], &x[1], Some(&x[2]), double)
    }));
    let image: [&[usize]; 1] = [&[4, 26, 24, 32]];
    let pool = Pool2dConfig { stride: (2, 2), padding: (1, 1), ..Pool2dConfig::new(3) };
    all.push(case("max_pool2d", &image, move |x| max_pool2d(&x[0], pool)));
    all.push(case("avg_pool2d", &image, move |x| avg_pool2d(&x[0], pool)));
    all.push(case("global_avg_pool2d", &image, |x| global_avg_pool2d(&x[0])));
    all.push(case("upsample_nearest2d", &image, |x| upsample_nearest2d(&x[0], (40, 37))));
    all.push(case("upsample_bilinear2d", &image, |x| upsample_bilinear2d(&x[0], (40, 37), false)));
    let modulated: [&[usize]; 3] = [&[4, 26, 24, 32], &[4, 32], &[4, 32]];
    all.push(case("modulate", &modulated, |x| modulate(&x[0], &x[1], &x[2])));
    all.push(case("modulate_relu", &modulated, |x| modulate_relu(&x[0], &x[1], &x[2])));
    all.push(case("pixel_shuffle", &image, |x| pixel_shuffle(&x[0], 2)));
    all.push(case("pixel_unshuffle", &image, |x| pixel_unshuffle(&x[0], 2)));
    let affine: [&[usize]; 3] = [&[4, 26, 24, 32], &[32], &[32]];
    all.push(case("batch_norm", &affine, |x| {
        Ok(vkd_norm::batch_norm(&x[0], &x[1], &x[2], 1e-5)?.0)
    }));
    all.push(case("group_norm", &affine, |x| vkd_norm::group_norm(&x[0], 4, &x[1], &x[2], 1e-5)));
}

fn cases() -> Vec<Case> {
    let mut all = vec![];
    transformers(&mut all);
    images(&mut all);
    all
}

impl Case {
    /// Numbers that every dtype holds.
    fn inputs(&self) -> Result<Vec<Tensor>> {
        let draw = |(seed, dims): (usize, &Vec<usize>)| {
            normal(dims, DType::F32, seed as u64)?.to_dtype(DType::BF16)
        };
        self.shapes.iter().enumerate().map(draw).collect()
    }

    /// The output, and the gradient of every input, of the dtype of the inputs.
    fn run(&self, inputs: &[Tensor], dtype: DType) -> Result<Vec<Tensor>> {
        let vars = inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype)?));
        let vars = vars.collect::<Result<Vec<_>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let ys = (self.op)(&tensors)?;
        let cotangent =
            normal(ys.dims(), DType::F32, 11)?.to_dtype(DType::BF16)?.to_dtype(dtype)?;
        let grads = (&ys * cotangent)?.sum_all()?.backward()?;
        let mut all = vec![ys.detach()];
        for (at, var) in vars.iter().enumerate() {
            match grads.get(var) {
                Some(grad) => all.push(grad.clone()),
                None => bail!("{}: no gradient for input {at}", self.name),
            }
        }
        Ok(all)
    }
}

fn bits(tensors: &[Tensor]) -> Result<Vec<Vec<f32>>> {
    tensors.iter().map(|t| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()).collect()
}

#[test]
fn half_types_are_f32_rounded_once() -> Result<()> {
    for case in cases() {
        // The softmax alone is vkd-norm's and takes no half type.
        if case.name.ends_with("softmax") {
            continue;
        }
        let inputs = case.inputs()?;
        let single = case.run(&inputs, DType::F32)?;
        // f16 by the same path: one op of each kind is enough there.
        let f16 = matches!(case.name, "linear" | "conv2d 3x3" | "gather_rows" | "max_pool2d");
        for dtype in [Some(DType::BF16), f16.then_some(DType::F16)].into_iter().flatten() {
            let half = case.run(&inputs, dtype)?;
            for (at, (got, want)) in half.iter().zip(&single).enumerate() {
                let what = format!("{} {dtype:?}, result {at}", case.name);
                assert_eq!(got.dtype(), dtype, "{what}");
                let want = bits(&[want.to_dtype(dtype)?])?;
                assert!(bits(std::slice::from_ref(got))? == want, "{what}: not f32 rounded");
            }
        }
    }
    Ok(())
}

#[test]
fn no_bit_depends_on_the_run_or_on_the_threads() -> Result<()> {
    let pools = [1, 2, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build());
    for case in cases() {
        let inputs = case.inputs()?;
        let mut first = None;
        for pool in &pools {
            let pool = pool.as_ref().expect("a pool of up to three threads");
            for _ in 0..2 {
                let got = pool.install(|| bits(&case.run(&inputs, DType::F32)?))?;
                let first = first.get_or_insert_with(|| got.clone());
                let threads = pool.current_num_threads();
                assert!(&got == first, "{} with {threads} threads", case.name);
            }
        }
    }
    Ok(())
}

fn named(var: &Var) -> Vec<(String, Var)> {
    vec![("w".to_owned(), var.clone())]
}

/// Three steps of each optimiser from gradients of 1e5 values, with the norm of these.
fn optimisers(dtype: DType) -> Result<Vec<Vec<f32>>> {
    const N: usize = 100_000;
    let start = normal(&[N], DType::F32, 1)?.to_dtype(DType::BF16)?;
    let mut all = vec![];
    for kind in 0..3 {
        let var = Var::from_tensor(&start.to_dtype(dtype)?)?;
        let mut grads = GradStore::default();
        grads.insert(&var, normal(&[N], DType::F32, 2)?.to_dtype(DType::BF16)?.to_dtype(dtype)?);
        let steps = |step: &mut dyn FnMut(&GradStore) -> Result<()>| -> Result<()> {
            (0..3).try_for_each(|_| step(&grads))
        };
        match kind {
            0 => {
                let mut adamw = AdamW::new(named(&var), AdamWConfig::default(), |_, _| true)?;
                steps(&mut |grads| adamw.step(grads, 1e-4))?;
            }
            1 => {
                let mut lamb = Lamb::new(named(&var), LambConfig::default(), |_, _| true)?;
                steps(&mut |grads| lamb.step(grads, 1e-4))?;
            }
            _ => {
                let mut sgd = Sgd::new(named(&var), SgdConfig::default(), |_, _| true)?;
                steps(&mut |grads| sgd.clipped_step(grads, 1e-4, 1.).map(|_| ()))?;
            }
        }
        all.extend(bits(&[var.as_tensor().detach()])?);
        all.push(vec![global_norm([("w", &var)], &grads)? as f32]);
    }
    Ok(all)
}

#[test]
fn optimisers_depend_on_no_thread_and_keep_masters_of_half_types() -> Result<()> {
    let single = optimisers(DType::F32)?;
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.expect("a pool of up to three threads");
        assert!(pool.install(|| optimisers(DType::F32))? == single, "{threads} threads");
    }
    // Three small steps in f32, rounded once at the end.
    for (half, single) in optimisers(DType::BF16)?.iter().zip(&single) {
        let rounded = Tensor::from_slice(single, single.len(), &Device::Cpu)?;
        let rounded = if single.len() > 1 { rounded.to_dtype(DType::BF16)? } else { rounded };
        assert!(half == &bits(&[rounded])?[0]);
    }
    Ok(())
}

#[test]
fn steps_below_a_half_types_resolution_add_up() -> Result<()> {
    let var = Var::ones(1, DType::BF16, &Device::Cpu)?;
    let mut sgd = Sgd::new(named(&var), SgdConfig::default(), |_, _| false)?;
    let value = || -> Result<f32> { var.to_dtype(DType::F32)?.squeeze(0)?.to_scalar() };
    // An f32 gradient for a half variable, as sums of micro-batches are.
    let mut sum = GradAccumulator::new(named(&var));
    let mut step = |sgd: &mut Sgd| -> Result<()> {
        let mut half = GradStore::default();
        half.insert(&var, Tensor::ones(1, DType::BF16, &Device::Cpu)?);
        sum.add(&half, 0.5)?;
        sum.add(&half, 0.5)?;
        let grads = sum.take();
        assert_eq!(grads.get(&var).map(Tensor::dtype), Some(DType::F32));
        sgd.step(&grads, 1e-3)
    };
    // One step of a thousandth is a quarter of bf16's distance below one.
    (0..8).try_for_each(|_| step(&mut sgd))?;
    assert_eq!(value()?, 0.9921875, "the nearest to 0.992");
    let (count, state) = sgd.state()?;
    assert_eq!(state["w.master"].dtype(), DType::F32);
    assert!((state["w.master"].to_vec1::<f32>()?[0] - 0.992).abs() < 1e-6);
    let state = state.into_iter().collect();
    let mut resumed = Sgd::new(named(&var), SgdConfig::default(), |_, _| false)?;
    resumed.load_state(count, &state)?;
    assert_eq!(
        resumed.state()?.1["w.master"].to_vec1::<f32>()?,
        state["w.master"].to_vec1::<f32>()?
    );
    // Loaded weights are where the master goes on.
    var.set(&Tensor::full(4f32, 1, &Device::Cpu)?.to_dtype(DType::BF16)?)?;
    step(&mut sgd)?;
    assert!((sgd.state()?.1["w.master"].to_vec1::<f32>()?[0] - 3.999).abs() < 1e-6);
    Ok(())
}

#[test]
fn a_model_of_a_half_type_keeps_statistics_and_averages_in_f32() -> Result<()> {
    let store = VarStore::new(1, DType::BF16, &Device::Cpu);
    let norm = batch_norm2d(3, BatchNormConfig::default(), store.builder())?;
    let mut ema = Ema::new(&store, 0.999, false)?;
    let xs = uniform(&[40, 3], DType::F32, 1, -1., 1.)?.to_dtype(DType::BF16)?;
    let ys = norm.forward(&xs, &Context::train(0, 0, []))?;
    assert_eq!(ys.dtype(), DType::BF16);
    let grads = ys.sqr()?.sum_all()?.backward()?;
    let mut adamw = AdamW::new(store.parameters(), AdamWConfig::default(), |_, _| false)?;
    adamw.step(&grads, 0.1)?;
    ema.update()?;
    for (name, tensor) in store.tensors() {
        let buffer = vkd_nn::is_buffer(&name);
        assert_eq!(tensor.dtype(), if buffer { DType::F32 } else { DType::BF16 }, "{name}");
        assert_eq!(ema.tensors()[&name].dtype(), DType::F32, "{name}");
    }
    assert_eq!(norm.forward(&xs, &Context::eval())?.dtype(), DType::BF16);
    store.load(&ema.tensors().into_iter().collect())
}
