//! Distillation of detectors against recorded terms: V_kD's six of a ViDT, the same on given tokens with gradients, and ViDT's
//! own token matching.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use candle_nn::VarBuilder;
use std::collections::HashMap;
use vkd_norm::{Context, Normalizer};
use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
use vkd_tasks::{
    DetectionAdapter, Distiller, FeatureLoss, FeatureMap, Layout, Padding, ProjectorConfig,
    TapConfig, Taps, weighted_sum,
};
use vkd_testkit::{Golden, Tolerance, assert_close, normal, to_f64};

/// Tap, its features in the recording, its teacher, its projector, and how they are laid out.
const TAPS: [(&str, &str, &str, Layout); 6] = [
    ("patch0", "neck.level0", "patch_projector_1", Layout::Grid),
    ("patch1", "neck.level1", "patch_projector_2", Layout::Grid),
    ("patch2", "neck.level2", "patch_projector_3", Layout::Grid),
    ("patch3", "neck.level3", "patch_projector_4", Layout::Grid),
    ("body_det", "neck.det_tokens", "body_det_projector", Layout::Tokens),
    ("neck_det", "decoder.hidden", "neck_det_projector", Layout::Queries),
];

fn tap(name: &str, width: usize, projector: ProjectorConfig, loss: FeatureLoss) -> TapConfig {
    // The published code has no guard; this one is below rounding.
    let normalizer = match loss {
        FeatureLoss::TokenL2 => Normalizer::Identity,
        _ => Normalizer::Standardize { eps: 1e-12 },
    };
    TapConfig {
        student: name.to_owned(),
        student_width: width,
        teacher: name.to_owned(),
        teacher_width: width,
        projector,
        student_normalizer: normalizer.clone(),
        teacher_normalizer: normalizer,
        loss,
        weight: 1.,
    }
}

const SMOOTH: FeatureLoss = FeatureLoss::SmoothL1 { beta: 1. };

fn affine() -> ProjectorConfig {
    ProjectorConfig::OrthogonalAffine(OrthogonalConfig::new(OrthogonalMap::MatrixExp, 0))
}

#[test]
fn the_six_terms_are_the_published_codes() -> Result<()> {
    let golden = Golden::open("detection")?;
    let get = |key: &str| golden.get(key)?.to_dtype(DType::F64);
    let (mut state, mut student, mut teacher) = (HashMap::new(), Taps::new(), Taps::new());
    for (name, features, projector, layout) in TAPS {
        // With raw zero the orthogonal weight is its base.
        state.insert(format!("{name}.raw"), Tensor::zeros((32, 32), DType::F64, &Device::Cpu)?);
        state.insert(format!("{name}.base"), get(&format!("distill.matrix.{projector}"))?);
        state.insert(format!("{name}.gain"), get(&format!("param.{projector}.weight"))?);
        state.insert(format!("{name}.bias"), get(&format!("param.{projector}.bias"))?);
        let map = |key: &str| FeatureMap::new(get(key)?, layout);
        student.insert(name.to_owned(), map(features)?);
        teacher.insert(name.to_owned(), map(&format!("distill.teacher.{name}"))?);
    }
    let vb = VarBuilder::from_tensors(state, DType::F64, &Device::Cpu);
    let taps = TAPS.map(|(name, ..)| tap(name, 32, affine(), SMOOTH)).to_vec();
    let distiller =
        Distiller::new(taps, None, vb.clone())?.with_adapter(DetectionAdapter::default());
    let terms = distiller.feature_terms(&student, &teacher, &Context::eval())?;
    assert_eq!(terms.len(), 6);
    // The recorded matrices are orthogonal to the rounding of f32.
    assert!(distiller.residual()?.unwrap().to_scalar::<f64>()? < 1e-6);
    for (term, (name, ..)) in terms.iter().zip(TAPS) {
        assert_eq!(term.name, format!("feature.{name}"));
        let want = get(&format!("loss.distill.{name}"))?;
        // Features, matrices and losses are rounded to f32. The coarsest level standardises columns of four rows, two of which
        // are nearly equal where a norm over two pixels saturates: its features lose a digit more.
        let lost = if name == "patch3" { 1e-5 } else { 2e-6 };
        assert_close(name, &term.value, &want, Tolerance::relative(lost))?;
    }
    let want = get("loss.loss_distil")?;
    assert_close("sum", &weighted_sum(&terms)?, &want, Tolerance::relative(3e-6))?;
    Ok(())
}

