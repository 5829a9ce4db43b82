//! What annotations claim.

use std::net::IpAddr;

use detector_core::policy::Permission;
use detector_core::workload::Pod;

use super::{Ground, annotation, of_annotation, some_of};
use crate::audit::exposure::{NodeState, Switch};
use crate::audit::facts::Marks;
use crate::audit::report::{AddressLine, Finding, Level, Rule};
use crate::audit::shell;
use crate::source::cluster::parse::{
    ADDRESSES, ADDRESSES_WITHOUT_IPAM, FLOATING_IPS, POD_IP, POD_IPS, SOURCE_PREFIXES,
};

/// Looks at the annotations of one pod.
pub(super) fn look(ground: &Ground<'_>, pod: &Pod, marks: &Marks, findings: &mut Vec<Finding>) {
    let bears = |key: &str| marks.annotations.iter().any(|mark| mark.key == key);
    if bears(FLOATING_IPS) {
        findings.push(floating(ground, pod, marks));
    }
    if bears(ADDRESSES) {
        findings.push(asked(ground, pod, marks));
    }
    if bears(ADDRESSES_WITHOUT_IPAM) {
        findings.push(past_ipam(ground, pod, marks));
    }
    if bears(SOURCE_PREFIXES) {
        findings.push(sources(ground, pod, marks));
    }
    if bears(POD_IPS) || bears(POD_IP) {
        findings.extend(annotated(ground, pod, marks));
    }
    for rejection in &marks.malformed {
        let mut finding = of_annotation(pod, marks, Rule::MalformedAnnotation, rejection.field);
        finding.level = Level::Low;
        finding.value = Some(rejection.value.clone());
        finding.message = format!(
            "the annotation {}: what somebody tried to claim is worth knowing even where it failed",
            rejection.reason.as_str()
        );
        findings.push(finding);
    }
}

/// Why annotations of a pod have no effect whatever they say; `None` where they have.
fn idle(pod: &Pod) -> Option<&'static str> {
    if pod.host_network {
        Some("the pod uses its node's network, so Calico has no interface for it")
    } else if pod.finished {
        Some("the pod is over, so Calico has no interface for it any more")
    } else if pod.node.0.is_empty() {
        Some("the pod has no node yet")
    } else {
        None
    }
}

/// `floatingIPs`, the annotation of the bulletin.
fn floating(ground: &Ground<'_>, pod: &Pod, marks: &Marks) -> Finding {
    let mut finding = of_annotation(pod, marks, Rule::FloatingIps, FLOATING_IPS);
    let lines: Vec<AddressLine> =
        pod.floating_addresses.iter().map(|address| ground.line(*address, pod)).collect();
    let victims: Vec<String> = pod
        .floating_addresses
        .iter()
        .filter_map(|address| {
            let owner = ground.other(*address, &pod.key)?;
            Some(format!("{address} of {}", super::shown_owner(&owner)))
        })
        .collect();
    let unapproved: Vec<String> = pod
        .floating_addresses
        .iter()
        .filter(|address| !is_own(pod, **address))
        .filter(|a| !matches!(ground.allowed.permission(**a, pod), Permission::Allowed(_)))
        .map(IpAddr::to_string)
        .collect();
    let acts = ground.acts(pod);
    // What was meant, where Felix acts whatever was meant.
    let meant = match ground.node(pod).map(|state| &state.switch) {
        Some(Switch::Missing) => ground.exposure.gate.floating_ips == Some(true),
        Some(Switch::On { .. }) => true,
        _ => false,
    };
    let felix = match ground.node(pod).map(|state| &state.switch) {
        Some(Switch::Missing) => "this version of Felix acts on it although the feature is off",
        Some(Switch::On { .. }) => "the feature is on, so Felix acts on it",
        Some(Switch::Off { unless: None, .. }) => "the feature is off, so Felix does not act on it",
        Some(Switch::Off { .. } | Switch::Unknown { .. }) => {
            "whether Felix acts on it could not be seen"
        }
        None => "no Calico was seen to act on it",
    };
    let (level, in_force, message) = if let Some(why) = idle(pod) {
        (Level::Low, false, format!("it claims {}; {why}", claims(pod)))
    } else if !victims.is_empty() {
        let message = format!("it claims {}; {felix}", some_of(&victims));
        match acts {
            Some(true) => (Level::Critical, true, message),
            Some(false) => (Level::Medium, false, message),
            None => {
                let node = ground.node(pod);
                let level = if node.is_some() { Level::High } else { Level::Medium };
                (level, node.is_some_and(NodeState::is_open), message)
            }
        }
    } else if pod.floating_addresses.iter().all(|address| is_own(pod, *address)) {
        let message = if pod.floating_addresses.is_empty() {
            format!("it claims no address that can be read; {felix}")
        } else {
            "it claims only the pod's own addresses".to_owned()
        };
        (Level::Low, false, message)
    } else if unapproved.is_empty() && meant {
        (Level::Note, false, "it claims addresses that the allow-list gives to this pod".to_owned())
    } else if meant {
        let message = format!(
            "it claims {}, which nobody has and no entry of the allow-list gives to this pod",
            some_of(&unapproved)
        );
        (Level::Medium, false, message)
    } else {
        let message = format!("it claims {}, which nobody is known to have; {felix}", claims(pod));
        match acts {
            Some(true) => (Level::High, true, message),
            Some(false) => (Level::Low, false, message),
            None => (Level::Medium, false, message),
        }
    };
    finding.level = level;
    finding.in_force = in_force;
    finding.message = message;
    finding.addresses = lines;
    finding
}

