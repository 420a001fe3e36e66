//! Checkpoints on the Hugging Face Hub, `hf://ORG/NAME/FILE@REVISION`: fetched with the feature `hub`, refused without it.

use candle_core::{Result, bail};
use std::fmt;
use std::path::{Path, PathBuf};

const SCHEME: &str = "hf://";

/// One file of a model's repository.
#[derive(Debug, PartialEq, Eq)]
struct HubFile {
    /// `ORG/NAME`.
    repository: String,
    /// Path within it.
    file: String,
    /// Branch, tag or commit; `main` where none is given.
    revision: Option<String>,
}

/// Where a checkpoint lies on this machine. A file of the hub is taken from its cache (`HF_HOME`) and downloaded where it is not
/// there yet; a path is given back as it is.
///
/// # Errors
/// A name of the hub that is none, a failed download, and any name of the hub without the feature `hub`.
pub(crate) fn local(checkpoint: &Path) -> Result<PathBuf> {
    match HubFile::parse(checkpoint)? {
        None => Ok(checkpoint.to_owned()),
        Some(file) => file.fetch(),
    }
}

impl HubFile {
    /// The file that a name means; none where it is a path.
    fn parse(checkpoint: &Path) -> Result<Option<Self>> {
        let text = checkpoint.to_string_lossy();
        let Some(name) = text.strip_prefix(SCHEME) else { return Ok(None) };
        let (place, revision) = match name.split_once('@') {
            Some((place, revision)) => (place, Some(revision)),
            None => (name, None),
        };
        let parts: Vec<&str> = place.split('/').collect();
        // Parts of a path in the cache, too.
        let safe = |part: &&str| !matches!(*part, "" | "." | "..") && !part.contains('\\');
        let whole = parts.len() >= 3
            && parts.iter().all(safe)
            && revision.is_none_or(|r| r.split('/').all(|part| safe(&part)));
        if !whole {
            bail!("{text}: expected {SCHEME}ORG/NAME/FILE or {SCHEME}ORG/NAME/FILE@REVISION")
        }
        Ok(Some(Self {
            repository: parts[..2].join("/"),
            file: parts[2..].join("/"),
            revision: revision.map(str::to_owned),
        }))
    }

    #[cfg(feature = "hub")]
    fn fetch(&self) -> Result<PathBuf> {
        use hf_hub::api::sync::ApiBuilder;
        use hf_hub::{Repo, RepoType};
        let revision = self.revision.clone().unwrap_or_else(|| "main".to_owned());
        let repository = Repo::with_revision(self.repository.clone(), RepoType::Model, revision);
        let api = ApiBuilder::from_env().with_progress(false).build();
        match api.and_then(|api| api.repo(repository).get(&self.file)) {
            Ok(path) => Ok(path),
            Err(e) => bail!("{self}: expected the file from the hub or its cache, got: {e}"),
        }
    }

    #[cfg(not(feature = "hub"))]
    fn fetch(&self) -> Result<PathBuf> {
        bail!(
            "{self}: expected a build with the feature `hub` for files of the hub (cargo build --release --features hub), or a \
             path to the downloaded file"
        )
    }
}

impl fmt::Display for HubFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.repository, self.file)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_paths() -> Result<()> {
        let parse = |name: &str| HubFile::parse(Path::new(name));
        for name in [
            "hf://timm/regnety_160/model.safetensors",
            "hf://timm/regnety_160/weights/a.pth@v1.0",
            "hf://timm/regnety_160/model.safetensors@refs/pr/1",
        ] {
            assert_eq!(parse(name)?.map(|file| file.to_string()).as_deref(), Some(name));
        }
        let file = parse("hf://a/b/c/d.pth@e")?;
        let wanted = HubFile {
            repository: "a/b".into(),
            file: "c/d.pth".into(),
            revision: Some("e".into()),
        };
        assert_eq!(file, Some(wanted));
        for path in ["teacher.pth", "/a/b/c@d", "hf/a/b/c", "https://a/b/c"] {
            assert_eq!(parse(path)?, None);
            assert_eq!(local(Path::new(path))?, Path::new(path));
        }
        for name in ["hf://", "hf://a/b", "hf://a//c", "hf://a/b/", "hf://a/b/../c", "hf://a/b/c@"]
        {
            let message = parse(name).err().map(|e| e.to_string()).unwrap_or_default();
            let expected = format!("{name}: expected hf://ORG/NAME/FILE");
            assert!(message.contains(&expected), "{message}");
        }
        Ok(())
    }

    /// With the feature this would ask the network.
    #[test]
    #[cfg(not(feature = "hub"))]
    fn without_the_feature_the_message_names_it() {
        let message = local(Path::new("hf://a/b/c.pth")).err().map(|e| e.to_string());
        assert!(message.is_some_and(|m| {
            m.contains("hf://a/b/c.pth: expected a build with the feature `hub`")
        }));
    }
}
