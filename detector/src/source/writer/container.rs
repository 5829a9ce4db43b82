//! From the path of a control group to the containers that it names.
//!
//! Kubelet's cgroup driver is `systemd` or `cgroupfs`; under the pod's folder each runtime has a name
//! of its own for a container's. All of them end in the 64 hexadecimal digits of the container's id.
//!
//! | driver | pod | container |
//! |---|---|---|
//! | systemd | `kubepods-burstable-pod1234_….slice` | `cri-containerd-ID.scope`, `crio-ID.scope`, `docker-ID.scope` |
//! | cgroupfs | `pod1234-…` | `ID`, `crio-ID` |
//! | containerd told of one and set to the other | `kubepods-burstable-pod1234_….slice:cri-containerd:ID`, both in one | |

use detector_core::workload::Uid;
use detector_core::writer::Container;

/// Digits of a container's id.
const DIGITS: usize = 64;

/// The containers that a path names: those of pods first, of these the outermost, for who is in one can
/// make folders of any name within its own; `folders` come from the innermost outwards.
pub(super) fn containers<'a>(folders: impl Iterator<Item = &'a str>) -> Vec<Container> {
    let mut found: Vec<Container> = Vec::new();
    // Containers whose pod is yet to come, further out.
    let mut homeless = 0;
    for folder in folders {
        // With runc's form for systemd, which has all in one name, the container is the last part.
        for part in folder.rsplit(':') {
            if let Some(id) = id_of(part) {
                found.push(Container { id: id.into(), pod: None });
            } else if let Some(uid) = pod_of(part) {
                // Within a pod the outermost is what the runtime calls the container; what runs
                // within that is its own affair.
                let own = found.drain(homeless..).next_back();
                if let Some(own) = own {
                    found.push(Container { pod: Some(uid), ..own });
                }
                homeless = found.len();
            }
        }
    }
    found.reverse();
    found.sort_by_key(|container| container.pod.is_none());
    found
}

/// The id in the name of a container's folder.
fn id_of(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (kind, id) = name.split_at_checked(name.len().checked_sub(DIGITS)?)?;
    let digits = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    // The process that watches over a container is not in it.
    let is_monitor = kind.contains("conmon");
    (digits && (kind.is_empty() || kind.ends_with('-')) && !is_monitor).then_some(id)
}

/// The uid in the name of a pod's folder: that of the API, or of a static pod the digest of its
/// manifest.
fn pod_of(name: &str) -> Option<Uid> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let at = name.rfind("pod")?;
    let kind = &name[..at];
    let uid = name[at + 3..].replace('_', "-");
    let digits = uid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    ((32..=36).contains(&uid.len()) && digits && (kind.is_empty() || kind.ends_with('-')))
        .then(|| Uid(uid.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const TWO: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const POD: &str = "12345678-1234-1234-1234-123456789abc";
    const OTHER: &str = "87654321-4321-4321-4321-cba987654321";

    fn read(path: &str) -> Vec<(String, Option<String>)> {
        let folders = path.split('/').rev().filter(|folder| !folder.is_empty());
        let pair = |c: Container| (c.id.into(), c.pod.map(|uid| uid.0.into()));
        containers(folders).into_iter().map(pair).collect()
    }

    fn one_of(pod: &str) -> Vec<(String, Option<String>)> {
        vec![(ONE.to_owned(), Some(pod.to_owned()))]
    }

    #[test]
    fn each_driver_and_runtime_has_its_form() {
        let flat = POD.replace('-', "_");
        for path in [
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{flat}.slice/cri-containerd-{ONE}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{flat}.slice/crio-{ONE}.scope"),
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{flat}.slice/docker-{ONE}.scope"
            ),
            format!("/kubepods/burstable/pod{POD}/{ONE}"),
            format!("/kubepods/besteffort/pod{POD}/crio-{ONE}"),
            format!(
                "/system.slice/containerd.service/kubepods-burstable-pod{flat}.slice:cri-containerd:{ONE}"
            ),
            // A node that is itself a container, by kind.
            format!("/docker/{TWO}/kubelet/kubepods/pod{POD}/{ONE}"),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{flat}.slice/cri-containerd-{ONE}.scope"
            ),
            // systemd runs in the container.
            format!(
                "/kubepods.slice/kubepods-pod{flat}.slice/cri-containerd-{ONE}.scope/init.scope"
            ),
            // Docker runs in it.
            format!("/kubepods/pod{POD}/{ONE}/docker/{TWO}"),
        ] {
            let found = read(&path);
            assert_eq!(found[..1], one_of(POD)[..], "{path}");
        }
    }

    #[test]
    fn a_static_pod_has_a_digest() {
        let digest = "0123456789abcdef0123456789abcdef";
        assert_eq!(read(&format!("/kubepods/pod{digest}/{ONE}")), one_of(digest));
    }

    #[test]
    fn what_is_made_within_a_pod_hides_nobody() {
        let path = format!("/kubepods/pod{POD}/{ONE}/kubelet/kubepods/pod{OTHER}/{TWO}");
        let inner = (TWO.to_owned(), Some(OTHER.to_owned()));
        assert_eq!(read(&path), [one_of(POD).remove(0), inner]);
    }

    #[test]
    fn without_a_pod_there_may_be_a_container() {
        assert_eq!(read(&format!("/system.slice/docker-{ONE}.scope")), [(ONE.to_owned(), None)]);
        assert_eq!(read(&format!("/machine.slice/libpod-{ONE}.scope")), [(ONE.to_owned(), None)]);
    }

    #[test]
    fn what_is_none_is_not_taken_for_one() {
        for path in [
            "/",
            "/user.slice/user-0.slice/session-1.scope",
            "/system.slice/kubelet.service",
            "/system.slice/podman.service",
            &format!("/kubepods/pod{POD}"),
            &format!("/kubepods.slice/crio-conmon-{ONE}.scope"),
            &format!("/system.slice/x{ONE}.scope"),
            &format!("/system.slice/{}.scope", &ONE[1..]),
            &format!("/system.slice/{}", ONE.to_uppercase()),
            "/kubepods/podzzzz5678-1234-1234-1234-123456789abc/x",
            "/é",
        ] {
            assert_eq!(read(path), [], "{path}");
        }
    }
}
