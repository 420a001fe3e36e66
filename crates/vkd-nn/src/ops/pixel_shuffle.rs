//! Channels as pixels of a finer image, and back: moves alone, so candle's own ops and gradients do.

use candle_core::{Result, Tensor, bail};

/// Channels-last images `(B, H, W, C·r²)` to `(B, H·r, W·r, C)`: channel `c·r² + i·r + j` becomes row `i` and column `j` of
/// each pixel's square, as in PyTorch.
///
/// # Errors
/// Another rank, a zero factor, channels that `r²` does not divide.
pub fn pixel_shuffle(xs: &Tensor, r: usize) -> Result<Tensor> {
    let [b, h, w, c] = dims("pixel_shuffle", xs)?;
    let Some(width) = r.checked_mul(r).filter(|n| *n > 0 && c % n == 0).map(|n| c / n) else {
        bail!("pixel_shuffle: expected channels divisible by {r}², got {:?}", xs.dims())
    };
    let split = xs.contiguous()?.reshape((b, h, w, width, r, r))?;
    split.permute((0, 1, 4, 2, 5, 3))?.contiguous()?.reshape((b, h * r, w * r, width))
}

/// Channels-last images `(B, H·r, W·r, C)` to `(B, H, W, C·r²)`: the inverse of [`pixel_shuffle`].
///
/// # Errors
/// Another rank, a zero factor, rows or columns that `r` does not divide.
pub fn pixel_unshuffle(xs: &Tensor, r: usize) -> Result<Tensor> {
    let [b, h, w, c] = dims("pixel_unshuffle", xs)?;
    if r == 0 || !h.is_multiple_of(r) || !w.is_multiple_of(r) {
        bail!("pixel_unshuffle: expected rows and columns divisible by {r}, got {:?}", xs.dims())
    }
    let split = xs.contiguous()?.reshape((b, h / r, r, w / r, r, c))?;
    split.permute((0, 1, 3, 5, 2, 4))?.contiguous()?.reshape((b, h / r, w / r, c * r * r))
}

fn dims(what: &str, xs: &Tensor) -> Result<[usize; 4]> {
    match xs.dims() {
        [b, h, w, c] => Ok([*b, *h, *w, *c]),
        dims => bail!("{what}: expected (B, H, W, C), got {dims:?}"),
    }
}