fn claims(pod: &Pod) -> String {
    let all: Vec<String> = pod.floating_addresses.iter().map(IpAddr::to_string).collect();
    if all.is_empty() { "nothing that can be read".to_owned() } else { some_of(&all) }
}

fn is_own(pod: &Pod, address: IpAddr) -> bool {
    pod.addresses.contains(&address)
}

/// `ipAddrs`: IPAM decides, so it is only worth a word where the address is another's.
fn asked(ground: &Ground<'_>, pod: &Pod, marks: &Marks) -> Finding {
    let mut finding = of_annotation(pod, marks, Rule::IpAddrs, ADDRESSES);
    finding.addresses = marks.asked.iter().map(|address| ground.line(*address, pod)).collect();
    let others: Vec<String> = marks
        .asked
        .iter()
        .filter_map(|address| {
            let owner = ground.other(*address, &pod.key)?;
            Some(format!("{address} of {}", super::shown_owner(&owner)))
        })
        .collect();
    (finding.level, finding.message) = if others.is_empty() {
        (Level::Note, "it asks IPAM for addresses that nobody else has".to_owned())
    } else {
        (Level::Low, format!("it asks IPAM for {}, which IPAM refuses", some_of(&others)))
    };
    finding
}

/// `ipAddrsNoIpam`: the CNI plugin gives the pod these addresses, whoever has them, where it may.
fn past_ipam(ground: &Ground<'_>, pod: &Pod, marks: &Marks) -> Finding {
    let mut finding = of_annotation(pod, marks, Rule::IpAddrsNoIpam, ADDRESSES_WITHOUT_IPAM);
    let addresses = &pod.bypassing_addresses;
    finding.addresses = addresses.iter().map(|address| ground.line(*address, pod)).collect();
    let victims: Vec<String> = addresses
        .iter()
        .filter_map(|address| {
            let owner = ground.other(*address, &pod.key)?;
            Some(format!("{address} of {}", super::shown_owner(&owner)))
        })
        .collect();
    let has = addresses.iter().any(|address| is_own(pod, *address));
    let bypass = ground.exposure.gate.bypass;
    let may = match bypass {
        Some(true) => "the CNI plugin may give them out (ip_addrs_no_ipam)",
        Some(false) => "the CNI plugin refuses it (ip_addrs_no_ipam is off)",
        None => "whether the CNI plugin may give them out could not be seen",
    };
    (finding.level, finding.in_force, finding.message) = if let Some(why) = idle(pod) {
        (Level::Low, false, format!("it takes addresses past IPAM; {why}"))
    } else if victims.is_empty() {
        let message = format!("it takes addresses past IPAM that nobody else has; {may}");
        (if bypass == Some(false) { Level::Low } else { Level::Note }, false, message)
    } else if has {
        let message = format!("it has {} past IPAM", some_of(&victims));
        (Level::Critical, true, message)
    } else {
        let level = if bypass == Some(true) { Level::High } else { Level::Medium };
        (level, false, format!("it asks for {} past IPAM; {may}", some_of(&victims)))
    };
    // It counts when the pod is made, so taking it away later changes nothing.
    finding.next = shell::show_pod(&pod.key);
    finding
}

