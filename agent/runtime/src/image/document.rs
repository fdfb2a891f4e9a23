//! The JSON documents of an OCI image: which manifest fits this machine, what its layers are.
//!
//! It opens nothing: bytes in, types out. Invariant: what comes out is within the bounds of [`Limits`], has a configuration
//! for linux/amd64 and as many diff ids as layers. Source: OCI image spec 1.1.

use super::refusal::ImageRefusal;
use beemesh_ids::Digest;
use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os};

/// The annotation that names an image in a layout's index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same as containerd and docker write it: with the repository.
const FULL_NAME: &str = "io.containerd.image.name";
/// Most indexes inside of indexes.
pub(crate) const NESTING: usize = 3;

/// Bounds of an import.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of an index, a manifest or a configuration. Default 4 MiB.
    pub document: u64,
    /// Layers of an image. Default 128.
    pub layers: usize,
    /// Bytes of all blobs of an archive or an image. Default 8 GiB.
    pub blobs: u64,
    /// Members of an archive. Default 4,096.
    pub members: usize,
    /// Bytes that all layers of an image unpack to, headers included. Default 16 GiB.
    pub unpacked: u64,
    /// Files of all layers of an image. Default 1,000,000.
    pub files: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            document: 4 << 20,
            layers: 128,
            blobs: 8 << 30,
            members: 4096,
            unpacked: 16 << 30,
            files: 1_000_000,
        }
    }
}

/// A blob that a document names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobRef {
    pub digest: Digest,
    pub size: u64,
}

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A layer as the manifest names it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerRef {
    pub blob: BlobRef,
    pub packing: Packing,
}

fn malformed(what: &str, err: impl std::fmt::Display) -> ImageRefusal {
    ImageRefusal::Malformed {
        what: what.into(),
        reason: err.to_string(),
    }
}

pub(crate) fn blob_of(descriptor: &Descriptor) -> Result<BlobRef, ImageRefusal> {
    let digest = descriptor
        .digest()
        .to_string()
        .parse()
        .map_err(|err| malformed("a descriptor's digest", err))?;
    Ok(BlobRef {
        digest,
        size: descriptor.size(),
    })
}

/// The name that a layout gives an image, in its fullest form.
pub(crate) fn name_of(descriptor: &Descriptor) -> Option<&str> {
    let annotations = descriptor.annotations().as_ref()?;
    annotations
        .get(FULL_NAME)
        .or_else(|| annotations.get(REF_NAME))
        .map(String::as_str)
}

pub(crate) fn parse_index(bytes: &[u8]) -> Result<ImageIndex, ImageRefusal> {
    let index: ImageIndex = serde_json::from_slice(bytes).map_err(|err| malformed("the image index", err))?;
    if index.schema_version() != 2 {
        return Err(malformed("the image index", "its schema version is not 2"));
    }
    Ok(index)
}

/// The manifests of an index that can run here, best first: those that say linux/amd64, then those that say nothing.
pub(crate) fn candidates(index: &ImageIndex) -> Vec<&Descriptor> {
    let fits = |descriptor: &&Descriptor| {
        descriptor
            .platform()
            .as_ref()
            .is_some_and(|platform| *platform.os() == Os::Linux && *platform.architecture() == Arch::Amd64)
    };
    let (exact, rest): (Vec<_>, Vec<_>) = index.manifests().iter().partition(fits);
    if exact.is_empty() {
        rest.into_iter()
            .filter(|descriptor| descriptor.platform().is_none())
            .collect()
    } else {
        exact
    }
}

/// The one entry of a layout's index that `wanted` means, with its name.
pub(crate) fn choose<'a>(
    index: &'a ImageIndex,
    wanted: Option<&str>,
) -> Result<&'a Descriptor, ImageRefusal> {
    let fitting = candidates(index);
    match fitting.as_slice() {
        [] => Err(ImageRefusal::NoPlatform),
        [one] => Ok(one),
        several => {
            let named: Vec<_> = several
                .iter()
                .filter(|descriptor| {
                    wanted.is_some_and(|wanted| {
                        name_of(descriptor).is_some_and(|name| {
                            name == wanted || wanted.rsplit_once(':').is_some_and(|(_, tag)| tag == name)
                        })
                    })
                })
                .collect();
            match named.as_slice() {
                [one] => Ok(one),
                _ => {
                    let names: Vec<_> = several.iter().filter_map(|d| name_of(d)).take(16).collect();
                    Err(ImageRefusal::Ambiguous {
                        names: names.join(", "),
                    })
                }
            }
        }
    }
}

pub(crate) fn is_index(descriptor: &Descriptor) -> bool {
    match descriptor.media_type() {
        MediaType::ImageIndex => true,
        MediaType::Other(other) => other == "application/vnd.docker.distribution.manifest.list.v2+json",
        _ => false,
    }
}

/// A manifest's configuration and layers, within the bounds.
pub(crate) fn parse_manifest(
    bytes: &[u8],
    limits: &Limits,
) -> Result<(BlobRef, Vec<LayerRef>), ImageRefusal> {
    let manifest: ImageManifest =
        serde_json::from_slice(bytes).map_err(|err| malformed("the image manifest", err))?;
    if manifest.schema_version() != 2 {
        return Err(malformed("the image manifest", "its schema version is not 2"));
    }
    if manifest.layers().len() > limits.layers {
        return Err(ImageRefusal::TooLarge {
            what: "the number of layers".into(),
            limit: limits.layers as u64,
        });
    }
    let layers = manifest
        .layers()
        .iter()
        .map(layer_of)
        .collect::<Result<Vec<_>, _>>()?;
    let total = layers
        .iter()
        .try_fold(0u64, |sum, layer| sum.checked_add(layer.blob.size));
    if total.is_none_or(|total| total > limits.blobs) {
        return Err(ImageRefusal::TooLarge {
            what: "the size of all layers".into(),
            limit: limits.blobs,
        });
    }
    Ok((blob_of(manifest.config())?, layers))
}

