//! One training step beside PyTorch's and timm's (`vkd-testkit/golden/make_deit_step.py`): losses, gradients, AdamW's update.

use candle_core::{DType, Device, Result, Tensor};
use std::collections::{BTreeMap, HashMap};
use vkd_models::{Architecture, DeitConfig, ModelConfig};
use vkd_nn::{Context, VarStore};
use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
use vkd_tasks::{
    Batch, ClassificationTask, DistillTask, Distiller, FeatureLoss, FeatureMap, Layout, LogitLoss,
    NetworkOutput, ProjectorConfig, TapConfig, Teacher,
};
use vkd_testkit::{Golden, Tolerance, assert_close, to_f64};
use vkd_train::{Checkpoints, EventKind, Recipe, TrainerConfig, TrainingConfig, network, train};

const RATE: f64 = 0.01;

fn training() -> Result<TrainingConfig> {
    let set = ["steps=1", "warmup=0", "learning_rate=0.01", "weight_decay=0.05"];
    let set: Vec<String> = set.iter().map(|s| format!("training.{s}")).collect();
    Ok(Recipe::parse(include_str!("tiny.toml"), "tiny.toml", &set)?.training)
}

/// The student's and the projector's variables as the golden step begins, and the task around them.
fn task(golden: &Golden, dtype: DType) -> Result<(VarStore, ClassificationTask)> {
    let deit = DeitConfig { patch: 8, depth: 2, heads: 2, ..DeitConfig::plain(12) };
    let architecture = Architecture::Deit(deit);
    let config = ModelConfig { image_size: 32, channels: 3, classes: 5, architecture };
    let store = VarStore::new(0, dtype, &Device::Cpu);
    let student = config.build(store.builder().pp("student"))?;
    let tap = TapConfig {
        student: "tokens".into(),
        student_width: 12,
        teacher: "pooled".into(),
        teacher_width: 20,
        projector: ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, 0)),
        student_normalizer: "identity".parse()?,
        teacher_normalizer: "layer_norm".parse()?,
        loss: FeatureLoss::SmoothL1 { beta: 1. },
        weight: 5.,
    };
    let logits = LogitLoss { temperature: 2., weight: 0.7 };
    let distiller = Distiller::new(vec![tap], Some(logits), store.builder().pp("projector"))?;
    let names = golden.keys().into_iter().filter_map(|key| key.strip_prefix("param."));
    let start = names.map(|name| Ok((name.to_owned(), golden.get(&format!("param.{name}"))?)));
    // Refuses a name too many and one too few.
    store.load(&start.collect::<Result<HashMap<_, _>>>()?)?;
    let teacher_logits = golden.get("input.teacher_logits")?.to_dtype(dtype)?;
    let features = golden.get("input.teacher_features")?.to_dtype(dtype)?;
    let teacher = Teacher::new(move |_: &Tensor, _: &Context| -> Result<NetworkOutput> {
        let features = FeatureMap::new(features.clone(), Layout::Pooled)?;
        Ok(NetworkOutput::new(teacher_logits.clone()).with_tap("pooled", features))
    });
    let task = ClassificationTask::new(network(student), Some((teacher, distiller)), 0.1)?;
    Ok((store, task))
}

fn batch(golden: &Golden, dtype: DType) -> Result<Batch> {
    let images = golden.get("input.images")?.to_dtype(dtype)?;
    let labels = golden.get("input.labels")?.to_dtype(DType::U32)?;
    Ok(Batch { images, labels, sample_ids: (0..6).collect() })
}

/// AdamW's first update is `lr · g / (|g| + eps)`, so where a gradient is wrong by `noise` it moves by at most
/// `2 · lr · noise / |g|`, and never by more than `2 · lr`: what to allow, value by value.
fn check_change(name: &str, got: &[f64], want: &[f64], grads: &[f64], noise: f64, rounding: f64) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, ((got, want), grad)) in got.iter().zip(want).zip(grads).enumerate() {
        let allowed = RATE * (2. * noise / (grad.abs() + 1e-8)).min(2.) + rounding;
        assert!((got - want).abs() <= allowed, "{name}[{i}]: {got} for {want}, allowed {allowed}");
    }
}

