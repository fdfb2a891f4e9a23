//! The root file system: our binaries, the few programs of Debian they call, and the libraries both are linked with.
//!
//! Takes files, never packages as a whole: no maintainer script runs, no documentation comes along. Invariant: each
//! ELF file in it finds its interpreter, its libraries and the symbol versions it was linked against.

use crate::{
    elf::{self, Linkage},
    packages::RootFiles,
    tree::{Content, Node, Tree},
};
use anyhow::{Context, Result, bail};
use std::process::Command;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Our binaries, and whether they must be static.
const BINARIES: [(&str, bool); 7] = [
    ("beemesh-init", true),
    ("beemesh-logd", true),
    ("beemesh-control", true),
    ("beemesh-net", true),
    ("beemesh-shim", true),
    ("beemesh-unlock", false),
    ("beemesh-agent", false),
];
const OURS: &str = "usr/lib/beemesh";
/// The root of the container that the agent tests itself with; packing stores its one file once.
const SELF_TEST: &str = "usr/lib/beemesh/self-test/beemesh-shim";
/// Where the dynamic loader looks without being told.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LINK_DEPTH: usize = 8;

/// A file that could not be loaded in the image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// A library is missing.
    #[error(
        "`{file}` needs library `{library}`, which no locked package has: add its package to packages.toml"
    )]
    Library {
        /// Who needs it.
        file: String,
        /// DT_NEEDED.
        library: String,
    },
    /// A library is too old.
    #[error(
        "`{file}` needs `{version}` of library `{library}`, which the locked package does not have: \
         build on the release that packages.lock was resolved on, or run `image lock --update`"
    )]
    Version {
        /// Who needs it.
        file: String,
        /// Which library.
        library: String,
        /// Which symbol version.
        version: String,
    },
    /// The loader is missing.
    #[error("`{file}` needs interpreter `{interpreter}`, which is not in the image")]
    Interpreter {
        /// Who needs it.
        file: String,
        /// PT_INTERP.
        interpreter: String,
    },
    /// Should be static.
    #[error(
        "`{0}` is linked dynamically: it runs where there are no libraries. Build it with \
         `-C target-feature=+crt-static` for x86_64-unknown-linux-gnu and name that folder first"
    )]
    NotStatic(String),
}

/// Unpacked packages.
pub struct Packages {
    /// One folder each.
    pub roots: Vec<PathBuf>,
}

impl Packages {
    /// The file at `path` (absolute, merged `/usr`) of whichever package has it, links followed within the packages.
    pub fn find(&self, path: &str) -> Option<PathBuf> {
        self.follow(path, LINK_DEPTH)
    }

    fn follow(&self, path: &str, depth: usize) -> Option<PathBuf> {
        let merged = path.trim_start_matches('/');
        let unmerged = merged.strip_prefix("usr/").unwrap_or(merged);
        for (root, name) in self
            .roots
            .iter()
            .flat_map(|root| [(root, merged), (root, unmerged)])
        {
            let place = root.join(name);
            let Ok(metadata) = place.symlink_metadata() else {
                continue;
            };
            if metadata.is_file() {
                return Some(place);
            }
            if metadata.is_symlink() && depth > 0 {
                let target = fs::read_link(&place).ok()?;
                let parent = Path::new("/usr").join(unmerged);
                let target = parent.parent().unwrap_or(Path::new("/")).join(target);
                return self.follow(&merged_path(&target)?, depth - 1);
            }
        }
        None
    }
}

/// Resolves `..` and puts what was outside `/usr` into it.
fn merged_path(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.to_str()?.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    let joined = parts.join("/");
    Some(if joined.starts_with("usr/") || joined.starts_with("etc/") {
        joined
    } else {
        format!("usr/{joined}")
    })
}

/// The first of `folders` that has the binary.
pub fn find_binary(folders: &[PathBuf], name: &str) -> Result<PathBuf> {
    let found = folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    found.with_context(|| {
        let searched: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
        format!(
            "there is no binary `{name}` in {}: build it first",
            searched.join(", ")
        )
    })
}

/// The program without its symbol table: what the firmware must read and measure at each boot is a quarter smaller.
fn stripped(path: &Path) -> Result<Vec<u8>> {
    let output = tempfile::NamedTempFile::new().context("failed to make a temporary file")?;
    let strip = Command::new("strip")
        .arg("-s")
        .arg("-o")
        .arg(output.path())
        .arg(path)
        .output();
    let strip = strip.context("failed to start `strip`: install binutils")?;
    if !strip.status.success() {
        bail!(
            "failed to strip `{}`: {}",
            path.display(),
            String::from_utf8_lossy(&strip.stderr).trim()
        );
    }
    fs::read(output.path()).with_context(|| format!("failed to read the stripped `{}`", path.display()))
}