/// `allowedSourcePrefixes`: spoofing by consent, or, where that is off, the loss of the pod's own routes.
fn sources(ground: &Ground<'_>, pod: &Pod, marks: &Marks) -> Finding {
    let mut finding = of_annotation(pod, marks, Rule::AllowedSourcePrefixes, SOURCE_PREFIXES);
    let mut foreign = Vec::new();
    for prefix in &pod.source_prefixes {
        let (line, owners) = ground.covered(*prefix, pod);
        if !owners.is_empty() && line.allowed_by.is_none() {
            foreign.push(format!(
                "{prefix} with addresses of {}",
                line.owner.as_deref().unwrap_or("-")
            ));
        }
        finding.addresses.push(line);
    }
    let covered = pod.source_prefixes.iter().all(|prefix| ground.allowed.covers(*prefix, pod));
    (finding.level, finding.in_force, finding.message) = if let Some(why) = idle(pod) {
        (Level::Low, false, format!("it asks to send from other addresses; {why}"))
    } else {
        match ground.spoofing(pod) {
            // Felix treats the endpoint as missing (felix/calc/validation_filter.go).
            Some(false) => (
                Level::Medium,
                false,
                "workloadSourceSpoofing is disabled, so Felix takes this pod's own routes away: the \
                 pod is cut off"
                    .to_owned(),
            ),
            _ if covered && !pod.source_prefixes.is_empty() => {
                (Level::Note, false, "the allow-list gives it these addresses".to_owned())
            }
            spoofing if !foreign.is_empty() => {
                let may = if spoofing.is_some() { "may" } else { "may, if Felix lets it," };
                let level = if spoofing.is_some() { Level::High } else { Level::Medium };
                (level, spoofing.is_some(), format!("it {may} send from {}", some_of(&foreign)))
            }
            _ => (Level::Low, false, "it may send from addresses that nobody has".to_owned()),
        }
    };
    finding
}

/// `podIP` and `podIPs`: what the CNI plugin wrote, or somebody after it. Felix believes them as long
/// as the status is empty.
fn annotated(ground: &Ground<'_>, pod: &Pod, marks: &Marks) -> Option<Finding> {
    let key =
        if marks.annotations.iter().any(|mark| mark.key == POD_IPS) { POD_IPS } else { POD_IP };
    let mut finding = of_annotation(pod, marks, Rule::AnnotatedPodIps, key);
    let stray: Vec<IpAddr> =
        pod.annotated_addresses.iter().copied().filter(|a| !is_own(pod, *a)).collect();
    let apart = key == POD_IPS && is_apart(pod, marks);
    if stray.is_empty() && pod.annotated_prefixes.is_empty() && !apart {
        return None;
    }
    finding.addresses = stray.iter().map(|address| ground.line(*address, pod)).collect();
    let believed = pod.addresses.is_empty() && idle(pod).is_none();
    let victims: Vec<String> = stray
        .iter()
        .filter_map(|address| {
            let owner = ground.other(*address, &pod.key)?;
            Some(format!("{address} of {}", super::shown_owner(&owner)))
        })
        .collect();
    for prefix in &pod.annotated_prefixes {
        finding.addresses.push(ground.covered(*prefix, pod).0);
    }
    let prefixes: Vec<String> = pod.annotated_prefixes.iter().map(ToString::to_string).collect();
    let felix = if believed {
        "the status is empty, so Felix believes it"
    } else {
        "Felix believes the status as long as there is one"
    };
    (finding.level, finding.in_force, finding.message) = if !prefixes.is_empty() {
        let message = format!("it names {} as the pod's address; {felix}", some_of(&prefixes));
        (if believed { Level::Critical } else { Level::Medium }, believed, message)
    } else if !victims.is_empty() {
        let message = format!("it names {}; {felix}", some_of(&victims));
        (if believed { Level::Critical } else { Level::Medium }, believed, message)
    } else if believed && !stray.is_empty() {
        // A pod that starts: the CNI plugin writes before the kubelet does.
        return None;
    } else {
        let names: Vec<String> = stray.iter().map(IpAddr::to_string).collect();
        let message = if names.is_empty() {
            format!("{} and {} disagree", annotation(POD_IP), annotation(POD_IPS))
        } else {
            format!("it names {}, which the status does not", some_of(&names))
        };
        (Level::Low, false, message)
    };
    finding.next = shell::show_pod(&pod.key);
    Some(finding)
}

/// Whether `podIP`, which only counts where `podIPs` is empty, names an address that the status does not.
fn is_apart(pod: &Pod, marks: &Marks) -> bool {
    let mark = marks.annotations.iter().find(|mark| mark.key == POD_IP);
    mark.is_some_and(|mark| {
        let text = mark.value.split_once('/').map_or(&*mark.value, |(address, _)| address);
        text.parse::<IpAddr>().map_or(true, |address| !is_own(pod, address.to_canonical()))
    })
}
