//! The feature loss of the paper, forward and backward, on a batch of pooled features.

use std::process::ExitCode;

use candle_core::{Result, Var};
use vkd_benches::{Suite, data, gradient, run};
use vkd_loss::{smooth_l1, smooth_l1_layer_norm};
use vkd_norm::layer_norm;

const EPS: f64 = 1e-5;

fn works(suite: &mut Suite) -> Result<()> {
    suite.works("loss/smooth_l1", |work| {
        let student = Var::from_tensor(&data(work.matrix()?, 7)?)?;
        let teacher = data(work.matrix()?, 8)?;
        Ok(move || gradient(&smooth_l1(&student, &teacher, 1.0)?, &student))
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
        Ok(move || gradient(&smooth_l1(&student, &layer_norm(&teacher, EPS)?, 1.0)?, &student))
    })
}

fn main() -> ExitCode {
    run(works)
}
