//! What one forward pass of a ViDT multiplies, from its configuration alone.

use super::config::VidtConfig;
use crate::ModelCost;
use candle_core::{Result, Shape};

/// Places of the maps of one image.
struct Places {
    /// Rows and columns of each stage's map.
    stages: [[usize; 2]; 4],
    /// Cells of each of the neck's maps: the stages' from the second on, and the last one merged.
    levels: [usize; 4],
}

impl Places {
    fn new(c: &VidtConfig, size: [usize; 2]) -> Self {
        let half = |map: [usize; 2]| map.map(|side| side.div_ceil(2));
        let first = size.map(|side| side.div_ceil(c.patch));
        let (second, third) = (half(first), half(half(first)));
        let stages = [first, second, third, half(third)];
        let cells = |[rows, cols]: [usize; 2]| rows * cols;
        let levels = [second, third, stages[3], half(stages[3])].map(cells);
        Self { stages, levels }
    }

    fn of_stage(&self, stage: usize) -> usize {
        self.stages.get(stage).map_or(0, |[rows, cols]| rows * cols)
    }

    fn of_level(&self, level: usize) -> usize {
        self.levels.get(level).copied().unwrap_or(0)
    }
}

impl VidtConfig {
    /// Parameters, and the multiply-adds of one image of `size` (height, width) without padding.
    ///
    /// Counted are convolutions, linear maps, both products of attention (of windows also where they go beyond the map) and the
    /// four values around each sampled point; norms, biases, positions and boxes are not.
    ///
    /// # Errors
    /// Those of [`Vidt::new`](crate::Vidt::new).
    ///
    /// # Example
    /// ```
    /// use vkd_models::VidtConfig;
    /// let cost = VidtConfig::nano().cost(3, 91, [800, 1333])?;
    /// assert_eq!((cost.parameters, cost.multiply_adds), (15_529_797, 36_811_964_416));
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn cost(&self, channels: usize, classes: usize, size: [usize; 2]) -> Result<ModelCost> {
        let variables = self.variables(channels, classes)?;
        let parameters = variables.values().map(Shape::elem_count).sum();
        let places = Places::new(self, size);
        // A weight does as many multiply-adds at each place as it has values; gains of norms are none.
        let maps = variables.iter().filter(|(name, shape)| {
            shape.rank() > 1 && (name.ends_with(".weight") || name.ends_with("in_proj_weight"))
        });
        let maps: usize = maps.map(|(n, s)| self.applied(&places, n, s.elem_count())).sum();
        Ok(ModelCost { parameters, multiply_adds: maps + self.attention(&places) })
    }

    /// Multiply-adds of a weight of `count` values.
    fn applied(&self, places: &Places, name: &str, count: usize) -> usize {
        let number = |part: &str| part.parse::<usize>().unwrap_or(usize::MAX);
        let parts: Vec<&str> = name.split('.').collect();
        let queries = self.queries;
        let times = match parts[..] {
            ["backbone", "patch_embed", ..] => places.of_stage(0),
            ["backbone", "layers", stage, "downsample", ..] => {
                // Nobody asks for the last stage's tokens merged.
                let tokens = if number(stage) == 3 { 0 } else { queries };
                places.of_level(number(stage)) + tokens
            }
            ["backbone", "layers", _, "blocks", _, "det_pos_linear", _] => queries,
            ["backbone", "layers", stage, "blocks", _, "attn", "qkv", _] => {
                let (patches, stage) = (places.of_stage(number(stage)), number(stage));
                let crosses = self.cross.get(stage).is_some_and(|cross| *cross);
                // Keys and values, two thirds, once more of the patches with their positions.
                let again = if crosses { 2 * count / 3 * patches } else { 0 };
                return count * (patches + queries) + again;
            }
            ["backbone", "layers", stage, "blocks", ..] => places.of_stage(number(stage)) + queries,
            ["input_proj", level, ..] => places.of_level(number(level)),
            [.., "value_proj", _] => places.levels.iter().sum(),
            // Tokens' maps of the neck, the rest of the decoder, and the heads.
            _ => queries,
        };
        count * times
    }