fn layer_of(descriptor: &Descriptor) -> Result<LayerRef, ImageRefusal> {
    let blob = blob_of(descriptor)?;
    let packing = match descriptor.media_type() {
        MediaType::ImageLayer => Packing::Plain,
        MediaType::ImageLayerGzip => Packing::Gzip,
        MediaType::ImageLayerZstd => Packing::Zstd,
        MediaType::Other(other) if other == "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Packing::Gzip
        }
        MediaType::Other(other) if other == "application/vnd.docker.image.rootfs.diff.tar" => Packing::Plain,
        other => {
            let media_type = other.to_string().chars().take(120).collect();
            return Err(ImageRefusal::UnsupportedLayer {
                blob: blob.digest,
                media_type,
            });
        }
    };
    Ok(LayerRef { blob, packing })
}

/// An image's configuration and the diff ids of its layers.
pub(crate) fn parse_config(
    bytes: &[u8],
    layers: usize,
) -> Result<(ImageConfiguration, Vec<Digest>), ImageRefusal> {
    let config: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|err| malformed("the image configuration", err))?;
    if *config.os() != Os::Linux || *config.architecture() != Arch::Amd64 {
        return Err(ImageRefusal::NoPlatform);
    }
    let ids = config.rootfs().diff_ids();
    if ids.len() != layers {
        let reason = format!("it names {} layers, the manifest {layers}", ids.len());
        return Err(malformed("the image configuration", reason));
    }
    let ids = ids
        .iter()
        .map(|id| id.parse().map_err(|err| malformed("a diff id", err)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((config, ids))
}

/// A name in the store's form: with a tag, `:latest` where none is given.
pub fn normal_name(name: &str) -> Result<String, ImageRefusal> {
    let bad = || ImageRefusal::BadName {
        name: name.chars().take(80).collect(),
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
    let starts = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if !starts
        || name.len() > 255
        || !name.chars().all(legal)
        || name.contains("//")
        || name.ends_with(['/', ':'])
    {
        return Err(bad());
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        None => Ok(format!("{name}:latest")),
        Some((base, tag)) if !base.is_empty() && !tag.contains(':') && tag.len() <= 128 => Ok(name.into()),
        Some(_) => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_a_tag_and_nonsense_is_refused() {
        assert_eq!(normal_name("nginx").unwrap(), "nginx:latest");
        assert_eq!(normal_name("site/nginx:1.22").unwrap(), "site/nginx:1.22");
        assert_eq!(normal_name("host:5000/nginx").unwrap(), "host:5000/nginx:latest");
        for name in [
            "",
            "/x",
            "a//b",
            "a:",
            "a:b:c",
            "a b",
            "../x",
            "a\n",
            &"a".repeat(256),
        ] {
            assert!(normal_name(name).is_err(), "{name:?}");
        }
    }

    fn index(manifests: &str) -> ImageIndex {
        parse_index(format!("{{\"schemaVersion\":2,\"manifests\":[{manifests}]}}").as_bytes()).unwrap()
    }

    fn entry(digit: char, more: &str) -> String {
        format!(
            "{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"size\":1,\
             \"digest\":\"sha256:{}\"{more}}}",
            digit.to_string().repeat(64)
        )
    }

    #[test]
    fn the_variant_for_this_machine_is_chosen() {
        let arm = entry('a', ",\"platform\":{\"os\":\"linux\",\"architecture\":\"arm64\"}");
        let amd = entry('b', ",\"platform\":{\"os\":\"linux\",\"architecture\":\"amd64\"}");
        let both = index(&format!("{arm},{amd}"));
        assert!(choose(&both, None).unwrap().digest().to_string().contains("bbb"));
        assert_eq!(choose(&index(&arm), None), Err(ImageRefusal::NoPlatform));
    }

    #[test]
    fn several_images_need_a_name() {
        let named = |digit, name| {
            entry(
                digit,
                &format!(",\"annotations\":{{\"org.opencontainers.image.ref.name\":\"{name}\"}}"),
            )
        };
        let both = index(&format!("{},{}", named('a', "one"), named('b', "two")));
        assert!(matches!(choose(&both, None), Err(ImageRefusal::Ambiguous { .. })));
        assert!(
            choose(&both, Some("site/web:two"))
                .unwrap()
                .digest()
                .to_string()
                .contains("bbb")
        );
    }

    #[test]
    fn more_layers_than_the_bound_are_refused() {
        let layer = entry('c', "").replace("manifest.v1+json", "layer.v1.tar");
        let config = entry('d', "").replace("manifest.v1+json", "config.v1+json");
        let manifest = format!(
            "{{\"schemaVersion\":2,\"config\":{config},\"layers\":[{}]}}",
            vec![layer; 129].join(",")
        );
        let refused = parse_manifest(manifest.as_bytes(), &Limits::default());
        assert!(matches!(refused, Err(ImageRefusal::TooLarge { limit: 128, .. })));
    }
}
