//! Our GAN in the task: grids, and a training that goes on at the same bits with all its state.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Result, Tensor};
use std::collections::{BTreeMap, HashMap};
use vkd_models::{Discriminator, DiscriminatorConfig, Generator, GeneratorConfig};
use vkd_nn::{AdamW, AdamWConfig, Context, Ema, VarStore};
use vkd_norm::{Normalizer, WhitenConfig};
use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
use vkd_tasks::{
    DiffAugment, DistillTask, FeatureLoss, FeatureMap, GenerationBatch, GenerationConfig,
    GenerationDistiller, GenerationLoss, GenerationTap, GenerationTask, Layout, LecamConfig,
    NetworkOutput, ProjectorConfig, Teacher, TeacherNormalizer,
};
use vkd_testkit::{normal, to_f64};
use vkd_train::{Image, discriminator_network, generator_network, sample_grid};

const CLASSES: usize = 3;

/// Everything that a step changes.
struct Training {
    store: VarStore,
    task: GenerationTask,
    optimizers: Vec<AdamW>,
    averages: Ema,
}

impl Training {
    fn new(seed: u64) -> Result<Self> {
        let generator = GeneratorConfig { width: 8, noise: 4, ..GeneratorConfig::digits() };
        let discriminator =
            DiscriminatorConfig { width: 8, blocks: 2, ..DiscriminatorConfig::digits() };
        let store = VarStore::new(seed, DType::F32, &Device::Cpu);
        let vb = store.builder();
        let g = Generator::new(&generator, 1, CLASSES, vb.pp("generator"))?;
        let d = Discriminator::new(&discriminator, 1, CLASSES, vb.pp("discriminator"))?;
        let frozen = store.frozen().pp("discriminator");
        let frozen = Discriminator::new(&discriminator, 1, CLASSES, frozen)?;
        let map = normal(&[64, 12], DType::F32, 3)?;
        let teacher = Teacher::new(move |images: &Tensor, _: &Context| {
            let rows = images.flatten_from(1)?.matmul(&map)?;
            Ok(NetworkOutput::new(rows.clone())
                .with_tap("embedding", FeatureMap::new(rows, Layout::Pooled)?))
        });
        let tap = GenerationTap {
            student: "pooled".into(),
            student_width: 8,
            teacher: "embedding".into(),
            teacher_width: 12,
            projector: ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, 0)),
            student_normalizer: Normalizer::Identity,
            teacher_normalizer: TeacherNormalizer::Running {
                whiten: WhitenConfig::default(),
                keep: 0.9,
            },
            together: true,
            loss: GenerationLoss::Feature(FeatureLoss::SmoothL1 { beta: 1. }),
            real_weight: 1.,
            generated_weight: 1.,
        };
        let distiller = GenerationDistiller::new(tap, vb.pp("discriminator.projector"))?;
        let config = GenerationConfig {
            noise: generator.noise,
            classes: CLASSES,
            discriminator_steps: 2,
            augment: DiffAugment::all(),
            lecam: Some(LecamConfig { weight: 0.3, decay: 0.9, start: 0 }),
        };
        let task = GenerationTask::new(
            generator_network(g),
            discriminator_network(d),
            Some((teacher, distiller)),
            config,
            vb,
        )?
        .with_frozen(discriminator_network(frozen));
        let adam = AdamWConfig { beta1: 0., weight_decay: 0., ..AdamWConfig::default() };
        let mut optimizers = Vec::new();
        for phase in task.phases() {
            let own = store.parameters().into_iter().filter(|(n, _)| n.starts_with(phase.prefix));
            optimizers.push(AdamW::new(own.collect(), adam, |_, _| false)?);
        }
        let averages = Ema::new(&store, 0.9, false)?;
        Ok(Self { store, task, optimizers, averages })
    }

    fn steps(&mut self, steps: std::ops::Range<u64>) -> Result<()> {
        for step in steps {
            for (phase, optimizer) in self.task.phases().iter().zip(&mut self.optimizers) {
                let repeats = self.task.repeats(phase);
                for number in step * repeats..(step + 1) * repeats {
                    let batch = GenerationBatch {
                        images: normal(&[6, 1, 8, 8], DType::F32, number)?.tanh()?,
                        labels: Tensor::new(&[0u32, 1, 2, 0, 1, 2], &Device::Cpu)?,
                        sample_ids: (6 * number..6 * number + 6).collect(),
                    };
                    let ctx = Context::train(1, number, batch.sample_ids.clone());
                    let output = self.task.step(&batch, phase, &ctx)?;
                    optimizer.step(&output.loss.backward()?, 1e-3)?;
                }
            }
            self.averages.update()?;
        }
        Ok(())
    }

    /// Everything, through a file.
    fn saved(&self) -> Result<HashMap<String, Tensor>> {
        let mut all: HashMap<String, Tensor> = HashMap::new();
        let mut add = |prefix: &str, tensors: BTreeMap<String, Tensor>| {
            all.extend(tensors.into_iter().map(|(n, t)| (format!("{prefix}.{n}"), t)));
        };
        add("model", self.store.tensors());
        for (i, optimizer) in self.optimizers.iter().enumerate() {
            add(&format!("optimizer{i}"), optimizer.state()?.1);
        }
        add("ema", self.averages.tensors());
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("all.safetensors");
        candle_core::safetensors::save(&all, &path)?;
        candle_core::safetensors::load(&path, &Device::Cpu)
    }

    fn take_up(&mut self, saved: &HashMap<String, Tensor>, steps: u64) -> Result<()> {
        let part = |prefix: &str| -> HashMap<String, Tensor> {
            let strip = |(n, t): (&String, &Tensor)| {
                Some((n.strip_prefix(prefix)?.strip_prefix('.')?.to_owned(), t.clone()))
            };
            saved.iter().filter_map(strip).collect()
        };
        self.store.load(&part("model"))?;
        for (i, (phase, optimizer)) in
            self.task.phases().iter().zip(&mut self.optimizers).enumerate()
        {
            let updates = steps * self.task.repeats(phase);
            optimizer.load_state(updates, &part(&format!("optimizer{i}")))?;
        }
        self.averages.load(steps, &part("ema"))
    }
}

