//! Optimisers, averages and accumulation: against torch, their formulas, and bad input.

use candle_core::{DType, Device, Result, Tensor, Var};
use std::collections::HashMap;
use vkd_nn::{
    AdamW, AdamWConfig, Ema, GradAccumulator, Group, Lamb, LambConfig, Optimizer, Sgd, SgdConfig,
    VarStore, global_norm, linear,
};
use vkd_testkit::{Golden, Tolerance, assert_close, normal};

/// Five steps in f64 stay within some hundred roundings of each other.
const SAME: Tolerance = Tolerance { relative: 1e-13, absolute: 0. };

fn named(name: &str, var: &Var) -> Vec<(String, Var)> {
    vec![(name.to_owned(), var.clone())]
}

/// The descent that the golden file recorded: loss, then its gradients.
fn gradients(golden: &Golden, p: &Var) -> Result<candle_core::backprop::GradStore> {
    let p = p.as_tensor();
    let cubed = (p.sqr()? * p)?;
    let loss = ((cubed * golden.get("optim.cube")?)? + (p * golden.get("optim.line")?)?)?;
    loss.sum_all()?.backward()
}

fn trajectory(
    kind: &str,
    start: impl Fn(Vec<(String, Var)>) -> Result<Box<dyn Step>>,
) -> Result<()> {
    let golden = Golden::open("nn_optim")?;
    let var = Var::from_tensor(&golden.get("optim.start")?)?;
    let mut optimiser = start(named("w", &var))?;
    for step in 0..5 {
        optimiser.step(&gradients(&golden, &var)?, 0.05)?;
        let what = format!("{kind} step {step}");
        assert_close(&what, &var, &golden.get(&format!("optim.{kind}.{step}"))?, SAME)?;
    }
    Ok(())
}

trait Step {
    fn step(&mut self, grads: &candle_core::backprop::GradStore, lr: f64) -> Result<()>;
}

impl Step for AdamW {
    fn step(&mut self, grads: &candle_core::backprop::GradStore, lr: f64) -> Result<()> {
        Optimizer::step(self, grads, lr)
    }
}

impl Step for Sgd {
    fn step(&mut self, grads: &candle_core::backprop::GradStore, lr: f64) -> Result<()> {
        Optimizer::step(self, grads, lr)
    }
}

impl Step for Lamb {
    fn step(&mut self, grads: &candle_core::backprop::GradStore, lr: f64) -> Result<()> {
        Optimizer::step(self, grads, lr)
    }
}

#[test]
fn trajectories_equal_torchs() -> Result<()> {
    let adamw = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1 };
    let lamb = LambConfig { beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1 };
    trajectory("adamw", |p| Ok(Box::new(AdamW::new(p, adamw, |_, _| true)?)))?;
    trajectory("lamb", |p| Ok(Box::new(Lamb::new(p, lamb, |_, _| true)?)))?;
    for (kind, momentum, nesterov) in
        [("sgd", 0., false), ("momentum", 0.9, false), ("nesterov", 0.9, true)]
    {
        let config = SgdConfig { momentum, nesterov, weight_decay: 0.1 };
        trajectory(kind, |p| Ok(Box::new(Sgd::new(p, config, |_, _| true)?)))?;
    }
    // A wrong setting must be noticed.
    let off = AdamWConfig { weight_decay: 0.11, ..adamw };
    assert!(trajectory("adamw", |p| Ok(Box::new(AdamW::new(p, off, |_, _| true)?))).is_err());
    Ok(())
}

