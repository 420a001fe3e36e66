//! Where a run computes.

use crate::ranks::Ranks;
use candle_core::{Device, Error, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// Where networks, projectors, losses and optimisers compute: `cpu`, `cuda` or `cuda:N`.
///
/// # Example
/// ```
/// use vkd_train::ComputeDevice;
///
/// assert_eq!("cuda:1".parse::<ComputeDevice>()?, ComputeDevice::Cuda(1));
/// assert_eq!("cuda".parse::<ComputeDevice>()?.to_string(), "cuda");
/// assert!(ComputeDevice::Cpu.open()?.is_cpu());
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ComputeDevice {
    /// The processor.
    #[default]
    Cpu,
    /// NVIDIA's GPU of that number, counted from zero as CUDA counts them; `cuda` is the first.
    Cuda(usize),
}

/// The devices that this process computes on. candle takes every opened device for another one, though it be the same GPU, and
/// refuses tensors of two in one op.
static OPENED: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());

impl ComputeDevice {
    /// candle's device, the same one at every call, with one stream for the work of all threads.
    ///
    /// # Errors
    /// A program that was built without CUDA, and no driver or GPU; the message says what to do.
    pub fn open(self) -> Result<Device> {
        let Self::Cuda(number) = self else { return Ok(Device::Cpu) };
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = opened.get(&number) {
            return Ok(device.clone());
        }
        let device = self.fresh(number)?;
        opened.insert(number, device.clone());
        Ok(device)
    }

    /// Whether [`open`](Self::open) would work. The GPU is let go again: a process that only starts others holds none of its memory.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn probe(self) -> Result<()> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda(number) => self.fresh(number).map(|_| ()),
        }
    }

    fn fresh(self, number: usize) -> Result<Device> {
        if !cfg!(feature = "cuda") {
            bail!(
                "device {self}: expected a program that was built with the feature cuda (cargo build --release --features \
                 vkd-cli/cuda, see docs/cuda.md), got one without; the device cpu needs none"
            )
        }
        Device::new_cuda_with_stream(number).map_err(|e| {
            Error::Msg(format!(
                "device {self}: expected GPU {number} behind a driver for CUDA 13 (nvidia-smi shows both), got: {}",
                crate::plain(&e)
            ))
        })
    }

    /// `cpu`, or `cuda:0 (NVIDIA H100 80GB HBM3)`.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn describe(self) -> Result<String> {
        Ok(match (self, card(&self.open()?)) {
            (Self::Cuda(number), Some(card)) => format!("cuda:{number} ({card})"),
            _ => self.to_string(),
        })
    }

    /// Refuses what several ranks can't compute on.
    pub(crate) fn for_ranks(self, size: usize) -> Result<()> {
        match self {
            Self::Cuda(_) if size > 1 && !cfg!(feature = "nccl") => {
                bail!(
                    "training.device: expected cpu for {size} ranks of a program that was built without the feature nccl, got {self}"
                )
            }
            Self::Cuda(number) if size > 1 && number > 0 => {
                bail!(
                    "training.device: expected cuda for {size} ranks, of which each is shown its own GPU alone, got {self}"
                )
            }
            _ => Ok(()),
        }
    }

    /// The ranks as they sum on this device: by NCCL where it is a GPU.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and of `Ranks::with_nccl`, and a device that several ranks can't compute on.
    pub fn joins(self, ranks: Ranks) -> Result<Ranks> {
        self.for_ranks(ranks.size())?;
        #[cfg(feature = "nccl")]
        if let Self::Cuda(_) = self
            && ranks.size() > 1
        {
            return ranks.with_nccl(&ranks.all_well(self.open())?);
        }
        Ok(ranks)
    }
}

/// What the driver calls the GPU.
#[cfg(feature = "cuda")]
fn card(device: &Device) -> Option<String> {
    match device {
        Device::Cuda(device) => device.cuda_stream().context().name().ok(),
        _ => None,
    }
}

#[cfg(not(feature = "cuda"))]
fn card(_device: &Device) -> Option<String> {
    None
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for ComputeDevice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.strip_prefix("cuda:")?.parse().ok().map(Self::Cuda);
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => match number(other) {
                Some(device) => Ok(device),
                None => bail!("device: expected cpu, cuda or cuda:N, got {other:?}"),
            },
        }
    }
}

impl TryFrom<String> for ComputeDevice {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse().map_err(|e| crate::plain(&e))
    }
}

impl From<ComputeDevice> for String {
    fn from(device: ComputeDevice) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() -> Result<()> {
        for (text, device, shown) in [
            ("cpu", ComputeDevice::Cpu, "cpu"),
            ("cuda", ComputeDevice::Cuda(0), "cuda"),
            ("cuda:0", ComputeDevice::Cuda(0), "cuda"),
            ("cuda:12", ComputeDevice::Cuda(12), "cuda:12"),
        ] {
            assert_eq!(text.parse::<ComputeDevice>()?, device);
            assert_eq!(device.to_string(), shown);
        }
        for odd in ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:1.5", "cuda1", "cpu:0"] {
            let message = odd.parse::<ComputeDevice>().map(|_| ()).unwrap_err().to_string();
            assert!(message.contains("expected cpu, cuda or cuda:N"), "{odd}: {message}");
        }
        Ok(())
    }

    #[test]
    fn ranks_share_no_device() {
        assert!(ComputeDevice::Cpu.for_ranks(4).is_ok());
        assert!(ComputeDevice::Cuda(0).for_ranks(1).is_ok());
        let message = ComputeDevice::Cuda(1).for_ranks(4).unwrap_err().to_string();
        let want = match cfg!(feature = "nccl") {
            true => "training.device: expected cuda for 4 ranks",
            false => "training.device: expected cpu for 4 ranks",
        };
        assert!(message.contains(want) && message.contains("got cuda:1"), "{message}");
    }

    /// Without the feature it says what to build; with it, where there is no GPU, what is missing.
    #[test]
    fn no_device_says_what_is_missing() {
        let far = ComputeDevice::Cuda(999);
        for result in [far.open().map(|_| ()), far.probe(), far.describe().map(|_| ())] {
            let message = result.unwrap_err().to_string();
            let part = match cfg!(feature = "cuda") {
                true => "device cuda:999: expected GPU 999 behind a driver",
                false => "device cuda:999: expected a program that was built with the feature cuda",
            };
            assert!(message.contains(part), "{message}");
        }
        assert!(ComputeDevice::Cpu.probe().is_ok());
    }
}
