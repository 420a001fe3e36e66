//! What is measured: the maps, the fused loss, and the step of the paper with what V_kD adds to it.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use vkd_benches::{Work, data, gradient};
use vkd_loss::{Reduction, smooth_l1_layer_norm};
use vkd_models::{Architecture, DeitConfig, ModelConfig, ModelOutput, RegnetConfig};
use vkd_nn::{AdamW, AdamWConfig, Context, VarStore};
use vkd_norm::Normalizer;
use vkd_ortho::{
    OrthogonalConfig, OrthogonalMap, cayley, householder_product, matrix_exp, stiefel_residual,
};
use vkd_tasks::{
    Distiller, FeatureLoss, FeatureMap, Layout, LogitLoss, NetworkOutput, ProjectorConfig,
    TapConfig, Teacher, weighted_sum,
};

/// Width of the student's tokens and of the teacher's pooled features.
const WIDTHS: (usize, usize) = (192, 3024);

type Step = Box<dyn FnMut() -> Result<()>>;

/// Builds the inputs of a work on `device`. Returns the residual of its orthogonal result, where it has one, and the step.
pub(super) fn prepare(work: &Work, device: &Device) -> Result<(Option<f64>, Step)> {
    let name = work.name.strip_prefix("tiny/").unwrap_or(&work.name);
    let words: Vec<&str> = name.split('/').collect();
    match words[..] {
        ["ortho", "cayley", ..] => map(work, cayley, device),
        ["ortho", "matrix_exp", ..] => map(work, matrix_exp, device),
        ["ortho", "householder_product", ..] => map(work, householder_product, device),
        ["loss", "smooth_l1_layer_norm", ..] => loss(work, device),
        ["step", "logits_b256_s224", ..] => step(work, false, device),
        ["step", "vkd_b256_s224", ..] => step(work, true, device),
        ["step", "vkd_part_b256_s224", ..] => part(work, device),
        _ => bail!("device.toml: expected a work that is known here, got {}", work.name),
    }
}

/// Forward and backward from a free (n, k) matrix.
fn map(
    work: &Work,
    map: fn(&Tensor) -> Result<Tensor>,
    device: &Device,
) -> Result<(Option<f64>, Step)> {
    // Uniform values in (-1, 1) have the standard deviation 1 / sqrt(3).
    let raw = (data(work.matrix()?, 7)? * (work.scale * 3f64.sqrt()))?;
    let raw = Var::from_tensor(&raw.to_device(device)?)?;
    let residual = stiefel_residual(&map(&raw)?.to_device(&Device::Cpu)?)?;
    Ok((Some(residual), Box::new(move || gradient(&map(&raw)?, &raw).map(drop))))
}

fn loss(work: &Work, device: &Device) -> Result<(Option<f64>, Step)> {
    let student = Var::from_tensor(&data(work.matrix()?, 7)?.to_device(device)?)?;
    let teacher = data(work.matrix()?, 8)?.to_device(device)?;
    Ok((
        None,
        Box::new(move || {
            gradient(&smooth_l1_layer_norm(&student, &teacher, 1., 1e-5)?, &student).map(drop)
        }),
    ))
}

fn distiller(store: &VarStore, features: bool, logits: bool) -> Result<Distiller> {
    let tap = TapConfig {
        student: "tokens".to_owned(),
        student_width: WIDTHS.0,
        teacher: "pooled".to_owned(),
        teacher_width: WIDTHS.1,
        projector: ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, 0)),
        student_normalizer: Normalizer::Identity,
        teacher_normalizer: Normalizer::LayerNorm { eps: 1e-5 },
        loss: FeatureLoss::SmoothL1 { beta: 1. },
        weight: 1.,
    };
    let taps = if features { vec![tap] } else { vec![] };
    let logits = logits.then_some(LogitLoss { temperature: 1., weight: 1. });
    Distiller::new(taps, logits, store.builder().pp("projector"))
}

/// Logits in f32, as a run has them.
fn output(out: ModelOutput, tap: &str, layout: Layout) -> Result<NetworkOutput> {
    let features = FeatureMap::new(out.tap(tap)?.clone(), layout)?;
    let found = NetworkOutput::new(out.logits.to_dtype(DType::F32)?).with_tap(tap, features);
    Ok(match out.distillation_logits {
        Some(logits) => found.with_distillation_logits(logits.to_dtype(DType::F32)?),
        None => found,
    })
}

