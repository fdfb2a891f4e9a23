//! Packages made of real programs of this machine, and what is refused of them.

use super::*;
use std::os::unix::fs::symlink;

/// Two package folders: one with the program, unmerged, one with the C library as Debian lays it out.
fn packages(folder: &Path, with_library: bool) -> Packages {
    let program = folder.join("program");
    fs::create_dir_all(program.join("sbin")).unwrap();
    fs::copy(std::env::current_exe().unwrap(), program.join("sbin/program")).unwrap();
    let library = folder.join("library");
    let place = library.join("lib/x86_64-linux-gnu");
    fs::create_dir_all(&place).unwrap();
    fs::create_dir_all(library.join("lib64")).unwrap();
    let loader = "ld-linux-x86-64.so.2";
    fs::copy(format!("/lib64/{loader}"), place.join("ld-real")).unwrap();
    symlink("ld-real", place.join(loader)).unwrap();
    symlink(
        format!("/lib/x86_64-linux-gnu/{loader}"),
        library.join("lib64").join(loader),
    )
    .unwrap();
    let needed = elf::linkage(&fs::read(std::env::current_exe().unwrap()).unwrap())
        .unwrap()
        .unwrap()
        .needed;
    for name in needed.iter().filter(|n| !n.starts_with("ld-linux")) {
        if with_library || name != "libc.so.6" {
            fs::copy(format!("/lib/x86_64-linux-gnu/{name}"), place.join(name)).unwrap();
        }
    }
    Packages {
        roots: vec![program, library],
    }
}

fn tree_of(packages: &Packages) -> Tree {
    let mut tree = Tree::default();
    skeleton(&mut tree).unwrap();
    tree.copy(
        "usr/sbin/program",
        0o755,
        &packages.find("/usr/sbin/program").unwrap(),
    )
    .unwrap();
    add_libraries(&mut tree, packages).unwrap();
    tree
}

#[test]
fn libraries_and_loader_come_along_through_links_and_unmerged_folders() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree_of(&packages(folder.path(), true));
    check_linkage(&tree).unwrap();
    assert!(tree.get("usr/lib64/ld-linux-x86-64.so.2").is_some());
    assert!(tree.get("usr/lib/x86_64-linux-gnu/libc.so.6").is_some());
}

#[test]
fn a_missing_library_is_named_with_who_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let error = check_linkage(&tree_of(&packages(folder.path(), false))).unwrap_err();
    match error.downcast_ref::<LinkError>() {
        Some(LinkError::Library { library, .. }) => assert_eq!(library, "libc.so.6"),
        other => panic!("{other:?}: {error}"),
    }
}

#[test]
fn a_library_without_the_needed_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let packages = packages(folder.path(), true);
    // Another library under the C library's name has none of its versions.
    let place = folder.path().join("library/lib/x86_64-linux-gnu");
    fs::copy(place.join("libgcc_s.so.1"), place.join("libc.so.6")).unwrap();
    let error = check_linkage(&tree_of(&packages)).unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(LinkError::Version { .. })),
        "{error}"
    );
}

#[test]
fn a_dynamic_init_and_a_missing_binary_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let packages = packages(folder.path(), true);
    let wanted = RootFiles {
        programs: vec![],
        libraries: vec![],
        files: vec![],
        links: vec![],
    };
    let binaries = [folder.path().join("binaries")];
    fs::create_dir(&binaries[0]).unwrap();
    let error = compose(&packages, &wanted, &binaries).unwrap_err().to_string();
    assert!(error.contains("`beemesh-init`"), "{error}");
    fs::copy(std::env::current_exe().unwrap(), binaries[0].join("beemesh-init")).unwrap();
    let error = compose(&packages, &wanted, &binaries).unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(LinkError::NotStatic(_))),
        "{error}"
    );
}

#[test]
fn links_in_a_circle_end() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("usr/lib")).unwrap();
    symlink("b", folder.path().join("usr/lib/a")).unwrap();
    symlink("a", folder.path().join("usr/lib/b")).unwrap();
    assert_eq!(
        Packages {
            roots: vec![folder.path().to_owned()]
        }
        .find("/usr/lib/a"),
        None
    );
}
