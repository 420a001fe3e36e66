//! Weights that a student starts from.

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Weights from a file in place of drawn ones, for all of the student or a part of it: `[init]`.
///
/// A body that was pretrained as a classifier: `part = "backbone"`, and in `allow` what a classifier does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitConfig {
    /// A `.safetensors` or `.pth` file with the model's own names, or `hf://ORG/NAME/FILE@REVISION` as for a teacher.
    pub checkpoint: PathBuf,
    /// The dict inside a `.pth` checkpoint that holds the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Where the model lies in a checkpoint of more than it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The part of the student that is loaded: `backbone` for variables `backbone.norm.weight`. Without it all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Names, below `part`, that the file may lack or have in another shape, and all that lies under them: they start as drawn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
}

impl InitConfig {
    pub(super) fn check(&self) -> Result<()> {
        match self.part.as_deref() {
            Some("") => bail!("init.part: expected a name, got an empty one"),
            _ => Ok(()),
        }
    }
}
