//! What the programs hang on.
//!
//! On a new interface they hang on filters of the qdisc clsact, which the kernel sets in a tenth of a
//! millisecond. By TCX, which it has since 6.6, it waits for all its readers after each program that
//! comes or goes (some 12 ms, with the lock held by which all interfaces are made and changed): of pods
//! that are made at once the last would be watched seconds later. But a packet passes TCX at half the
//! cost, so what stays is moved there at leisure. And each hook costs a packet more than our programs
//! do, so what only counts packets for watched addresses hangs there only while there are such.
//!
//! They stand first at their hook. Whoever stands behind a program that decides (Calico's eBPF
//! dataplane does, on the same interfaces) sees nothing of the packets that it decides about; and who
//! only looks, and tells the kernel to go on, disturbs nobody behind it. So where another's program
//! hangs by TCX, which runs before all filters, or by a filter before ours, they hang by TCX at once,
//! first of all. What stands at the hooks is looked at again and again.

mod standing;

use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use aya::Ebpf;
use aya::programs::tc::{
    NlOptions, SchedClassifierLinkId, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use detector_core::link::Link;
use detector_core::settings::Settings;

use self::standing::{Filter, Standing};
use super::error::HookError;
use crate::source::questions::Questions;

/// Our filters: they are tried from the lowest preference on, and those that `tc` numbers itself begin
/// at 49,152; by the handle ours can be told from those of others.
const OURS: Filter = Filter { preference: 7, handle: 0xde7 };

/// The loopback device of every network namespace.
const LOOPBACK: u32 = 1;

/// The veth pair of Calico's eBPF dataplane, which is no workload's.
const DATAPLANE: [&str; 2] = ["bpfin.cali", "bpfout.cali"];

/// How programs may be hung on interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hooks {
    /// By filters at first, by TCX at leisure and where others stand before those.
    Best,
    /// By filters of the qdisc clsact.
    Filters,
}

/// By what a program hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Filter,
    Tcx,
}

impl Hooks {
    /// What "best" is on this kernel.
    pub(super) fn of_this_kernel(self) -> Self {
        let has_tcx =
            KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 6, 0));
        if self == Self::Best && has_tcx { Self::Best } else { Self::Filters }
    }

    /// The word for it in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Best => "clsact or tcx",
            Self::Filters => "clsact",
        }
    }

    /// By what a program must hang to stand first, where this stands at the hook.
    fn way(self, standing: &Standing) -> Way {
        let first = standing.tcx.is_empty()
            && !standing.filters.iter().any(|filter| filter.is_before(OURS));
        if first || self == Self::Filters { Way::Filter } else { Way::Tcx }
    }
}

/// What sort of interface it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// A pod's.
    Pod,
    /// One that carries the node's own traffic.
    Uplink,
}

impl Place {
    /// The word for it in logs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Uplink => "uplink",
        }
    }

    /// Whether, and as what, an interface is watched. One that was once a pod's stays so whatever it
    /// is called later.
    pub(super) fn of(settings: &Settings, link: &Link, former: Option<Self>) -> Option<Self> {
        let name = link.name.as_str();
        if former == Some(Self::Pod) {
            return former;
        }
        if link.index.get() == LOOPBACK || DATAPLANE.contains(&name) {
            return None;
        }
        if settings.is_workload_name(&link.name) {
            Some(Self::Pod)
        } else if settings.is_uplink(link) {
            Some(Self::Uplink)
        } else {
            None
        }
    }

    /// The programs that hang on an interface.
    fn programs(
        self,
        ether: bool,
        watching: bool,
    ) -> impl Iterator<Item = (&'static str, TcAttachType)> {
        let inward = match (self, ether) {
            (Self::Pod, true) => "from_pod",
            (Self::Pod, false) => "from_pod_bare",
            (Self::Uplink, true) => "from_uplink",
            (Self::Uplink, false) => "from_uplink_bare",
        };
        let outward = if ether { "outward" } else { "outward_bare" };
        // What a pod pretends is looked for at any time.
        let always = self == Self::Pod;
        let inward = (always || watching).then_some((inward, TcAttachType::Ingress));
        inward.into_iter().chain(watching.then_some((outward, TcAttachType::Egress)))
    }
}

/// The programs, and what it takes to hang them.
pub(super) struct Rig {
    ebpf: Ebpf,
    questions: Questions,
    hooks: Hooks,
}

/// An interface's programs.
pub(super) struct Hung {
    pub(super) place: Place,
    pub(super) link: Link,
    /// Whether its packets begin with an Ethernet header.
    ether: bool,
    /// Since when.
    pub(super) since: Instant,
    programs: Vec<HungProgram>,
}

/// A program on one hook of an interface.
struct HungProgram {
    name: &'static str,
    hook: TcAttachType,
    way: Way,
    id: SchedClassifierLinkId,
}

/// All programs.
const ALL: [&str; 6] =
    ["from_pod", "from_pod_bare", "from_uplink", "from_uplink_bare", "outward", "outward_bare"];

/// Has the kernel check all programs: whatever it refuses shows at the start, and nothing of it has to be
/// waited for when an address begins to be watched.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), ProgramError> {
    ALL.iter().try_for_each(|name| program(ebpf, name)?.load())
}

