//! Sums of tensors that stay on their GPUs, by NCCL.

use super::{Communicator, Ranks};
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp, result::NcclError};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
use candle_core::{
    CpuStorage, CudaDevice, CustomOp1, Device, Error, Layout, Result, Shape, Tensor, bail,
};
use std::ffi::c_char;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

/// A tensor to sum, and where the sum is awaited.
type Request = (Tensor, Sender<Result<Tensor>>);

/// Ranks with a GPU each. What lies on the GPU is summed there, in the order of its stream and without waiting for it; all else goes
/// by `others`.
struct Nccl {
    others: Arc<dyn Communicator>,
    /// NCCL's handle must stay in one thread, which this leads to; nothing once that is to end.
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // The thread lets NCCL go before MPI and the process end.
        self.requests.take();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// The handle that CUDA takes for another stream in each thread.
const OF_EACH_THREAD: usize = 2;

impl Ranks {
    /// The same ranks, which sum tensors on `device` by NCCL. All call it, each with a device of its own; what NCCL needs to
    /// find the others goes by what the ranks have so far.
    ///
    /// # Errors
    /// A device that is no GPU or has a stream for each thread (`Device::new_cuda_with_stream` has one for all), and what NCCL
    /// refuses, such as two ranks on one GPU. Another rank may wait for this one then, in a call that never comes: end it.
    pub fn with_nccl(&self, device: &Device) -> Result<Self> {
        let Device::Cuda(device) = device else {
            bail!("nccl: expected a CUDA device for rank {}, got {device:?}", self.rank())
        };
        let stream = device.cuda_stream();
        if stream.cu_stream() as usize == OF_EACH_THREAD {
            bail!("nccl: expected a device with one stream for all threads, got one for each")
        }
        let id = self.from_first(|| {
            let id = Id::new().map_err(|e| refused("an id for the ranks", &e))?;
            Ok(id.internal().map(c_char::cast_unsigned).to_vec())
        })?;
        let Ok(id) = <[u8; 128]>::try_from(id) else {
            bail!("nccl: expected an id of 128 bytes from rank 0, got others")
        };
        let id = Id::uninit(id.map(u8::cast_signed));
        let (started, start) = channel();
        let (requests, incoming) = channel();
        let (rank, size) = (self.rank(), self.size());
        let thread = thread::Builder::new()
            .name("nccl".to_owned())
            .spawn(move || serve(stream, rank, size, id, &started, &incoming))?;
        // Not to be agreed on: the others may be waiting within NCCL.
        start.recv().map_err(gone)??;
        let (requests, thread) = (Some(requests), Some(thread));
        Ok(Self::new(Nccl { others: self.to_others.clone(), requests, thread }))
    }
}

/// The thread that owns NCCL's handle: until nobody asks any more.
fn serve(
    stream: Arc<CudaStream>,
    rank: usize,
    size: usize,
    id: Id,
    started: &Sender<Result<()>>,
    requests: &Receiver<Request>,
) {
    let start = || {
        stream.context().bind_to_thread().map_err(Error::wrap)?;
        Comm::from_rank(stream.clone(), rank, size, id)
            .map_err(|e| refused("to join the other ranks", &e))
    };
    let comm = match start() {
        Ok(comm) => comm,
        Err(e) => {
            // Whoever waits for it has it, or is gone.
            let _ = started.send(Err(e));
            return;
        }
    };
    let _ = started.send(Ok(()));
    for (tensor, reply) in requests {
        let _ = reply.send(sum_no_grad(&tensor, &comm));
    }
}

fn sum_no_grad(tensor: &Tensor, comm: &Comm) -> Result<Tensor> {
    tensor.apply_op1_no_bwd(&Sum(comm))
}

/// The sum over all ranks, on the stream of the device.
struct Sum<'a>(&'a Comm);

impl CustomOp1 for Sum<'_> {
    fn name(&self) -> &'static str {
        "nccl_sum"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("nccl: expected a tensor on a CUDA device, got one on the CPU")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("nccl: expected a contiguous tensor, got {layout:?}")
        };
        let device: &CudaDevice = &storage.device;
        let said = |e: NcclError| refused("a sum", &e);
        let sum = match &storage.slice {
            CudaStorageSlice::F32(values) => {
                let mut sum = device.alloc_zeros::<f32>(end - start)?;
                let own = values.slice(start..end);
                self.0.all_reduce(&own, &mut sum, &ReduceOp::Sum).map_err(said)?;
                CudaStorage::wrap_cuda_slice(sum, device.clone())
            }
            CudaStorageSlice::F64(values) => {
                let mut sum = device.alloc_zeros::<f64>(end - start)?;
                let own = values.slice(start..end);
                self.0.all_reduce(&own, &mut sum, &ReduceOp::Sum).map_err(said)?;
                CudaStorage::wrap_cuda_slice(sum, device.clone())
            }
            _ => bail!("nccl: expected f32 or f64, got another type"),
        };
        Ok((sum, layout.shape().clone()))
    }
}

fn refused(what: &str, error: &NcclError) -> Error {
    Error::Msg(format!("nccl: expected {what}, got {error:?}"))
}

fn gone<E>(_: E) -> Error {
    Error::Msg("nccl: expected its thread to go on, got its end".to_owned())
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.others.rank()
    }

    fn size(&self) -> usize {
        self.others.size()
    }

    fn sum(&self, values: &mut [f64]) -> Result<()> {
        self.others.sum(values)
    }

    fn sum_f32(&self, values: &mut [f32]) -> Result<()> {
        self.others.sum_f32(values)
    }

    fn sum_tensor(&self, tensor: &Tensor) -> Result<Tensor> {
        if !tensor.device().is_cuda() {
            return self.others.sum_tensor(tensor);
        }
        let (reply, sum) = channel();
        let Some(requests) = &self.requests else { return Err(gone(())) };
        requests.send((tensor.clone(), reply)).map_err(gone)?;
        sum.recv().map_err(gone)?
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.others.broadcast(bytes)
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.others.gather(bytes)
    }

    fn barrier(&self) -> Result<()> {
        self.others.barrier()
    }
}
