//! Writes the test vectors to `usb-joinpack/vectors`: `cargo run -p beemesh-usb-joinpack-format --example write-vectors`.
#![allow(clippy::unwrap_used)]

#[path = "../tests/generator/mod.rs"]
mod generator;

use std::{fs, path::Path};

fn main() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vectors");
    let _ = fs::remove_dir_all(&top);
    for case in generator::cases::cases() {
        for (path, content) in case.files {
            let path = top.join(case.name).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }
}