/// The root without modules and os-release.
pub fn compose(packages: &Packages, wanted: &RootFiles, binaries: &[PathBuf]) -> Result<Tree> {
    let mut tree = Tree::default();
    skeleton(&mut tree)?;
    for (name, must_be_static) in BINARIES {
        let path = find_binary(binaries, name)?;
        let bytes = fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
        let linkage = elf::linkage(&bytes).with_context(|| format!("`{}` is damaged", path.display()))?;
        let linkage = linkage.with_context(|| format!("`{}` is no program", path.display()))?;
        if must_be_static && !linkage.is_static() {
            bail!(LinkError::NotStatic(path.display().to_string()));
        }
        let stripped = stripped(&path)?;
        if name == "beemesh-shim" {
            tree.program(SELF_TEST, stripped.clone())?;
        }
        tree.program(&format!("{OURS}/{name}"), stripped)?;
    }
    tree.link("usr/sbin/init", "../lib/beemesh/beemesh-init")?;
    let find = |path: &str| {
        packages
            .find(path)
            .with_context(|| format!("no locked package has `{path}`"))
    };
    for path in &wanted.programs {
        tree.copy(path, 0o755, &find(path)?)?;
    }
    for path in &wanted.files {
        let source = find(path)?;
        let mode = fs::metadata(&source)?.permissions().mode() & 0o755;
        tree.copy(path, mode, &source)?;
    }
    for (path, target) in &wanted.links {
        tree.link(path, target)?;
    }
    for library in &wanted.libraries {
        let path = format!("{LIBRARIES}/{library}");
        tree.copy(&path, 0o644, &find(&path)?)?;
    }
    add_libraries(&mut tree, packages)?;
    check_linkage(&tree)?;
    Ok(tree)
}

fn skeleton(tree: &mut Tree) -> Result<()> {
    for path in [
        "dev",
        "etc",
        "proc",
        "run",
        "sys",
        "usr/bin",
        "usr/sbin",
        "usr/lib64",
        LIBRARIES,
        "var/lib/beemesh",
    ] {
        tree.directory(path, 0o755)?;
    }
    tree.directory("root", 0o700)?;
    tree.directory("tmp", 0o1777)?;
    for (path, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("var/run", "../run"),
        ("var/tmp", "../tmp"),
        ("etc/mtab", "../proc/self/mounts"),
        ("etc/os-release", "../usr/lib/os-release"),
        ("etc/resolv.conf", "../run/beemesh/resolv.conf"),
    ] {
        tree.link(path, target)?;
    }
    tree.text(
        "etc/passwd",
        "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    )?;
    tree.text("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    tree.text("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
    tree.text(
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    )
}

fn elf_files(tree: &Tree) -> Result<BTreeMap<String, Linkage>> {
    let mut found = BTreeMap::new();
    for (path, node) in tree.iter() {
        let Node::File { content, .. } = node else {
            continue;
        };
        // Kernel modules are ELF files too, with dependencies of another kind.
        if path.ends_with(".ko") {
            continue;
        }
        if let Some(linkage) =
            elf::linkage(&content.read()?).with_context(|| format!("`{path}` is damaged"))?
        {
            found.insert(path.to_owned(), linkage);
        }
    }
    Ok(found)
}

fn library_path(tree: &Tree, name: &str) -> Option<String> {
    let places = [LIBRARIES, "usr/lib64"].map(|folder| format!("{folder}/{name}"));
    places.into_iter().find(|path| tree.get(path).is_some())
}

/// Adds what the ELF files need and the packages have, until nothing is added.
fn add_libraries(tree: &mut Tree, packages: &Packages) -> Result<()> {
    let mut pending: Vec<Linkage> = elf_files(tree)?.into_values().collect();
    while let Some(linkage) = pending.pop() {
        let interpreter = linkage
            .interpreter
            .iter()
            .map(|path| format!("usr/{}", path.trim_start_matches('/')));
        let libraries = linkage.needed.iter().filter(|n| library_path(tree, n).is_none());
        let wanted: Vec<_> = libraries
            .map(|n| format!("{LIBRARIES}/{n}"))
            .chain(interpreter)
            .collect();
        for path in wanted {
            // The loader is in place under its own name: nobody opens it as a library.
            if tree.get(&path).is_some() || path.contains("/ld-linux") && !path.starts_with("usr/lib64") {
                continue;
            }
            let Some(source) = packages.find(&path) else {
                continue;
            };
            tree.copy(&path, 0o755, &source)?;
            pending.extend(elf::linkage(&Content::File(source).read()?)?);
        }
    }
    Ok(())
}

fn check_linkage(tree: &Tree) -> Result<(), anyhow::Error> {
    let files = elf_files(tree)?;
    for (file, linkage) in &files {
        let file = file.clone();
        if let Some(interpreter) = &linkage.interpreter {
            let path = merged_path(Path::new(interpreter)).unwrap_or_default();
            if tree.get(&path).is_none() {
                bail!(LinkError::Interpreter {
                    file,
                    interpreter: interpreter.clone()
                });
            }
        }
        for library in &linkage.needed {
            if library_path(tree, library).is_none() {
                bail!(LinkError::Library {
                    file,
                    library: library.clone()
                });
            }
        }
        for (library, version) in &linkage.versions_needed {
            let offered = library_path(tree, library).and_then(|path| files.get(&path));
            if !offered.is_some_and(|l| l.versions_offered.contains(version)) {
                bail!(LinkError::Version {
                    file,
                    library: library.clone(),
                    version: version.clone()
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
