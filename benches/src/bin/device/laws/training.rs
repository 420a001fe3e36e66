//! What changes values in place, and a whole step of a student, a projector and their loss.

use super::{Case, FLOATS, drawn, shown};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use vkd_loss::Reduction;
use vkd_models::{Architecture, ModelConfig, VitConfig};
use vkd_nn::{
    AdamWConfig, Context, Ema, GradAccumulator, LambConfig, Optimizer, Rule, SgdConfig, VarStore,
    global_norm,
};
use vkd_norm::Normalizer;
use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
use vkd_tasks::{
    Distiller, FeatureLoss, FeatureMap, Layout, LogitLoss, NetworkOutput, ProjectorConfig,
    TapConfig, weighted_sum,
};
use vkd_testkit::normal_scaled;

/// Updates of which each starts from the rounding of the one before.
const UPDATES: usize = 3;

pub(super) fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for shapes in [[&[7][..], &[3, 5], &[1]], [&[33, 65], &[257], &[1000, 17]]] {
        in_place(&mut all, &shapes)?;
    }
    all.push(step()?);
    Ok(all)
}

/// Variables of the first half of `x`, with the second half as gradients.
fn variables(x: &[Tensor]) -> Result<(Vec<(String, Var)>, GradStore)> {
    let (values, slopes) = x.split_at(x.len() / 2);
    let (mut named, mut grads) = (Vec::new(), GradStore::default());
    for (i, (value, slope)) in values.iter().zip(slopes).enumerate() {
        let var = Var::from_tensor(&value.force_contiguous()?)?;
        grads.insert(&var, slope.clone());
        named.push((format!("w{i}"), var));
    }
    Ok((named, grads))
}

fn values(named: &[(String, Var)]) -> Vec<Tensor> {
    named.iter().map(|(_, var)| var.as_detached_tensor()).collect()
}

fn updated<R: Rule>(x: &[Tensor], rule: R, clip: Option<f64>) -> Result<Vec<Tensor>> {
    let (named, grads) = variables(x)?;
    let mut optimizer = Optimizer::new(named.clone(), rule, |_, var| var.rank() > 1)?;
    for _ in 0..UPDATES {
        match clip {
            Some(norm) => optimizer.clipped_step(&grads, 1e-2, norm).map(drop)?,
            None => optimizer.step(&grads, 1e-2)?,
        }
    }
    Ok(values(&named))
}

fn in_place(all: &mut Vec<Case>, shapes: &[&[usize]; 3]) -> Result<()> {
    let both = [&shapes[..], &shapes[..]].concat();
    let terms = shapes.iter().map(|dims| dims.iter().product::<usize>()).sum();
    let mut add = |op: &str, f: fn(&[Tensor]) -> Result<Vec<Tensor>>| {
        let name = format!("{op} {}", shapes.map(shown).join(" "));
        all.push(Case::new(name, drawn(&both)?, 0, terms, f));
        Ok::<_, candle_core::Error>(())
    };
    add("adamw", |x| updated(x, AdamWConfig::default(), None))?;
    add("adamw clipped", |x| updated(x, AdamWConfig::default(), Some(1.)))?;
    add("sgd", |x| updated(x, SgdConfig::default(), None))?;
    add("lamb", |x| updated(x, LambConfig::default(), None))?;
    add("global_norm", |x| {
        let (named, grads) = variables(x)?;
        let norm = global_norm(named.iter().map(|(name, var)| (name.as_str(), var)), &grads)?;
        // A number of the host by contract; `results` wants to see it beside the inputs.
        Ok(vec![Tensor::new(norm, x[0].device())?])
    })?;
    add("grad_accumulator", |x| {
        let (named, grads) = variables(x)?;
        let mut sum = GradAccumulator::new(named.clone());
        (0..UPDATES).try_for_each(|_| sum.add(&grads, 0.3))?;
        let sums = sum.take();
        let of = |(name, var): &(String, Var)| match sums.get(var) {
            Some(sum) => Ok(sum.clone()),
            None => bail!("expected a sum of {name}, got none"),
        };
        named.iter().map(of).collect()
    })?;
    add("ema", |x| {
        let store = VarStore::new(0, x[0].dtype(), x[0].device());
        let (starts, ends) = x.split_at(x.len() / 2);
        let mut vars = Vec::new();
        for (i, start) in starts.iter().enumerate() {
            store.builder().get(start.dims(), &format!("w{i}"))?;
            let (_, var) = store.parameters().swap_remove(i);
            var.set(&start.force_contiguous()?)?;
            vars.push(var);
        }
        let mut ema = Ema::new(&store, 0.9, false)?;
        for (var, end) in vars.iter().zip(ends) {
            var.set(&end.force_contiguous()?)?;
        }
        (0..UPDATES).try_for_each(|_| ema.update())?;
        Ok(ema.tensors().into_values().collect())
    })?;
    Ok(())
}

