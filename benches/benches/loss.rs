//! The losses of the paper, forward and backward: on a batch of pooled features and on a batch of logits.

use std::process::ExitCode;

use candle_core::{Device, Result, Tensor, Var};
use vkd_benches::{Suite, data, gradient, run};
use vkd_loss::Reduction::Mean;

fn works(suite: &mut Suite) -> Result<()> {
    suite.works("loss/smooth_l1", |work| {
        let student = Var::from_tensor(&data(work.matrix()?, 7)?)?;
        let teacher = data(work.matrix()?, 8)?;
        Ok(move || gradient(&vkd_loss::smooth_l1(&student, &teacher, 1.0, Mean)?, &student))
    })?;
    suite.works("loss/kl", |work| {
        let student = Var::from_tensor(&data(work.matrix()?, 7)?)?;
        let teacher = data(work.matrix()?, 8)?;
        Ok(move || gradient(&vkd_loss::kl(&student, &teacher, 1.0, Mean)?, &student))
    })?;
    suite.works("loss/cross_entropy", |work| {
        let (rows, classes) = work.matrix()?;
        let student = Var::from_tensor(&data((rows, classes), 7)?)?;
        let labels: Vec<u32> = (0..rows).map(|row| (37 * row % classes) as u32).collect();
        let labels = Tensor::new(labels, &Device::Cpu)?;
        Ok(move || gradient(&vkd_loss::cross_entropy(&student, &labels, 0.1, Mean)?, &student))
    })
}

fn main() -> ExitCode {
    run(works)
}
