//! BigGAN against its published code, and its own laws.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Error, Result, Tensor, Var};
use std::collections::HashMap;
use vkd_models::{Discriminator, DiscriminatorConfig, Generator, GeneratorConfig};
use vkd_nn::{Context, VarStore, is_buffer};
use vkd_testkit::{Golden, Tolerance, assert_close, gradcheck_variables, normal, to_f64};

const CLASSES: usize = 5;

struct Case {
    name: &'static str,
    golden: Golden,
    dtype: DType,
    generator: GeneratorConfig,
    discriminator: DiscriminatorConfig,
}

fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for dtype in [DType::F64, DType::F32] {
        for name in ["plain", "full"] {
            let full = name == "full";
            let generator = GeneratorConfig {
                noise: 16,
                width: 16,
                bottom: 4,
                stages: 3,
                shared: full.then_some(6),
                hierarchical: full,
                attention: if full { vec![1] } else { vec![] },
            };
            let discriminator = DiscriminatorConfig {
                width: 16,
                blocks: 4,
                halvings: 2,
                head: vec![24, 12],
                attention: if full { (0..4).collect() } else { vec![] },
            };
            let golden = Golden::open("biggan")?;
            all.push(Case { name, golden, dtype, generator, discriminator });
        }
    }
    Ok(all)
}

impl Case {
    fn get(&self, key: &str) -> Result<Tensor> {
        self.golden.get(&format!("{}.{key}", self.name))
    }

    fn float(&self, key: &str) -> Result<Tensor> {
        self.get(key)?.to_dtype(self.dtype)
    }

    fn labels(&self, key: &str) -> Result<Tensor> {
        self.get(key)?.to_dtype(DType::U32)
    }

    /// f64 to ten digits; f32 to the figure of the recording, which its own f32 run reached.
    fn tolerance(&self) -> Tolerance {
        Tolerance::relative(if self.dtype == DType::F64 { 1e-10 } else { 3e-6 })
    }

    fn close(&self, key: &str, got: &Tensor) -> Result<()> {
        let want = self.get(key)?;
        let what = format!("{} {key} {:?}", self.name, self.dtype);
        assert_close(&what, &got.reshape(want.dims())?, &want, self.tolerance())
    }

    /// The recorded initial state of `G` or `D`, every name of it.
    fn state(&self, network: &str) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for kind in ["param", "buffer"] {
            let prefix = format!("{}.{network}.{kind}.", self.name);
            for key in self.golden.keys() {
                if let Some(name) = key.strip_prefix(&prefix) {
                    state.insert(name.to_owned(), self.golden.get(key)?);
                }
            }
        }
        Ok(state)
    }

    fn generator(&self) -> Result<(VarStore, Generator)> {
        let store = VarStore::new(0, self.dtype, &Device::Cpu);
        let generator = Generator::new(&self.generator, 3, CLASSES, store.builder())?;
        // All names and shapes have to be the published code's.
        store.load(&self.state("G")?)?;
        Ok((store, generator))
    }

    fn discriminator(&self) -> Result<(VarStore, Discriminator)> {
        let store = VarStore::new(0, self.dtype, &Device::Cpu);
        let discriminator = Discriminator::new(&self.discriminator, 3, CLASSES, store.builder())?;
        store.load(&self.state("D")?)?;
        Ok((store, discriminator))
    }

    fn compare_buffers(&self, prefix: &str, store: &VarStore) -> Result<()> {
        let tensors = store.tensors();
        let mut compared = 0;
        for (name, tensor) in tensors.iter().filter(|(name, _)| is_buffer(name)) {
            self.close(&format!("{prefix}.{name}"), tensor)?;
            compared += 1;
        }
        let whole = format!("{}.{prefix}.", self.name);
        let recorded = self.golden.keys().iter().filter(|key| key.starts_with(&whole)).count();
        assert_eq!(compared, recorded);
        Ok(())
    }

    fn compare_gradients(&self, prefix: &str, store: &VarStore, loss: &Tensor) -> Result<()> {
        let grads = loss.backward()?;
        let whole = format!("{}.{prefix}.", self.name);
        let mut compared = 0;
        let (mut recorded, mut largest) = (0, 0f64);
        for key in self.golden.keys().into_iter().filter(|key| key.starts_with(&whole)) {
            recorded += 1;
            largest = to_f64(&self.golden.get(key)?)?.iter().fold(largest, |m, v| m.max(v.abs()));
        }
        for (name, var) in store.parameters() {
            let key = format!("{prefix}.{name}");
            if self.get(&key).is_err() {
                assert!(grads.get(&var).is_none(), "{key}: expected no gradient, got one");
                continue;
            }
            let grad =
                grads.get(&var).ok_or_else(|| Error::Msg(format!("no gradient reaches {key}")))?;
            // A ReLU on the other side of zero moves a gradient in f32 by up to 1e-4. The absolute part is rounding of the other gradients:
            // batch norm takes the bias before it away, so that its gradient, a sum over 4·32·32 places, is zero but for that.
            let tolerance = match self.dtype {
                DType::F64 => {
                    Tolerance { absolute: 256. * f64::EPSILON * largest, ..self.tolerance() }
                }
                _ => {
                    Tolerance { relative: 1e-4, absolute: 256. * f64::from(f32::EPSILON) * largest }
                }
            };
            assert_close(&format!("{} {key}", self.name), grad, &self.get(&key)?, tolerance)?;
            compared += 1;
        }
        assert_eq!(compared, recorded, "{prefix}");
        Ok(())
    }
}