#[test]
fn clipping_equals_torchs_and_scales_nothing_below_the_limit() -> Result<()> {
    let golden = Golden::open("nn_optim")?;
    let var = Var::from_tensor(&golden.get("optim.start")?)?;
    let mut sgd = Sgd::new(named("w", &var), SgdConfig::default(), |_, _| false)?;
    for step in 0..5 {
        let norm = sgd.clipped_step(&gradients(&golden, &var)?, 0.05, 1.)?;
        let want = golden.get(&format!("optim.clipped.{step}.norm"))?;
        assert_close("norm", &norm, &want, SAME)?;
        assert_close("clipped", &var, &golden.get(&format!("optim.clipped.{step}"))?, SAME)?;
    }
    // Over several parameters, large enough for threads, against a plain sum.
    let vars = [normal(&[70_000], DType::F32, 1)?, normal(&[3, 5], DType::F32, 2)?];
    let vars = vars.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let loss = (vars[0].sqr()?.sum_all()? + vars[1].sqr()?.sum_all()?)?;
    let grads = loss.backward()?;
    let norm = global_norm([("a", &vars[0]), ("b", &vars[1])], &grads)?;
    let squares = vars.iter().map(|v| v.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>());
    let want = 2. * squares.sum::<Result<f64>>()?.sqrt();
    assert!((norm / want - 1.).abs() < 1e-12, "{norm} {want}");
    let all = || vec![("a".to_owned(), vars[0].clone()), ("b".to_owned(), vars[1].clone())];
    let before = vars[1].flatten_all()?.to_vec1::<f32>()?;
    Sgd::new(all(), SgdConfig::default(), |_, _| false)?.clipped_step(&grads, 0.25, norm * 2.)?;
    let after = vars[1].flatten_all()?.to_vec1::<f32>()?;
    assert!(before.iter().zip(&after).all(|(b, a)| *a == b - 0.25 * (2. * b)), "not scaled");

    // A gradient that is not finite is named, and nothing moves.
    let bad = (vars[1].as_tensor() * f64::NAN)?.sum_all()?.backward()?;
    let mut sgd = Sgd::new(all(), SgdConfig::default(), |_, _| false)?;
    let message = sgd.clipped_step(&bad, 0.1, 1.).unwrap_err().to_string();
    assert!(message.contains("finite gradient for b"), "{message}");
    assert!(sgd.clipped_step(&grads, 0.1, 0.).is_err());
    assert_eq!(vars[1].flatten_all()?.to_vec1::<f32>()?, after);
    Ok(())
}

#[test]
fn large_parameters_take_the_parallel_path_with_the_same_bits() -> Result<()> {
    let n = 70_001;
    let start = normal(&[n], DType::F32, 1)?;
    let run = |start: &Tensor, lamb: bool| -> Result<Vec<f32>> {
        let var = Var::from_tensor(start)?;
        let grads = || (var.as_tensor().sqr()? * 0.5)?.sum_all()?.backward();
        if lamb {
            let mut o = Lamb::new(named("w", &var), LambConfig::default(), |_, _| true)?;
            (0..3).try_for_each(|_| o.step(&grads()?, 0.1))?;
        } else {
            let mut o = AdamW::new(named("w", &var), AdamWConfig::default(), |_, _| true)?;
            (0..3).try_for_each(|_| o.step(&grads()?, 0.1))?;
        }
        var.to_vec1()
    };
    // Entry by entry for AdamW: the first hundred alone take the serial path.
    let few = run(&start.narrow(0, 0, 100)?.copy()?, false)?;
    assert_eq!(run(&start, false)?[..100], few[..]);
    // LAMB's norms are sums: the same with one thread and with many.
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let one = pool(1).map_err(candle_core::Error::wrap)?.install(|| run(&start, true))?;
    let three = pool(3).map_err(candle_core::Error::wrap)?.install(|| run(&start, true))?;
    assert_eq!(one, three);
    Ok(())
}

