//! The losses of the paper, forward and backward: on a batch of pooled features and on a batch of logits.

use std::process::ExitCode;

use candle_core::{Device, Result, Tensor, Var};
use vkd_benches::{Suite, data, gradient, run};
use vkd_loss::Reduction::Mean;
use vkd_loss::{cross_entropy, kl, smooth_l1, smooth_l1_layer_norm};
use vkd_norm::layer_norm;

const EPS: f64 = 1e-5;

fn works(suite: &mut Suite) -> Result<()> {
    suite.works("loss/smooth_l1", |work| {
        let student = Var::from_tensor(&data(work.matrix()?, 7)?)?;
        let teacher = data(work.matrix()?, 8)?;
        Ok(move || gradient(&smooth_l1(&student, &teacher, 1.0, Mean)?, &student))
    })?;
    suite.works("loss/smooth_l1_layer_norm", |work| {
        let student = Var::from_tensor(&data(work.matrix()?, 7)?)?;
        let teacher = data(work.matrix()?, 8)?;
        Ok(move || gradient(&smooth_l1_layer_norm(&student, &teacher, 1.0, EPS)?, &student))
    })?;
    // The same in two ops.
    suite.works("loss/smooth_l1_after_layer_norm", |work| {
        let student = Var::from_tensor(&data(work.matrix()?, 7)?)?;
        let teacher = data(work.matrix()?, 8)?;
        Ok(move || {
            gradient(&smooth_l1(&student, &layer_norm(&teacher, EPS)?, 1.0, Mean)?, &student)
        })
    })?;
    suite.works("loss/kl", |work| {
        let student = Var::from_tensor(&data(work.matrix()?, 7)?)?;
        let teacher = data(work.matrix()?, 8)?;
        Ok(move || gradient(&kl(&student, &teacher, 1.0, Mean)?, &student))
    })?;
    suite.works("loss/cross_entropy", |work| {
        let (rows, classes) = work.matrix()?;
        let student = Var::from_tensor(&data((rows, classes), 7)?)?;
        let labels: Vec<u32> = (0..rows).map(|row| (37 * row % classes) as u32).collect();
        let labels = Tensor::new(labels, &Device::Cpu)?;
        Ok(move || gradient(&cross_entropy(&student, &labels, 0.1, Mean)?, &student))
    })
}

fn main() -> ExitCode {
    run(works)
}