fn train() -> Context {
    Context::train(0, 0, [])
}

#[test]
fn the_generator_gives_the_recorded_images_gradients_and_state() -> Result<()> {
    for case in cases()? {
        let (store, generator) = case.generator()?;
        let (noise, labels) = (Var::from_tensor(&case.float("z")?)?, case.labels("gen_labels")?);
        let images = generator.forward(&noise, &labels, &train())?;
        case.close("g_train.images", &images)?;
        case.compare_buffers("g_train.after.buffer", &store)?;
        let sum = (&images * case.float("cot_images")?)?.sum_all()?;
        let grad = sum.backward()?.get(&noise).unwrap().clone();
        case.close("g_train.grad_z_of_sum_images_cot", &grad)?;
        let before = store.tensors()["linear.u0"].copy()?;
        let evaluated = generator.forward(&noise, &labels, &Context::eval())?;
        case.close("g_eval.images", &evaluated)?;
        // Sampling by the batch's statistics is neither, and moves nothing.
        let sampled = generator.sample(&noise, &labels)?;
        assert!(to_f64(&(&sampled - &evaluated)?)?.iter().any(|d| d.abs() > 1e-3));
        assert_close("u0", &store.tensors()["linear.u0"], &before, Tolerance::EXACT)?;
        case.compare_buffers("g_train.after.buffer", &store)?;
    }
    Ok(())
}

#[test]
fn the_discriminator_gives_the_recorded_scores_features_gradients_and_state() -> Result<()> {
    for case in cases()? {
        let (_, generator) = case.generator()?;
        let generated =
            generator.forward(&case.float("z")?, &case.labels("gen_labels")?, &train())?.detach();
        let images = Tensor::cat(&[&generated, &case.float("real_images")?], 0)?;
        let labels = Tensor::cat(&[&case.labels("gen_labels")?, &case.labels("real_labels")?], 0)?;
        let (store, discriminator) = case.discriminator()?;
        let output = discriminator.forward(&images, &labels, &train())?;
        case.compare_buffers("d_train.after.buffer", &store)?;
        let features = output.tap("head")?;
        let (fake, real) = (output.score.narrow(0, 0, 4)?, output.score.narrow(0, 4, 4)?);
        case.close("d_train.score_fake", &fake)?;
        case.close("d_train.score_real", &real)?;
        case.close("d_train.feat_fake", &features.narrow(0, 0, 4)?)?;
        case.close("d_train.feat_real", &features.narrow(0, 4, 4)?)?;
        let (hinge_fake, hinge_real) =
            ((fake + 1.)?.relu()?.mean_all()?, real.affine(-1., 1.)?.relu()?.mean_all()?);
        case.close("d_train.hinge_fake", &hinge_fake)?;
        case.close("d_train.hinge_real", &hinge_real)?;
        case.compare_gradients("d_train.grad_hinge", &store, &(hinge_fake + hinge_real)?)?;
        let along = (features * case.float("cot_feat")?)?.sum_all()?;
        case.compare_gradients("d_train.grad_feat", &store, &along)?;
        let output = discriminator.forward(&images, &labels, &Context::eval())?;
        case.close("d_eval.score", &output.score)?;
        case.close("d_eval.feat", output.tap("head")?)?;
        case.compare_buffers("d_train.after.buffer", &store)?;
    }
    Ok(())
}

#[test]
fn the_generators_loss_has_the_recorded_gradients() -> Result<()> {
    for case in cases()? {
        let ((store, generator), (_, discriminator)) = (case.generator()?, case.discriminator()?);
        let labels = case.labels("gen_labels")?;
        let images = generator.forward(&case.float("z")?, &labels, &train())?;
        let score = discriminator.forward(&images, &labels, &train())?.score;
        case.close("g_loss.score", &score)?;
        let loss = score.mean_all()?.neg()?;
        // The mean of scores of both signs is as exact as the scores are, not as it is small.
        let size = to_f64(&case.get("g_loss.score")?)?.iter().fold(0f64, |m, s| m.max(s.abs()));
        let tolerance = Tolerance { relative: 0., absolute: size * case.tolerance().relative };
        assert_close("g_loss.hinge", &loss, &case.get("g_loss.hinge")?, tolerance)?;
        case.compare_gradients("g_loss.grad", &store, &loss)?;
    }
    Ok(())
}

