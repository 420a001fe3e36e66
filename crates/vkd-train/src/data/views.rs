//! Images that are looked at again and again, kept as evaluation sees them.

use super::Image;
use candle_core::Result;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Bytes that are kept at most, of each data set that is open.
const LIMIT: usize = 512 << 20;

/// The views of some images, each made when it is first asked for.
pub(super) struct Views(HashMap<usize, OnceLock<Image>>);

impl Views {
    /// Room for the views of `bytes` bytes of the first of `indices`, as many as the limit holds.
    pub(super) fn new(indices: &[usize], bytes: usize) -> Self {
        let count = LIMIT / bytes.max(1);
        Self(indices.iter().take(count).map(|&index| (index, OnceLock::new())).collect())
    }

    /// The view of image `index`, made anew where it is not kept.
    ///
    /// # Errors
    /// That of `make`; nothing is kept then.
    pub(super) fn get(&self, index: usize, make: impl FnOnce() -> Result<Image>) -> Result<Image> {
        let Some(place) = self.0.get(&index) else { return make() };
        match place.get() {
            Some(view) => Ok(view.clone()),
            None => {
                let view = make()?;
                // Another thread may have come first, with the same view.
                place.set(view.clone()).ok();
                Ok(view)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::bail;
    use std::cell::Cell;

    #[test]
    fn each_is_made_once_up_to_the_limit() -> Result<()> {
        let made = Cell::new(0);
        let make = || {
            made.set(made.get() + 1);
            Image::new(1, 1, 1, vec![made.get()])
        };
        // Two have room.
        let views = Views::new(&[7, 3, 5], LIMIT / 2);
        assert!(views.get(3, || bail!("broken")).is_err(), "and an error is not kept");
        for (index, value) in [(7, 1), (3, 2), (7, 1), (3, 2), (5, 3), (5, 4), (9, 5)] {
            assert_eq!(views.get(index, make)?.pixels, [value], "{index}");
        }
        Ok(())
    }
}