#[test]
fn projected_features_are_the_published_codes() -> Result<()> {
    use candle_core::Module;
    use vkd_tasks::{FeatureAdapter, Projector};
    let golden = Golden::open("detection")?;
    let get = |key: &str| golden.get(key)?.to_dtype(DType::F64);
    for (name, features, projector, layout) in TAPS {
        let state = HashMap::from([
            ("raw".to_owned(), Tensor::zeros((32, 32), DType::F64, &Device::Cpu)?),
            ("base".to_owned(), get(&format!("distill.matrix.{projector}"))?),
            ("gain".to_owned(), get(&format!("param.{projector}.weight"))?),
            ("bias".to_owned(), get(&format!("param.{projector}.bias"))?),
        ]);
        let vb = VarBuilder::from_tensors(state, DType::F64, &Device::Cpu);
        let rows = DetectionAdapter::default().adapt(&FeatureMap::new(get(features)?, layout)?)?;
        let got = Projector::new(32, 32, &affine(), vb)?.forward(&rows)?;
        let want = get(&format!("distill.student.{name}"))?;
        assert_close(name, &got, &want, Tolerance::relative(1e-6))?;
    }
    Ok(())
}

/// The student's tensors by tap.
type Variables = Vec<(&'static str, Var)>;

/// Student and teacher of the recorded token losses; the student's tensors are variables.
fn tokens(golden: &Golden) -> Result<(Variables, Taps, Taps)> {
    let (mut vars, mut student, mut teacher) = (Vec::new(), Taps::new(), Taps::new());
    for (name, layout) in [
        ("tok_patch0", Layout::Grid),
        ("tok_patch1", Layout::Grid),
        ("tok_body", Layout::Tokens),
        ("tok_neck", Layout::Queries),
    ] {
        let get = |side: &str| golden.get(&format!("in.{name}_{side}"))?.to_dtype(DType::F64);
        let var = Var::from_tensor(&get("s")?)?;
        student.insert(name.to_owned(), FeatureMap::new(var.as_tensor().clone(), layout)?);
        teacher.insert(name.to_owned(), FeatureMap::new(get("t")?, layout)?);
        vars.push((name, var));
    }
    Ok((vars, student, teacher))
}

fn check(loss: &str, config: impl Fn(&str) -> TapConfig, root: Option<f64>) -> Result<()> {
    let golden = Golden::open("kd_losses")?;
    let (vars, student, teacher) = tokens(&golden)?;
    let vb = VarBuilder::zeros(DType::F64, &Device::Cpu);
    let taps = vars.iter().map(|(name, _)| config(name)).collect();
    let mut distiller = Distiller::new(taps, None, vb)?.with_adapter(DetectionAdapter::default());
    if let Some(weight) = root {
        distiller = distiller.with_root(weight)?;
    }
    let terms = distiller.feature_terms(&student, &teacher, &Context::eval())?;
    if root.is_some() {
        assert_eq!((terms.len(), terms[0].name.as_str()), (1, "feature"));
    }
    let total = weighted_sum(&terms)?;
    let scale = root.unwrap_or(1.);
    let want = (golden.get(&format!("{loss}.value"))? * scale)?;
    assert_close(loss, &total, &want, Tolerance::relative(1e-11))?;
    let grads = total.backward()?;
    for (name, var) in vars {
        let Some(grad) = grads.get(&var) else { bail!("{name}: no gradient") };
        let want = (golden.get(&format!("{loss}.grad.{name}_s"))? * scale)?;
        assert_close(name, grad, &want, Tolerance::relative(1e-10))?;
    }
    Ok(())
}

#[test]
fn tokens_without_projectors_are_matched_as_recorded() -> Result<()> {
    check("vkd_detection", |name| tap(name, 12, ProjectorConfig::Identity, SMOOTH), None)
}

#[test]
fn token_matching_is_vidts() -> Result<()> {
    let config = |name: &str| {
        let mut config = tap(name, 12, ProjectorConfig::Identity, FeatureLoss::TokenL2);
        // The neck counts once for each of its three layers.
        config.weight = if name == "tok_neck" { 3. } else { 1. };
        config
    };
    check("vidt_token_matching", config, Some(4.))
}

#[test]
fn a_student_that_is_its_teacher_has_no_slope_under_the_root() -> Result<()> {
    let xs = Var::from_tensor(&normal(&[2, 5, 12], DType::F32, 1)?)?;
    let map = |x: Tensor| FeatureMap::new(x, Layout::Tokens);
    let student = Taps::from([("t".to_owned(), map(xs.as_tensor().clone())?)]);
    let teacher = Taps::from([("t".to_owned(), map(xs.detach())?)]);
    let config = tap("t", 12, ProjectorConfig::Identity, FeatureLoss::TokenL2);
    let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
    let distiller = Distiller::new(vec![config], None, vb)?
        .with_adapter(DetectionAdapter::default())
        .with_root(1.)?;
    let loss = weighted_sum(&distiller.feature_terms(&student, &teacher, &Context::eval())?)?;
    let grads = loss.backward()?;
    assert!(to_f64(grads.get(&xs).unwrap())?.iter().all(|g| *g == 0.));
    Ok(())
}

#[test]
fn padding_counts_or_not() -> Result<()> {
    let golden = Golden::open("detection")?;
    let terms = |padding, spoil: bool| -> Result<f64> {
        let taps = ["neck.level0", "distill.teacher.patch0"].map(|key| -> Result<Taps> {
            let (mut xs, mask) = (golden.get(key)?, golden.get("neck.mask0")?);
            if spoil {
                let noise = normal(xs.dims(), xs.dtype(), 3)?;
                xs = (xs + noise.broadcast_mul(&mask.unsqueeze(1)?)?)?;
            }
            let map = FeatureMap::new(xs, Layout::Grid)?.with_padding(mask)?;
            Ok(Taps::from([("patch0".to_owned(), map)]))
        });
        let [student, teacher] = taps;
        let config = tap("patch0", 32, ProjectorConfig::Identity, SMOOTH);
        let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
        let distiller =
            Distiller::new(vec![config], None, vb)?.with_adapter(DetectionAdapter { padding });
        let terms = distiller.feature_terms(&student?, &teacher?, &Context::eval())?;
        Ok(to_f64(&terms[0].value)?[0])
    };
    let masked = terms(Padding::Masked, false)?;
    assert_eq!(masked, terms(Padding::Masked, true)?);
    let counted = terms(Padding::Counted, false)?;
    assert!(
        (masked - counted).abs() > 1e-3 && (counted - terms(Padding::Counted, true)?).abs() > 1e-3
    );
    Ok(())
}

#[test]
fn counts_are_checked_by_name_before_any_training() -> Result<()> {
    let map =
        |n: usize, c: usize| FeatureMap::new(normal(&[2, n, c], DType::F32, 1)?, Layout::Tokens);
    let config = tap("body_det", 12, ProjectorConfig::Identity, SMOOTH);
    let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
    let distiller =
        Distiller::new(vec![config], None, vb)?.with_adapter(DetectionAdapter::default());
    let check = |s: FeatureMap, t: FeatureMap| {
        let taps = |map| Taps::from([("body_det".to_owned(), map)]);
        distiller.check_features(&taps(s), &taps(t))
    };
    check(map(5, 12)?, map(5, 12)?)?;
    let e = check(map(5, 12)?, map(6, 12)?).unwrap_err().to_string();
    assert!(
        e.contains("distiller: body_det: detection adapter: expected the student's Tokens [2, 5]"),
        "{e}"
    );
    assert!(check(map(5, 11)?, map(5, 12)?).unwrap_err().to_string().contains("width 12, got 11"));
    let none = distiller.check_features(&Taps::new(), &Taps::new()).unwrap_err().to_string();
    assert!(none.contains("student: expected a tap named body_det"), "{none}");
    let root = distiller.with_root(f64::NAN).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(root.contains("root: expected a weight of at least 0, got NaN"), "{root}");
    Ok(())
}