// === impl Rig ===

impl Rig {
    /// To hang the programs of a loaded object, from which the maps were taken.
    pub(super) fn new(ebpf: Ebpf, questions: Questions, hooks: Hooks) -> Self {
        Self { ebpf, questions, hooks }
    }

    /// Hangs the programs on an interface. On one that is new nobody is looked for who may stand there
    /// already: of what the kernel does with its lock held, each question costs as much as a filter.
    pub(super) fn hang(
        &mut self,
        link: &Link,
        place: Place,
        is_new: bool,
        watching: bool,
    ) -> Result<Hung, HookError> {
        let ether = has_ethernet_header(&self.questions, link.name.as_str())?;
        let link = link.clone();
        let mut hung = Hung { place, link, ether, since: Instant::now(), programs: Vec::new() };
        let is_idle = place.programs(ether, watching).next().is_none();
        // Where the qdisc is new as well, no filter stands.
        let is_empty = is_new && (is_idle || add_qdisc(hung.link.name.as_str()));
        let mut fitted = self.fit(&mut hung, watching, is_empty);
        if !is_new && fitted.is_ok() {
            fitted = self.clear_unused(&hung);
        }
        match fitted {
            Ok(()) => Ok(hung),
            Err(error) => {
                self.unhang(hung);
                Err(error)
            }
        }
    }

    /// Takes away what a crash has left at hooks where nothing of ours hangs now.
    fn clear_unused(&mut self, hung: &Hung) -> Result<(), HookError> {
        for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
            if !hung.programs.iter().any(|hung| hung.hook == hook) {
                let standing = Standing::at(&mut self.questions, &hung.link, hook)?;
                take_away_leftover(&hung.link, hook, &standing);
            }
        }
        Ok(())
    }

    /// Hangs what is needed more while addresses are watched, or takes it away.
    pub(super) fn set_watching(
        &mut self,
        hung: &mut Hung,
        watching: bool,
    ) -> Result<(), HookError> {
        self.fit(hung, watching, false)
    }

    fn fit(&mut self, hung: &mut Hung, watching: bool, is_empty: bool) -> Result<(), HookError> {
        let wanted: Vec<_> = hung.place.programs(hung.ether, watching).collect();
        let is_wanted = |hung: &HungProgram| wanted.iter().any(|(_, hook)| *hook == hung.hook);
        for needless in hung.programs.extract_if(.., |hung| !is_wanted(hung)) {
            self.unhang_one(needless);
        }
        for (name, hook) in wanted {
            if hung.programs.iter().any(|hung| hung.hook == hook) {
                continue;
            }
            let standing = if is_empty {
                Standing::default()
            } else {
                Standing::at(&mut self.questions, &hung.link, hook)?
            };
            let way = self.hooks.way(&standing);
            if way == Way::Filter && !is_empty {
                add_qdisc(hung.link.name.as_str());
            }
            take_away_leftover(&hung.link, hook, &standing);
            let id = self.hang_one(&hung.link, way, (name, hook))?;
            hung.programs.push(HungProgram { name, hook, way, id });
        }
        Ok(())
    }

    fn hang_one(
        &mut self,
        link: &Link,
        way: Way,
        (name, hook): (&'static str, TcAttachType),
    ) -> Result<SchedClassifierLinkId, ProgramError> {
        let options = match way {
            Way::Tcx => TcAttachOptions::TcxOrder(LinkOrder::first()),
            Way::Filter => TcAttachOptions::Netlink(NlOptions {
                priority: OURS.preference,
                handle: TcHandle::from(OURS.handle),
                classid: None,
            }),
        };
        program(&mut self.ebpf, name)?.attach_with_options(link.name.as_str(), hook, options)
    }

    /// Moves programs from filters to TCX, where packets pass at a lower cost, if that may be. It takes
    /// the kernel some milliseconds.
    pub(super) fn move_to_tcx(&mut self, hung: &mut Hung) -> Result<(), HookError> {
        if self.hooks == Hooks::Filters {
            return Ok(());
        }
        for at in 0..hung.programs.len() {
            let HungProgram { name, hook, way, .. } = hung.programs[at];
            if way == Way::Filter {
                let id = self.hang_one(&hung.link, Way::Tcx, (name, hook))?;
                let moved = HungProgram { name, hook, way: Way::Tcx, id };
                let old = std::mem::replace(&mut hung.programs[at], moved);
                self.unhang_one(old);
            }
        }
        Ok(())
    }

    /// What is wrong with the programs of an interface, where they hung once: somebody has taken one
    /// away, or has come before it.
    pub(super) fn trouble(&mut self, hung: &Hung) -> Result<Option<&'static str>, HookError> {
        for HungProgram { name, hook, way, .. } in &hung.programs {
            let mut standing = Standing::at(&mut self.questions, &hung.link, *hook)?;
            let own = program(&mut self.ebpf, name)?.info()?.id();
            let present = match way {
                Way::Filter => standing.filters.contains(&OURS),
                Way::Tcx => standing.tcx.contains(&own),
            };
            if !present {
                return Ok(Some("somebody has taken it away"));
            }
            standing.tcx.retain(|id| *id != own);
            if *way == Way::Filter && self.hooks.way(&standing) == Way::Tcx {
                return Ok(Some("a program of another has come before it"));
            }
        }
        Ok(None)
    }

    /// Takes the programs from an interface.
    pub(super) fn unhang(&mut self, hung: Hung) {
        for hung in hung.programs {
            self.unhang_one(hung);
        }
    }

    fn unhang_one(&mut self, HungProgram { name, id, .. }: HungProgram) {
        let done = program(&mut self.ebpf, name).and_then(|program| program.detach(id));
        if let Err(error) = done {
            tracing::debug!(%error, "a program was gone already");
        }
    }

    /// Forgets the programs of an interface that is gone, and its filters with it.
    pub(super) fn forget(&mut self, hung: Hung) {
        for HungProgram { name, way, id, .. } in hung.programs {
            let link = program(&mut self.ebpf, name).and_then(|program| program.take_link(id));
            match link {
                // What its end would ask of the kernel costs those who make interfaces their time. Such
                // a link is a few numbers.
                Ok(link) if way == Way::Filter => std::mem::forget(link),
                Ok(link) => drop(link),
                Err(error) => tracing::debug!(%error, "a program was gone with its interface"),
            }
        }
    }
}

