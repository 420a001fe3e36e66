//! Where a law failed: everything that is needed to see the failure again.

use candle_core::{DType, Error, Result, Tensor, bail};
use std::fmt;

#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    name: &'a str,
    dims: Vec<usize>,
    dtype: DType,
    pub(super) layout: &'a str,
    pub(super) scale: f64,
    pub(super) seed: u64,
}

impl<'a> Place<'a> {
    pub(super) fn new(name: &'a str, raw: &Tensor) -> Self {
        let dims = raw.dims().to_vec();
        Self { name, dims, dtype: raw.dtype(), layout: "contiguous", scale: f64::NAN, seed: 0 }
    }

    pub(super) fn at(self, scale: f64, seed: u64) -> Self {
        Self { scale, seed, ..self }
    }

    pub(super) fn fail(&self, law: &str, got: &str, wanted: &str) -> Result<()> {
        bail!("{self}: {law}: expected {wanted}, got {got}")
    }

    /// The same error, with the place in front.
    pub(super) fn name_it(&self, law: &str) -> impl FnOnce(Error) -> Error {
        let place = format!("{self}: {law}");
        move |e| Error::msg(format!("{place}: {e}"))
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, dims, dtype, layout, scale, seed } = self;
        write!(f, "{name} {dims:?} {dtype:?}, {layout}")?;
        if scale.is_finite() {
            write!(f, ", scale {scale:e}, seed {seed}")?;
        }
        Ok(())
    }
}
