//! Which part of the work one of several ranks does.

use candle_core::{Result, bail};
use std::ops::Range;

/// The part of every batch that one of several ranks makes.
///
/// The parts of all ranks hold every sample of the batch once, whatever the number of ranks.
///
/// # Example
/// ```
/// use vkd_train::{Batches, Dataset, Recipe, Share};
///
/// let recipe = Recipe::parse(include_str!("../tests/tiny.toml"), "tiny.toml", &[])?;
/// let data = Dataset::open(&recipe.data)?;
/// let mut batches = Batches::new(&data, data.train.clone(), 8, 0, &recipe.data, 0)?;
/// let whole = batches.get(3)?.sample_ids;
/// batches.share(Share::new(1, 2)?)?;
/// assert_eq!(batches.get(3)?.sample_ids[..], whole[4..]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    rank: usize,
    size: usize,
}

impl Share {
    /// That of rank `rank`, counted from zero, of `size`.
    ///
    /// # Errors
    /// A rank that there is not.
    pub fn new(rank: usize, size: usize) -> Result<Self> {
        if rank >= size {
            bail!("share: expected a rank below {size}, the number of ranks, got {rank}")
        }
        Ok(Self { rank, size })
    }

    /// Everything: that of a rank which is alone.
    pub const fn whole() -> Self {
        Self { rank: 0, size: 1 }
    }

    /// Which rank it is.
    pub fn rank(self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn size(self) -> usize {
        self.size
    }

    /// The items of this rank: a block, those of rank 0 first, so that the blocks in the order of ranks are `items`. Where they
    /// can't be even, the first ranks have one more.
    pub fn of<T>(self, items: &[T]) -> &[T] {
        items.get(self.block(items.len())).unwrap_or_default()
    }

    fn block(self, count: usize) -> Range<usize> {
        let start = |rank: usize| rank * (count / self.size) + rank.min(count % self.size);
        start(self.rank)..start(self.rank + 1)
    }

    /// Places of this rank among `count`, ascending: a block, or, where an image is mixed with the one as far from the other end,
    /// a block and its mirror image. Then a place as far from the ends of the part is as far from those of all.
    pub(crate) fn places(self, count: usize, mirrored: bool) -> impl Iterator<Item = usize> {
        let back = if mirrored { count / 2 } else { 0 };
        let (front, back) = (self.block(count - back), self.block(back));
        front.chain(count - back.end..count - back.start)
    }

    /// Refuses `count` images, the value of `key`, of which not every rank can have as many, nor, where they are `mirrored`, as
    /// many pairs.
    pub(crate) fn check(self, key: &str, count: usize, mirrored: bool) -> Result<()> {
        let size = self.size;
        // Alone, a rank may have a middle image without a partner.
        let pairs = mirrored && size > 1;
        match count % (if pairs { 2 * size } else { size }) {
            0 => Ok(()),
            _ if pairs => bail!(
                "{key}: expected a multiple of twice {size} ranks, as images are mixed in pairs, got {count}"
            ),
            _ => bail!("{key}: expected a multiple of {size} ranks, got {count}"),
        }
    }
}

#[cfg(test)]
mod tests;