#[test]
fn a_gan_goes_on_at_the_same_bits() -> Result<()> {
    let mut whole = Training::new(1)?;
    whole.steps(0..3)?;
    let saved = whole.saved()?;
    // Both networks, power iterations, batch norm, LeCam's averages and the gathered covariance.
    for name in [
        "model.generator.linear.u0",
        "model.generator.blocks.0.0.bn1.stored_mean",
        "model.discriminator.embed.u0",
        "model.discriminator.lecam.running_mean",
        "model.discriminator.projector.pooled.teacher.moments",
        "optimizer0.discriminator.projector.pooled.raw.m",
        "optimizer1.generator.linear.weight.v",
        "ema.generator.linear.weight",
    ] {
        assert!(saved.contains_key(name), "{name} in {:?}", saved.keys());
    }
    whole.steps(3..6)?;
    let mut other = Training::new(2)?;
    other.take_up(&saved, 3)?;
    other.steps(3..6)?;
    let (a, b) = (whole.saved()?, other.saved()?);
    assert_eq!(a.len(), b.len());
    for (name, tensor) in &a {
        assert_eq!(to_f64(tensor)?, to_f64(&b[name])?, "{name}");
        if name.ends_with("weight") {
            assert_ne!(to_f64(tensor)?, to_f64(&saved[name])?, "{name} did not move");
        }
    }
    Ok(())
}

#[test]
fn a_frozen_discriminator_is_the_same_network() -> Result<()> {
    // Its power iterations live in the same memory: one step of the generator moves them for both.
    let mut training = Training::new(1)?;
    let before = to_f64(&training.store.tensors()["discriminator.linear.u0"])?;
    training.steps(0..1)?;
    assert_eq!(before.len(), 1);
    let before = to_f64(&training.store.tensors()["discriminator.embed.u0"])?;
    let phase = training.task.phases()[1].clone();
    let batch = GenerationBatch {
        images: normal(&[2, 1, 8, 8], DType::F32, 1)?,
        labels: Tensor::new(&[0u32, 1], &Device::Cpu)?,
        sample_ids: [0, 1].into(),
    };
    let output = training.task.step(&batch, &phase, &Context::train(1, 9, [0, 1]))?;
    assert_ne!(to_f64(&training.store.tensors()["discriminator.embed.u0"])?, before);
    let grads = output.loss.backward()?;
    for (name, var) in training.store.parameters() {
        let generators = name.starts_with("generator.");
        assert_eq!(grads.get(&var).is_some(), generators, "{name}");
    }
    Ok(())
}

#[test]
fn a_grid_has_every_image_in_its_place() -> Result<()> {
    let images = normal(&[5, 3, 4, 2], DType::F32, 1)?;
    let grid = sample_grid(&images, 2)?;
    assert_eq!((grid.width(), grid.height(), grid.channels()), (5, 14, 3));
    let values = images.to_dtype(DType::F64)?;
    for i in 0..5 {
        for (y, x, c) in
            (0..4).flat_map(|y| (0..2).flat_map(move |x| (0..3).map(move |c| (y, x, c))))
        {
            let value = values.get(i)?.get(c)?.get(y)?.get(x)?.to_scalar::<f64>()?;
            let want = ((value + 1.) * 127.5).clamp(0., 255.).round();
            let (row, column) = (i / 2 * 5 + y, i % 2 * 3 + x);
            let got = f64::from(grid.pixels()[(row * 5 + column) * 3 + c]);
            assert!((got - want).abs() <= 1., "{i} {y} {x} {c}: {got} {want}");
        }
    }
    // Between images, and where the last row has none.
    assert_eq!(grid.pixels()[2 * 3..3 * 3], [0, 0, 0]);
    assert_eq!(grid.pixels()[(10 * 5 + 3) * 3..][..6], [0; 6]);
    assert_eq!(Image::decode(&grid.to_png()?, 3)?, grid);
    let grey = sample_grid(&images.narrow(1, 0, 1)?, 9)?;
    assert_eq!((grey.width(), grey.height()), (14, 4));
    assert_eq!(Image::decode(&grey.to_png()?, 1)?, grey);
    assert!(sample_grid(&images.narrow(1, 0, 2)?, 2).is_err());
    assert!(sample_grid(&images, 0).is_err());
    Ok(())
}