/// A small ViT beside drawn features and logits of a teacher, with projector, normaliser and both losses: the loss and the gradient
/// of every variable.
fn step() -> Result<Case> {
    const TEACHER: usize = 48;
    let network =
        VitConfig { patch: 4, width: 24, depth: 2, heads: 2, mlp_ratio: 2, drop_path: 0.1 };
    let model = ModelConfig {
        image_size: 16,
        channels: 3,
        classes: 10,
        architecture: Architecture::Vit(network),
    };
    let whole = move |x: &[Tensor]| -> Result<Vec<Tensor>> {
        let store = VarStore::new(3, x[0].dtype(), x[0].device());
        let student = model.build(store.builder().pp("student"))?;
        let tap = TapConfig {
            student: "tokens".to_owned(),
            student_width: 24,
            teacher: "pooled".to_owned(),
            teacher_width: TEACHER,
            projector: ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, 0)),
            student_normalizer: Normalizer::Identity,
            teacher_normalizer: Normalizer::LayerNorm { eps: 1e-5 },
            loss: FeatureLoss::SmoothL1 { beta: 1. },
            weight: 1.,
        };
        let logits = Some(LogitLoss { temperature: 2., weight: 1. });
        let distiller = Distiller::new(vec![tap], logits, store.builder().pp("projector"))?;
        // Away from zero, where the map is the identity.
        for (name, var) in store.parameters() {
            if name.ends_with("raw") {
                let moved = normal_scaled(var.dims(), DType::F32, 8, 0.1)?;
                var.set(&moved.to_dtype(var.dtype())?.to_device(var.device())?)?;
            }
        }
        let ctx = Context::train(1, 2, (0..x[0].dim(0)? as u64).collect::<Vec<_>>());
        let out = student.forward(&x[0], &ctx)?;
        let features = FeatureMap::new(out.tap("tokens")?.clone(), Layout::Tokens)?;
        let mut student = NetworkOutput::new(out.logits).with_tap("tokens", features);
        if let Some(other) = out.distillation_logits {
            student = student.with_distillation_logits(other);
        }
        let teacher = NetworkOutput::new(x[2].clone())
            .with_tap("pooled", FeatureMap::new(x[1].clone(), Layout::Pooled)?);
        let label = vkd_loss::cross_entropy(&student.logits, &x[3], 0.1, Reduction::Mean)?;
        let loss = (label + weighted_sum(&distiller.terms(&student, &teacher, &ctx)?)?)?;
        let grads = loss.backward()?;
        let mut found = vec![loss.detach()];
        for (name, var) in store.parameters() {
            match grads.get(&var) {
                Some(grad) => found.push(grad.clone()),
                None => bail!("expected a gradient of {name}, got none"),
            }
        }
        Ok(found)
    };
    let mut inputs = drawn(&[&[6, 3, 16, 16], &[6, TEACHER], &[6, 10]])?;
    inputs.push(Tensor::arange(0u32, 6, &Device::Cpu)?);
    // Some thirty ops deep, each of which rounds what the ones before gave; initial values are drawn in f32 on both sides.
    let case = Case::new("step vit to 48".to_owned(), inputs, 0, 400, whole).with_gain(30.);
    Ok(case.of_dtypes(&FLOATS[..2]))
}
