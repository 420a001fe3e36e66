//! More inputs than candle's three for one op: a token of one value stands on the tape for three parameters.
//!
//! The op's backward pass lays down their gradients, and the token's, which the tape runs afterwards, hands them on.

use crate::ops::unsupported;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::sync::{Arc, Mutex};

/// Gradients of six parameters, between the op's backward pass and its tokens'.
#[derive(Clone, Default)]
pub(super) struct Gradients(Arc<Mutex<[Option<Tensor>; 6]>>);

impl Gradients {
    pub(super) fn put(&self, gradients: [Option<Tensor>; 6]) {
        // A lock is only poisoned by a panic, after which no gradient is worth having.
        if let Ok(mut slot) = self.0.lock() {
            *slot = gradients;
        }
    }

    /// The gradient of a parameter; zeros where there is none, because candle needs one for every tracked input.
    fn take(&self, at: usize, parameter: &Tensor) -> Result<Option<Tensor>> {
        if !parameter.track_op() {
            return Ok(None);
        }
        match self.0.lock().ok().and_then(|mut slot| slot.get_mut(at)?.take()) {
            Some(gradient) => Ok(Some(gradient)),
            None => parameter.zeros_like().map(Some),
        }
    }
}

/// A token for three parameters, whose gradients lie at `at`.
pub(super) fn token(parameters: &[Tensor], at: usize, gradients: &Gradients) -> Result<Tensor> {
    match parameters {
        [a, b, c] => a.apply_op3(b, c, Token { at, gradients: gradients.clone() }),
        _ => bail!("sublayer: expected three parameters for a token, got {}", parameters.len()),
    }
}

struct Token {
    at: usize,
    gradients: Gradients,
}

impl CustomOp3 for Token {
    fn name(&self) -> &'static str {
        "sublayer-parameters"
    }

    fn cpu_fwd(
        &self,
        s: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = match s {
            CpuStorage::F32(_) => CpuStorage::F32(vec![0.]),
            CpuStorage::F64(_) => CpuStorage::F64(vec![0.]),
            _ => return Err(unsupported("sublayer", s)),
        };
        Ok((out, 1.into()))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _res: &Tensor,
        _grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let of = |i: usize, parameter: &Tensor| self.gradients.take(self.at + i, parameter);
        Ok((of(0, a)?, of(1, b)?, of(2, c)?))
    }
}