#[test]
fn groups_scale_rate_and_decay_and_names_are_unique() -> Result<()> {
    let (a, b) = (Var::new(&[1f64], &Device::Cpu)?, Var::new(&[1f64], &Device::Cpu)?);
    // In no order: the optimiser sorts.
    let both = || vec![("b".to_owned(), b.clone()), ("a".to_owned(), a.clone())];
    let group = |name: &str, _: &Var| match name {
        "a" => Group { lr_scale: 0.5, weight_decay: 0.1 },
        _ => Group { lr_scale: 0., weight_decay: 0.3 },
    };
    let mut sgd = Sgd::with_groups(both(), SgdConfig::default(), group)?;
    sgd.step(&(a.as_tensor() + b.as_tensor())?.sum_all()?.backward()?, 0.2)?;
    assert!((a.to_vec1::<f64>()?[0] - (1. - 0.1 * 1.1)).abs() < 1e-15);
    assert_eq!(b.to_vec1::<f64>()?, [1.], "frozen");
    for bad in [-1., f64::NAN, f64::INFINITY] {
        let scale = |_: &str, _: &Var| Group { lr_scale: bad, weight_decay: 0. };
        assert!(Sgd::with_groups(both(), SgdConfig::default(), scale).is_err());
    }
    let twice = vec![("a".to_owned(), a.clone()), ("a".to_owned(), b.clone())];
    let message = AdamW::new(twice, AdamWConfig::default(), |_, _| true).err().unwrap().to_string();
    assert!(message.contains("expected each name once, got a twice"), "{message}");
    Ok(())
}

#[test]
fn bad_settings_of_each_are_refused() -> Result<()> {
    let var = Var::new(&[1f32], &Device::Cpu)?;
    for bad in [
        SgdConfig { momentum: 1., ..SgdConfig::default() },
        SgdConfig { nesterov: true, ..SgdConfig::default() },
        SgdConfig { weight_decay: f64::NAN, ..SgdConfig::default() },
    ] {
        assert!(Sgd::new(named("w", &var), bad, |_, _| true).is_err());
    }
    let bad = LambConfig { eps: 0., ..LambConfig::default() };
    let message = Lamb::new(named("w", &var), bad, |_, _| true).err().unwrap().to_string();
    assert!(message.starts_with("lamb: expected betas"), "{message}");
    // A gradient of another shape, as a hand-made store may hold.
    let mut grads = var.as_tensor().sum_all()?.backward()?;
    grads.insert(&var, Tensor::zeros(2, DType::F32, &Device::Cpu)?);
    let mut sgd = Sgd::new(named("w", &var), SgdConfig::default(), |_, _| true)?;
    assert!(sgd.step(&grads, 0.1).unwrap_err().to_string().contains("gradient of [1] for w"));
    Ok(())
}

#[test]
fn every_state_resumes_exactly() -> Result<()> {
    fn resumes<R: vkd_nn::Rule + Copy>(config: R, slots: usize) -> Result<()> {
        let (a, b) = (Var::new(&[1f64, -2.], &Device::Cpu)?, Var::new(&[1f64, -2.], &Device::Cpu)?);
        let mut first = Optimizer::new(named("w", &a), config, |_, _| true)?;
        let grads = |v: &Var| v.as_tensor().sqr()?.sum_all()?.backward();
        for _ in 0..3 {
            first.step(&grads(&a)?, 0.1)?;
        }
        let (step, state) = first.state()?;
        assert_eq!((step, state.len()), (3, slots));
        b.set(&a.as_detached_tensor().copy()?)?;
        let mut second = Optimizer::new(named("w", &b), config, |_, _| true)?;
        if slots > 0 {
            assert!(second.load_state(step, &HashMap::new()).is_err());
        }
        second.load_state(step, &state.into_iter().collect())?;
        first.step(&grads(&a)?, 0.1)?;
        second.step(&grads(&b)?, 0.1)?;
        assert_eq!(a.to_vec1::<f64>()?, b.to_vec1::<f64>()?);
        Ok(())
    }
    resumes(AdamWConfig::default(), 2)?;
    resumes(LambConfig::default(), 2)?;
    resumes(SgdConfig { momentum: 0.9, ..SgdConfig::default() }, 1)?;
    resumes(SgdConfig::default(), 0)
}

