//! OCI archives made in memory, sound ones and ones with a chosen defect: what tests and the contract program import.
//!
//! Not for production: everything is held in memory. Invariant: without a [`Defect`] an archive is valid by the OCI image
//! spec (a test holds it against skopeo).

use beemesh_ids::Digest;
use serde_json::{Value, json};
use std::io;

/// What is wrong with an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// One bit of the last layer's blob is flipped.
    FlippedBit,
    /// The last layer's blob is not there.
    MissingBlob,
    /// The last layer's descriptor says one byte less.
    ShortDescriptor,
    /// The configuration names another diff id for the last layer.
    WrongDiffId,
    /// The image is for another architecture.
    OtherPlatform,
    /// `oci-layout` is missing.
    NoLayoutFile,
}

/// Compression of the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// One layer in the making.
pub struct Layer {
    tar: tar::Builder<Vec<u8>>,
}

impl Default for Layer {
    fn default() -> Self {
        Self {
            tar: tar::Builder::new(Vec::new()),
        }
    }
}

impl Layer {
    /// Adds a member as it is: `path` and `link` are not checked.
    pub fn member(
        mut self,
        kind: tar::EntryType,
        path: &str,
        link: &str,
        mode: u32,
        content: &[u8],
    ) -> io::Result<Self> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        let old = header.as_old_mut();
        for (field, text) in [(&mut old.name, path), (&mut old.linkname, link)] {
            let bytes = text.as_bytes();
            let place = field.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
            place.copy_from_slice(bytes);
        }
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.tar.append(&header, content)?;
        Ok(self)
    }

    /// A file.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> io::Result<Self> {
        self.member(tar::EntryType::Regular, path, "", mode, content)
    }

    /// A directory with mode 0755.
    pub fn dir(self, path: &str) -> io::Result<Self> {
        self.member(tar::EntryType::Directory, path, "", 0o755, &[])
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> io::Result<Self> {
        self.member(tar::EntryType::Symlink, path, target, 0o777, &[])
    }

    /// A hard link.
    pub fn hard_link(self, path: &str, target: &str) -> io::Result<Self> {
        self.member(tar::EntryType::Link, path, target, 0o644, &[])
    }

    /// A PAX header for the next member.
    pub fn pax(mut self, pairs: &[(&str, &[u8])]) -> io::Result<Self> {
        self.tar.append_pax_extensions(pairs.iter().copied())?;
        Ok(self)
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        self.tar.into_inner()
    }
}

/// An archive in the making.
pub struct Archive {
    layers: Vec<Vec<u8>>,
    compression: Compression,
    config: Value,
    name: Option<String>,
    defect: Option<Defect>,
}

impl Default for Archive {
    fn default() -> Self {
        Self {
            layers: Vec::new(),
            compression: Compression::Gzip,
            config: json!({"Cmd": ["/bin/sh"]}),
            name: None,
            defect: None,
        }
    }
}

impl Archive {
    /// Adds a layer on top.
    pub fn layer(mut self, layer: Layer) -> io::Result<Self> {
        self.layers.push(layer.finish()?);
        Ok(self)
    }

    /// Chooses the compression of all layers.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Sets the `config` object of the configuration.
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// Annotates the image with a name.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Breaks it.
    pub fn defect(mut self, defect: Defect) -> Self {
        self.defect = Some(defect);
        self
    }

    /// The archive: an uncompressed tar of an OCI layout.
    pub fn build(self) -> io::Result<Vec<u8>> {
        let (mut blobs, mut layers, mut diff_ids) = (Vec::new(), Vec::new(), Vec::new());
        let last = self.layers.len().saturating_sub(1);
        for (number, plain) in self.layers.iter().enumerate() {
            let broken = |defect| number == last && self.defect == Some(defect);
            let (mut packed, suffix) = compress(plain, self.compression)?;
            let digest = Digest::of(&packed);
            let size = packed.len() - usize::from(broken(Defect::ShortDescriptor));
            let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            layers.push(json!({"mediaType": media_type, "digest": digest.to_string(), "size": size}));
            let diff_id = if broken(Defect::WrongDiffId) {
                Digest::of(b"other")
            } else {
                Digest::of(plain)
            };
            diff_ids.push(diff_id.to_string());
            if broken(Defect::FlippedBit) {
                let middle = packed.len() / 2;
                packed[middle] ^= 1;
            }
            if !broken(Defect::MissingBlob) {
                blobs.push((digest, packed));
            }
        }
        let architecture = if self.defect == Some(Defect::OtherPlatform) {
            "arm64"
        } else {
            "amd64"
        };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = descriptor(&mut blobs, "application/vnd.oci.image.config.v1+json", &config)?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        let mut manifest = descriptor(&mut blobs, media_type, &manifest)?;
        if let Some(name) = &self.name {
            manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        let mut tar = tar::Builder::new(Vec::new());
        if self.defect != Some(Defect::NoLayoutFile) {
            append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        append(&mut tar, "index.json", &serde_json::to_vec(&index)?)?;
        for (digest, bytes) in blobs {
            append(&mut tar, &format!("blobs/sha256/{}", digest.hex()), &bytes)?;
        }
        tar.into_inner()
    }
}

fn descriptor(blobs: &mut Vec<(Digest, Vec<u8>)>, media_type: &str, document: &Value) -> io::Result<Value> {
    let bytes = serde_json::to_vec(document)?;
    let digest = Digest::of(&bytes);
    let size = bytes.len();
    blobs.push((digest, bytes));
    Ok(json!({"mediaType": media_type, "digest": digest.to_string(), "size": size}))
}

fn compress(plain: &[u8], compression: Compression) -> io::Result<(Vec<u8>, &'static str)> {
    match compression {
        Compression::None => Ok((plain.to_vec(), "")),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut encoder, plain)?;
            Ok((encoder.finish()?, "+gzip"))
        }
        Compression::Zstd => Ok((zstd::encode_all(plain, 1)?, "+zstd")),
    }
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
}

/// An image around a statically linked busybox: `/bin/sh` and what it brings, accounts for `root` and `web` (uid 33),
/// run by `user`.
pub fn busybox(program: &[u8], applets: &[&str], user: &str) -> io::Result<Vec<u8>> {
    let mut base =
        Layer::default()
            .dir("bin/")?
            .dir("etc/")?
            .dir("tmp/")?
            .file("bin/busybox", 0o755, program)?;
    for applet in applets {
        base = base.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    let accounts = Layer::default()
        .file(
            "etc/passwd",
            0o644,
            b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n",
        )?
        .file("etc/group", 0o644, b"root:x:0:\nweb:x:34:\nlogs:x:44:web\n")?
        .file("etc/lower", 0o644, b"hidden by the layer above\n")?;
    let top = Layer::default()
        .file("etc/.wh.lower", 0o644, b"")?
        .file("etc/upper", 0o644, b"upper\n")?;
    Archive::default()
        .layer(base)?
        .layer(accounts)?
        .layer(top)?
        .config(
            json!({"User": user, "Cmd": ["/bin/sh"], "Env": ["FROM_IMAGE=yes"], "WorkingDir": "/srv/made"}),
        )
        .build()
}
