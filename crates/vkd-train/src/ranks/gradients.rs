//! The mean of all ranks' gradients, bucket by bucket.

use super::Ranks;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};

/// Numbers that lie side by side on their way to the other ranks.
struct Bucket<'a, T> {
    values: Vec<T>,
    of: Vec<&'a Var>,
}

impl Ranks {
    /// Replaces each gradient by its mean over all ranks: in the order of `parameters`, and as many variables at a time as `bucket` bytes hold,
    /// one at least. A variable that has no gradient on some ranks counts there as zero.
    ///
    /// Summed in the variable's own type, half types in f32.
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
        self.buckets(&narrow, grads, bucket / size_of::<f32>(), |values| self.sum_f32(values))?;
        self.buckets(&wide, grads, bucket / size_of::<f64>(), |values| self.sum(values))
    }

    fn buckets<T: candle_core::FloatDType>(
        &self,
        variables: &[&Var],
        grads: &mut GradStore,
        most: usize,
        sum: impl Fn(&mut [T]) -> Result<()>,
    ) -> Result<()> {
        let mut bucket = Bucket { values: Vec::new(), of: Vec::new() };
        for (i, var) in variables.iter().enumerate() {
            match grads.get(var) {
                Some(grad) => bucket.values.extend(numbers::<T>(grad)?),
                None => {
                    bucket.values.resize(bucket.values.len() + var.elem_count(), T::from_f64(0.))
                }
            }
            bucket.of.push(var);
            let next = variables.get(i + 1).map_or(usize::MAX, |var| var.elem_count());
            if next.saturating_add(bucket.values.len()) > most {
                sum(&mut bucket.values)?;
                self.hand_out(&mut bucket, grads)?;
            }
        }
        Ok(())
    }

    /// Empties a bucket of sums.
    fn hand_out<T: candle_core::FloatDType>(
        &self,
        bucket: &mut Bucket<T>,
        grads: &mut GradStore,
    ) -> Result<()> {
        let mut start = 0;
        for var in bucket.of.drain(..) {
            let end = start + var.elem_count();
            let sum = Tensor::from_slice(&bucket.values[start..end], var.shape(), &Device::Cpu)?;
            let mean = (sum / self.size() as f64)?.to_dtype(var.dtype())?;
            grads.insert(var, mean.to_device(var.device())?);
            start = end;
        }
        bucket.values.clear();
        Ok(())
    }
}

fn numbers<T: candle_core::FloatDType>(grad: &Tensor) -> Result<Vec<T>> {
    grad.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1::<T>()
}
