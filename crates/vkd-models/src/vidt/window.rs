//! Attention among the patches of each window of a map, as in Swin (Liu et al., arXiv:2103.14030).

use candle_core::{Device, Result, Tensor};
use vkd_nn::{gather_rows, multi_head_attention};

/// What is added for patches that are neighbours only because the map was shifted: not minus infinity, as in the published code.
pub(super) const FAR: f64 = -100.;

/// How the patches of a batch of maps lie in windows, by index.
///
/// A map is filled up at right and bottom to whole windows, then shifted up and left around the edges.
pub(super) struct Windows {
    /// Windows of one map.
    count: usize,
    /// Patches of one window.
    area: usize,
    /// For each place in the windows of the batch its patch; the number of all patches where the place is fill.
    patches: Tensor,
    /// For each patch of the batch its place.
    places: Tensor,
    filled: bool,
    /// `(count, 1, area, area)`: [`FAR`] between patches that the shift has brought together.
    mask: Option<Tensor>,
}

impl Windows {
    /// Windows of `window` rows and columns in maps of `rows` and `cols`, shifted by `shift`, with the mask in dtype and device
    /// of another tensor.
    pub(super) fn new(
        [batch, rows, cols]: [usize; 3],
        window: usize,
        shift: usize,
        like: &Tensor,
    ) -> Result<Self> {
        let (down, across) = (rows.div_ceil(window), cols.div_ceil(window));
        let (height, width) = (down * window, across * window);
        let (count, area) = (down * across, window * window);
        let all = batch * rows * cols;
        let mut patches = Vec::with_capacity(batch * count * area);
        let mut places = vec![0u32; all];
        // Of which of the regions that the shift tells apart each place is.
        let mut regions = Vec::with_capacity(count * area);
        let region = |at: usize, size: usize| {
            usize::from(at + window >= size) + usize::from(at + shift >= size)
        };
        for sample in 0..batch {
            for place in 0..count * area {
                let (tile, within) = (place / area, place % area);
                let row = tile / across * window + within / window;
                let col = tile % across * window + within % window;
                if sample == 0 {
                    regions.push(3 * region(row, height) + region(col, width));
                }
                let (row, col) = ((row + shift) % height, (col + shift) % width);
                if row < rows && col < cols {
                    let patch = (sample * rows + row) * cols + col;
                    places[patch] = patches.len() as u32;
                    patches.push(patch as u32);
                } else {
                    patches.push(all as u32);
                }
            }
        }
        let mask = || {
            let mut values = Vec::with_capacity(count * area * area);
            for tile in regions.chunks_exact(area) {
                for query in tile {
                    values.extend(tile.iter().map(|key| if key == query { 0. } else { FAR }));
                }
            }
            let dims = (count, 1, area, area);
            Tensor::from_vec(values, dims, like.device())?.to_dtype(like.dtype())
        };
        Ok(Self {
            count,
            area,
            filled: patches.len() > all,
            patches: Tensor::new(patches, like.device())?,
            places: Tensor::new(places, like.device())?,
            mask: (shift > 0).then(mask).transpose()?,
        })
    }

    /// Attention within the windows: queries, keys and values `(B, patches, 3·C)` to `(B, patches, C)`.
    ///
    /// `fill` `(3·C)` is what stands where a window goes beyond the map, as query, key and value; `bias` is
    /// `(heads, area, area)`.
    pub(super) fn attend(
        &self,
        qkv: &Tensor,
        fill: &Tensor,
        bias: &Tensor,
        heads: usize,
    ) -> Result<Tensor> {
        let (batch, patches, width) = qkv.dims3()?;
        let table = qkv.reshape((batch * patches, width))?;
        let table =
            if self.filled { Tensor::cat(&[&table, &fill.unsqueeze(0)?], 0)? } else { table };
        let windows = gather_rows(&table, &self.patches)?;
        let windows = windows.reshape((batch * self.count, self.area, width))?;
        let bias = bias.unsqueeze(0)?;
        let bias = match &self.mask {
            None => bias,
            Some(mask) => {
                let all = (batch, self.count, heads, self.area, self.area);
                let of_one = bias.broadcast_add(mask)?.unsqueeze(0)?;
                of_one.broadcast_as(all)?.flatten(0, 1)?
            }
        };
        let mixed = multi_head_attention(&windows, Some(&bias), heads)?;
        gather_rows(&mixed.flatten(0, 1)?, &self.places)?.reshape((batch, patches, width / 3))
    }
}

/// For each pair of query and key in a window the row of the table of biases, `(area²)`: query minus key, rows first.
pub(super) fn relative_positions(window: usize, device: &Device) -> Result<Tensor> {
    let (area, side) = (window * window, 2 * window - 1);
    let row = |pair: usize| {
        let (query, key) = (pair / area, pair % area);
        let apart = |q: usize, k: usize| q + window - 1 - k;
        let (down, across) =
            (apart(query / window, key / window), apart(query % window, key % window));
        (down * side + across) as u32
    };
    Tensor::from_iter((0..area * area).map(row), device)
}

/// The biases `(heads, area, area)` from their table `(rows, heads)`.
pub(super) fn relative_bias(table: &Tensor, index: &Tensor, area: usize) -> Result<Tensor> {
    let heads = table.dim(1)?;
    gather_rows(table, index)?.t()?.contiguous()?.reshape((heads, area, area))
}
