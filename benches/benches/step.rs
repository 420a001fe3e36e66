//! A whole distillation step of the paper's size: RegNetY-160 to DeiT-Ti, with its projector and without.

use std::process::ExitCode;

use candle_core::{DType, Device, Result, Tensor, bail};
use vkd_benches::{Suite, Work, data, run};
use vkd_loss::Reduction;
use vkd_models::{Architecture, DeitConfig, ModelConfig, ModelOutput, RegnetConfig};
use vkd_nn::{AdamW, AdamWConfig, Context, VarStore};
use vkd_norm::Normalizer;
use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
use vkd_tasks::{
    Distiller, FeatureLoss, FeatureMap, Layout, LogitLoss, NetworkOutput, ProjectorConfig,
    TapConfig, Teacher, weighted_sum,
};

/// Width of the student's tokens and of the teacher's pooled features.
const WIDTHS: (usize, usize) = (192, 3024);

fn tap() -> TapConfig {
    TapConfig {
        student: "tokens".to_owned(),
        student_width: WIDTHS.0,
        teacher: "pooled".to_owned(),
        teacher_width: WIDTHS.1,
        projector: ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, 0)),
        student_normalizer: Normalizer::Identity,
        teacher_normalizer: Normalizer::LayerNorm { eps: 1e-5 },
        loss: FeatureLoss::SmoothL1 { beta: 1. },
        weight: 1.,
    }
}

fn output(out: ModelOutput, tap: &str, layout: Layout) -> Result<NetworkOutput> {
    let features = FeatureMap::new(out.tap(tap)?.clone(), layout)?;
    let found = NetworkOutput::new(out.logits).with_tap(tap, features);
    Ok(match out.distillation_logits {
        Some(logits) => found.with_distillation_logits(logits),
        None => found,
    })
}

/// Cross entropy on the class head, KL on the distillation head and, with `features`, the projected tokens; backward, AdamW.
fn step(work: &Work, features: bool) -> Result<impl FnMut() -> Result<()> + use<>> {
    let [batch, side] = work.shape[..] else {
        bail!("{}: expected batch and size of the image", work.name)
    };
    let sized =
        |architecture| ModelConfig { image_size: side, channels: 3, classes: 1000, architecture };
    let (store, frozen) =
        (VarStore::new(7, DType::F32, &Device::Cpu), VarStore::new(8, DType::F32, &Device::Cpu));
    let student = sized(Architecture::Deit(DeitConfig::student(WIDTHS.0)))
        .build(store.builder().pp("student"))?;
    // Built twice: to have variables that are drawn, then of constants, as a run does.
    let regnet = sized(Architecture::Regnet(RegnetConfig::regnety_160()));
    regnet.build(frozen.builder())?;
    let teacher = regnet.build(frozen.frozen())?;
    let taps = if features { vec![tap()] } else { vec![] };
    let logits = Some(LogitLoss { temperature: 1., weight: 1. });
    let distiller = Distiller::new(taps, logits, store.builder().pp("projector"))?;
    let decays = |name: &str, rank: usize| rank > 1 && !name.starts_with("projector.");
    let mut optimizer = AdamW::new(store.parameters(), AdamWConfig::default(), |name, var| {
        decays(name, var.rank())
    })?;
    let xs = data((batch, 3, side, side), 9)?;
    let labels = Tensor::arange(0u32, batch as u32, &Device::Cpu)?;
    let teacher = Teacher::new(move |xs: &Tensor, ctx: &Context| {
        output(teacher.forward(xs, ctx)?, "pooled", Layout::Pooled)
    });
    let ids: Vec<u64> = (0..batch as u64).collect();
    Ok(move || {
        let ctx = Context::train(0, 0, ids.clone());
        let teacher = teacher.forward(&xs)?;
        let student = output(student.forward(&xs, &ctx)?, "tokens", Layout::Tokens)?;
        let label = vkd_loss::cross_entropy(&student.logits, &labels, 0.1, Reduction::Mean)?;
        let loss = (label + weighted_sum(&distiller.terms(&student, &teacher, &ctx)?)?)?;
        optimizer.step(&loss.backward()?, 1e-3)
    })
}

fn main() -> ExitCode {
    run(|suite: &mut Suite| {
        suite.works("step/logits_b8_s224", |work| step(work, false))?;
        suite.works("step/vkd_b8_s224", |work| step(work, true))
    })
}
