//! An OCI image of nginx, made on the spot from Debian's packages with umoci.
//!
//! The image is small because it holds nginx and the libraries it links, not a distribution. It is built once and kept
//! under target; the archive is a plain tar of the OCI layout.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the image in manifests.
pub const IMAGE: &str = "nginx:debian";
/// nginx, its files, and the libraries it links.
const PACKAGES: &[&str] = &[
    "nginx",
    "nginx-common",
    "libc6",
    "libcrypt1",
    "libpcre2-8-0",
    "libssl3",
    "zlib1g",
    "base-passwd",
];
/// What the page says: the stories look for it.
pub const PAGE: &str = "served by nginx on a Beemesh node\n";

const CONFIG: &str = "\
daemon off;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 256; }
http {
  include /etc/nginx/mime.types;
  access_log /dev/stdout;
  server { listen 80; root /srv; }
}
";

/// The archive, built where it is missing.
pub fn archive(target: &Path) -> Result<PathBuf> {
    let archive = target.join("e2e/nginx.oci.tar");
    if archive.exists() {
        return Ok(archive);
    }
    let work = tempfile::tempdir_in(target).context("failed to make a folder for the nginx image")?;
    let debs = work.path().join("debs");
    let bundle = work.path().join("bundle");
    let layout = work.path().join("layout");
    fs::create_dir(&debs)?;
    run(Command::new("apt-get")
        .args(["download", "-q"])
        .args(PACKAGES)
        .current_dir(&debs))?;

    let tagged = format!("{}:latest", layout.display());
    run(Command::new("umoci").args(["init", "--layout"]).arg(&layout))?;
    run(Command::new("umoci").args(["new", "--image", &tagged]))?;
    run(Command::new("umoci")
        .args(["unpack", "--image", &tagged])
        .arg(&bundle))?;
    let root = bundle.join("rootfs");
    for deb in fs::read_dir(&debs)? {
        run(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(&root))?;
    }
    for folder in [
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/lintian",
        "usr/lib/x86_64-linux-gnu/gconv",
    ] {
        let _ = fs::remove_dir_all(root.join(folder));
    }
    for folder in ["srv", "run", "tmp", "var/log/nginx", "var/lib/nginx"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("etc/nginx/nginx.conf"), CONFIG)?;
    fs::write(root.join("srv/index.html"), PAGE)?;
    fs::copy(
        root.join("usr/share/base-passwd/passwd.master"),
        root.join("etc/passwd"),
    )?;
    fs::copy(
        root.join("usr/share/base-passwd/group.master"),
        root.join("etc/group"),
    )?;
    run(Command::new("umoci")
        .args(["repack", "--image", &tagged])
        .arg(&bundle))?;
    run(Command::new("umoci").args([
        "config",
        "--image",
        &tagged,
        "--config.entrypoint",
        "/usr/sbin/nginx",
    ]))?;
    run(Command::new("umoci").args(["gc", "--layout"]).arg(&layout))?;

    let unfinished = archive.with_extension("unfinished");
    fs::create_dir_all(archive.parent().context("no parent")?)?;
    run(Command::new("tar")
        .arg("-cf")
        .arg(&unfinished)
        .arg("-C")
        .arg(&layout)
        .arg("."))?;
    fs::rename(&unfinished, &archive)?;
    Ok(archive)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("failed to start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// A Deployment of `replicas` nginx pods that publish `port` on their nodes.
pub fn deployment(replicas: u32, port: u16) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: {replicas}
  selector:
    matchLabels: {{app: web}}
  template:
    metadata:
      labels: {{app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
        - name: nginx
          image: {IMAGE}
          ports:
            - containerPort: 80
              hostPort: {port}
          resources:
            limits: {{memory: 128Mi, cpu: 500m}}
"
    )
}
