//! The two steps of a GAN, and the Fréchet distance of many features.

use std::process::ExitCode;

use candle_core::{DType, Device, Result, Tensor, bail};
use vkd_benches::{Suite, Work, data, run};
use vkd_models::{Discriminator, DiscriminatorConfig, Generator, GeneratorConfig};
use vkd_nn::{AdamW, AdamWConfig, Context, VarStore};
use vkd_tasks::{
    DISCRIMINATOR, DiffAugment, DistillTask, GENERATOR, GenerationBatch, GenerationConfig,
    GenerationTask,
};
use vkd_train::metrics::{Moments, frechet_distance};
use vkd_train::{discriminator_network, generator_network};

const CLASSES: usize = 10;
/// Rows of a batch of features.
const ROWS: usize = 250;

/// One update of a phase, without augmentation and teacher.
fn step(work: &Work, phase: &'static str) -> Result<impl FnMut() -> Result<()> + use<>> {
    let [batch, side, width] = work.shape[..] else {
        bail!("{}: expected batch, size of the image and width", work.name)
    };
    let generator = GeneratorConfig { width, ..GeneratorConfig::cifar() };
    let discriminator = DiscriminatorConfig { width, ..DiscriminatorConfig::cifar() };
    let store = VarStore::new(7, DType::F32, &Device::Cpu);
    let build = |vb: candle_nn::VarBuilder| -> Result<(Generator, Discriminator)> {
        Ok((
            Generator::new(&generator, 3, CLASSES, vb.pp(GENERATOR))?,
            Discriminator::new(&discriminator, 3, CLASSES, vb.pp(DISCRIMINATOR))?,
        ))
    };
    let (live, frozen) = (build(store.builder())?, build(store.frozen())?);
    let config = GenerationConfig {
        noise: generator.noise,
        classes: CLASSES,
        discriminator_steps: 1,
        augment: DiffAugment::none(),
        lecam: None,
    };
    let task = GenerationTask::new(
        generator_network(live.0),
        discriminator_network(live.1),
        None,
        config,
        store.builder(),
    )?
    .with_frozen_generator(generator_network(frozen.0))
    .with_frozen(discriminator_network(frozen.1));
    let Some(phase) = task.phases().iter().find(|p| p.name == phase).cloned() else {
        bail!("{}: expected the phase {phase}, got none", work.name)
    };
    let own = store.parameters().into_iter().filter(|(name, _)| name.starts_with(phase.prefix));
    let adam = AdamWConfig { beta1: 0., weight_decay: 0., ..AdamWConfig::default() };
    let mut optimizer = AdamW::new(own.collect(), adam, |_, _| false)?;
    let labels: Vec<u32> = (0..batch).map(|i| (i % CLASSES) as u32).collect();
    let batch = GenerationBatch {
        images: data((batch, 3, side, side), 9)?,
        sample_ids: (0..labels.len() as u64).collect(),
        labels: Tensor::new(labels, &Device::Cpu)?,
    };
    Ok(move || {
        let ctx = Context::train(0, 0, batch.sample_ids.clone());
        optimizer.step(&task.step(&batch, &phase, &ctx)?.loss.backward()?, 2e-4)
    })
}

/// Features of generated images arrive in batches; those of real ones were gathered before.
fn frechet(work: &Work) -> Result<impl FnMut() -> Result<f64> + use<>> {
    let [rows, width] = work.shape[..] else { bail!("{}: expected rows and width", work.name) };
    let real = Moments::from_rows(&data((rows, width), 3)?, None)?;
    let generated = (data((rows, width), 4)? * 1.2)?;
    Ok(move || {
        let mut found = Moments::new(width)?;
        for start in (0..rows).step_by(ROWS) {
            let part = generated.narrow(0, start, ROWS.min(rows - start))?;
            found.merge(&Moments::from_rows(&part, None)?)?;
        }
        frechet_distance(&real, &found)
    })
}

fn main() -> ExitCode {
    run(|suite: &mut Suite| {
        suite.works("gan/discriminator_step", |work| step(work, DISCRIMINATOR))?;
        suite.works("gan/generator_step", |work| step(work, GENERATOR))?;
        suite.works("gan/frechet", frechet)
    })
}
