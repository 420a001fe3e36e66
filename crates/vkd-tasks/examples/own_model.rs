//! Distils a candle module of your own from a teacher of your own, without vkd-models and vkd-train.
//!
//! Both networks are plain candle code; the distiller needs a closure around each that names its features, and the
//! training loop is yours too. The data are noisy points around random centres, of which few have a label.

use candle_core::{D, DType, Device, Module, Result, Tensor, Var, bail};
use candle_nn::{Linear, VarBuilder, VarMap};
use vkd_norm::{Context, Normalizer};
use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
use vkd_tasks::{
    Batch, ClassificationTask, DistillTask, Distiller, FeatureLoss, FeatureMap, Layout, LogitLoss,
    Network, NetworkOutput, ProjectorConfig, TapConfig, Teacher,
};
use vkd_testkit::normal;

const CLASSES: usize = 8;
const INPUT: usize = 24;
const TRAIN: usize = 512;
const LABELLED: usize = 32;
const STEPS: u64 = 200;
const RATE: f64 = 0.2;

/// Your model: a candle module, with a method for the features before its head.
struct Mlp {
    body: Linear,
    head: Linear,
}

impl Mlp {
    /// With its variables; a seed decides their values, which candle's own builder draws anew in each run.
    fn new(width: usize, seed: u64) -> Result<(Self, Vec<Var>)> {
        let mut vars = Vec::new();
        let mut layer = |inputs: usize, outputs: usize, seed| -> Result<Linear> {
            let weight = normal(&[outputs, inputs], DType::F32, seed)?;
            let weight = Var::from_tensor(&(weight / (inputs as f64).sqrt())?)?;
            let bias = Var::zeros(outputs, DType::F32, &Device::Cpu)?;
            let layer = Linear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone()));
            vars.extend([weight, bias]);
            Ok(layer)
        };
        let (body, head) = (layer(INPUT, width, seed)?, layer(width, CLASSES, seed + 1)?);
        Ok((Self { body, head }, vars))
    }

    fn features(&self, xs: &Tensor) -> Result<Tensor> {
        self.body.forward(xs)?.relu()
    }
}

impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.head.forward(&self.features(xs)?)
    }
}

/// All that the distiller asks of a network: logits, and features by name.
fn network(model: Mlp) -> impl Network {
    move |xs: &Tensor, _: &Context| {
        let features = model.features(xs)?;
        let logits = model.head.forward(&features)?;
        Ok(NetworkOutput::new(logits)
            .with_tap("hidden", FeatureMap::new(features, Layout::Pooled)?))
    }
}

/// One step of gradient descent.
fn descend(vars: &[Var], loss: &Tensor, rate: f64) -> Result<()> {
    let grads = loss.backward()?;
    for var in vars {
        if let Some(grad) = grads.get(var) {
            var.set(&(var.as_tensor() - (grad * rate)?)?.detach())?;
        }
    }
    Ok(())
}

fn accuracy(logits: &Tensor, labels: &Tensor) -> Result<f32> {
    let hits = logits.argmax(D::Minus1)?.eq(labels)?.to_dtype(DType::F32)?;
    hits.mean_all()?.to_scalar::<f32>()
}

/// Trains a student, alone or distilled, and returns its accuracy on `test`.
fn fit(
    student: Mlp,
    vars: &[Var],
    distillation: Option<(Teacher, Distiller)>,
    batch: &Batch,
    test: (&Tensor, &Tensor),
) -> Result<f32> {
    let task = ClassificationTask::new(network(student), distillation, 0.)?;
    task.check(&batch.images)?;
    for step in 0..STEPS {
        let ctx = Context::train(0, step, batch.sample_ids.clone());
        descend(vars, &task.step(batch, &task.phases()[0], &ctx)?.loss, RATE)?;
    }
    accuracy(&task.evaluate(test.0)?.logits, test.1)
}

fn main() -> Result<()> {
    // Twice as many points as are trained on: the second half is the test.
    let classes: Vec<u32> = (0..2 * TRAIN as u32).map(|i| i % CLASSES as u32).collect();
    let labels = Tensor::new(classes, &Device::Cpu)?;
    let centres = normal(&[CLASSES, INPUT], DType::F32, 1)?;
    let noise = (normal(&[2 * TRAIN, INPUT], DType::F32, 2)? * 1.5)?;
    let points = (centres.index_select(&labels, 0)? + noise)?;
    let (train, train_labels) = (points.narrow(0, 0, TRAIN)?, labels.narrow(0, 0, TRAIN)?);
    let (test, truth) = (points.narrow(0, TRAIN, TRAIN)?, labels.narrow(0, TRAIN, TRAIN)?);

    // Your teacher, trained by whatever means; here on all labels.
    let (teacher, vars) = Mlp::new(64, 10)?;
    for _ in 0..STEPS {
        let loss = candle_nn::loss::cross_entropy(&teacher.forward(&train)?, &train_labels)?;
        descend(&vars, &loss, RATE)?;
    }
    println!("teacher, {TRAIN} labels: {:.3}", accuracy(&teacher.forward(&test)?, &truth)?);

    // The student with few labels: alone, and from the same start distilled on all points.
    let few = Batch {
        images: train.narrow(0, 0, LABELLED)?,
        labels: train_labels.narrow(0, 0, LABELLED)?,
        sample_ids: (0..LABELLED as u64).collect(),
    };
    let (student, vars) = Mlp::new(12, 20)?;
    let alone = fit(student, &vars, None, &few, (&test, &truth))?;

    let tap = TapConfig {
        student: "hidden".to_owned(),
        student_width: 12,
        teacher: "hidden".to_owned(),
        teacher_width: 64,
        projector: ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, 0)),
        student_normalizer: Normalizer::Identity,
        teacher_normalizer: Normalizer::LayerNorm { eps: 1e-5 },
        loss: FeatureLoss::SmoothL1 { beta: 1. },
        weight: 1.,
    };
    // The projector's variables are trained beside the student's, and left out of what you save.
    let projector = VarMap::new();
    let vb = VarBuilder::from_varmap(&projector, DType::F32, &Device::Cpu);
    let logits = LogitLoss { temperature: 1., weight: 1. };
    let distiller = Distiller::new(vec![tap], Some(logits), vb)?;
    let all = Batch { images: train, sample_ids: (0..TRAIN as u64).collect(), ..few };
    let (student, mut vars) = Mlp::new(12, 20)?;
    vars.extend(projector.all_vars());
    let distillation = Some((Teacher::new(network(teacher)), distiller));
    let distilled = fit(student, &vars, distillation, &all, (&test, &truth))?;

    println!("student, {LABELLED} labels: {alone:.3}; distilled: {distilled:.3}");
    if distilled <= alone {
        bail!("expected the distilled student to be the better one")
    }
    Ok(())
}
