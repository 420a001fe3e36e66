//! Replicas of a model that share a batch: sums over all of them, on the tape.

use crate::dense::{Real, with_storage};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use std::fmt;
use std::sync::Arc;

const OP: &str = "sum_over_replicas";

/// Replaces each number by its sum over all replicas; every replica calls it with as many numbers, and gets the same ones.
pub type SumOverReplicas = Arc<dyn Fn(&mut [f64]) -> Result<()> + Send + Sync>;

/// The replicas of a model that share a batch, as one of them sees them: each has some of the rows, in a thread or process
/// of its own, runs the same layers in the same order, and trains with the mean of all gradients.
///
/// Clones share the way of summing.
#[derive(Clone)]
pub struct Replicas {
    rank: usize,
    size: usize,
    sum: SumOverReplicas,
}

impl Replicas {
    /// Replica number `rank`, from zero, of `size`.
    ///
    /// # Errors
    /// A rank that is not below the size.
    pub fn new(rank: usize, size: usize, sum: SumOverReplicas) -> Result<Self> {
        if rank >= size {
            bail!("replicas: expected a rank below {size}, got {rank}")
        }
        Ok(Self { rank, size, sum })
    }

    /// Which one this is.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How numbers are summed.
    pub fn summing(&self) -> &SumOverReplicas {
        &self.sum
    }

    /// Replaces each number by its sum over all replicas.
    ///
    /// # Errors
    /// Those of the way to the others.
    pub fn sum_numbers(&self, values: &mut [f64]) -> Result<()> {
        (self.sum)(values)
    }

    /// One number summed over all replicas.
    ///
    /// # Errors
    /// Those of the way to the others.
    pub fn total(&self, value: f64) -> Result<f64> {
        let mut values = [value];
        self.sum_numbers(&mut values)?;
        Ok(values[0])
    }

    /// What stands in for a divisor that counts the whole batch, of which `own` is this replica's part: `Σ own / size`, at least
    /// `least / size`. A sum over this replica's rows divided by it has a mean over replicas that is the whole batch's sum over the
    /// whole batch's count.
    ///
    /// # Errors
    /// Those of the way to the others.
    pub fn divisor(&self, own: f64, least: f64) -> Result<f64> {
        Ok(self.total(own)?.max(least) / self.size as f64)
    }

    /// The sum of the tensors of all replicas, of the same shape on each.
    ///
    /// # Shapes
    /// - `xs`: any, f32 or f64, on any device; summed in f64 on the CPU
    /// - output: the same, with the same bits on every replica
    ///
    /// # Gradient
    /// The sum of the incoming gradients of all replicas: each replica's loss depends on everybody's `xs`. The mean over
    /// replicas of the gradients that result is that of the mean of their losses. So the backward pass sums too, and every
    /// replica has to make it.
    ///
    /// # Errors
    /// Another dtype, and those of the way to the others.
    pub fn sum(&self, xs: &Tensor) -> Result<Tensor> {
        if !matches!(xs.dtype(), DType::F32 | DType::F64) {
            return Err(candle_core::Error::UnsupportedDTypeForOp(xs.dtype(), OP).bt());
        }
        let device = xs.device().clone();
        let xs = xs.to_device(&candle_core::Device::Cpu)?.contiguous()?;
        xs.apply_op1(Sum(self.clone()))?.to_device(&device)
    }

    /// The rows of all replicas, those of the first replica first.
    ///
    /// # Shapes
    /// - `xs`: `(M, ..)` with a number of rows of each replica's own
    /// - output: `(Σ M, ..)`, the same on every replica
    ///
    /// # Gradient
    /// To the rows of this replica, the [sum](Self::sum) of what comes in on all.
    ///
    /// # Errors
    /// Those of [`sum`](Self::sum), and a scalar.
    pub fn gather(&self, xs: &Tensor) -> Result<Tensor> {
        let rows = xs.dim(0)?;
        let mut counts = vec![0.; self.size];
        counts[self.rank] = rows as f64;
        self.sum_numbers(&mut counts)?;
        let before = counts[..self.rank].iter().sum::<f64>() as usize;
        let all = counts.iter().sum::<f64>() as usize;
        let zeros = |count: usize| {
            let mut dims = xs.dims().to_vec();
            dims[0] = count;
            Tensor::zeros(dims, xs.dtype(), xs.device())
        };
        let parts = [zeros(before)?, xs.clone(), zeros(all - before - rows)?];
        let parts: Vec<Tensor> = parts.into_iter().filter(|p| p.elem_count() > 0).collect();
        match parts.is_empty() {
            true => zeros(all),
            false => self.sum(&Tensor::cat(&parts, 0)?),
        }
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replicas({} of {})", self.rank, self.size)
    }
}

/// The same place among the same others.
impl PartialEq for Replicas {
    fn eq(&self, other: &Self) -> bool {
        (self.rank, self.size) == (other.rank, other.size) && Arc::ptr_eq(&self.sum, &other.sum)
    }
}

struct Sum(Replicas);

impl Sum {
    fn of<T: Real>(&self, values: &[T]) -> Result<Vec<T>> {
        let mut wide: Vec<f64> = values.iter().map(|v| v.wide()).collect();
        self.0.sum_numbers(&mut wide)?;
        Ok(wide.into_iter().map(T::narrow).collect())
    }

    fn storage(&self, storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        Ok(match storage {
            CpuStorage::F32(_) => {
                CpuStorage::F32(self.of(crate::dense::dense(OP, storage, layout)?)?)
            }
            _ => CpuStorage::F64(self.of(crate::dense::dense(OP, storage, layout)?)?),
        })
    }
}

impl CustomOp1 for Sum {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((self.storage(storage, layout)?, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let summed = with_storage(OP, &grad, |storage, layout| self.storage(storage, layout))?;
        let summed = match summed {
            CpuStorage::F32(values) => Tensor::from_vec(values, xs.shape(), xs.device()),
            CpuStorage::F64(values) => Tensor::from_vec(values, xs.shape(), xs.device()),
            _ => bail!("{OP}: expected f32 or f64, got {:?}", grad.dtype()),
        };
        summed.map(Some)
    }
}
