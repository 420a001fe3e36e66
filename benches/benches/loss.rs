//! The feature loss of the paper, forward and backward, on a batch of pooled features.

use std::process::ExitCode;

use candle_core::{Result, Var};
use vkd_benches::{Suite, data, gradient, run};

fn works(suite: &mut Suite) -> Result<()> {
    suite.works("loss/smooth_l1", |work| {
        let student = Var::from_tensor(&data(work.matrix()?, 7)?)?;
        let teacher = data(work.matrix()?, 8)?;
        Ok(move || gradient(&vkd_loss::smooth_l1(&student, &teacher, 1.0)?, &student))
    })
}

fn main() -> ExitCode {
    run(works)
}
