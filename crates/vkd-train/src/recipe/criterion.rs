//! How a detector's predictions are judged: `[criterion]`.

use super::not_negative;
use super::training::is_default;
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use vkd_loss::FocalConfig;
use vkd_tasks::{DenseCriterion, SetCriterion, SetWeights};

/// What a detector's own loss leaves open: `[criterion]`. The first two keys say which places of a detector of maps learn which
/// object; a detector of queries has no such choice, but weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BoxCriterionConfig {
    /// The farthest side of a box that a level learns lies within so many of its strides; default 8, FCOS's on COCO. Images with
    /// objects that are small beside the coarsest stride need less, or its level learns nothing.
    pub reach: f64,
    /// Places within so many strides of an object's middle learn it; default 1.5.
    pub radius: f64,
    /// Weights of a detector of queries.
    #[serde(skip_serializing_if = "is_default")]
    pub queries: QueryCriterionConfig,
}

impl Default for BoxCriterionConfig {
    fn default() -> Self {
        let DenseCriterion { reach, radius, .. } = DenseCriterion::default();
        Self { reach, radius, queries: QueryCriterionConfig::default() }
    }
}

/// The weights of matching and loss of a detector of queries: `[criterion.queries]`. The defaults are ViDT's, which the
/// published V_kD code keeps. There is no class for nothing, so none that weighs less.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueryCriterionConfig {
    /// Weight of the focal loss of the classes; default 2.
    pub class: f64,
    /// Weight of the L1 distance of the boxes; default 5.
    pub l1: f64,
    /// Weight of the generalised intersection over union; default 2.
    pub giou: f64,
    /// Factor of all losses of the decoder's layers before the last; default 1.
    pub auxiliary: f64,
    /// What the class counts in the matching; default 2.
    pub cost_class: f64,
    /// What the L1 distance counts in the matching; default 5.
    pub cost_l1: f64,
    /// What the generalised intersection over union counts in the matching; default 2.
    pub cost_giou: f64,
    /// Weight of an object's own class in the focal loss, that of the others is the rest to 1; default 0.25.
    pub alpha: f64,
    /// How little what is right already counts in the focal loss; default 2.
    pub gamma: f64,
}

impl Default for QueryCriterionConfig {
    fn default() -> Self {
        let SetCriterion { focal, costs, weights, auxiliary } = SetCriterion::default();
        Self {
            class: weights.class,
            l1: weights.l1,
            giou: weights.giou,
            auxiliary,
            cost_class: costs.class,
            cost_l1: costs.l1,
            cost_giou: costs.giou,
            alpha: focal.alpha,
            gamma: focal.gamma,
        }
    }
}

impl QueryCriterionConfig {
    /// The criterion.
    pub(crate) fn criterion(&self) -> SetCriterion {
        SetCriterion {
            focal: FocalConfig { alpha: self.alpha, gamma: self.gamma },
            costs: SetWeights { class: self.cost_class, l1: self.cost_l1, giou: self.cost_giou },
            weights: SetWeights { class: self.class, l1: self.l1, giou: self.giou },
            auxiliary: self.auxiliary,
        }
    }

    fn check(&self) -> Result<()> {
        // Without one of these there are heads that nothing teaches.
        above_zero(&[
            ("criterion.queries.class", self.class),
            ("criterion.queries.auxiliary", self.auxiliary),
        ])?;
        not_negative(&[
            ("criterion.queries.l1", self.l1),
            ("criterion.queries.giou", self.giou),
            ("criterion.queries.cost_class", self.cost_class),
            ("criterion.queries.cost_l1", self.cost_l1),
            ("criterion.queries.cost_giou", self.cost_giou),
            ("criterion.queries.gamma", self.gamma),
        ])?;
        if self.l1 + self.giou == 0. {
            bail!("criterion.queries: expected l1 or giou above 0, got 0 for both")
        }
        if !(0. ..=1.).contains(&self.alpha) {
            bail!("criterion.queries.alpha: expected a share in [0, 1], got {}", self.alpha)
        }
        Ok(())
    }
}

/// Refuses values that are not above zero or not finite.
fn above_zero(values: &[(&str, f64)]) -> Result<()> {
    match values.iter().find(|(_, value)| !(*value > 0. && value.is_finite())) {
        Some((key, value)) => bail!("{key}: expected a finite value above 0, got {value}"),
        None => Ok(()),
    }
}

impl BoxCriterionConfig {
    /// Refuses values that are none.
    ///
    /// # Errors
    /// The key with what was expected and what came.
    pub fn check(&self) -> Result<()> {
        above_zero(&[("criterion.reach", self.reach), ("criterion.radius", self.radius)])?;
        self.queries.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Error;

    fn read(text: &str) -> Result<BoxCriterionConfig> {
        toml::from_str(text).map_err(Error::wrap)
    }

    #[test]
    fn weights_are_read_and_defaults_are_not_written() -> Result<()> {
        let plain = read("reach = 3.0")?;
        assert_eq!(plain.queries.criterion(), SetCriterion::default());
        // A recipe from before these keys keeps its hash.
        let written = toml::to_string(&plain).map_err(Error::wrap)?;
        assert_eq!(written, "reach = 3.0\nradius = 1.5\n");
        let text = "[queries]\nl1 = 1.0\nauxiliary = 0.5\ncost_giou = 3.0\ngamma = 1.5\n";
        let config = read(text)?;
        config.check()?;
        let got = config.queries.criterion();
        let usual = SetCriterion::default();
        assert_eq!(got.weights, SetWeights { l1: 1., ..usual.weights });
        assert_eq!(got.costs, SetWeights { giou: 3., ..usual.costs });
        assert_eq!((got.auxiliary, got.focal.gamma, got.focal.alpha), (0.5, 1.5, 0.25));
        let written = toml::to_string(&config).map_err(Error::wrap)?;
        assert_eq!(read(&written)?, config);
        Ok(())
    }
}