fn tiny() -> (GeneratorConfig, DiscriminatorConfig) {
    let generator = GeneratorConfig {
        noise: 6,
        width: 4,
        bottom: 2,
        stages: 2,
        shared: Some(3),
        hierarchical: true,
        attention: vec![0],
    };
    let discriminator =
        DiscriminatorConfig { width: 4, blocks: 2, halvings: 1, head: vec![3], attention: vec![1] };
    (generator, discriminator)
}

#[test]
fn every_variable_learns_and_gradients_equal_differences() -> Result<()> {
    let (generator, discriminator) = tiny();
    let store = VarStore::new(1, DType::F64, &Device::Cpu);
    let vb = store.builder();
    let g = Generator::new(&generator, 1, 3, vb.pp("generator"))?;
    let d = Discriminator::new(&discriminator, 1, 3, vb.pp("discriminator"))?;
    for (i, (name, var)) in store.parameters().iter().enumerate() {
        // Away from the start, where attention is off and everything is small.
        let noise = normal(var.dims(), DType::F64, 50 + i as u64)?;
        let scale = if name.ends_with("gamma") { 1. } else { 0.3 };
        var.set(&(var.as_tensor() + (noise * scale)?)?.detach())?;
    }
    let noise = normal(&[3, 6], DType::F64, 2)?;
    let labels = Tensor::new(&[2u32, 0, 1], &Device::Cpu)?;
    let loss = |train: bool| -> Result<Tensor> {
        // Without training the power iterations stay where they are, so that the loss is a function.
        let images = if train {
            g.forward(&noise, &labels, &Context::train(0, 0, []))?
        } else {
            g.sample(&noise, &labels)?
        };
        let ctx = if train { Context::train(0, 0, []) } else { Context::eval() };
        let output = d.forward(&images, &labels, &ctx)?;
        // Small, so that rounding of its differences is below the check's absolute part where a gradient is zero.
        (output.score.sqr()?.sum_all()? + output.tap("head")?.sum_all()?)? * 0.01
    };
    // At the fixed point of the iterations σ is the largest singular value, and its gradient is the whole one.
    for _ in 0..2000 {
        loss(true)?;
    }
    gradcheck_variables(&store.parameters(), || loss(false))
}