#[test]
fn losses_gradients_and_update_of_a_deit_step_equal_pytorchs() -> Result<()> {
    let golden = Golden::open("deit_step")?;
    // In f64 what is left is the rounding of the stored f32; in f32 it grows through two blocks, a solve and back: the bound
    // that the models' goldens have.
    let stored = Tolerance::for_op(DType::F64, DType::F32, 1);
    for (dtype, tolerance) in [(DType::F64, stored), (DType::F32, Tolerance::relative(1e-4))] {
        let (store, task) = task(&golden, dtype)?;
        let data = batch(&golden, dtype)?;
        let ctx = Context::train(0, 0, data.sample_ids.clone());
        let output = task.step(&data, &task.phases()[0], &ctx)?;
        // Losses are stored whole: the reductions alone round them.
        let losses = if dtype == DType::F64 { Tolerance::relative(1e-12) } else { tolerance };
        assert_eq!(output.terms.len(), 3);
        for term in &output.terms {
            let key = format!("term.{}", term.name);
            assert_close(&key, &term.value, &golden.get(&key)?, losses)?;
        }
        assert_close("loss", &output.loss, &golden.get("loss")?, losses)?;

        let grads = output.loss.backward()?;
        let parameters = store.parameters();
        let wanted = golden.keys().iter().filter(|key| key.starts_with("grad.")).count();
        assert_eq!((parameters.len(), wanted), (36, 36));
        for (name, var) in &parameters {
            let key = format!("grad.{name}");
            let Some(grad) = grads.get(var) else { panic!("{key}: none") };
            assert_close(&key, grad, &golden.get(&key)?, tolerance)?;
        }

        // The update is the trainer's own: its optimiser, its rate, its rule of what decays.
        let before: BTreeMap<String, Vec<f64>> = store
            .tensors()
            .iter()
            .map(|(n, t)| Ok((n.clone(), to_f64(t)?)))
            .collect::<Result<_>>()?;
        let folder = tempfile::tempdir()?;
        let (checkpoints, training) = (Checkpoints::new(folder.path(), 1), training()?);
        assert_eq!(training.learning_rate_at(0), RATE);
        let config = TrainerConfig {
            arm: "vkd",
            seed: 0,
            goal: vkd_train::Goal::more("accuracy"),
            training: &training,
            checkpoints: &checkpoints,
            ranks: &vkd_train::Ranks::alone(),
        };
        let mut logged = None;
        let next = |_| batch(&golden, dtype);
        train(&task, &store, &config, None, next, || Ok(0.), &mut |event| {
            if let EventKind::Step { loss, .. } = &event.kind {
                logged = Some(*loss);
            }
            Ok(())
        })?;
        let logged = Tensor::new(logged.unwrap_or(f64::NAN), &Device::Cpu)?;
        assert_close("logged loss", &logged, &golden.get("loss")?, losses)?;
        for (name, var) in &parameters {
            let after = to_f64(var.as_tensor())?;
            let moved: Vec<f64> = after.iter().zip(&before[name]).map(|(a, b)| a - b).collect();
            let want = to_f64(&golden.get(&format!("change.{name}"))?)?;
            let grad = to_f64(&golden.get(&format!("grad.{name}"))?)?;
            let largest = |values: &[f64]| values.iter().fold(0f64, |m, v| m.max(v.abs()));
            // How well the gradient itself is known, not how it is stored.
            let known = if dtype == DType::F64 { 1e-12 } else { tolerance.relative };
            let noise = known * largest(&grad);
            // The weight itself is rounded to its dtype, the stored change to f32.
            let eps = f64::from(f32::EPSILON);
            let own = if dtype == DType::F64 { 0. } else { eps * largest(&after) };
            check_change(name, &moved, &want, &grad, noise, own + eps * largest(&want));
        }
        // The projector's base is no parameter.
        let base = "projector.tokens.base";
        assert_eq!(to_f64(&store.tensors()[base])?, before[base]);
    }
    Ok(())
}
