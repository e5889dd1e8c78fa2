//! The workspace's dependency tree against `deny.toml`, and the checks against trees that break each rule.

use kiln_policy::{Metadata, Policy, violations};
use std::{path::Path, process::Command};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn policy() -> Policy {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml can be read");
    toml::from_str(&text).expect("deny.toml holds the keys of Policy")
}

#[test]
fn every_dependency_is_allowed() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version", "1", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree: Metadata = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    assert!(tree.packages.len() > 100, "only {} packages: is the tree complete?", tree.packages.len());
    let found = violations(&policy(), &tree);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn each_rule_is_enforced() {
    let tree: Metadata = serde_json::from_str(
        r#"{"workspace_members": ["ours"], "packages": [
            {"name": "ours", "version": "1", "id": "ours", "license": "MIT", "source": null, "dependencies": [{"registry": null}]},
            {"name": "gpl", "version": "1", "id": "a", "license": "GPL-3.0", "source": "registry+x", "dependencies": []},
            {"name": "bare", "version": "1", "id": "b", "license": null, "source": "registry+x", "dependencies": []},
            {"name": "openssl-sys", "version": "1", "id": "c", "license": "MIT", "source": "registry+x", "dependencies": []},
            {"name": "cloned", "version": "1", "id": "d", "license": "MIT", "source": "git+x", "dependencies": []},
            {"name": "foreign", "version": "1", "id": "e", "license": "MIT", "source": "registry+x",
             "dependencies": [{"registry": "elsewhere"}]},
            {"name": "beside", "version": "1", "id": "f", "license": "MIT", "source": null, "dependencies": []}
        ]}"#,
    )
    .expect("the tree is written as cargo writes it");
    let found = violations(&policy(), &tree);
    let names: Vec<&str> = found.iter().map(|line| line.split(' ').next().expect("a name")).collect();
    assert_eq!(names, ["gpl", "bare", "openssl-sys", "cloned", "foreign", "beside"], "{found:#?}");
}
