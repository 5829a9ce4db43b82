//! Who wrote a route, as evidence. It is never a right: Felix is made to write wrong routes by
//! annotations, and whoever runs a process chooses the name of its command.

use super::{Judge, Leg};
use crate::facts::fib::Entry;
use crate::facts::pods::LocalPod;
use crate::finding::{Evidence, Witness, Wrote};
use crate::route::{Prefix, Protocol};
use crate::time::BootTime;
use crate::writer::{Process, Refusal};

/// `RTPROT_KERNEL`, `RTPROT_RA`, `RTPROT_BIRD` of linux/rtnetlink.h, and what Felix writes where it is
/// told to be known by (FelixConfiguration `deviceRouteProtocol`).
const KERNEL: Protocol = Protocol(2);
const ADVERTISED: Protocol = Protocol(9);
const BIRD: Protocol = Protocol(12);
const FELIX: Protocol = Protocol(80);

/// What commands of Calico's own are called: Felix, confd and the rest in one binary, the CNI plugin,
/// and BIRD.
const CALICOS: [&str; 6] = ["calico-node", "calico-felix", "felix", "calico", "bird", "bird6"];

/// `EEXIST`
const EXISTS: u32 = 17;

/// Whether the command has a name that one of Calico's own has.
pub(crate) fn is_calicos(process: &Process) -> bool {
    CALICOS.contains(&&*process.command)
}

impl Judge<'_> {
    /// Who wrote a leg's route, where that is known.
    pub(super) fn wrote(&self, leg: Leg<'_>) -> Option<Box<Wrote>> {
        let process = leg.entry.process.as_deref()?;
        let pod = self.pod_of(process).map(|pod| pod.pod.key.clone());
        Some(Box::new(Wrote { process: process.clone(), pod }))
    }

    /// Who wrote a route, as the end of a sentence.
    pub(super) fn writer_words(entry: &Entry) -> String {
        match (entry.process.as_deref(), entry.port) {
            (Some(process), _) => format!(", written by {process}"),
            (None, Some(0)) => ", made by the kernel".to_owned(),
            (None, Some(port)) => format!(", made through netlink port {port}"),
            // Who has changed its next-hop object is not known.
            (None, None) if entry.route.nexthop_id.is_some() => String::new(),
            (None, None) => ", found standing".to_owned(),
        }
    }

    /// What a route says of its maker and the kernel does not, if they are apart.
    pub(super) fn contradiction(leg: Leg<'_>) -> Option<Evidence> {
        let Entry { route, process, port, since, .. } = leg.entry;
        let process = process.as_deref()?;
        let claims = match route.protocol {
            KERNEL | ADVERTISED if *port != Some(0) => "the kernel itself",
            BIRD if !matches!(&*process.command, "bird" | "bird6") => "BIRD",
            FELIX if !is_calicos(process) => "Felix",
            _ => return None,
        };
        let text = format!(
            "the route says that {claims} made it (protocol {}), but {process} wrote it",
            route.protocol
        );
        Some(Evidence { at: *since, witness: Witness::Kernel, text: text.into() })
    }

    /// Who tried in vain to lead a prefix to a pod, since somebody says that it is the pod's: older
    /// Felix adds no route where one stands, and nobody is told.
    pub(super) fn refused(
        &self,
        prefix: Prefix,
        pod: &LocalPod,
        since: BootTime,
    ) -> Option<(Evidence, &Refusal)> {
        // What follows from a change of the pod can come before the news of the change.
        let earliest = self.facts.settings.settle;
        let leads_there = |refusal: &Refusal| {
            let link = refusal.interface.and_then(|index| self.facts.kernel.links.get(index));
            link.is_some_and(|link| {
                let own = self.facts.pods.on_interface(&link.first_name);
                own.is_some_and(|own| own.pod.key == pod.pod.key)
            })
        };
        let known = self.facts.refusals.of(prefix);
        let such =
            known.filter(|(at, refusal)| at.after(earliest) >= since && leads_there(refusal));
        // What Calico's own tried says most, whoever else did before.
        let (at, refusal) = such.max_by_key(|(at, refusal)| {
            (refusal.writer.process.as_deref().is_some_and(is_calicos), std::cmp::Reverse(*at))
        })?;
        let who = match refusal.writer.process.as_deref() {
            Some(process) => process.to_string(),
            None => format!("netlink port {}", refusal.writer.port),
        };
        let why = match refusal.error {
            EXISTS => "there is one already".to_owned(),
            error => format!("error {error}"),
        };
        let text = format!(
            "{who} tried to lead {prefix} to pod {} by table {}, and the kernel refused: {why}",
            pod.pod.key, refusal.table
        );
        Some((Evidence { at, witness: Witness::Kernel, text: text.into() }, refusal))
    }

    /// The pod of this node that a process runs in.
    fn pod_of(&self, process: &Process) -> Option<&LocalPod> {
        let uids = process.containers.iter().filter_map(|container| container.pod.as_ref());
        uids.into_iter().find_map(|uid| self.facts.pods.by_uid(uid))
    }
}