/// Takes the filter away that a crash has left at a hook, where none of ours is known to hang.
fn take_away_leftover(link: &Link, hook: TcAttachType, standing: &Standing) {
    if standing.filters.contains(&OURS) {
        for name in ALL {
            let _ = qdisc_detach_program(link.name.as_str(), hook, name);
        }
    }
}

/// Adds the qdisc that filters need; says whether there was none. What is wrong shows when the first
/// filter is added.
fn add_qdisc(interface: &str) -> bool {
    match qdisc_add_clsact(interface) {
        Ok(()) => return true,
        Err(TcError::AlreadyAttached) => {}
        // Older kernels say only that it exists.
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => tracing::debug!(interface, %error, "no qdisc clsact"),
    }
    false
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut SchedClassifier, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

/// Whether packets of the interface begin with an Ethernet header (`SIOCGIFHWADDR`, netdevice(7), which
/// any socket can be asked).
fn has_ethernet_header(socket: &impl AsRawFd, name: &str) -> io::Result<bool> {
    // SAFETY: all bytes zero are a value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // An interface's name has at most 15 bytes, so that a zero stays behind it.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    // SAFETY: the descriptor is open for the call, and the kernel writes into the request it is given
    // the address of, which has the size that this request number stands for.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has filled this part of the union.
    let kind = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
    Ok(kind == libc::ARPHRD_ETHER || kind == libc::ARPHRD_LOOPBACK)
}

#[cfg(test)]
mod tests {
    use detector_core::link::{InterfaceName, LinkKind};
    use detector_core::route::IfIndex;
    use detector_core::workload::NodeName;

    use super::*;

    fn place(index: u32, name: &str, kind: LinkKind, former: Option<Place>) -> Option<Place> {
        let (index, name) = (IfIndex::new(index).unwrap(), InterfaceName::new(name).unwrap());
        let settings = Settings::for_node(NodeName("node".into()));
        Place::of(&settings, &Link { index, name, kind, up: true }, former)
    }

    #[test]
    fn pods_and_uplinks_are_watched_and_nothing_else() {
        assert_eq!(place(5, "cali0123456789a", LinkKind::Container, None), Some(Place::Pod));
        assert_eq!(place(2, "ens3", LinkKind::Physical, None), Some(Place::Uplink));
        assert_eq!(place(3, "tunl0", LinkKind::Infrastructure, None), Some(Place::Uplink));
        assert_eq!(place(1, "lo", LinkKind::Physical, None), None);
        assert_eq!(place(6, "vethabc", LinkKind::Container, None), None);
        assert_eq!(place(7, "bpfin.cali", LinkKind::Container, None), None);
    }

    #[test]
    fn programs_hang_by_filters_unless_others_come_before_those() {
        let filter = |preference| Filter { preference, handle: 1 };
        let way = |tcx: &[u32], filters: &[Filter]| {
            Hooks::Best.way(&Standing { tcx: tcx.to_vec(), filters: filters.to_vec() })
        };
        assert_eq!(way(&[], &[]), Way::Filter);
        assert_eq!(way(&[], &[OURS, filter(8), filter(49_152)]), Way::Filter);
        assert_eq!(way(&[], &[filter(1)]), Way::Tcx);
        assert_eq!(way(&[], &[filter(7)]), Way::Tcx);
        assert_eq!(way(&[9], &[]), Way::Tcx);
        let standing = Standing { tcx: vec![9], filters: vec![filter(1)] };
        assert_eq!(Hooks::Filters.way(&standing), Way::Filter);
    }

    #[test]
    fn what_was_once_a_pods_stays_so() {
        let renamed = place(5, "eth7", LinkKind::Physical, Some(Place::Pod));
        assert_eq!(renamed, Some(Place::Pod));
    }
}
