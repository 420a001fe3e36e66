//! Work in pieces, shared among ranks.

use super::Ranks;
use candle_core::safetensors::load_buffer;
use candle_core::{Device, Error, Result, Tensor, bail};

impl Ranks {
    /// Makes pieces 0 to `count` - 1, each on one rank, and gives them in this order to `take` on the first rank. So what `take`
    /// makes of them has the same bits for any number of ranks. A piece may be nothing.
    ///
    /// With several ranks `take` has copies on the CPU; no more pieces than there are ranks are kept at once.
    ///
    /// # Errors
    /// On every rank that of `make` on the first rank in need, or that of `take`; those of the communicator.
    pub(crate) fn in_turn<const N: usize>(
        &self,
        count: usize,
        mut make: impl FnMut(usize) -> Result<Option<[Tensor; N]>>,
        mut take: impl FnMut([Tensor; N]) -> Result<()>,
    ) -> Result<()> {
        let mut taken = Ok(());
        for start in (0..count).step_by(self.size()) {
            let number = start + self.rank();
            let made = if number < count { make(number) } else { Ok(None) };
            if self.size() == 1 {
                made?.map_or(Ok(()), &mut take)?;
                continue;
            }
            let all =
                self.gather_well(made.and_then(|piece| piece.map_or(Ok(Vec::new()), encode)))?;
            if self.leads() && taken.is_ok() {
                let mut pieces = all.iter().filter(|bytes| !bytes.is_empty());
                taken = pieces.try_for_each(|bytes| take(decode(bytes)?));
            }
        }
        self.all_well(taken)
    }
}

fn encode<const N: usize>(piece: [Tensor; N]) -> Result<Vec<u8>> {
    let named = piece.into_iter().enumerate().map(|(i, tensor)| (i.to_string(), tensor));
    safetensors::serialize(named, None).map_err(Error::wrap)
}

fn decode<const N: usize>(bytes: &[u8]) -> Result<[Tensor; N]> {
    let mut tensors = load_buffer(bytes, &Device::Cpu)?;
    let found: Option<Vec<Tensor>> = (0..N).map(|i| tensors.remove(&i.to_string())).collect();
    match found.map(<[Tensor; N]>::try_from) {
        Some(Ok(piece)) => Ok(piece),
        _ => bail!("ranks: expected {N} tensors of a piece, got others"),
    }
}
