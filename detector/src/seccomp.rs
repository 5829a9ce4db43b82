//! The seccomp profile that the agent runs under, carried inside so that a pod can put it where the
//! kubelet looks for it: what a version calls and what it may call are then the same version's.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// The profile, in the form that kubelet, container runtimes and Docker share. `cargo xtask seccomp`
/// holds it against what the agent calls.
pub const PROFILE: &str = include_str!("../../deploy/seccomp/detector.json");

/// Writes the profile to a file. Whoever reads it meanwhile reads the old one or the new one, whole.
pub fn install(file: &Path) -> Result<()> {
    let wrong = || {
        format!(
            "the profile cannot be written to {}: its folder must be there, and writable",
            file.display()
        )
    };
    let mut fresh = file.as_os_str().to_owned();
    fresh.push(".new");
    fs::write(&fresh, PROFILE).with_context(wrong)?;
    fs::rename(&fresh, file).with_context(wrong)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_profile_allows_what_it_names_and_refuses_the_rest() {
        let profile: Value = serde_json::from_str(PROFILE).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let rules = profile["syscalls"].as_array().unwrap();
        assert!(rules.iter().all(|rule| rule["action"] == "SCMP_ACT_ALLOW"));
        let names: Vec<&str> = rules
            .iter()
            .filter(|rule| rule["args"].is_null())
            .flat_map(|rule| rule["names"].as_array().unwrap())
            .map(|name| name.as_str().unwrap())
            .collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "named twice");
        // Of sockets some families only.
        assert!(!names.contains(&"socket"));
        // What nobody who takes over the agent shall have, whatever it once may call.
        let never = [
            "execveat",
            "ptrace",
            "mount",
            "setns",
            "unshare",
            "init_module",
            "finit_module",
            "kexec_load",
            "process_vm_readv",
            "process_vm_writev",
            "keyctl",
            "io_uring_setup",
            "chroot",
            "open_by_handle_at",
            "userfaultfd",
        ];
        for never in never {
            assert!(!names.contains(&never), "{never}");
        }
    }

    #[test]
    fn it_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("detector.json");
        fs::write(&file, "an older one").unwrap();
        install(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), PROFILE);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let nowhere = folder.path().join("none/detector.json");
        let error = format!("{:#}", install(&nowhere).unwrap_err());
        assert!(error.contains("its folder must be there"), "{error}");
    }
}
