//! Where an image's bytes lie: decoded in memory, in a file of its own, or inside a tar shard.

use super::Image;
use candle_core::{Error, Result, bail};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

/// The images of a data set, read one at a time by any thread.
pub(crate) enum Source {
    /// Decoded images of one size, one after the other.
    Raw { size: usize, channels: usize, pixels: Vec<u8> },
    /// One file an image, decoded to so many channels.
    Files { paths: Vec<PathBuf>, channels: usize },
    /// Members of tar files.
    Shards { tars: Vec<PathBuf>, members: Vec<Member>, channels: usize },
}

/// Where one image lies in its shard.
pub(crate) struct Member {
    pub(crate) tar: usize,
    pub(crate) name: String,
    pub(crate) offset: u64,
    pub(crate) length: usize,
}

impl Source {
    /// Whether images are decoded on demand.
    pub(crate) fn encoded(&self) -> bool {
        !matches!(self, Self::Raw { .. })
    }

    /// The bytes of image `index` where they lie decoded in memory.
    pub(crate) fn raw(&self, index: usize) -> Option<&[u8]> {
        match self {
            Self::Raw { size, channels, pixels } => {
                let length = size * size * channels;
                pixels.get(index * length..(index + 1) * length)
            }
            _ => None,
        }
    }

    /// How messages call image `index`.
    pub(crate) fn name(&self, index: usize) -> String {
        match self {
            Self::Raw { .. } => format!("image {index}"),
            Self::Files { paths, .. } => match paths.get(index) {
                Some(path) => path.display().to_string(),
                None => format!("image {index} of {}", paths.len()),
            },
            Self::Shards { tars, members, .. } => match members.get(index) {
                Some(member) => format!("{}/{}", tars[member.tar].display(), member.name),
                None => format!("image {index} of {}", members.len()),
            },
        }
    }

    /// Reads and decodes image `index`.
    ///
    /// # Errors
    /// A file that can't be read or is no image, by its name.
    pub(crate) fn load(&self, index: usize) -> Result<Image> {
        self.decode(index)
            .map_err(|e| Error::Msg(format!("{}: {}", self.name(index), crate::plain(&e))))
    }

    fn decode(&self, index: usize) -> Result<Image> {
        match self {
            Self::Raw { size, channels, .. } => match self.raw(index) {
                Some(pixels) => Image::new(*size, *size, *channels, pixels.to_vec()),
                None => bail!("expected an image of the data set, got another index"),
            },
            Self::Files { paths, channels } => match paths.get(index) {
                Some(path) => Image::decode(&std::fs::read(path)?, *channels),
                None => bail!("expected an image of the data set, got another index"),
            },
            Self::Shards { tars, members, channels } => match members.get(index) {
                Some(member) => {
                    let mut file = File::open(&tars[member.tar])?;
                    file.seek(SeekFrom::Start(member.offset))?;
                    let mut bytes = Vec::new();
                    file.take(member.length as u64).read_to_end(&mut bytes)?;
                    if bytes.len() < member.length {
                        bail!("expected {} bytes, got {}", member.length, bytes.len())
                    }
                    Image::decode(&bytes, *channels)
                }
                None => bail!("expected an image of the data set, got another index"),
            },
        }
    }
}
