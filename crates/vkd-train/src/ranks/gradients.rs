//! The mean of all ranks' gradients, bucket by bucket.

use super::Ranks;
use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var};

impl Ranks {
    /// Replaces each gradient by its mean over all ranks: in the order of `parameters`, and as many variables at a time as `bucket` bytes hold,
    /// one at least. A variable that has no gradient on some ranks counts there as zero.
    ///
    /// Summed in the variable's own type, half types in f32, on the variable's device.
    ///
    /// # Errors
    /// Those of the communicator.
    pub(crate) fn mean_gradients(
        &self,
        parameters: &[(String, Var)],
        grads: &mut GradStore,
        bucket: usize,
    ) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let has = |(_, var): &(String, Var)| f64::from(u8::from(grads.get(var).is_some()));
        let mut present: Vec<f64> = parameters.iter().map(has).collect();
        self.sum(&mut present)?;
        let used = parameters.iter().zip(&present).filter(|(_, ranks)| **ranks > 0.);
        let (wide, narrow): (Vec<&Var>, Vec<&Var>) =
            used.map(|((_, var), _)| var).partition(|var| var.dtype() == DType::F64);
        for (variables, dtype) in [(narrow, DType::F32), (wide, DType::F64)] {
            let mut rest = &variables[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(filled(rest, bucket / dtype.size_in_bytes()));
                self.mean_bucket(now, dtype, grads)?;
                rest = later;
            }
        }
        Ok(())
    }

    /// The gradients of `variables` side by side, on their way to the other ranks and back.
    fn mean_bucket(&self, variables: &[&Var], dtype: DType, grads: &mut GradStore) -> Result<()> {
        let flat = |var: &&Var| match grads.get(var) {
            Some(grad) => grad.to_dtype(dtype)?.flatten_all(),
            None => Tensor::zeros(var.elem_count(), dtype, var.device()),
        };
        let parts: Vec<Tensor> = variables.iter().map(flat).collect::<Result<_>>()?;
        let sums = self.sum_tensor(&Tensor::cat(&parts, 0)?)?;
        let mut start = 0;
        for var in variables {
            let sum = sums.narrow(0, start, var.elem_count())?.reshape(var.shape())?;
            grads.insert(var, (sum / self.size() as f64)?.to_dtype(var.dtype())?);
            start += var.elem_count();
        }
        Ok(())
    }
}

/// How many of the first variables have `most` numbers together; one at least.
fn filled(variables: &[&Var], most: usize) -> usize {
    let mut sum = 0usize;
    let more = variables.iter().take_while(|var| {
        sum = sum.saturating_add(var.elem_count());
        sum <= most
    });
    more.count().max(1)
}