/// Teacher forward, student forward and backward in the work's dtype with masters in f32, both losses, AdamW.
fn step(work: &Work, features: bool, device: &Device) -> Result<(Option<f64>, Step)> {
    let [batch, side] = work.shape[..] else {
        bail!("{}: expected batch and size of the image", work.name)
    };
    let dtype = work.dtype.candle();
    let sized =
        |architecture| ModelConfig { image_size: side, channels: 3, classes: 1000, architecture };
    let (store, frozen) =
        (VarStore::new(7, DType::F32, device), VarStore::new(8, DType::F32, device));
    let student = sized(Architecture::Deit(DeitConfig::student(WIDTHS.0)));
    let vb = store.builder().pp("student");
    student.build(vb.clone())?;
    // Built for each pass, as casts are of the variables' values at that moment.
    let half = vb.set_dtype(dtype);
    let regnet = sized(Architecture::Regnet(RegnetConfig::regnety_160()));
    regnet.build(frozen.builder())?;
    let teacher = regnet.build(frozen.frozen().set_dtype(dtype))?;
    let teacher = Teacher::new(move |xs: &Tensor, ctx: &Context| {
        output(teacher.forward(xs, ctx)?, "pooled", Layout::Pooled)
    });
    let distiller = distiller(&store, features, true)?;
    let decays = |name: &str, rank: usize| rank > 1 && !name.starts_with("projector.");
    let mut optimizer = AdamW::new(store.parameters(), AdamWConfig::default(), |name, var| {
        decays(name, var.rank())
    })?;
    let xs = data((batch, 3, side, side), 9)?.to_device(device)?;
    let labels = Tensor::arange(0u32, batch as u32, device)?;
    let ids: Vec<u64> = (0..batch as u64).collect();
    let residual = distiller.residual()?.map(|r| r.to_scalar()).transpose()?;
    Ok((
        residual,
        Box::new(move || {
            let ctx = Context::train(0, 0, ids.clone());
            let images = xs.to_dtype(dtype)?;
            let teacher = teacher.forward(&images)?;
            let student = output(
                student.build(half.clone())?.forward(&images, &ctx)?,
                "tokens",
                Layout::Tokens,
            )?;
            let label = vkd_loss::cross_entropy(&student.logits, &labels, 0.1, Reduction::Mean)?;
            let loss = (label + weighted_sum(&distiller.terms(&student, &teacher, &ctx)?)?)?;
            optimizer.step(&loss.backward()?, 1e-3)
        }),
    ))
}

/// What V_kD adds to a step: from the patch tokens and the teacher's pooled features to the loss and back to tokens and projector.
fn part(work: &Work, device: &Device) -> Result<(Option<f64>, Step)> {
    let [batch, side] = work.shape[..] else {
        bail!("{}: expected batch and size of the image", work.name)
    };
    let store = VarStore::new(7, DType::F32, device);
    let distiller = distiller(&store, true, false)?;
    let dtype = work.dtype.candle();
    let drawn = |tensor: Tensor| -> Result<Tensor> { tensor.to_device(device)?.to_dtype(dtype) };
    let tokens = Var::from_tensor(&drawn(data((batch, (side / 16).pow(2), WIDTHS.0), 1)?)?)?;
    let pooled = drawn(data((batch, WIDTHS.1), 2)?)?;
    let logits = Tensor::zeros((batch, 10), DType::F32, device)?;
    let teacher = NetworkOutput::new(logits.clone())
        .with_tap("pooled", FeatureMap::new(pooled, Layout::Pooled)?);
    let ids: Vec<u64> = (0..batch as u64).collect();
    let residual = distiller.residual()?.map(|r| r.to_scalar()).transpose()?;
    Ok((
        residual,
        Box::new(move || {
            let features = FeatureMap::new(tokens.as_tensor().clone(), Layout::Tokens)?;
            let student = NetworkOutput::new(logits.clone()).with_tap("tokens", features);
            let ctx = Context::train(0, 0, ids.clone());
            let loss = weighted_sum(&distiller.terms(&student, &teacher, &ctx)?)?;
            gradient(&loss, &tokens).map(drop)
        }),
    ))
}