    /// Multiply-adds of queries with keys and of weights with values.
    fn attention(&self, places: &Places) -> usize {
        let (queries, area) = (self.queries, self.window * self.window);
        let mut sum = 0;
        for (stage, width) in self.widths().into_iter().enumerate() {
            let [rows, cols] = places.stages[stage];
            let windows = rows.div_ceil(self.window) * cols.div_ceil(self.window);
            let seen = if self.cross[stage] { rows * cols } else { 0 };
            let block = windows * area * area + queries * (queries + seen);
            sum += self.depths[stage] * 2 * block * width;
        }
        let points = places.levels.len() * self.decoder_points;
        let layer = 2 * queries * queries + 4 * queries * points;
        sum + self.decoder_layers * layer * self.reduced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every layer by hand, on a map that neither patches nor windows fill.
    #[test]
    fn a_small_detector_costs_what_its_layers_do() -> Result<()> {
        let config = VidtConfig {
            width: 6,
            depths: [1, 1, 1, 2],
            heads: [1, 1, 2, 2],
            window: 3,
            mlp_ratio: 2,
            queries: 5,
            reduced: 32,
            decoder_layers: 2,
            decoder_heads: 4,
            decoder_points: 3,
            decoder_hidden: 10,
            ..VidtConfig::nano()
        };
        // 30 x 41 pixels are 8 x 11 patches, then 4 x 6, 2 x 3, 1 x 2 and 1 x 1.
        let (n, windows, q) = ([88, 24, 6, 2], [3 * 4, 2 * 2, 1, 1], 5);
        let embedded = 88 * 6 * (3 * 4 * 4);
        let mut body = embedded;
        for (stage, (width, depth)) in [(6, 1), (12, 1), (24, 1), (48, 2)].into_iter().enumerate() {
            let linear = 3 * width * width + width * width + 2 * width * 2 * width;
            let mut block = (n[stage] + q) * linear + q * 32 * width;
            block += windows[stage] * 2 * 9 * 9 * width;
            block += 2 * q * q * width;
            if stage == 3 {
                // Keys and values of patches with positions, and tokens that attend to them.
                block += n[3] * 2 * width * width + 2 * q * n[3] * width;
            }
            body += depth * block;
        }
        body += (24 + q) * 24 * 12 + (6 + q) * 48 * 24 + (2 + q) * 96 * 48 + 192 * 32;
        let neck = (24 * 12 + 6 * 24 + 2 * 48 + 32) * 32 + q * 48 * 32 + q * 32 * 32;
        let attention = q * 4 * 32 * 32 + 2 * q * q * 32;
        // Values of 33 cells; offsets and weights of 4 heads with 4 levels of 3 points; 4 values around each.
        let sampling = 33 * 32 * 32 + q * 32 * (2 * 48 + 48) + q * 32 * 32 + q * 12 * 4 * 32;
        let layer = attention + sampling + 2 * q * 32 * 10;
        let head = q * (32 * 7 + 2 * 32 * 32 + 32 * 4);
        let decoder = q * 32 * 2 + 2 * layer + 3 * head;
        assert_eq!(config.cost(3, 7, [30, 41])?.multiply_adds, body + neck + decoder);
        Ok(())
    }

    /// Without tokens, neck and decoder there is a Swin left, whose published count is known (arXiv:2103.14030, table 1: with
    /// the classifier's 0.8 million and norms, which make no difference in these digits).
    #[test]
    fn the_body_costs_what_a_swin_does() -> Result<()> {
        for (config, published) in
            [(VidtConfig::tiny(), 4.5), (VidtConfig::small(), 8.7), (VidtConfig::base(), 15.4)]
        {
            // A polynomial of the number of queries, of which the part without any is wanted.
            let with = |queries| {
                let config = VidtConfig { queries, cross: [false; 4], ..config.clone() };
                Ok::<_, candle_core::Error>(config.cost(3, 91, [224, 224])?.multiply_adds)
            };
            let none = 3 * with(1)? + with(3)? - 3 * with(2)?;
            let [_, second, third, fourth] = config.widths();
            let (cells, merged) = ([28 * 28, 14 * 14, 7 * 7], 4 * 4);
            let neck =
                256 * (cells[0] * second + cells[1] * third + cells[2] * fourth + merged * 256);
            let values = 6 * 256 * 256 * (cells.iter().sum::<usize>() + merged);
            let last = merged * 4 * fourth * 256;
            let body = (none - neck - values - last) as f64 / 1e9;
            assert!((body - published).abs() < 0.06, "{body} {published}");
        }
        Ok(())
    }
}