#[test]
fn configurations_count_and_name_what_is_built() -> Result<()> {
    let (generator, discriminator) = tiny();
    let pairs = [
        (generator, discriminator),
        (GeneratorConfig::digits(), DiscriminatorConfig::digits()),
        (GeneratorConfig::mnist(), DiscriminatorConfig::mnist()),
        (GeneratorConfig::cifar(), DiscriminatorConfig::cifar()),
    ];
    for (g, d) in pairs {
        let size = g.image_size();
        let stores = [0, 1].map(|seed| VarStore::new(seed, DType::F32, &Device::Cpu));
        let network = Generator::new(&g, 3, 10, stores[0].builder())?;
        let judge = Discriminator::new(&d, 3, 10, stores[1].builder())?;
        for (store, variables, cost) in [
            (&stores[0], g.variables(3, 10)?, g.cost(3, 10)?),
            (&stores[1], d.variables(3, 10)?, d.cost(3, 10, size)?),
        ] {
            let held = store.tensors().into_iter().map(|(n, t)| (n, t.shape().clone()));
            assert_eq!(variables, held.collect());
            assert_eq!(cost.parameters, store.parameter_count());
        }
        if g.width > 64 {
            let parameters = [g.cost(3, 10)?, d.cost(3, 10, size)?].map(|cost| cost.parameters);
            assert_eq!(parameters, [4_304_387, 4_207_361]);
            continue;
        }
        let labels = Tensor::new(&[1u32, 4], &Device::Cpu)?;
        let images =
            network.forward(&normal(&[2, g.noise], DType::F32, 1)?, &labels, &Context::eval())?;
        assert_eq!(images.dims(), [2, 3, size, size]);
        assert!(to_f64(&images)?.iter().all(|v| v.abs() <= 1.));
        let output = judge.forward(&images, &labels, &Context::eval())?;
        assert_eq!(output.taps.keys().collect::<Vec<_>>(), d.taps().keys().collect::<Vec<_>>());
        for (name, width) in d.taps() {
            assert_eq!(output.tap(&name)?.dim(1)?, width, "{name}");
        }
        let text = serde_json::to_string(&(&g, &d)).unwrap();
        assert_eq!(
            serde_json::from_str::<(GeneratorConfig, DiscriminatorConfig)>(&text).unwrap(),
            (g, d)
        );
    }
    // By hand, 8 by 8 pixels from 4 by 4: linear, 1×1 before and 3×3 after the doubling, the image's convolution.
    let places = 32 * 512 + 32 * 32 * 16 + 2 * 9 * 32 * 32 * 64 + 9 * 32 * 64;
    assert_eq!(GeneratorConfig::digits().cost(1, 10)?.multiply_adds, places);
    let first = 9 * 32 * 64 + 9 * 32 * 32 * 64 + 32 * 16;
    let others = 2 * 2 * 9 * 32 * 32 * 16 + 32 + 32;
    assert_eq!(DiscriminatorConfig::digits().cost(1, 10, 8)?.multiply_adds, first + others);
    assert!(
        serde_json::from_str::<GeneratorConfig>(r#"{"noise":1,"width":2,"stages":1,"x":1}"#)
            .is_err()
    );
    Ok(())
}

#[test]
fn a_training_resumes_at_the_same_bits() -> Result<()> {
    let (g, d) = (GeneratorConfig::digits(), DiscriminatorConfig::digits());
    let build = |seed| -> Result<_> {
        let store = VarStore::new(seed, DType::F32, &Device::Cpu);
        let vb = store.builder();
        let networks =
            (Generator::new(&g, 1, 3, vb.pp("g"))?, Discriminator::new(&d, 1, 3, vb.pp("d"))?);
        Ok((store, networks))
    };
    let ((a, one), (b, two)) = (build(1)?, build(2)?);
    let labels = Tensor::new(&[2u32, 0], &Device::Cpu)?;
    let pass = |(g, d): &(Generator, Discriminator), seed| -> Result<Vec<f64>> {
        let images = g.forward(&normal(&[2, 32], DType::F32, seed)?, &labels, &train())?;
        to_f64(&d.forward(&images, &labels, &train())?.score)
    };
    for seed in 0..3 {
        pass(&one, seed)?;
    }
    b.load(&a.tensors().into_iter().collect())?;
    for seed in 3..6 {
        assert_eq!(pass(&one, seed)?, pass(&two, seed)?);
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let (g, d) = tiny();
    let generator = |config: GeneratorConfig| {
        Generator::new(&config, 1, 3, store.builder())
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    };
    assert!(generator(GeneratorConfig { stages: 0, ..g.clone() }).contains("stages"));
    assert!(generator(GeneratorConfig { stages: 40, ..g.clone() }).contains("at most 12, got 40"));
    assert!(generator(GeneratorConfig { noise: 7, ..g.clone() }).contains("3 parts of equal size"));
    assert!(generator(GeneratorConfig { shared: None, ..g.clone() }).contains("shared embedding"));
    assert!(
        generator(GeneratorConfig { attention: vec![2], ..g.clone() }).contains("below 2, got 2")
    );
    let discriminator = |config: DiscriminatorConfig| {
        let built = Discriminator::new(&config, 1, 3, store.builder());
        built.err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(discriminator(DiscriminatorConfig { halvings: 3, ..d.clone() }).contains("halvings"));
    assert!(discriminator(DiscriminatorConfig { head: vec![0], ..d.clone() }).contains("head"));
    let own = VarStore::new(1, DType::F32, &Device::Cpu);
    let network = Generator::new(&g, 1, 3, own.builder().pp("g"))?;
    let judge = Discriminator::new(&d, 1, 3, own.builder().pp("d"))?;
    let noise = normal(&[2, 6], DType::F32, 1)?;
    let labels = |values: &[u32]| Tensor::new(values, &Device::Cpu);
    let eval = Context::eval();
    assert!(network.forward(&noise.narrow(1, 0, 5)?, &labels(&[0, 1])?, &eval).is_err());
    assert!(network.forward(&noise, &labels(&[0])?, &eval).is_err());
    assert!(network.forward(&noise, &labels(&[0, 3])?, &eval).is_err());
    let says = |dims: &[usize], classes: &[u32]| -> Result<String> {
        let got = judge.forward(&normal(dims, DType::F32, 1)?, &labels(classes)?, &eval);
        Ok(got.err().map(|e| e.to_string()).unwrap_or_default())
    };
    assert!(says(&[2, 1, 7, 8], &[0, 1])?.contains("sides that 2 divides, got 7 by 8"));
    assert!(says(&[2, 3, 8, 8], &[0, 1])?.contains("(B, 1, H, W)"));
    assert!(says(&[2, 1, 8, 8], &[0])?.contains("2 classes, got [1]"));
    assert!(!says(&[2, 1, 8, 8], &[0, 9])?.is_empty());
    Ok(())
}
