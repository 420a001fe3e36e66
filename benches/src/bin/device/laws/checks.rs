//! What ops refuse on the CPU and flag on a device: each check finds what it is for, by its name, and nothing else.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use vkd_loss::baselines::deit_hard;
use vkd_loss::{
    FocalConfig, Reduction, bce_with_logits, cross_entropy, giou, hinge_real, lecam_at,
    sigmoid_focal, soft_cross_entropy,
};
use vkd_nn::{
    AdamW, AdamWConfig, BatchNormConfig, Context, VarStore, batch_norm2d, ops, spectral_norm,
};
use vkd_norm::{flags, standardize_with};

/// An op on a device with values that it takes, or with one among them that it does not.
type Try = fn(&Device, bool) -> Result<()>;

/// What the error says.
const CHECKS: [(&str, Try); 15] = [
    ("cross_entropy: expected labels below the number of classes", |device, bad| {
        let labels = Tensor::new(&[0u32, if bad { 9 } else { 2 }], device)?;
        cross_entropy(&rows(device)?, &labels, 0.1, Reduction::Mean).map(drop)
    }),
    ("soft_cross_entropy: expected probabilities >= 0", |device, bad| {
        shares(device, if bad { [-0.5, 0.5, 1.] } else { [0., 0.5, 0.5] })
    }),
    ("soft_cross_entropy: expected probabilities that sum to 1", |device, bad| {
        shares(device, if bad { [0.5, 0.5, 0.5] } else { [0., 0.5, 0.5] })
    }),
    ("bce_with_logits: expected probabilities in [0, 1]", |device, bad| {
        let targets = two(device, [0., if bad { 1.5 } else { 1. }, 0.])?;
        bce_with_logits(&rows(device)?, &targets, Reduction::Mean).map(drop)
    }),
    ("sigmoid_focal: expected targets in [0, 1]", |device, bad| {
        let targets = two(device, [0., if bad { f32::NAN } else { 1. }, 0.])?;
        sigmoid_focal(&rows(device)?, &targets, FocalConfig::default(), Reduction::Mean).map(drop)
    }),
    ("sigmoid_focal: expected classes of at most K", |device, bad| {
        let classes = Tensor::new(&[1u32, if bad { 4 } else { 3 }], device)?;
        sigmoid_focal(&rows(device)?, &classes, FocalConfig::default(), Reduction::Mean).map(drop)
    }),
    ("giou: expected", |device, bad| {
        let boxes = |right: f32| Tensor::new(&[[1f32, 1., right, 3.]], device);
        giou(&boxes(if bad { 0.5 } else { 2. })?, &boxes(2.)?, Reduction::Mean).map(drop)
    }),
    ("deit_hard: expected finite teacher logits", |device, bad| {
        let teacher = two(device, [0., if bad { f32::NAN } else { f32::NEG_INFINITY }, 1.])?;
        deit_hard(&rows(device)?, &teacher, Reduction::Mean).map(drop)
    }),
    ("hinge_real: expected finite scores", |device, bad| {
        hinge_real(&Tensor::new(&[0.5f32, if bad { f32::NAN } else { 2. }], device)?).map(drop)
    }),
    ("lecam: expected finite averages", |device, bad| {
        let scores = Tensor::new(&[0.5f32, 1.], device)?;
        let means = Tensor::new(&[0f64, if bad { f64::INFINITY } else { 1. }], device)?;
        lecam_at(&scores, &scores, &means).map(drop)
    }),
    ("gather_rows: expected ids of rows of the table", |device, bad| {
        let ids = Tensor::new(&[0i64, if bad { -1 } else { 1 }], device)?;
        ops::gather_rows(&rows(device)?, &ids).map(drop)
    }),
    ("batch norm: expected a finite", |device, bad| {
        let store = VarStore::new(1, DType::F32, device);
        let norm = batch_norm2d(3, BatchNormConfig::default(), store.builder())?;
        let xs = if bad { two(device, [f32::INFINITY, 0., 1.])? } else { rows(device)? };
        norm.forward(&xs, &Context::train(0, 0, vec![0, 1])).map(drop)
    }),
    ("spectral_norm: expected a finite weight that is not zero", |device, bad| {
        let store = VarStore::new(1, DType::F32, device);
        let norm = spectral_norm(2, store.builder())?;
        let weight = if bad { rows(device)?.zeros_like()? } else { rows(device)? };
        norm.forward(&weight, true).map(drop)
    }),
    ("standardize_with: expected a sensible variance", |device, bad| {
        let mean = Tensor::zeros(3, DType::F32, device)?;
        let variance = Tensor::new(&[1f32, if bad { -1. } else { 1. }, 2.], device)?;
        standardize_with(&rows(device)?, &mean, &variance, 1e-6).map(drop)
    }),
    ("global_norm: expected finite gradients", |device, bad| {
        let var = Var::from_tensor(&rows(device)?)?;
        let factor = two(device, [1., if bad { f32::INFINITY } else { 1. }, 1.])?;
        let grads = (var.as_tensor() * factor)?.sum_all()?.backward()?;
        let named = vec![("w".to_owned(), var.clone())];
        let before = var.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
        AdamW::new(named, AdamWConfig::default(), |_, _| false)?.clipped_step(&grads, 0.1, 1.)?;
        let same = var.to_device(&Device::Cpu)?.to_vec2::<f32>()? == before;
        if same != bad {
            bail!("expected an update of finite gradients alone, got one: {}", !same)
        }
        Ok(())
    }),
];

fn two(device: &Device, row: [f32; 3]) -> Result<Tensor> {
    Tensor::new(&[row, [0., 1., 0.]], device)
}

fn rows(device: &Device) -> Result<Tensor> {
    two(device, [0.5, -1., 2.])
}

fn shares(device: &Device, row: [f32; 3]) -> Result<()> {
    soft_cross_entropy(&rows(device)?, &two(device, row)?, Reduction::Mean).map(drop)
}

/// Tries every check whose saying contains `filter`, and returns how many there were.
///
/// # Errors
/// The first that says nothing of a value that is out of place, or something of values that are not.
pub(super) fn run(device: &Device, filter: &str) -> Result<usize> {
    let tried: Vec<_> = CHECKS.iter().filter(|(says, _)| says.contains(filter)).collect();
    for (says, attempt) in &tried {
        attempt(device, false)?;
        flags::check(device)?;
        attempt(device, true)?;
        match flags::check(device) {
            Err(e) if e.to_string().contains(says) => {}
            other => bail!("expected the check \"{says}\" to find a wrong value, got {other:?}"),
        }
        // Once.
        flags::check(device)?;
    }
    Ok(tried.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The CPU takes and refuses the same values, there and then.
    #[test]
    fn the_cpu_refuses_the_same_at_once() -> Result<()> {
        for (says, attempt) in CHECKS {
            attempt(&Device::Cpu, false)?;
            assert!(attempt(&Device::Cpu, true).is_err(), "{says}");
        }
        Ok(())
    }
}