#[test]
fn accumulated_gradients_are_those_of_the_whole_batch() -> Result<()> {
    let store = VarStore::new(3, DType::F64, &Device::Cpu);
    let layer = linear(4, 3, store.builder())?;
    let xs = normal(&[6, 4], DType::F64, 1)?;
    let loss = |xs: &Tensor| candle_core::Module::forward(&layer, xs)?.sqr()?.mean_all();
    let whole = loss(&xs)?.backward()?;
    let mut sum = GradAccumulator::new(store.parameters());
    for round in 0..2 {
        for part in 0..3 {
            sum.add(&loss(&xs.narrow(0, 2 * part, 2)?)?.backward()?, 1. / 3.)?;
        }
        let parts = sum.take();
        for (name, var) in store.parameters() {
            let (got, want) = (parts.get(&var).unwrap(), whole.get(&var).unwrap());
            assert_close(&format!("{name} {round}"), got, want, Tolerance::relative(1e-14))?;
        }
    }
    // Two variables that share one gradient tensor, and a third that no pass reaches.
    let vars: Vec<Var> = (0..3).map(|_| Var::new(&[1f64], &Device::Cpu)).collect::<Result<_>>()?;
    let list = vars.iter().enumerate().map(|(i, v)| (i.to_string(), v.clone())).collect();
    let mut sum = GradAccumulator::new(list);
    for _ in 0..2 {
        sum.add(&(vars[0].as_tensor() + vars[1].as_tensor())?.sum_all()?.backward()?, 1.)?;
    }
    let grads = sum.take();
    for var in &vars[..2] {
        assert_eq!(grads.get(var).unwrap().to_vec1::<f64>()?, [2.]);
    }
    assert!(grads.get(&vars[2]).is_none() && sum.take().get(&vars[0]).is_none());
    assert!(sum.add(&grads, f64::NAN).is_err());
    Ok(())
}

#[test]
fn the_average_equals_torchs_and_copies_buffers() -> Result<()> {
    let golden = Golden::open("nn_optim")?;
    let store = VarStore::new(0, DType::F64, &Device::Cpu);
    let start = candle_nn::Init::Const(0.);
    store.builder().get_with_hints((4, 3), "w", start)?;
    let buffer = store.builder().get_with_hints(2, "running_mean", start)?;
    let all = |w: Tensor, mean: Tensor| {
        HashMap::from([("w".to_owned(), w), ("running_mean".to_owned(), mean)])
    };
    let mean = |x: f64| Tensor::new(&[x, 2. * x], &Device::Cpu);
    store.load(&all(golden.get("optim.start")?, mean(0.)?))?;
    let mut ema = Ema::new(&store, 0.9, false)?;
    for step in 0..5 {
        store.load(&all(golden.get(&format!("optim.momentum.{step}"))?, mean(step as f64)?))?;
        ema.update()?;
        let averages = ema.tensors();
        assert_close("ema", &averages["w"], &golden.get(&format!("optim.ema.{step}"))?, SAME)?;
        assert_eq!(averages["running_mean"].to_vec1::<f64>()?, [step as f64, 2. * step as f64]);
        assert_eq!(buffer.to_vec1::<f64>()?[0], step as f64);
    }
    // Saved, changed, taken up again.
    let saved: HashMap<_, _> =
        ema.tensors().into_iter().map(|(n, t)| Ok((n, t.copy()?))).collect::<Result<_>>()?;
    ema.update()?;
    ema.load(5, &saved)?;
    assert_eq!(ema.updates(), 5);
    assert_close("loaded", &ema.tensors()["w"], &saved["w"], Tolerance::EXACT)?;
    assert!(ema.load(5, &HashMap::new()).is_err());
    // What it does not know, it refuses.
    store.builder().get_with_hints(1, "new", start)?;
    assert!(ema.update().unwrap_err().to_string().contains("got also new"));
    assert!(Ema::new(&store, 1., false).is_err());
    Ok(())
}

#[test]
fn warm_up_forgets_the_first_values_soon() -> Result<()> {
    let store = VarStore::new(0, DType::F64, &Device::Cpu);
    store.builder().get_with_hints(1, "w", candle_nn::Init::Const(0.))?;
    let mut ema = Ema::new(&store, 0.9999, true)?;
    let mut decays = Vec::new();
    for _ in 0..3 {
        ema.update()?;
        decays.push(ema.present_decay());
    }
    assert_eq!(decays, [2. / 11., 3. / 12., 4. / 13.]);
    Ok(())
}
